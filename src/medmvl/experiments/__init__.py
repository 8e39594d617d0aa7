"""Complete experiments built on the other packages: the quickstart and the comparison runner."""
