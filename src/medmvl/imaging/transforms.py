"""The arithmetic of a geometry: find the box, plan the interpolation, touch only the slices the output needs.

A volume is 150 MB of int16 and the model wants 2 MB of it. So the box is found on the raw integers (a monotone grey
map does not move it), and only slices that the output interpolates between are windowed and resized. The result
equals `torch.nn.functional.interpolate(mode="trilinear", align_corners=False)` on the whole windowed volume bit for
bit where torch uses fused multiply-add (any x86 since 2013, and ARM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
Grid = Literal["edges", "centres"]

# Up to this many output rows or columns torch computes `bilinear` by another kernel, whose rounding is not that of
# `trilinear`; the latter with one slice costs four times more, which does not matter at this size.
_BILINEAR_OWN_KERNEL = 64

_SAMPLED_SLICES = 9


def by_memory(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], tuple[bool, ...]]:
    """Return `array` (D, H, W) viewed in the order of memory, so that loops over it run at full speed.

    Returns:
        the view; for each of its axes the axis of `array` it is; for each of its axes whether it was turned round.
    """
    order = tuple(int(axis) for axis in np.argsort([-abs(stride) for stride in array.strides], kind="stable"))
    view = array.transpose(order)
    turned = tuple(stride < 0 for stride in view.strides)
    return view[tuple(slice(None, None, -1 if t else 1) for t in turned)], order, turned


def foreground_box(array: np.ndarray, is_foreground: Callable[[np.ndarray], np.ndarray]) -> Box | None:
    """Return the smallest box that holds every foreground voxel, as ((z0, y0, x0), (z1, y1, x1)), ends exclusive.

    Args:
        array: (D, H, W), any real dtype, without NaN.
        is_foreground: maps values to booleans; must be monotone (true for every value above a foreground value),
            because it is applied to maximum projections.

    Returns:
        None if there is no foreground. Where the box reaches the edges of the array, little of it is read.
    """
    view, order, turned = by_memory(array)
    first = next((i for i in range(len(view)) if is_foreground(view[i].max(keepdims=True)).any()), None)
    if first is None:
        return None
    last = next(i for i in range(len(view) - 1, first - 1, -1) if is_foreground(view[i].max(keepdims=True)).any())
    inner = view[first : last + 1]
    # A few slices give most of the box; then only what lies outside of it is looked at in all slices.
    few = inner[np.unique(np.linspace(0, len(inner) - 1, _SAMPLED_SLICES).astype(int))].max(axis=0)
    rows = _widen(_span(is_foreground(few.max(axis=1))), inner, 1, is_foreground)
    columns = _widen(_span(is_foreground(few.max(axis=0))), inner[:, slice(*rows)], 2, is_foreground)
    spans = [(first, last + 1), rows, columns]
    start, stop = [0, 0, 0], [0, 0, 0]
    for (low, high), axis, back, length in zip(spans, order, turned, view.shape, strict=True):
        start[axis], stop[axis] = (length - high, length - low) if back else (low, high)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def value_range(array: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value of `array`, read slice by slice."""
    view, _, _ = by_memory(array)
    pairs = [(plane.min(), plane.max()) for plane in view]
    return float(min(low for low, _ in pairs)), float(max(high for _, high in pairs))


@dataclass(frozen=True)
class AxisPlan:
    """Linear interpolation along one axis: output i lies between inputs `low[i]` and `high[i]`, `weight[i]` of the way.

    `inside[i]` is false where the output lies in padding. All arrays have the length of the output axis.
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    inside: np.ndarray


def plan_axis(
    length: int, resampled: int, output: int, grid: Grid = "edges", step: float | None = None, offset: int = 0
) -> AxisPlan:
    """Plan `length` inputs -> `resampled` samples -> `output` of these from `offset` on (negative: padding first).

    Args:
        grid: "edges": the outer edges of first and last voxel stay (torch, align_corners False); "centres": the centre
            of the first voxel stays and samples follow every `step` input voxels (ITK, MONAI's Spacing), the last
            voxel repeated beyond the end.
        step: only for "centres".
    """
    sample = np.arange(output) + offset
    if grid == "edges":
        # torch computes this in single precision with a fused multiply-add; weights agree to the last bit
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
    """A whole plan: crop to `box`, resample to `resampled` (d, h, w), centre crop or pad to `size` (D, H, W).

    `step` is the sampling step in input voxels per axis, for grid "centres" only.
    """

    box: Box
    resampled: tuple[int, int, int]
    size: tuple[int, int, int]
    grid: Grid = "edges"
    step: tuple[float, float, float] | None = None

    @property
    def offset(self) -> tuple[int, int, int]:
        """First resampled index of each axis that is in the output; negative where padding comes first."""
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
        to_channels: raw (h, w) of any strides -> contiguous float32 (C, h, w), applied to each touched slice before interpolation.
        finish: float32 (C, H, W) -> what is stored, applied to each output slice after interpolation.
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
    """(C, h, w) -> the part of its (C, h', w') bilinear resize that lies in the output."""
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
    """(C, h, w) -> its bilinear samples at the planned rows and columns, padding left out."""
    rows, columns = window
    wy, wx = y.weight[rows][None, :, None], x.weight[columns][None, None, :]
    mixed = channels[:, y.low[rows]] * (1 - wy) + channels[:, y.high[rows]] * wy
    return mixed[:, :, x.low[columns]] * (1 - wx) + mixed[:, :, x.high[columns]] * wx


def _fused_lerp(low: np.ndarray, high: np.ndarray, weight: np.float32) -> np.ndarray:
    """low * (1 - weight) + high * weight in float32, rounded as torch's fused multiply-add rounds it."""
    total = np.multiply(low, np.float64(np.float32(1) - weight), dtype=np.float64)
    total += high * weight
    return total.astype(np.float32)


def _offset(resampled: int, size: int) -> int:
    return (resampled - size) // 2 if resampled >= size else -((size - resampled) // 2)


def _widen(
    span: tuple[int, int], array: np.ndarray, axis: int, is_foreground: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int]:
    """Widen a span along axis 1 or 2 of (D, H, W) by the foreground that lies before and behind it."""
    low, high = span
    before, behind = (array[:, :low], array[:, high:]) if axis == 1 else (array[:, :, :low], array[:, :, high:])
    # Slices first, as two reductions: numpy's reduction over both at once takes five times as long on short rows.
    if before.size and (flags := is_foreground(before.max(axis=0).max(axis=2 - axis))).any():
        low = int(np.argmax(flags))
    if behind.size and (flags := is_foreground(behind.max(axis=0).max(axis=2 - axis))).any():
        high += _span(flags)[1]
    return low, high


def _span(flags: np.ndarray) -> tuple[int, int]:
    indices = np.flatnonzero(flags)
    return int(indices[0]), int(indices[-1]) + 1
