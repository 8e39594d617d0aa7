"""The command line: one thin file per command group; each function only translates options into a call."""
