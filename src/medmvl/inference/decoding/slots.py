"""Key-value cache of rows that come and go: one slot per row, each with a separate length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

#: Keys and values of one row, per layer: (heads, T, width of a head).
RowCache = list[tuple[Tensor, Tensor]]

#: Positions by which the buffers grow at least.
_GROWTH = 64


class Slots:
    """Buffers for the keys and values of several rows, and the cache object that a model's forward takes.

    A row's positions begin at 0, so that a row joins or leaves without moving the others. Positions behind the end of a row are
    masked, see `mask`.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.cache = DynamicCache()

    def add(self, row: RowCache) -> None:
        """Put a row behind the others."""
        length = row[0][0].shape[1]
        self._reserve(len(self.lengths) + 1, max([*self.lengths, length]) + 1, row)
        slot = len(self.lengths)
        self.lengths.append(length)
        for layer, (keys, values) in zip(self.cache.layers, row, strict=True):
            layer.key_buffer[slot, :, :length] = keys
            layer.value_buffer[slot, :, :length] = values

    def remove(self, slot: int) -> None:
        """Remove a row; the last one takes its place. The buffers are dropped with the last row."""
        last, length = len(self.lengths) - 1, self.lengths[-1]
        if slot != last:
            for layer in self.cache.layers:
                layer.key_buffer[slot, :, :length] = layer.key_buffer[last, :, :length]
                layer.value_buffer[slot, :, :length] = layer.value_buffer[last, :, :length]
            self.lengths[slot] = length
        self.lengths.pop()
        if not self.lengths:
            self.cache = DynamicCache()

    def row(self, slot: int) -> RowCache:
        """Return a copy of the keys and values of a row, per layer (heads, T, width of a head)."""
        end = self.lengths[slot]
        return [
            (layer.key_buffer[slot, :, :end].clone(), layer.value_buffer[slot, :, :end].clone())
            for layer in self.cache.layers
        ]

    def begin_step(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Make room for one token per row.

        Returns:
            mask (B, longest row + 1) int64, and positions (B, 1) int64 of the tokens.
        """
        width = max(self.lengths) + 1
        first = self.cache.layers[0]
        self._reserve(len(self.lengths), width, [(first.key_buffer[0], first.value_buffer[0])])
        lengths = torch.tensor(self.lengths, device=device)
        for layer in self.cache.layers:
            layer.begin_step(lengths, width)
        columns = torch.arange(width, device=device)
        return (columns <= lengths[:, None]).long(), lengths[:, None]

    def end_step(self) -> None:
        """Count the tokens whose keys and values the forward pass has written."""
        self.lengths = [length + 1 for length in self.lengths]

    def _reserve(self, rows: int, positions: int, like: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not self.cache.layers:
            self.cache.layers = [_SlotLayer(keys, values) for keys, values in like]
        for layer in self.cache.layers:
            layer.reserve(rows, positions)


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer; `update` writes each row's token behind that row's last one.

    Args:
        keys, values: (heads, T, width of a head), of the dtype and device of the buffers.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.key_buffer = keys.new_zeros(0, keys.shape[0], 0, keys.shape[2])
        self.value_buffer = values.new_zeros(0, values.shape[0], 0, values.shape[2])
        self._width = 0

    def reserve(self, rows: int, positions: int) -> None:
        """Enlarge the buffers to hold as many rows and positions."""
        have_rows, _, have_positions, _ = self.key_buffer.shape
        if rows <= have_rows and positions <= have_positions:
            return
        # More than is asked for, because each enlargement copies all rows.
        rows = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        positions = have_positions if positions <= have_positions else positions + _GROWTH
        self.key_buffer = _enlarged(self.key_buffer, rows, positions)
        self.value_buffer = _enlarged(self.value_buffer, rows, positions)

    def begin_step(self, lengths: Tensor, width: int) -> None:
        """Note where the next tokens go: `lengths` (B,) int64, and the longest row with its token."""
        self._lengths, self._width = lengths, width
        self._slots = torch.arange(len(lengths), device=lengths.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token per row, (B, heads, 1, width of a head); return keys and values (B, heads, longest row, ...)."""
        self.key_buffer[self._slots, :, self._lengths] = key_states[:, :, 0]
        self.value_buffer[self._slots, :, self._lengths] = value_states[:, :, 0]
        rows = len(self._slots)
        return self.key_buffer[:rows, :, : self._width], self.value_buffer[:rows, :, : self._width]

    def get_seq_length(self) -> int:
        """Return the number of positions before the token of this step."""
        return self._width - 1


def _enlarged(buffer: Tensor, rows: int, positions: int) -> Tensor:
    """Return zeros (rows, heads, positions, width) that begin with a buffer."""
    larger = buffer.new_zeros(rows, buffer.shape[1], positions, buffer.shape[3])
    larger[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return larger


def joined_cache(prefixes: Sequence[tuple[RowCache, int]]) -> DynamicCache:
    """Return a cache whose rows begin with prefixes, padded on the left to the longest.

    Args:
        prefixes: per row the keys and values of a prompt, and how many of their positions are taken.
    """
    longest = max(length for _, length in prefixes)
    cache = DynamicCache()
    for number in range(len(prefixes[0][0])):
        layer = DynamicLayer()
        pairs = [(*row[number], length) for row, length in prefixes]
        layer.keys = torch.stack([_padded(keys[:, :length], longest) for keys, _, length in pairs])
        layer.values = torch.stack([_padded(values[:, :length], longest) for _, values, length in pairs])
        layer.dtype, layer.device, layer.is_initialized = layer.keys.dtype, layer.keys.device, True
        cache.layers.append(layer)
    return cache


def _padded(states: Tensor, length: int) -> Tensor:
    """Return states (heads, T, width) with zeros in front of them, (heads, length, width)."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[1], 0))


def rows_of(cache: DynamicCache, lengths: Sequence[int], paddings: Sequence[int]) -> list[RowCache]:
    """Return each row's keys and values without padding.

    Args:
        cache: after the prefill of a batch.
        lengths: positions of each row's prefix; the rows are padded in front of it.
        paddings: positions per row that are padded between prefix and rest.
    """
    longest = max(lengths)

    def whole(states: Tensor, place: int) -> Tensor:
        prefix = states[place, :, longest - lengths[place] : longest]
        return torch.cat([prefix, states[place, :, longest + paddings[place] :]], dim=1)

    return [
        [(whole(layer.keys, place), whole(layer.values, place)) for layer in cache.layers]
        for place in range(len(lengths))
    ]
