"""A set of seen ids in eight bytes each; the largest data sets have tens of millions of records."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_RECENT = 2**17


class SeenIds:
    """A set of 64-bit digests: the recent ones in a Python set, the others in one sorted array."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def add(self, identifier: str) -> bool:
        """Remember an id; return whether it is new."""
        key = int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little")
        if key in self._recent or self._in_sorted(key):
            return False
        self._recent.add(key)
        if len(self._recent) >= _RECENT:
            fresh = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            # Two sorted runs: numpy's stable sort is then little more than one pass.
            self._sorted = np.sort(np.concatenate([self._sorted, np.sort(fresh)]), kind="stable")
            self._recent.clear()
        return True

    def _in_sorted(self, key: int) -> bool:
        value = np.uint64(key)
        position = int(np.searchsorted(self._sorted, value))
        return position < len(self._sorted) and bool(self._sorted[position] == value)
