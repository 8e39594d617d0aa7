"""The benchmark for one's own records: every metric that needs nothing but an answer, and no published number beside it."""

from __future__ import annotations

from medmvl.evaluation.metrics.boxes import is_located
from medmvl.evaluation.tasks.base import BENCHMARKS, Benchmark, column, usual_files
from medmvl.evaluation.tasks.profiles import careful_report, careful_vqa, has_letter

_HEADLINE = "token_f1_unimed"
_WORDS = (column(_HEADLINE, "token-f1-unimed"), *careful_vqa(), *careful_report())

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
        files=usual_files("own", "test"),
        licence="yours",
    ),
)
