"""Warnings about patients that a stage is evaluated on and that it, or a stage before it, was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from medmvl.data.leaks import find_leaks
from medmvl.training.context import StageContext

_PLURALS = {
    "patient": "patient(s)",
    "study": "study(ies)",
    "scan": "scan(s)",
    "image or volume": "image(s) or volume(s)",
}


def leak_warnings(context: StageContext) -> Iterator[str]:
    """Yield a line for each pair of data sets between which a stage's validation leaks; reads records, no media.

    Args:
        context: the stage; without `evaluate` it has no held-out data.
    """
    held_out = context.held_out()
    if not held_out:
        return
    for finding in find_leaks(context.trained_on(), held_out):
        trained, other = finding.files
        pairs = "; ".join(f"{a} and {b}" for a, b in finding.examples)
        yield (
            f"Stage {context.stage.name!r}: {finding.count} {_PLURALS[finding.kind]} of the held-out data {other!r} are in the training data "
            f"{trained!r} too (e.g. records {pairs}), so its validation looks better than it is. Split the data by patient; "
            "`medmvl data audit` with both files compares the pixels as well."
        )
