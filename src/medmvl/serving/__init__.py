"""A model behind a page: what a reader in a hospital looks at and asks."""
