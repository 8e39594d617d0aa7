"""`medmvl challenge vlm3d | rexgroundingct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path | None, typer.Option(help="Write the scores to this JSON file as well.")]


def vlm3d(
    labels: Annotated[Path, typer.Option(help="CT-RATE's table of labels: VolumeName and the 18 findings.")],
    reports: Annotated[
        Path | None, typer.Option(help="Predictions [{input_image_name, report}]; needs --references.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="CT-RATE's table of reports of the same volumes.")] = None,
    probabilities: Annotated[Path | None, typer.Option(help="Predictions [{input_image_name, probabilities}].")] = None,
    not_chest: Annotated[
        Path | None, typer.Option(help="List of volumes of other body parts, a name a line; needs --references.")
    ] = None,
    train_reports: Annotated[
        Path | None,
        typer.Option(help="Training reports for the table baseline; needs --train-labels, --probabilities."),
    ] = None,
    train_labels: Annotated[Path | None, typer.Option(help="Training labels for the table baseline.")] = None,
    out: Out = None,
) -> None:
    """Score predictions of the VLM3D challenge: classification, reports, and the table baseline of reports.

    With --references and --not-chest the volumes are those of the corrected validation list: one per scan, chest only, each
    report text once.
    """
    from medmvl.errors import RecipeError
    from medmvl.evaluation.challenge_files import read_label_table, read_names, read_report_table
    from medmvl.evaluation.vlm3d import challenge_scores, read_probabilities, read_reports

    if reports is None and probabilities is None:
        raise RecipeError("Nothing to score. Give --reports, --probabilities, or both.")
    if (reports is not None or not_chest is not None) and references is None:
        raise RecipeError("--reports and --not-chest need --references, the table of reference reports.")
    if (train_reports is None) != (train_labels is None) or (train_reports and not (probabilities and references)):
        raise RecipeError("The table baseline needs --train-reports, --train-labels, --probabilities and --references.")
    scores = challenge_scores(
        read_label_table(labels),
        reports=read_reports(reports) if reports else None,
        references=read_report_table(references) if references else None,
        probabilities=read_probabilities(probabilities) if probabilities else None,
        not_chest=read_names(not_chest) if not_chest else None,
        training=(read_report_table(train_reports), read_label_table(train_labels))
        if train_reports and train_labels
        else None,
    )
    _show(scores, out)


def rexgroundingct(
    predictions: Annotated[Path, typer.Option(help="Folder of predicted masks or heat maps, a NIfTI file a volume.")],
    masks: Annotated[Path, typer.Option(help="Folder of the reference masks, with the same names.")],
    heat_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of a heat map's maximum from which a voxel is in the mask.")
    ] = 0.5,
    out: Out = None,
) -> None:
    """Score masks of ReXGroundingCT: mean Dice, hit rate, and precision, recall and F1 of instances."""
    from medmvl.evaluation.challenge_files import score_masks

    _show({"grounding": score_masks(predictions, masks, heat_threshold=heat_threshold)}, out)


def _show(scores: dict[str, dict[str, Any]], out: Path | None) -> None:
    from medmvl.files import write_json

    for what, values in scores.items():
        typer.echo(f"{what}:")
        for name, value in values.items():
            typer.echo(f"  {name:<20} {value if isinstance(value, int) else format(value, '.4f')}")
    if out is not None:
        write_json(out, scores)
