"""The main score of a benchmark as a line for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmvl.evaluation.report import label, number
from medmvl.evaluation.table import control_names, gain_name, image_text, score_text


def headline(name: str, entry: Mapping[str, Any]) -> str:
    """Return a benchmark's main score with its interval, those of its controls, and the gain over them.

    Args:
        name: of the benchmark.
        entry: its entry in results.json.
    """
    scores = entry["model"]
    key = (
        entry["headline"] if entry["headline"] in scores else next(iter(scores))
    )  # one kind of question may be missing
    controls = {control: entry["controls"][control].get(key) for control in control_names(entry)}
    beside = [f"{control.replace('_', ' ')} {number(score['value'])}" for control, score in controls.items() if score]
    if share := entry["image"].get(key):
        beside.append(f"{gain_name(entry)} {image_text(share)}")
    text = f"{name}: {label(key)} {score_text(scores[key])}, n = {scores[key]['n']}"
    return f"{text} ({', '.join(beside)})" if beside else text
