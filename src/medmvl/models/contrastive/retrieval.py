"""Retrieval: ranks of the first right candidate, and recall at k."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medmvl.models.contrastive.pairing import Pairing

#: Queries that are compared with all candidates at once; bounds the memory of large sets.
_CHUNK = 1024

#: Scores this near are equal: a product of matrices may round equal candidates differently.
_EQUAL = 1e-9

#: The depths k of recall at k (R@k) that are reported.
DEPTHS = (1, 5, 10)

#: The two directions; a volume counts as an image here.
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Found:
    """Result of retrieval in one direction.

    Attributes:
        ranks: (n,) int64, place of the first right candidate, from 1. A wrong candidate with the same score comes before
            a right one, so that an encoder whose features are all equal finds nothing.
        best: (n,) int64, the candidate with the highest score; the first of equal ones.
        right: (n,) int64, how many candidates are right.
    """

    ranks: Tensor
    best: Tensor
    right: Tensor

    def recall(self, k: int) -> float:
        """Return R@k: the share of queries with a right candidate among the first k."""
        return float((self.ranks <= k).double().mean())


def both_ways(visual: Tensor, texts: Tensor, pairing: Pairing) -> dict[str, Found]:
    """Return the results of both directions, from images to texts and from texts to images, by name.

    Args:
        visual, texts: (n, dim), of length 1; row i of both is a pair.
        pairing: which of them belong together.
    """
    return {
        "image_to_text": _retrieve(visual, texts, pairing.texts_of),
        "text_to_image": _retrieve(texts, visual, pairing.visual_of),
    }


def _retrieve(queries: Tensor, candidates: Tensor, right_for: Callable[[slice], Tensor]) -> Found:
    """Rank all candidates for every query by cosine."""
    ranks, best, right = [], [], []
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        scores = queries[rows].double() @ candidates.double().T
        match = right_for(rows)
        highest = scores.masked_fill(~match, -torch.inf).max(1, keepdim=True).values
        ranks.append(1 + (~match & (scores >= highest - _EQUAL)).sum(1))
        best.append(scores.argmax(1))
        right.append(match.sum(1))
    return Found(torch.cat(ranks), torch.cat(best), torch.cat(right))


def recalls(found: dict[str, Found]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 of both directions, by names such as `image_to_text_r_at_1`."""
    return {recall_name(direction, k): found[direction].recall(k) for direction in DIRECTIONS for k in DEPTHS}


def recall_name(direction: str, k: int) -> str:
    """Return the name of a recall in results and logs."""
    return f"{direction}_r_at_{k}"


def chance(candidates: int, right: int, k: int) -> float:
    """Return the expected R@k of a query under a random order, with `right` right ones of `candidates`.

    It is 1 - C(n - r, k) / C(n, k), with n candidates of which r are right.
    """
    missed = 1.0
    for place in range(min(k, candidates)):
        missed *= max(0, candidates - right - place) / (candidates - place)
    return 1.0 - missed
