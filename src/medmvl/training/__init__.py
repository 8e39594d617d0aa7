"""Training: recipes, objectives, and the loop that runs their stages."""
