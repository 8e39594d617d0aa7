"""Occlusion: the drop of a sentence's log-probability when a place is replaced, from coarse to fine.

A volume is first cut into slabs, whose drops are the bars over its slices. Then windows of a third of each axis slide over the input in
steps of half a window. Later levels halve the windows, and only the most promising of them are run. Occlusion is that of Zeiler
and Fergus 2014 (arXiv:1311.2901), with the log-probability of text in place of a class score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medmvl.inference.evidence.neutral import Replacement
from medmvl.inference.evidence.windows import Window, averaged, block_size, highest, slabs, sliding

Floats = NDArray[np.float32]
Score = Callable[[Tensor], list[float]]

#: Share of each axis that a window of the first level takes; organs of the chest are about this large.
COARSEST = 1 / 3
#: Share of a volume's first axis that a slab takes.
SLAB = 1 / 4


@dataclass(frozen=True, eq=False)
class Level:
    """What is known after a level.

    Attributes:
        heat: (H, W) or (D, H, W) on the model's grid, mean over the levels so far; nats.
        bars: (D,) drop per slab along the first axis; empty for an image.
        done: windows that were run so far.
        total: windows of all levels, at most.
    """

    heat: Floats
    bars: Floats
    done: int
    total: int


@dataclass(frozen=True)
class Plan:
    """Windows of an occlusion.

    Attributes:
        shape: (H, W) or (D, H, W) of the model's input.
        finest: least size of a window, per axis.
        levels: number of levels.
        most: most windows of each level after the first.
        batch: inputs that are run at once.
    """

    shape: tuple[int, ...]
    finest: tuple[int, ...]
    levels: int
    most: int
    batch: int

    def size(self, level: int) -> tuple[int, ...]:
        """Return the size of the windows of a level, from 0."""
        return block_size(self.shape, COARSEST / 2**level, self.finest)

    def slabs(self) -> list[Window]:
        """Return the slabs of a volume; none for an image."""
        return slabs(self.shape, SLAB) if len(self.shape) == 3 else []

    def total(self) -> int:
        """Return how many windows are run at most."""
        counts = [len(sliding(self.shape, self.size(level))) for level in range(self.levels)]
        return len(self.slabs()) + counts[0] + sum(min(count, self.most) for count in counts[1:])


def occlude(
    replacement: Replacement,
    score: Score,
    whole: float,
    plan: Plan,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Iterator[Level]:
    """Yield what is known after each level.

    Args:
        replacement: of the visual input.
        score: inputs (N, C, [D,] H, W) -> log-probabilities.
        whole: log-probability for the input as it is.
        plan: the windows.
        on_batch: called with the windows run so far after each batch; may raise to stop.
    """
    done, total = 0, plan.total()

    def drops(windows: Sequence[Window]) -> list[float]:
        nonlocal done
        found: list[float] = []
        for start in range(0, len(windows), plan.batch):
            part = windows[start : start + plan.batch]
            found += [whole - value for value in score(torch.stack([replacement.occlude(one) for one in part]))]
            done += len(part)
            on_batch(done)
        return found

    bars = np.zeros(0, dtype=np.float32)
    if layers := plan.slabs():
        along = [(window[0],) for window in layers]
        bars = averaged(plan.shape[:1], along, drops(layers))
    heats: list[Floats] = []
    for level in range(plan.levels):
        windows = sliding(plan.shape, plan.size(level))
        if level:
            windows = highest(windows, heats[-1], plan.most)
        heats.append(averaged(plan.shape, windows, drops(windows)))
        yield Level(np.mean(heats, axis=0, dtype=np.float32), bars, done, total)
