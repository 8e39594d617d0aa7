"""Loss curves of a run as an inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmvl.errors import require

MAX_POINTS = 400  # per stage; more would only make the file larger
_COLORS = ("#2563eb", "#059669", "#d97706", "#9333ea", "#dc2626", "#0891b2")
_SMOOTHING = 0.05  # share of a stage's steps that the running mean spans


def loss_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the training loss over optimizer steps, the stages one after the other.

    Args:
        rows: lines of log.jsonl with `stage`, `step` and `loss` (nats per supervised token); others are passed over.

    Returns:
        An SVG element, "" if no row has a loss.

    Raises:
        MissingExtraError: without matplotlib (extra `eval`).
    """
    stages: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if isinstance(row.get("loss"), int | float):
            stages.setdefault(str(row.get("stage", "")), []).append((int(row.get("step", 0)), float(row["loss"])))
    if not stages:
        return ""
    figure_module = require("matplotlib.figure", "eval")
    matplotlib = require("matplotlib", "eval")
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "medmvl"}):
        figure = figure_module.Figure(figsize=(9.6, 3.2), layout="constrained")
        axes = figure.subplots()
        offset = 0
        for number, (stage, points) in enumerate(stages.items()):
            offset = _draw_stage(axes, stage, points, offset, _COLORS[number % len(_COLORS)])
        _style(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw_stage(axes: Any, stage: str, points: list[tuple[int, float]], offset: int, color: str) -> int:
    """Draw one stage to the right of the earlier ones and return where it ends."""
    steps = np.array([step for step, _ in points]) + offset
    losses = np.array([loss for _, loss in points])
    width = max(1, int(len(losses) * _SMOOTHING))
    kernel = np.ones(width)
    smooth = np.convolve(losses, kernel, mode="same") / np.convolve(np.ones(len(losses)), kernel, mode="same")
    every = max(1, -(-len(steps) // MAX_POINTS))
    axes.plot(steps[::every], losses[::every], color=color, alpha=0.22, linewidth=0.8)
    axes.plot(steps[::every], smooth[::every], color=color, linewidth=1.8, label=f"{stage} ({losses[-1]:.2f})")
    if offset:
        axes.axvline(offset, color="#94a3b8", linewidth=0.8, linestyle=":")
    return int(steps[-1])


def _style(axes: Any) -> None:
    gray = "#64748b"
    axes.set_xlabel("optimizer step", color=gray)
    axes.set_ylabel("loss (nats per token)", color=gray)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.tick_params(colors=gray)
    axes.grid(axis="y", color="#94a3b8", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#94a3b8")
    axes.legend(title="stage (last loss)", frameon=False, labelcolor=gray, title_fontproperties={"size": 9}, fontsize=9)
