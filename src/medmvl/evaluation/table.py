"""Text of table.md: every score with its interval, and the scores of the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmvl.evaluation.published import filled_tables

CONTROL_ORDER = ("blank", "shuffled", "text_only", "majority", "chance")


def score_text(entry: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Return "0.873 [0.81, 0.93]" for an entry of results.json, with signs if wanted; a dash where there is none."""
    if entry is None:
        return "–"
    sign = "+" if signed else ""
    interval = entry.get("ci95")
    shown = f"{entry['value']:{sign}.3f}"
    return shown if interval is None else f"{shown} [{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"


def control_names(entry: Mapping[str, Any]) -> list[str]:
    """Return the controls of a benchmark's entry in the order of the table."""
    others = [name for name in entry["controls"] if name not in CONTROL_ORDER]
    return [*others, *(name for name in CONTROL_ORDER if name in entry["controls"])]


def gain_name(entry: Mapping[str, Any]) -> str:
    """Return what the gain over the strongest control is called; older results hold no name."""
    return str(entry.get("gain", "owed to the image"))


def _gain_meaning(entry: Mapping[str, Any]) -> str:
    if entry.get("gain", "owed to the image") == "owed to the image":
        return "model minus the strongest of blank, shuffled and text only, whichever were asked for"
    return "model minus the control with the higher value"


def image_text(share: Mapping[str, Any] | None) -> str:
    """Return "+0.41 [+0.33, +0.49]": model minus the strongest control that asks the model; a dash without one."""
    return score_text(share and {"value": share["gain"], "ci95": share["ci95"]}, signed=True)


def benchmark_rows(entry: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one benchmark's table."""
    controls = control_names(entry)
    header = ["metric", "n", "model", *(name.replace("_", " ") for name in controls), gain_name(entry)]
    rows = []
    for key, score in entry["model"].items():
        cells = [score_text(entry["controls"][name].get(key)) for name in controls]
        rows.append([key, str(score["n"]), score_text(score), *cells, image_text(entry["image"].get(key))])
    return header, rows


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return all benchmarks of a results.json as Markdown."""
    parts = ["# Results", ""]
    for name, entry in results["benchmarks"].items():
        header, rows = benchmark_rows(entry)
        counts = entry["counts"]
        parts += [f"## {name}: {entry['title']}", "", entry["about"], ""]
        if entry.get("synthetic"):
            parts += ["**Synthetic data: no number here is a clinical claim.**", ""]
        parts += [line(header), line(["---"] * len(header)), *map(line, rows), ""]
        parts += [
            f"{counts['records']} records of {counts['patients']} patients; {counts['empty_predictions']} empty answers. "
            f"Brackets: 95 % bootstrap interval over patients. {gain_name(entry).capitalize()}: {_gain_meaning(entry)}.",
            "",
        ]
        parts += _findings_table(entry)
        area = (entry.get("closed") or {}).get("auroc")
        parts += [f"- AUROC of yes/no probabilities: {area['value']:.3f} (n = {area['n']})."] if area else []
        parts += [f"- labels: {text}." for text in (entry.get("label_conventions") or {}).values()]
        faults = entry.get("faults") or {}
        parts += [f"- {kind}: {found['count']} ({', '.join(found['first'])})" for kind, found in faults.items()]
        parts += [""] if faults else []
    for table in filled_tables(results):
        header = ["row", *table["columns"], "how it is scored"]
        rows = [[f"**{r['name']}**" if r["own"] else r["name"], *r["cells"], r["note"]] for r in table["rows"]]
        parts += [f"## {table['title']}", "", line(header), line(["---"] * len(header)), *map(line, rows), ""]
        parts += [*(f"- {note}" for note in table["notes"]), ""]
    return "\n".join(parts)


def _findings_table(entry: Mapping[str, Any]) -> list[str]:
    """Return the finding-level measures of reports as Markdown lines, the controls in further columns."""
    found = entry.get("report_findings") or {}
    if not found.get("model"):
        return []
    names = list(found["controls"])
    header = ["findings in reports", "n", "model", *names]
    rows = [
        [key, str(score["n"]), score_text(score), *(score_text(found["controls"][name].get(key)) for name in names)]
        for key, score in found["model"].items()
    ]
    return [line(header), line(["---"] * len(header)), *map(line, rows), ""]


def line(cells: list[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
