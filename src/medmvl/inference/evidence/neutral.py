"""Neutral content that replaces a part of a visual input.

What stands for "nothing to see here" decides what occlusion finds: a black patch in a lung is a finding of its own. Choices:

- "blur", the default: a blurred copy of the input, the perturbation of Fong and Vedaldi 2017 (arXiv:1704.03296); the filter is as wide
  as the window. It keeps what is larger than the window.
- "surroundings": the mean of a rim around the window, a quarter of its size wide, per channel. The local mean of Zeiler and
  Fergus 2014 (arXiv:1311.2901, gray patch) and of the infilling baselines of Chang et al. 2019 (arXiv:1807.08024).
- "tissue": soft tissue, 40 HU (the middle of the usual mediastinal window, Radiopaedia), through the geometry's first window; for
  images and volumes in arbitrary units the mean of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from medmvl.inference.evidence.windows import Window

Neutral = Literal["surroundings", "blur", "tissue"]
NEUTRALS: tuple[str, ...] = get_args(Neutral)

#: HU of soft tissue.
TISSUE = 40.0


class Replacement:
    """Replaces windows of one visual input by neutral content.

    Args:
        values: (C, H, W) or (C, D, H, W), as the model takes it.
        kind: what is neutral.
        tissue: (C,) value of soft tissue; None: the mean of `values` over all places.
    """

    def __init__(self, values: Tensor, kind: Neutral, tissue: Tensor | None = None) -> None:
        self.values, self.kind = values, kind
        mean = values.flatten(1).mean(1)
        self._tissue = mean if tissue is None else tissue.to(mean)
        self._blurred: dict[tuple[int, ...], Tensor] = {}

    def occlude(self, window: Window) -> Tensor:
        """Return a copy of the input, (C, [D,] H, W), in which the window is neutral."""
        copy = self.values.clone()
        copy[(slice(None), *window)] = self._content(window)
        return copy

    def everything(self, size: Sequence[int]) -> Tensor:
        """Return an input, (C, [D,] H, W), that is neutral everywhere: blurred over `size`, or all tissue."""
        if self.kind == "tissue":
            return self._as_column(self._tissue).expand_as(self.values).clone()
        return self._blur(tuple(size))

    def _content(self, window: Window) -> Tensor:
        inside = (slice(None), *window)
        if self.kind == "tissue":
            return self._as_column(self._tissue)
        if self.kind == "blur":
            return self._blur(tuple(part.stop - part.start for part in window))[inside]
        return self._as_column(self._rim_mean(window))

    def _rim_mean(self, window: Window) -> Tensor:
        """Return (C,) the mean around a window; of the whole input for a window without surroundings."""
        shape = self.values.shape[1:]
        rim = []
        for part, length in zip(window, shape, strict=True):
            margin = max(1, (part.stop - part.start) // 4)
            rim.append(slice(max(0, part.start - margin), min(length, part.stop + margin)))
        outer, inner = self.values[(slice(None), *rim)], self.values[(slice(None), *window)]
        count = outer[0].numel() - inner[0].numel()
        if count == 0:
            return self.values.flatten(1).mean(1)
        return (outer.flatten(1).sum(1) - inner.flatten(1).sum(1)) / count

    def _blur(self, size: tuple[int, ...]) -> Tensor:
        """Return the input after three box filters as wide as `size`, about a Gaussian; edges are repeated."""
        if size not in self._blurred:
            blurred = self.values[None].float()
            for axis, width in enumerate(size):
                blurred = _box_filter(blurred, 2 + axis, width)
            self._blurred[size] = blurred[0].to(self.values.dtype)
        return self._blurred[size]

    def _as_column(self, channels: Tensor) -> Tensor:
        return channels.view(-1, *(1 for _ in self.values.shape[1:]))


def _box_filter(values: Tensor, axis: int, width: int) -> Tensor:
    """Return `values` of any shape, three times averaged along `axis` over an odd width of at most its length."""
    length = values.shape[axis]
    odd = min(width, length) | 1
    odd = odd if odd <= length else odd - 2
    if odd < 3:
        return values
    moved = values.movedim(axis, -1)
    rows = moved.reshape(-1, 1, length)
    for _ in range(3):
        rows = F.avg_pool1d(F.pad(rows, (odd // 2, odd // 2), mode="replicate"), odd, stride=1)
    return rows.reshape(moved.shape).movedim(-1, axis)


def tissue_value(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return (C,) the values of a share `unit` (C,) of the range from `low` to `high`, each (C, 1, 1, 1)."""
    return low.flatten() + unit * (high - low).flatten()
