"""`medmvl data cache`: every volume of a data file prepared once, ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from medmvl.imaging import Geometry


def cache(
    file: Annotated[Path, typer.Argument(help="JSON array, JSON Lines or Parquet file of records.")],
    out: Annotated[Path, typer.Option(help="Cache folder; one that is there is completed.")],
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder or recipe (.yaml) whose volume geometry is used.")
    ] = None,
    geometry: Annotated[str | None, typer.Option(help="Instead of --model: name or .yaml of a geometry.")] = None,
    volume_root: Annotated[
        Path | None, typer.Option(help="Folder of the volumes; default: the data file's own.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes (or Ray tasks) at a time.", min=1)] = 1,
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="ray: over many machines (extra 'ray').")
    ] = "processes",
    metadata: Annotated[
        Path | None, typer.Option(help="CT-RATE's metadata csv, for NIfTI files without rescale.")
    ] = None,
    units: Annotated[Literal["HU", "arbitrary"] | None, typer.Option(help="Units, where files do not tell.")] = None,
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series of a folder: largest, thinnest, axial ...")
    ] = None,
    gaps: Annotated[Literal["refuse", "fill", "keep"], typer.Option(help="Missing DICOM slices.")] = "refuse",
) -> None:
    """Prepare all volumes of FILE with the model's geometry; run it again to go on. Exit status 1 if any volume failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from medmvl.processing.cache import FAILURES, build_cache

    wanted = find_geometry(model, geometry)
    console = Console(stderr=True)
    columns = (TextColumn("volumes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    options = {name: value for name, value in (("units", units), ("series", series)) if value is not None}
    if gaps != "refuse":
        options["gaps"] = gaps
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("volumes", total=None)
        report = build_cache(
            file,
            wanted,
            out,
            volume_root=volume_root,
            workers=workers,
            engine=engine,
            metadata=metadata,
            options=options,
            on_volume=lambda total: progress.update(task, advance=1, total=total),
        )
    typer.echo(
        f"{out}: {report.prepared} volume(s) prepared, {report.kept} already there, {len(report.failures)} failed; "
        f"geometry {wanted.name} v{wanted.version} ({wanted.hash}), size {wanted.size}."
    )
    if report.failures:
        table = Table("record", "reason", title=f"failed, see {FAILURES}")
        for number, reason in report.failures[:50]:
            table.add_row(str(number), reason)
        console.print(table)
        raise typer.Exit(1)


def find_geometry(model: Path | None, name: str | None) -> Geometry:
    """Return the geometry of a checkpoint folder, of a recipe, or of a name.

    Raises:
        RecipeError: if neither or both are given, or the model has no volume tower.
    """
    from medmvl.errors import RecipeError
    from medmvl.imaging import geometry as geometry_of

    if (model is None) == (name is None):
        raise RecipeError("Give either --model (a checkpoint folder or a recipe) or --geometry (a name or .yaml file).")
    if name is not None:
        return geometry_of(name)
    assert model is not None
    found = _of_recipe(model) if model.suffix in (".yaml", ".yml") else _of_folder(model)
    if found is None:
        raise RecipeError(f"{model} has no volume tower: there is nothing to cache.")
    return found


def _of_folder(folder: Path) -> Geometry | None:
    from medmvl.files import existing_folder
    from medmvl.processing import MedMVLProcessor

    volume = MedMVLProcessor.from_pretrained(existing_folder(folder, "checkpoint")).volume_processor
    return volume.geometry if volume else None


def _of_recipe(path: Path) -> Geometry | None:
    """The geometry as training will make it, without building a model or a tokenizer."""
    from medmvl.models import MedMVLConfig
    from medmvl.models.assemble import tower_spec
    from medmvl.training.build import volume_processor
    from medmvl.training.recipe_io import load_recipe

    section = load_recipe(path).model
    if section.from_ is not None:
        return _of_folder(Path(section.from_))
    if section.volume is None:
        return None
    tower = section.volume
    config = MedMVLConfig(towers={"volume": tower_spec(tower.encoder, tower.connector, tower.size).to_dict()})
    return volume_processor(tower, config).geometry
