"""Controls: the same scores for answers made without the right image, and the gain of the model over them.

`blank` (every image a constant), `shuffled` (another patient's image) and `text_only` (no image at all) are answers of
the model itself, made by `medmvl evaluate --control`. `majority` needs no model: the most frequent reference per
question, chosen on the references it is scored on, so it is an upper bound for constant answers. For retrieval the
control without a model is `chance`, the expected result of guessing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medmvl.errors import EvaluationError, did_you_mean
from medmvl.evaluation.items import Item
from medmvl.evaluation.scoring import Answers, Score, compare_answers
from medmvl.evaluation.tasks.benchmark import Benchmark
from medmvl.evaluation.text import normalize_word
from medmvl.inference.answering import CONTROLS

MODEL_CONTROLS: tuple[str, ...] = CONTROLS
MAJORITY = "majority"
CHANCE = "chance"
# Below this many patients per question text the "most frequent answer to this question" would mostly be the answer
# itself; then all questions of a type share one majority.
MIN_PATIENTS_PER_QUESTION = 5


def check_control_names(names: Mapping[str, Any], known: Sequence[str] = MODEL_CONTROLS) -> None:
    """Refuse a control that is not one of `known`.

    Raises:
        EvaluationError: naming the closest known one.
    """
    for name in names:
        if name not in known:
            raise EvaluationError(f"Unknown control {name!r}. {did_you_mean(name, known)}")


def floor_answers(benchmark: Benchmark, items: list[Item]) -> dict[str, Answers]:
    """Return the control that needs no model, by its name: `chance` where the benchmark has one, else `majority`.

    Rows that are more than answers, such as confidences, have no majority.
    """
    if benchmark.chance is not None:
        return {CHANCE: Answers(benchmark.chance(items))}
    return {} if benchmark.answer is not None else {MAJORITY: Answers(majority_answers(items))}


def majority_answers(items: list[Item]) -> list[Item]:
    """Return the items with every prediction replaced by the most frequent reference of its group.

    A group is a question text asked of at least `MIN_PATIENTS_PER_QUESTION` patients; rarer questions are grouped by
    task, question type and answer type. Ties go to the answer that sorts first, so the result is deterministic.
    """
    patients: dict[str, set[str]] = defaultdict(set)
    for item in items:
        patients[item.question].add(item.patient)

    def group(item: Item) -> tuple[str, ...]:
        if len(patients[item.question]) >= MIN_PATIENTS_PER_QUESTION:
            return (item.question,)
        return tuple(str(item.record.get(key, "")) for key in ("task", "question_type", "content_type", "answer_type"))

    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    spelling: dict[tuple[tuple[str, ...], str], str] = {}
    for item in sorted(items, key=lambda item: (item.reference, item.id)):
        normal = normalize_word(item.reference)
        counts[group(item)][normal] += 1
        spelling.setdefault((group(item), normal), item.reference)
    best = {key: min(counter, key=lambda text: (-counter[text], text)) for key, counter in counts.items()}
    return [replace(item, prediction=spelling[group(item), best[group(item)]]) for item in items]


def image_share(
    benchmark: Benchmark, answers: Answers, scores: Mapping[str, Score], controls: Mapping[str, Answers]
) -> dict[str, dict[str, Any]]:
    """Return per column the gain of the model over its strongest control.

    For each column: `against`, the control that scores highest; `gain`, model minus that control on the items both
    answered, with `ci95` and `p_value` (paired by patient); `share`, the gain as a fraction of the model's score, 0
    where there is no gain. A model that ignores the image has a share of about 0.
    """
    shares: dict[str, dict[str, Any]] = {}
    for key, score in scores.items():
        column = benchmark.column(key)
        tests = {name: compare_answers(column, answers, theirs) for name, theirs in controls.items()}
        found = {name: test for name, test in tests.items() if test is not None and test.difference == test.difference}
        if not found:
            continue
        against = min(found, key=lambda name: (found[name].difference, name))
        test = found[against]
        shares[key] = {
            "against": against,
            "gain": test.difference,
            "ci95": None if test.ci95 is None else list(test.ci95),
            "p_value": test.p_value,
            "share": max(0.0, test.difference) / score.value if score.value > 0 else 0.0,
        }
    return shares
