"""Cases for the report: the answers that the image changed most, the best and the worst."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from medmvl.data.roots import MediaRoots
from medmvl.evaluation.items import Item
from medmvl.evaluation.pictures import Picture, draw_case
from medmvl.evaluation.scoring import Answers, item_scores
from medmvl.evaluation.tasks.benchmark import Benchmark

CASES_PER_KIND = 6
# What tells most about a single answer, first that scores it wins; corpus-only numbers come last.
_PREFERRED = (
    "closed_accuracy",
    "letter_accuracy",
    "miou",
    "accuracy",
    "token_f1_unimed",
    "rouge_l",
    "bleu1_hf_mean",
    "bleu1",
)


def single_scores(benchmark: Benchmark, answers: Answers) -> dict[str, tuple[str, float]]:
    """Return {id: (metric key, score)}: the score of each single answer by the preferred metric."""
    scores: dict[str, tuple[str, float]] = {}
    keys = [column.key for column in benchmark.columns if column.metric.item_means]
    for key in sorted(keys, key=lambda key: _PREFERRED.index(key) if key in _PREFERRED else len(_PREFERRED)):
        for identifier, value in item_scores(benchmark.column(key), answers).items():
            scores.setdefault(identifier, (key, value))
    return scores


def pick_cases(
    benchmark: Benchmark, answers: Answers, controls: Mapping[str, Answers], roots: MediaRoots
) -> list[dict[str, Any]]:
    """Choose and draw the cases of a report.

    Kinds: `changed` (the answer scores most above the best of the controls), `worst` and `best`. Within a kind the tasks
    take turns, so that a gallery does not repeat one kind of question; ties are broken by a hash of the
    id, not by file order.
    """
    scores = single_scores(benchmark, answers)
    theirs = [single_scores(benchmark, control) for control in controls.values()]
    said = {name: control.predictions() for name, control in controls.items()}

    def gain(item: Item) -> float:
        others = [found[item.id][1] for found in theirs if item.id in found]
        return scores[item.id][1] - max(others) if others else 0.0

    scored = [item for item in answers.items if item.id in scores]
    taken: set[str] = set()
    cases = []
    orders: list[tuple[str, Callable[[Item], float]]] = [
        ("worst", lambda item: scores[item.id][1]),
        ("best", lambda item: -scores[item.id][1]),
    ]
    belongs: dict[str, Callable[[Item], bool]] = {
        "changed": lambda item: gain(item) > 0,
        "worst": lambda item: scores[item.id][1] < 1,
        "best": lambda item: scores[item.id][1] > 0,
    }
    if controls:
        orders.insert(0, ("changed", lambda item: -gain(item)))
    for kind, order in orders:
        pool = [item for item in scored if item.id not in taken and belongs[kind](item)]
        for item in take_turns(sorted(pool, key=lambda item: (order(item), _lot(item.id)))):
            taken.add(item.id)
            blind = {name: texts[item.id] for name, texts in said.items() if item.id in texts}
            cases.append(_case(kind, item, scores[item.id], blind, draw_case(item, roots)))
    return cases


def _lot(identifier: str) -> str:
    return hashlib.sha256(identifier.encode(errors="backslashreplace")).hexdigest()


def take_turns(ranked: list[Item]) -> list[Item]:
    """Return at most `CASES_PER_KIND` items: the best ranked of each task, then the second of each, and so on."""
    queues: dict[str, list[Item]] = {}
    for item in ranked:
        queues.setdefault(str(item.record.get("task", "")), []).append(item)
    chosen: list[Item] = []
    while len(chosen) < CASES_PER_KIND and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < CASES_PER_KIND:
                chosen.append(queue.pop(0))
    return chosen


def _case(
    kind: str, item: Item, score: tuple[str, float], controls: Mapping[str, str], picture: Picture
) -> dict[str, Any]:
    return {
        "kind": kind,
        "id": item.id,
        "task": str(item.record.get("task", "")),
        "question": item.question,
        "reference": item.reference,
        "prediction": item.prediction,
        "controls": dict(controls),
        "metric": score[0],
        "score": score[1],
        "picture": picture.uri,
        "note": picture.note,
    }
