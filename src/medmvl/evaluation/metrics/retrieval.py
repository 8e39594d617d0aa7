"""Recall at k (R@k) of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medmvl.errors import EvaluationError
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.metric import Metric, mean_metric
from medmvl.models.contrastive.retrieval import DEPTHS, DIRECTIONS, chance, recall_name

_WORDS = {"image_to_text": ("image or volume", "reports"), "text_to_image": ("report", "images or volumes")}


def _recall_at(direction: str, k: int) -> Metric:
    query, candidates = _WORDS[direction]

    def hit(item: Item) -> float:
        found = _retrieval(item)[direction]
        if found["rank"] is None:
            return chance(found["candidates"], found["right"], k)
        return float(found["rank"] <= k)

    return mean_metric(
        recall_name(direction, k).replace("_", "-"),
        f"R@{k}: for how many of the {query}s a right one is among the first {k} {candidates} by cosine, out of all "
        f"{candidates} of the file. Equal reports, and all reports of one scan, are right for one another; a wrong "
        "candidate with an equal score comes first.",
        hit,
    )


def _retrieval(item: Item) -> dict[str, Any]:
    found = item.record.get("retrieval")
    if not isinstance(found, dict):
        raise EvaluationError(
            f"Record {item.id} says nothing of retrieval. Such predictions are made by a contrastive stage: medmvl evaluate "
            "--model STAGE --benchmark retrieval --data-root FILE."
        )
    return found


RECALLS = {recall_name(direction, k): _recall_at(direction, k) for direction in DIRECTIONS for k in (*DEPTHS, 50, 100)}


def by_chance(items: Sequence[Item]) -> list[Item]:
    """Return the items with the recall that a random order of the candidates is expected to reach."""
    chances = []
    for item in items:
        retrieval = {way: {**found, "rank": None} for way, found in _retrieval(item).items()}
        chances.append(replace(item, record={**item.record, "retrieval": retrieval}))
    return chances
