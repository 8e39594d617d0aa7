"""Command line: one file per command group; each function translates options into a call."""
