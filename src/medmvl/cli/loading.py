"""Word of a server that its model is being loaded."""

from __future__ import annotations

from pathlib import Path

import typer


def announce_loading(*folders: Path) -> None:
    """Print which models are loaded: the imports and the weights take seconds in which nothing else is printed."""
    typer.echo(f"Loading {' and '.join(map(str, folders))} …", err=True)
