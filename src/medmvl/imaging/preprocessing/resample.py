"""Foreground cropping and linear resampling of volumes.

A CT volume takes 150 MB as int16, and the model's input only 2 MB. The foreground box is therefore found on the raw
integers (a monotone gray map does not change it), and only slices that contribute to the output are windowed and
resized. The result equals `torch.nn.functional.interpolate(mode="trilinear", align_corners=False)` of the windowed
volume bit for bit on CPUs where torch uses fused multiply-add (x86 with FMA3, ARM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
Grid = Literal["edges", "centers"]

# Up to this many output rows or columns torch's `bilinear` uses a kernel that rounds differently from `trilinear`.
# `trilinear` on a single slice costs four times more, which does not matter at this size.
_BILINEAR_OWN_KERNEL = 64

_SAMPLED_SLICES = 9


def by_memory(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], tuple[bool, ...]]:
    """Return a view of `array` (D, H, W) in memory order, which is fastest to loop over.

    Returns:
        the view; for each of its axes the index of that axis in `array`; for each of its axes whether it is reversed.
    """
    order = tuple(int(axis) for axis in np.argsort([-abs(stride) for stride in array.strides], kind="stable"))
    view = array.transpose(order)
    turned = tuple(stride < 0 for stride in view.strides)
    return view[tuple(slice(None, None, -1 if t else 1) for t in turned)], order, turned


def foreground_box(array: np.ndarray, is_foreground: Callable[[np.ndarray], np.ndarray]) -> Box | None:
    """Return the bounding box of the foreground as ((z0, y0, x0), (z1, y1, x1)), ends exclusive, or None if empty.

    Little of the array is read if the foreground reaches its edges.

    Args:
        array: (D, H, W), any real dtype, without NaN.
        is_foreground: maps values to booleans; must be monotone (true for every value above a foreground value),
            because it is applied to maximum projections.
    """
    view, order, turned = by_memory(array)
    first = next((i for i in range(len(view)) if is_foreground(view[i].max(keepdims=True)).any()), None)
    if first is None:
        return None
    last = next(i for i in range(len(view) - 1, first - 1, -1) if is_foreground(view[i].max(keepdims=True)).any())
    inner = view[first : last + 1]
    # A few slices give most of the box; all slices are then searched only outside of it.
    few = inner[np.unique(np.linspace(0, len(inner) - 1, _SAMPLED_SLICES).astype(int))].max(axis=0)
    rows = _widen(_span(is_foreground(few.max(axis=1))), inner, 1, is_foreground)
    columns = _widen(_span(is_foreground(few.max(axis=0))), inner[:, slice(*rows)], 2, is_foreground)
    spans = [(first, last + 1), rows, columns]
    start, stop = [0, 0, 0], [0, 0, 0]
    for (low, high), axis, back, length in zip(spans, order, turned, view.shape, strict=True):
        start[axis], stop[axis] = (length - high, length - low) if back else (low, high)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def value_range(array: np.ndarray) -> tuple[float, float]:
    """Return the minimum and maximum of `array` (D, H, W), read slice by slice."""
    view, _, _ = by_memory(array)
    pairs = [(plane.min(), plane.max()) for plane in view]
    return float(min(low for low, _ in pairs)), float(max(high for _, high in pairs))


@dataclass(frozen=True)
class AxisPlan:
    """Linear interpolation along one axis: output i is input[low[i]] * (1 - weight[i]) + input[high[i]] * weight[i].

    `inside[i]` is False where the output is padding. All arrays have the length of the output axis.
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    inside: np.ndarray


def plan_axis(
    length: int, resampled: int, output: int, grid: Grid = "edges", step: float | None = None, offset: int = 0
) -> AxisPlan:
    """Return the plan that resamples one axis and then crops or pads it.

    Args:
        length: number of input voxels.
        resampled: number of samples after resampling.
        output: number of samples in the output.
        grid: "edges": the outer edges of the first and last voxel are fixed (torch, align_corners=False); "centers":
            the center of the first voxel is fixed, and a sample is taken every `step` input voxels, repeating the last
            voxel beyond the end (ITK, MONAI's Spacing).
        step: input voxels per sample, for "centers" only.
        offset: index of the first resampled sample in the output; negative: that many padding samples come first.
    """
    sample = np.arange(output) + offset
    if grid == "edges":
        # torch computes this in single precision with a fused multiply-add; these weights agree to the last bit
        ratio = np.float64(np.float32(length) / np.float32(resampled))
        position = (ratio * (sample + 0.5) - 0.5).astype(np.float32)
    else:
        assert step is not None
        position = (sample * step).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    low = np.minimum(position.astype(np.int64), length - 1)
    weight = np.clip(position - low.astype(np.float32), 0, 1).astype(np.float32)
    return AxisPlan(low, np.minimum(low + 1, length - 1), weight, (sample >= 0) & (sample < resampled))


