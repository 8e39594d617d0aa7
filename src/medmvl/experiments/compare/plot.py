"""Quality against cost: one panel per benchmark, a point with its interval per variant."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from medmvl.errors import require

_GRAY = "#64748b"
_COLORS = ("#2563eb", "#059669", "#d97706", "#9333ea", "#dc2626", "#0891b2", "#4d7c0f", "#be185d")


def quality_against_cost(summary: Mapping[str, Any]) -> str:
    """Return an SVG element: headline of every benchmark over minutes of training; "" if nothing was evaluated.

    Raises:
        MissingExtraError: without matplotlib (extra `eval`).
    """
    benchmarks = summary["benchmarks"]
    if not benchmarks or not summary["cost"]:
        return ""
    matplotlib = require("matplotlib", "eval")
    figure_module = require("matplotlib.figure", "eval")
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "medmvl"}):
        figure = figure_module.Figure(figsize=(4.8 * len(benchmarks), 3.6), layout="constrained")
        panels = figure.subplots(1, len(benchmarks), squeeze=False)[0]
        for axes, entry in zip(panels, benchmarks.values(), strict=True):
            _panel(axes, entry, summary["cost"])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _panel(axes: Any, entry: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    for number, (variant, found) in enumerate(entry["variants"].items()):
        score = found["metrics"].get(entry["headline"])
        if score is None or variant not in cost:
            continue
        minutes, value = cost[variant]["train_seconds"] / 60, score["value"]
        low, high = score["ci95"] or (value, value)
        color = _COLORS[number % len(_COLORS)]
        # A percentile interval may leave its value out by a hair; an error bar may not be negative.
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([minutes], [value], yerr=spread, fmt="o", color=color, capsize=3, markersize=7)
        axes.annotate(variant, (minutes, value), textcoords="offset points", xytext=(8, 4), color=color, fontsize=10)
    axes.set_title(entry["title"], color=_GRAY, fontsize=11)
    axes.set_xlabel("training per run (minutes)", color=_GRAY)
    axes.set_ylabel(entry["headline"].replace("_", " "), color=_GRAY)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.3 * max(axes.get_xlim()[1], 1e-3))  # room for the names to the right of the points
    axes.tick_params(colors=_GRAY)
    axes.grid(color="#94a3b8", alpha=0.25)
    for side in axes.spines.values():
        side.set_color("#94a3b8")
