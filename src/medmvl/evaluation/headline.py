"""The main score of a benchmark as a line for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmvl.evaluation.report import label, number
from medmvl.evaluation.table import control_names, coverage, gain_name, image_text, score_text


def headline(name: str, entry: Mapping[str, Any]) -> str:
    """Return a benchmark's main score with its interval, what it covers, those of its controls, and the gain over them.

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
    notes = "; ".join(note for note in (coverage(entry, key), ", ".join(beside)) if note)
    return f"{text} ({notes})" if notes else text


def weakest(entry: Mapping[str, Any]) -> str:
    """Return the group with the lowest score of each grouping, "" if no group scores below another.

    Args:
        entry: of a benchmark in results.json.
    """
    said: dict[str, list[str]] = {}
    for groups in (entry.get("groupings") or {}).values():
        for key in dict.fromkeys(key for scores in groups.values() for key in scores):
            scores = {value: found[key] for value, found in groups.items() if key in found}
            lowest = min(scores, key=lambda value: (scores[value]["value"], value))
            if scores[lowest]["value"] < max(found["value"] for found in scores.values()):
                text = f"{lowest} {number(scores[lowest]['value'])} (n = {scores[lowest]['n']})"
                said.setdefault(key, []).append(text)
    return "; ".join(f"{label(key)}: {', '.join(texts)}" for key, texts in said.items())
