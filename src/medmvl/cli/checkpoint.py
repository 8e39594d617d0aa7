"""`medmvl checkpoint convert | export | merge | inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Checkpoint folder.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist, or be empty.")]


def convert(
    source: Source,
    target: Target,
    resolve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Where the part that the checkpoint calls NAME lies (config, tokenizer, processor; no weights). Repeatable.",
        ),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Another prompt style than the source's.")] = None,
    towers: Annotated[
        str | None, typer.Option(help="What a reference checkpoint's 2D encoder serves: image, volume or both.")
    ] = None,
    hub_generation: Annotated[
        bool, typer.Option(help="Take over the LLM's generation settings, as the reference did before October 2025.")
    ] = False,
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA alpha of an unmerged intermediate save of the reference.")
    ] = None,
) -> None:
    """Convert a MedM-VL reference, TinyLLaVA or HF LLaVA checkpoint into a folder of ours."""
    from medmvl.checkpoints import convert as run
    from medmvl.checkpoints import parse_resolutions
    from medmvl.errors import RecipeError, did_you_mean

    choices = {None: None, "image": ["image"], "volume": ["volume"], "both": ["image", "volume"]}
    if towers not in choices:
        raise RecipeError(f"Unknown --towers {towers!r}. {did_you_mean(str(towers), ['image', 'volume', 'both'])}")
    done = run(
        source,
        target,
        parse_resolutions(resolve or []),
        template=template,
        hub_generation=hub_generation,
        lora_alpha=lora_alpha,
        towers=choices[towers],
    )
    typer.echo(f"{done.layout}: {done.tensors} tensors, {done.bytes / 1e6:,.1f} MB, all found, none unknown.")
    for name, how in done.names.items():
        typer.echo(f"  {name}: {how}")
    for part, count in done.unused.items():
        typer.echo(f"  not needed: {count} tensor(s) of {part}")
    for note in done.notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"Written to {target}; the whole list is in its conversion.json.")


def export(
    source: Source,
    target: Target,
    format: Annotated[str, typer.Option("--format", help="llava-hf (transformers, vLLM, SGLang) or gguf (llama.cpp).")],
) -> None:
    """Write a 2D model in another engine's format, compared with the original."""
    from medmvl.errors import RecipeError, did_you_mean

    if format == "llava-hf":
        from medmvl.checkpoints import export_llava

        llava = export_llava(source, target)
        typer.echo(f"Largest difference of a logit: {llava.difference:.1e}")
        notes = llava.notes
    elif format == "gguf":
        from medmvl.checkpoints import export_gguf

        pair = export_gguf(source, target)
        typer.echo(f"{pair.tensors} tensors written, read back and compared: {', '.join(pair.files)}")
        notes = pair.notes
    else:
        raise RecipeError(f"Unknown --format {format!r}. {did_you_mean(format, ['llava-hf', 'gguf'])}")
    for note in notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"Written to {target}")


def merge(
    source: Source,
    target: Target,
    base: Annotated[
        Path | None, typer.Option(help="The checkpoint the adapters were trained on; default: what they name.")
    ] = None,
) -> None:
    """Fold LoRA adapters into the weights, compared before and after."""
    from medmvl.checkpoints import merge as run

    done = run(source, target, base)
    typer.echo(
        f"{done.adapted} adapted weights folded into {done.base}; logits differ by {done.difference:.1e} of their size."
    )
    typer.echo(f"Written to {target}")


def inspect(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint or adapter folder.")]) -> None:
    """Show what is in a folder: parts, shapes, dtypes, geometry, template, recipe."""
    from medmvl.checkpoints import inspect_folder, print_inspection

    print_inspection(inspect_folder(folder))
