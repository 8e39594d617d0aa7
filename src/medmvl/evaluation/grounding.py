"""Metrics of ReXGroundingCT: Dice, hit rate, and instance precision, recall and F1 of 3D masks.

Boxes and heat maps are turned into masks first (`mask_of_box`, `mask_of_heat_map`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmvl.errors import EvaluationError, require
from medmvl.progress_bar import track

Mask = NDArray[np.bool_]

HIT_DICE = 0.1  # a finding is hit from this Dice on
INSTANCE_DICE = 0.2  # an instance is matched from this Dice on
#: Pairs of instances of a finding that are compared: a table of 80 MB.
MOST_PAIRS = 10_000_000


def mask_of_box(box: Sequence[float], shape: tuple[int, int, int]) -> Mask:
    """Return the (D, H, W) mask of a box (z1, y1, x1, z2, y2, x2) in voxels, upper ends excluded."""
    mask = np.zeros(shape, dtype=bool)
    low, high = np.floor(box[:3]).astype(int).clip(0), np.ceil(box[3:]).astype(int)
    mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


def mask_of_heat_map(heat_map: NDArray[Any], threshold: float = 0.5) -> Mask:
    """Return the (D, H, W) mask of the voxels at or above a share of the map's maximum; empty for a map without heat."""
    highest = float(np.max(heat_map, initial=0.0))
    return heat_map >= threshold * highest if highest > 0 else np.zeros(heat_map.shape, dtype=bool)


def dice(first: Mask, second: Mask) -> float:
    """Return the Dice coefficient of two masks of one shape, 1 if both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def instances(mask: Mask) -> NDArray[np.integer[Any]]:
    """Number the connected components of a (D, H, W) mask from 1, neighbors by face, edge or corner; 0 is outside."""
    numbered: NDArray[np.integer[Any]] = require("scipy.ndimage", "eval").label(mask, structure=np.ones((3, 3, 3)))[0]
    return numbered


def match_instances(predicted: NDArray[np.integer[Any]], references: NDArray[np.integer[Any]]) -> int:
    """Return how many instances have a partner with a Dice of at least 0.2 under the best one-to-one matching.

    Args:
        predicted, references: (D, H, W) from `instances`.

    Raises:
        EvaluationError: if there are too many to compare.
    """
    ours, theirs = np.bincount(predicted.ravel())[1:], np.bincount(references.ravel())[1:]
    if len(ours) * len(theirs) > MOST_PAIRS:
        raise EvaluationError(
            f"A mask has {len(ours)} separate parts and its reference {len(theirs)}, too many to match. Remove its specks."
        )
    if not len(ours) or not len(theirs):
        return 0
    both = (predicted > 0) & (references > 0)
    pairs = (predicted[both].astype(np.int64) - 1) * len(theirs) + references[both] - 1
    shared = np.bincount(pairs, minlength=len(ours) * len(theirs)).reshape(len(ours), len(theirs))
    table = 2 * shared / (ours[:, None] + theirs[None])
    rows, columns = require("scipy.optimize", "eval").linear_sum_assignment(table, maximize=True)
    return int((table[rows, columns] >= INSTANCE_DICE).sum())


def grounding_scores(cases: Sequence[tuple[Mask, Mask]]) -> dict[str, float]:
    """Return the ReXGroundingCT metrics over findings.

    Args:
        cases: (prediction, reference) masks (D, H, W) per finding.

    Returns:
        `dice`: mean over findings; `hit_rate`: share of findings with a Dice of at least 0.1; `instance_precision`,
        `instance_recall`, `instance_f1`: over the instances of all findings, nan where there is none.
    """
    scores = [dice(predicted, reference) for predicted, reference in cases]
    hits = found = present = 0
    for predicted, reference in track(cases, "findings"):
        ours, theirs = instances(predicted), instances(reference)
        hits += match_instances(ours, theirs)
        found, present = found + int(ours.max(initial=0)), present + int(theirs.max(initial=0))
    nan = float("nan")
    return {
        "dice": float(np.mean(scores)) if scores else nan,
        "hit_rate": float(np.mean([score >= HIT_DICE for score in scores])) if scores else nan,
        "instance_precision": hits / found if found else nan,
        "instance_recall": hits / present if present else nan,
        "instance_f1": 2 * hits / (found + present) if found + present else nan,
    }
