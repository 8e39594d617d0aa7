"""`medmvl serve`: an OpenAI-compatible HTTP server that answers about images and volumes."""
