"""Windows in which a part of a visual input is replaced, from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, ...]
"""One slice per spatial axis of the model's input."""

Floats = NDArray[np.float32]


def sliding(shape: Sequence[int], size: Sequence[int]) -> list[Window]:
    """Return windows of `size` that cover `shape` in steps of half a window; the last one of each axis ends at its end."""
    spans: list[list[slice]] = []
    for length, width in zip(shape, size, strict=True):
        count = 1 if width >= length else int(np.ceil(2 * (length - width) / width)) + 1
        starts = np.unique(np.rint(np.linspace(0, max(length - width, 0), count)).astype(int))
        spans.append([slice(int(start), int(min(start + width, length))) for start in starts])
    grid = np.indices([len(span) for span in spans]).reshape(len(spans), -1).T
    return [tuple(span[place] for span, place in zip(spans, places, strict=True)) for places in grid]


def block_size(shape: Sequence[int], share: float, finest: Sequence[int]) -> tuple[int, ...]:
    """Return the size of a window that takes `share` of each axis, but no less than `finest`."""
    return tuple(min(n, max(round(n * share), least)) for n, least in zip(shape, finest, strict=True))


def slabs(shape: Sequence[int], share: float) -> list[Window]:
    """Return windows that take `share` of the first axis and the whole of the others."""
    return sliding(shape, (max(1, round(shape[0] * share)), *shape[1:]))


def highest(windows: Sequence[Window], heat: Floats, most: int) -> list[Window]:
    """Return at most `most` windows, those with the highest mean of `heat` ((H, W) or (D, H, W)), of which it is above 0."""
    means = np.array([heat[window].mean() for window in windows])
    order = [int(index) for index in np.argsort(-means, kind="stable") if means[index] > 0]
    return [windows[index] for index in order[:most]]


def averaged(shape: Sequence[int], windows: Sequence[Window], values: Sequence[float]) -> Floats:
    """Return for each place the mean value of the windows that cover it, 0 where none does; of `shape`."""
    total, count = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for window, value in zip(windows, values, strict=True):
        total[window] += np.float32(value)
        count[window] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)
