"""`medmvl checkpoint convert | export | merge | inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o
from medmvl.errors import counted

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Checkpoint folder.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist, or be empty.")]


def convert(
    source: Source,
    target: Target,
    resolve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Folder of the part that the checkpoint calls NAME (config, tokenizer, processor; no weights). Repeatable.",
        ),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Prompt style to use instead of the source's.")] = None,
    towers: Annotated[
        str | None, typer.Option(help="Inputs of a reference checkpoint's 2D encoder: image, volume or both.")
    ] = None,
    hub_generation: Annotated[
        bool, typer.Option(help="Use the LLM's generation settings, as the reference did before October 2025.")
    ] = False,
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA alpha of a reference's intermediate save with unmerged adapters.")
    ] = None,
) -> None:
    """Convert a MedM-VL reference, TinyLLaVA or HF LLaVA checkpoint to a MedM-VL folder."""
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
    typer.echo(f"  logits differ by {done.difference:.1e} of the largest one")
    for name, how in done.names.items():
        typer.echo(f"  {name}: {how}")
    for part, count in done.unused.items():
        typer.echo(f"  not needed: {counted(count, 'tensor')} of {part}")
    for note in done.notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"Written to {target}; the whole list is in its conversion.json.")


def export(
    source: Source,
    target: Target,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="llava-hf (transformers, vLLM, SGLang), gguf (llama.cpp), or llm (the LLM alone, for serve --backend).",
        ),
    ],
    drop_volume_tower: Annotated[
        bool, typer.Option("--drop-volume-tower", help="Export a model with both towers without the one for volumes.")
    ] = False,
) -> None:
    """Export a model for another engine and compare it with the original."""
    from medmvl.errors import RecipeError, did_you_mean

    if format == "llava-hf":
        from medmvl.checkpoints import export_llava

        llava = export_llava(source, target, drop_volume_tower=drop_volume_tower)
        typer.echo(f"Largest difference of a logit: {llava.difference:.1e}")
        notes = llava.notes
    elif format == "gguf":
        from medmvl.checkpoints import export_gguf

        pair = export_gguf(source, target, drop_volume_tower=drop_volume_tower)
        typer.echo(f"{pair.tensors} tensors written, read back and compared: {', '.join(pair.files)}")
        notes = pair.notes
    elif format == "llm":
        from medmvl.checkpoints import export_llm

        notes = export_llm(source, target)
    else:
        raise RecipeError(f"Unknown --format {format!r}. {did_you_mean(format, ['llava-hf', 'gguf', 'llm'])}")
    for note in notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"Written to {target}")


def merge(
    source: Source,
    target: Target,
    base: Annotated[
        Path | None, typer.Option(help="Checkpoint that the adapters were trained on; default: the one they name.")
    ] = None,
) -> None:
    """Merge LoRA adapters into the weights; logits are compared before and after."""
    from medmvl.checkpoints import merge as run

    done = run(source, target, base)
    typer.echo(
        f"{done.adapted} adapted weights merged into {done.base}; logits differ by {done.difference:.1e} of their size."
    )
    typer.echo(f"Written to {target}")


def inspect(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint or adapter folder.")]) -> None:
    """Print parts, shapes, dtypes, geometry, template and recipe of a folder."""
    from medmvl.checkpoints import inspect_folder, print_inspection

    print_inspection(inspect_folder(folder))


def calibrate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Checkpoint folder; calibration.json is written into it.")
    ],
    data: o.DataFile,
    target: Annotated[
        float, typer.Option(help="Accuracy that answers above the threshold reach on the data.", min=0.5, max=1.0)
    ] = 0.99,
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    batch_size: o.BatchSize = 16,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Choose the temperature of confidences, and the threshold to abstain below, on validation records."""
    from medmvl.data.dataset import SampleDataset
    from medmvl.data.roots import MediaRoots
    from medmvl.evaluation.calibration import fit_calibration
    from medmvl.files import check_output
    from medmvl.inference import Predictor
    from medmvl.inference.calibration import FILE
    from medmvl.progress_bar import progress_bar

    predictor = Predictor.from_pretrained(folder, device=device, dtype=dtype)
    check_output(folder / FILE)
    dataset = SampleDataset(data, MediaRoots(image_root, volume_root))
    with progress_bar("calibrating") as bar:
        found = fit_calibration(predictor, dataset, target=target, batch_size=batch_size, on_row=bar.update)
    path = found.save(folder)
    typer.echo(
        f"Temperature {found.temperature:.3f}: NLL {found.nll_before:.4f} -> {found.nll_after:.4f} nats per token of "
        f"{found.records} records."
    )
    if found.coverage:
        typer.echo(
            f"Threshold {found.threshold:.4f}: {found.coverage:.1%} of the closed questions answered, at least "
            f"{target:.1%} of them right, on these records."
        )
    else:
        typer.echo(f"No threshold: no confidence goes with {target:.1%} right answers, so 'stored' abstains always.")
    typer.echo(f"Written to {path}")
