"""Retrieval: the right report among all of a file, and the right image or volume; for contrastive stages."""

from __future__ import annotations

from medmvl.evaluation.metrics.retrieval import RECALLS, by_chance
from medmvl.evaluation.tasks.base import BENCHMARKS, Benchmark, Column, of_task, usual_files

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
        licence="that of the data",
        belongs=of_task("report", "caption"),
        retrieval=True,
        chance=by_chance,
    ),
)
