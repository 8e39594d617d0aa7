"""Warnings about patients that a stage is evaluated on and that it, or a stage before it, was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from medmvl.data.leaks import find_leaks
from medmvl.errors import counted
from medmvl.training.context import StageContext

#: Plurals that do not end in a plain s.
_PLURALS = {"study": "studies", "image or volume": "images or volumes"}


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
        shared = counted(finding.count, finding.kind, _PLURALS.get(finding.kind))
        yield (
            f"Stage {context.stage.name!r}: {shared} of the held-out data {other!r} {'is' if finding.count == 1 else 'are'} in the "
            f"training data {trained!r} too (e.g. records {pairs}), so its validation looks better than it is. Split the data by "
            "patient; `medmvl data audit` with both files compares the pixels as well."
        )
