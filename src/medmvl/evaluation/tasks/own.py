"""The benchmark for a user's own records: all metrics that need only a reference answer.

There are no published numbers for it.
"""

from __future__ import annotations

from medmvl.evaluation.metrics.boxes import is_located
from medmvl.evaluation.metrics.choice import has_letter
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, column, usual_files
from medmvl.evaluation.tasks.profiles import recommended_report, recommended_vqa

_HEADLINE = "token_f1_unimed"
_WORDS = (column(_HEADLINE, "token-f1-unimed"), *recommended_vqa(), *recommended_report())

OWN = BENCHMARKS.add(
    "own",
    Benchmark(
        name="own",
        title="Own records",
        about="Your own records, whatever they ask. There is no published number to compare with.",
        columns=(
            *{one.key: one for one in _WORDS}.values(),
            column("letter_accuracy", "letter-accuracy-strict", has_letter),
            column("miou", "miou", is_located),
            column("acc_iou50", "acc-iou50", is_located),
        ),
        headline=_HEADLINE,
        closed_headline="closed_accuracy",
        files=usual_files("own", "test"),
        license="yours",
    ),
)
