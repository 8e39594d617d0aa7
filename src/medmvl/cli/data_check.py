"""`medmvl data check`: every fault of data files at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmvl.cli import options as o
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions
from medmvl.data.read_spelling import spell_flags
from medmvl.errors import counted

if TYPE_CHECKING:
    from medmvl.data.media_check import MediaCheck
    from medmvl.data.roots import MediaRoots, Root
    from medmvl.data.sample import Sample
    from medmvl.processing.system_turns import SystemTurnCheck


@with_read_flags
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files of records (JSON array, JSON Lines, Parquet) or URLs, or the folder of a conversion: all its files.",
            parser=o.place,
            metavar="FILE...",
        ),
    ],
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    read: Annotated[bool, typer.Option(help="Also decode every image and volume.")] = True,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoint: say which system turns its chat template leaves out."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe: the same for the chat templates of its stages.")
    ] = None,
    *,
    reading: ReadOptions,
) -> None:
    """List all faults and warnings of data files; exit status 2 if there is a fault.

    An image or volume that cannot be read has one line for each data file, with the records that use it. Records without an
    answer can be asked but not trained on; they are counted and are no fault.
    """
    from medmvl.data.media_check import MediaCheck
    from medmvl.data.roots import MediaRoots, records_files

    systems = _system_turns(model, recipe)
    roots, media = MediaRoots(image_root, volume_root, reading), MediaCheck(read)
    chosen = [file for place in files for file in records_files(place)]
    right = [_check_one(file, roots, media, systems) for file in dict.fromkeys(chosen)]
    for text in systems.warnings() if systems is not None else ():
        typer.echo(f"warning: {text}")
    if not all(right):
        raise typer.Exit(2)


def _check_one(file: Root, roots: MediaRoots, media: MediaCheck, systems: SystemTurnCheck | None) -> bool:
    """Check a data file and print what is found; return whether it has no fault."""
    from medmvl.data.check import check_records
    from medmvl.data.faults import Fault, fault_lines, warning_lines
    from medmvl.data.formats import count_records
    from medmvl.data.origins import origins_of
    from medmvl.progress_bar import is_shown, progress_bar

    name, unanswered = str(file).rpartition("/")[2], 0
    warnings: list[Fault] = []

    def count_one(sample: Sample | None) -> None:
        nonlocal unanswered
        unanswered += sample is not None and not sample.answered
        if systems is not None and sample is not None:
            systems.add(sample)
        bar.advance()

    with progress_bar(f"records of {name}", count_records(file) if is_shown() else None) as bar:
        faults = check_records(file, roots, media=media, on_record=count_one, on_warning=warnings.append)
        count = bar.done
    for line in warning_lines(warnings):
        typer.echo(f"warning: {spell_flags(line)}")
    for line in fault_lines(faults, name, origins_of(file)):
        typer.echo(spell_flags(line))
    if faults:
        records, broken = len({fault.where for fault in faults}), len({fault.file for fault in faults if fault.file})
        among = f" ({counted(broken, 'faulty image or volume', 'faulty images and volumes')})" if broken else ""
        typer.echo(f"{file}: faults in {records} of {counted(count, 'record')}{among}.", err=True)
        return False
    typer.echo(f"{file}: {counted(count, 'record')}, no fault.")
    if unanswered:
        typer.echo(f"{unanswered} of them hold no answer: they can be asked, not trained on or scored.")
    return True


def _system_turns(model: Path | None, recipe: Path | None) -> SystemTurnCheck | None:
    """Return the check of system turns against the chat templates of a checkpoint and of a recipe; None without either."""
    if model is None and recipe is None:
        return None
    from medmvl.processing import MedMVLProcessor
    from medmvl.processing.system_turns import SystemTurnCheck

    templates = {}
    if model is not None:
        processor = MedMVLProcessor.from_pretrained(str(model))
        templates[f"The chat template of {model}"] = (processor.chat_template, processor.tokenizer)
    if recipe is not None:
        from medmvl.training.prompts import stage_templates

        for name, template in stage_templates(recipe).items():
            templates[f"The chat template of stage {name!r}"] = template
    return SystemTurnCheck(templates)
