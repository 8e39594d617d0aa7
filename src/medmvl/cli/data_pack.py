"""`medmvl data pack`: stored features of a run as tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o


def pack(
    features: Annotated[Path, typer.Argument(help="Folder `features` of a run with `feature_cache`.")],
    out: Annotated[Path, typer.Option(help="Folder or URL of the shards.", parser=o.place, metavar="PATH")],
) -> None:
    """Pack the stored features of a run into tar shards, for `run.feature_shards` of other runs."""
    from medmvl.errors import DataError
    from medmvl.files import existing_folder
    from medmvl.imaging.feature_store import pack_features
    from medmvl.remote import RemotePath, join

    folder = existing_folder(features, "features")
    stores = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if not stores:
        raise DataError(f"{folder} holds no stored features. Give the folder `features` of a run with `feature_cache`.")
    for store in stores:
        target = join(out, store.name) if isinstance(out, RemotePath) else out / store.name
        typer.echo(f"{target}: features of {pack_features(store, target)} files")
