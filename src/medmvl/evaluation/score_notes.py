"""Notes about scores that a right answer cannot raise to 1, by their definition."""

from __future__ import annotations

from collections.abc import Sequence

from medmvl.evaluation.items import Item
from medmvl.evaluation.scripts import letter_words
from medmvl.evaluation.tasks.benchmark import Benchmark

#: Name of a metric -> its value for a right answer of one word, and the reason.
ONE_WORD = {
    "rouge-2": "ROUGE-2 counts pairs of neighboring words, and one word has none: a right answer scores 0",
    "meteor-exact-stem": "METEOR takes off 0.5 × (runs of matched words / matched words)³, which is 0.5 for one word: a right "
    "answer scores 0.5",
}


def score_notes(benchmark: Benchmark, items: Sequence[Item]) -> list[str]:
    """Return a sentence for each metric of `ONE_WORD` that the benchmark has and that scores references of one word."""
    counts: dict[str, tuple[int, int]] = {}
    for column in benchmark.columns:
        if column.metric.name in ONE_WORD:
            selected = column.select(list(items))
            counts[column.metric.name] = sum(len(letter_words(one.target)) == 1 for one in selected), len(selected)
    return [
        f"{short} of {selected} references are one word long. {ONE_WORD[name]}."
        for name, (short, selected) in counts.items()
        if short
    ]
