"""Ways to make a training step faster or smaller, and to spread it over devices."""
