"""Area under the ROC curve of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def auroc(scores: Sequence[float], truths: Sequence[int]) -> float:
    """Return the area under the ROC curve: the chance that a positive has a higher score than a negative, ties half.

    Returns:
        nan without both classes.
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(truths, dtype=bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # mean rank of equal scores, from 1
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