@dataclass(frozen=True)
class Resampling:
    """Plan for a volume: crop to `box`, resample to `resampled` (d, h, w), center crop or pad to `size` (D, H, W).

    `step` is the sampling step in input voxels per axis, for grid "centers" only.
    """

    box: Box
    resampled: tuple[int, int, int]
    size: tuple[int, int, int]
    grid: Grid = "edges"
    step: tuple[float, float, float] | None = None

    @property
    def offset(self) -> tuple[int, int, int]:
        """Index of the first resampled sample in the output per axis; negative if padding comes first."""
        d, h, w = (_offset(r, s) for r, s in zip(self.resampled, self.size, strict=True))
        return d, h, w


def resample(
    array: np.ndarray,
    plan: Resampling,
    to_channels: Callable[[np.ndarray], np.ndarray],
    finish: Callable[[np.ndarray], np.ndarray],
    out: np.ndarray,
) -> None:
    """Fill the non-padding part of `out` (C, D, H, W) with `array` (D, H, W) resampled by `plan`.

    Args:
        to_channels: maps a raw slice (h, w) to contiguous float32 (C, h, w) before interpolation.
        finish: maps an interpolated slice, float32 (C, H, W), to the stored values.
    """
    (z0, y0, x0), (z1, y1, x1) = plan.box
    step = plan.step or (None, None, None)
    lengths = (z1 - z0, y1 - y0, x1 - x0)
    z, y, x = (
        plan_axis(n, r, s, plan.grid, t, o)
        for n, r, s, t, o in zip(lengths, plan.resampled, plan.size, step, plan.offset, strict=True)
    )
    rows, columns = np.flatnonzero(y.inside), np.flatnonzero(x.inside)
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cache: dict[int, np.ndarray] = {}

    def plane(index: int) -> np.ndarray:
        if index not in cache:
            channels = to_channels(array[z0 + index, y0:y1, x0:x1])
            cache[index] = (
                _resize_plane(channels, plan) if plan.grid == "edges" else _lerp_plane(channels, y, x, window)
            )
        return cache[index]

    for target in np.flatnonzero(z.inside):
        low, high, weight = int(z.low[target]), int(z.high[target]), z.weight[target]
        for stale in [key for key in cache if key < low]:
            del cache[stale]
        blended = plane(low) if weight == 0 else _fused_lerp(plane(low), plane(high), weight)
        out[:, target, window[0], window[1]] = finish(blended)


def _resize_plane(channels: np.ndarray, plan: Resampling) -> np.ndarray:
    """Return the part of the bilinear resize of `channels` (C, h, w) that falls into the output."""
    import torch  # at first use: reading volumes and describing geometries needs no torch
    import torch.nn.functional as F

    _, height, width = plan.resampled
    tensor = torch.from_numpy(channels)[None]
    if min(height, width) <= _BILINEAR_OWN_KERNEL:
        resized = F.interpolate(tensor[:, :, None], size=(1, height, width), mode="trilinear")[0, :, 0]
    else:
        resized = F.interpolate(tensor, size=(height, width), mode="bilinear")[0]
    (_, top, left), (_, out_height, out_width) = plan.offset, plan.size
    rows = slice(max(top, 0), min(top + out_height, height))
    columns = slice(max(left, 0), min(left + out_width, width))
    return resized[:, rows, columns].numpy()


def _lerp_plane(channels: np.ndarray, y: AxisPlan, x: AxisPlan, window: tuple[slice, slice]) -> np.ndarray:
    """Return bilinear samples of `channels` (C, h, w) at the planned rows and columns without padding."""
    rows, columns = window
    wy, wx = y.weight[rows][None, :, None], x.weight[columns][None, None, :]
    mixed = channels[:, y.low[rows]] * (1 - wy) + channels[:, y.high[rows]] * wy
    return mixed[:, :, x.low[columns]] * (1 - wx) + mixed[:, :, x.high[columns]] * wx


def _fused_lerp(low: np.ndarray, high: np.ndarray, weight: np.float32) -> np.ndarray:
    """Return low * (1 - weight) + high * weight, rounded as torch's fused multiply-add rounds float32."""
    total = np.multiply(low, np.float64(np.float32(1) - weight), dtype=np.float64)
    total += high * weight
    return total.astype(np.float32)


def _offset(resampled: int, size: int) -> int:
    return (resampled - size) // 2 if resampled >= size else -((size - resampled) // 2)


def _widen(
    span: tuple[int, int], array: np.ndarray, axis: int, is_foreground: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int]:
    """Widen a span along axis 1 or 2 of `array` (D, H, W) to include foreground outside of it."""
    low, high = span
    before, behind = (array[:, :low], array[:, high:]) if axis == 1 else (array[:, :, :low], array[:, :, high:])
    # Two reductions, slices first: reducing both axes at once takes numpy five times as long on short rows.
    if before.size and (flags := is_foreground(before.max(axis=0).max(axis=2 - axis))).any():
        low = int(np.argmax(flags))
    if behind.size and (flags := is_foreground(behind.max(axis=0).max(axis=2 - axis))).any():
        high += _span(flags)[1]
    return low, high


def _span(flags: np.ndarray) -> tuple[int, int]:
    indices = np.flatnonzero(flags)
    return int(indices[0]), int(indices[-1]) + 1
