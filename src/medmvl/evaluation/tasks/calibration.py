"""The benchmark of calibration: can confidences be trusted, and how many questions can be answered safely?"""

from __future__ import annotations

from medmvl.evaluation.calibration import CONTROLS, predict_calibration
from medmvl.evaluation.metrics.measured import BRIER, COVERAGE, ECE, NLL, SELECTIVE_ACCURACY
from medmvl.evaluation.metrics.vqa import CLOSED_ACCURACY, is_closed
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, Column

CALIBRATION = BENCHMARKS.add(
    "calibration",
    Benchmark(
        name="calibration",
        title="Calibration",
        about="Closed questions of test records, with a temperature and a threshold that were chosen on validation records of other "
        "patients: the least confidence from which on the answers were right in 99 % of the cases there. The control "
        "`uncalibrated` has the temperature 1 and a threshold of its own.",
        columns=tuple(
            Column(key, metric, is_closed)
            for key, metric in (
                ("ece", ECE),
                ("brier", BRIER),
                ("nll", NLL),
                ("coverage", COVERAGE),
                ("selective_accuracy", SELECTIVE_ACCURACY),
                ("closed_accuracy", CLOSED_ACCURACY),
            )
        ),
        headline="coverage",
        files=("calibration/test.jsonl", "test.jsonl"),
        license="of the records",
        groups=("finding", "modality"),
        answer=predict_calibration,
        controls=CONTROLS,
        gain="over uncalibrated",
    ),
)
