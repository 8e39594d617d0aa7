"""The benchmark of evidence: do heat maps point at the finding, and does the answer depend on it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medmvl.evaluation.evidence import CONTROLS, predict_evidence
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.measured import mean_of_measured, measured
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, Column, Where
from medmvl.inference.evidence.curves import SHARES

_ABOUT = (
    "Questions about findings that are there, with the place of the finding known. A heat map of the right answer points at the "
    "finding if its peak is in the finding's box, enlarged by one patch of the encoder on each side (pointing game); "
    "strictly, if it is in the box itself. Wrong answers point nowhere and are left out. Chance is a peak anywhere."
)
_MEASURES = {
    "pointing": "Share of heat maps whose peak is in the finding's box, enlarged by one patch of the encoder (Zhang et al. 2016).",
    "pointing_strict": "Share of heat maps whose peak is in the finding's box.",
    "answer_changes": "Share of right answers that change if the finding is erased from the picture.",
    "insertion": "Area under the probability of the answer while the hottest places are shown on a blurred picture (RISE).",
    "deletion": "Area under the probability of the answer while the hottest places are blurred (RISE). Lower is better.",
    "faithfulness": "Insertion minus deletion area.",
}


def _columns() -> tuple[Column, ...]:
    kinds: tuple[tuple[str, Where | None], ...] = (
        ("", None),
        ("_images", lambda item: bool(item.images)),
        ("_volumes", lambda item: bool(item.volumes)),
    )
    return tuple(
        Column(f"{key}{suffix}", mean_of_measured(key, key.replace("_", "-"), definition), where)
        for key, definition in _MEASURES.items()
        for suffix, where in kinds
    )


def _chance(items: Sequence[Item]) -> list[Item]:
    """Return the items as measured for a peak that may be anywhere."""
    found = []
    for item in items:
        odds = {key: measured(item, f"{key}_chance") for key in ("pointing", "pointing_strict")}
        found.append(replace(item, record={**item.record, "measured": odds}))
    return found


def _charts(items: Sequence[Item], controls: Mapping[str, Sequence[Item]]) -> list[dict[str, Any]]:
    """Return the mean deletion and insertion curves of images and volumes."""
    charts = []
    for kind, chosen in (("images", "images"), ("volumes", "volumes")):
        for name in ("deletion", "insertion"):
            lines = []
            for who, theirs in {"occlusion": items, **controls}.items():
                own = [item.record.get("curves", {}).get(name) for item in theirs if getattr(item, chosen)]
                curves = [curve for curve in own if curve and len(curve) == len(SHARES)]
                if curves:
                    points = [[x, float(f"{y:.4g}")] for x, y in zip(SHARES, np.mean(curves, axis=0), strict=True)]
                    lines.append({"name": who.replace("_", " "), "points": points})
            if lines:
                words = {"x": f"share of the picture, hottest first: {name}", "y": "probability of the answer"}
                charts.append({"title": f"{name.capitalize()}, {kind}", "top": 1.0, "lines": lines, **words})
    return charts


EVIDENCE = BENCHMARKS.add(
    "evidence",
    Benchmark(
        name="evidence",
        title="Evidence",
        about=_ABOUT,
        columns=_columns(),
        headline="pointing",
        files=("evidence/evidence.jsonl", "evidence.jsonl"),
        license="of the records",
        groups=("finding", "modality"),
        chance=_chance,
        answer=predict_evidence,
        controls=CONTROLS,
        gain="over the better control",
        charts=_charts,
    ),
)
