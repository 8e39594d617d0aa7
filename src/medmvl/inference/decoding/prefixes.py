"""Prefilled prompts that later prompts continue: questions about the same study, and further turns of a conversation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medmvl.inference.decoding.slots import RowCache

#: Shorter prefixes are not worth the bookkeeping.
_SHORTEST = 8
#: A prompt is kept only if at least so many of its tokens were new.
WORTH = 32
#: Bytes of keys and values that are kept: 22 studies of 256 tokens for a model of SmolLM2-135M's size in float32.
PREFIX_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Prefill:
    """Keys and values of a prompt.

    Attributes:
        content: (T,) int64, see `content_of`.
        row: per layer (heads, T, width of a head).
    """

    content: np.ndarray
    row: RowCache

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.row)


class Prefixes:
    """The most recently used prefilled prompts.

    Args:
        limit: bytes that are kept; the least recently used go first. 0 keeps nothing.
    """

    def __init__(self, limit: int = PREFIX_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[bytes, Prefill] = OrderedDict()
        self.size = 0
        self.queries = self.hits = 0  # in tokens

    def longest(self, content: np.ndarray) -> tuple[Prefill, int] | None:
        """Return the kept prompt that shares the longest prefix with `content` (T,), and its length, at most T - 1."""
        found = [(common_length(content[:-1], kept.content), key) for key, kept in self._kept.items()]
        length, key = max(found, default=(0, b""))
        if length < _SHORTEST:
            return None
        self._kept.move_to_end(key)
        return self._kept[key], length

    def count(self, tokens: int, hits: int) -> None:
        """Count a prompt's tokens and those that needed no prefill."""
        self.queries += tokens
        self.hits += hits

    def keep(self, content: np.ndarray, row: RowCache, known: int, force: bool = False) -> None:
        """Keep a prompt, unless nearly all of it is kept already.

        Args:
            content: (T,) of `content_of`.
            row: per layer (heads, T, width of a head).
            known: length of the prefix that was found.
            force: keep it in any case.
        """
        if not force and len(content) - known < WORTH:
            return
        found = Prefill(content, row)
        key = content.tobytes()
        if found.nbytes > self._limit or key in self._kept:
            return
        self._kept[key] = found
        self.size += found.nbytes
        while self.size > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self.size -= oldest.nbytes


def content_of(ids: Tensor, placeholders: Mapping[int, Sequence[str]]) -> np.ndarray:
    """Return ids (T,) as (T,) int64 in which each visual token is replaced by a number that names its picture.

    Two prompts share the keys and values of a prefix exactly if they agree in these numbers.

    Args:
        ids: int64, placeholders expanded.
        placeholders: placeholder id -> hexadecimal content keys of its visual inputs, in reading order.
    """
    content = ids.cpu().numpy().astype(np.int64, copy=True)
    for placeholder, keys in placeholders.items():
        places = np.flatnonzero(content == placeholder)
        if len(places) == 0 or not keys:
            continue
        each = len(places) // len(keys)
        for number, key in enumerate(keys):
            base = int(key[:15], 16) >> 1
            content[places[number * each : (number + 1) * each]] = -1 - (base + np.arange(each))
    return content


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """Return the length of the common prefix of two arrays (T,) and (U,)."""
    shortest = min(len(one), len(other))
    differ = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differ[0]) if len(differ) else shortest
