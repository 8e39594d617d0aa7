"""`medmvl data check`: every fault of a data file at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmvl.cli import options as o
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions
from medmvl.data.read_spelling import spell_flags

if TYPE_CHECKING:
    from medmvl.data.check import Fault
    from medmvl.data.sample import Sample
    from medmvl.processing.system_turns import SystemTurnCheck


#: Warnings of one text that are printed with their files.
MOST_ALIKE = 5


@with_read_flags
def check(
    file: o.Records,
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
    """List all faults and warnings of a data file; exit status 2 if there is a fault.

    Records without an answer can be asked but not trained on; they are counted and are no fault.
    """
    from medmvl.data.check import check_records
    from medmvl.data.formats import count_records
    from medmvl.data.roots import MediaRoots
    from medmvl.progress_bar import is_shown, progress_bar

    unanswered = 0
    systems = _system_turns(model, recipe)
    warnings: list[Fault] = []

    def count_one(sample: Sample | None) -> None:
        nonlocal unanswered
        unanswered += sample is not None and not sample.answered
        if systems is not None and sample is not None:
            systems.add(sample)
        bar.advance()

    with progress_bar("records", count_records(file) if is_shown() else None) as bar:
        faults = check_records(
            file,
            MediaRoots(image_root, volume_root, reading),
            read_media=read,
            on_record=count_one,
            on_warning=warnings.append,
        )
        count = bar.done
    _echo_warnings(warnings)
    for text in systems.warnings() if systems is not None else ():
        typer.echo(f"warning: {text}")
    for fault in faults:
        typer.echo(spell_flags(fault.message))
    if faults:
        records = len({fault.where for fault in faults})
        typer.echo(f"{file}: {len(faults)} fault(s) in {records} of {count} record(s).", err=True)
        raise typer.Exit(2)
    typer.echo(f"{file}: {count} record(s), no fault.")
    if unanswered:
        typer.echo(f"{unanswered} of them hold no answer: they can be asked, not trained on or scored.")


def _echo_warnings(warnings: list[Fault]) -> None:
    """Print warnings; of those with one text (as of thousands of pictures with an EXIF orientation) the first few."""
    counts = Counter(warning.message.rpartition(": ")[2] for warning in warnings)
    shown: Counter[str] = Counter()
    for warning in warnings:
        text = warning.message.rpartition(": ")[2]
        shown[text] += 1
        if shown[text] <= MOST_ALIKE:
            typer.echo(f"warning: {spell_flags(warning.message)}")
    for text, count in counts.items():
        if count > MOST_ALIKE:
            typer.echo(f"warning: {count - MOST_ALIKE} more file(s): {spell_flags(text)}")


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
