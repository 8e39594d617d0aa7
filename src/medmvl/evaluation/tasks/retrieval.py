"""Retrieval benchmarks of contrastive stages: reports for images or volumes, and the reverse."""

from __future__ import annotations

from medmvl.evaluation.metrics.retrieval import RECALLS, by_chance
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, Column, of_task, usual_files

RETRIEVAL = BENCHMARKS.add(
    "retrieval",
    Benchmark(
        name="retrieval",
        title="Retrieval of reports",
        about="For every image or volume its report among all reports of the file, and for every report its image or volume, "
        "by the dual encoder of a contrastive stage. The more records, the harder: compare only numbers of equal n.",
        columns=tuple(Column(key, metric) for key, metric in RECALLS.items()),
        headline="image_to_text_r_at_1",
        files=tuple(file for split in ("test", "valid", "validation") for file in usual_files("retrieval", split)),
        license="that of the data",
        belongs=of_task("report", "caption"),
        retrieval=True,
        chance=by_chance,
    ),
)
