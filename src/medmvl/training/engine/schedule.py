"""Learning rate schedules as functions of the step alone, so that a resumed run needs no saved state for them."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_steps(warmup: float, steps: int) -> int:
    """Return the length of the warm-up: a fraction of `steps` if `warmup` is below 1, else a number of steps."""
    return int(warmup) if warmup >= 1 else math.ceil(steps * warmup)


def lr_lambda(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Return a function from the step (from 0) to the factor of the peak learning rate.

    The factor rises linearly from 1 / (warmup + 1) to 1 at step `warmup`. Then "cosine" follows half a cosine wave (arXiv
    1608.03983) and "linear" a line, both to zero at step `steps`; "constant" stays at 1.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(steps - warmup, 1)
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if name == "linear" else 1.0

    return factor
