"""Text of table.md: every score with its interval, and the scores of the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmvl.errors import EvaluationError, counted
from medmvl.evaluation.published import filled_tables

#: Control -> what answers, in the order of the table.
CONTROL_MEANINGS = {
    "blank": "every image replaced by a constant",
    "shuffled": "another patient's picture",
    "text_only": "no picture",
    "majority": "no model: the most frequent reference per question, chosen on the references themselves, so an upper bound for "
    "constant answers",
    "chance": "no model: what a random order would find",
}
#: Intervals over fewer patients are too narrow: the cluster bootstrap needs some tens of clusters (Cameron, Gelbach and Miller 2008).
FEW_PATIENTS = 30
#: Controls that ask no model.
FLOORS = ("majority", "chance")


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
    others = [name for name in entry["controls"] if name not in CONTROL_MEANINGS]
    return [*others, *(name for name in CONTROL_MEANINGS if name in entry["controls"])]


def control_meanings(results: Mapping[str, Any]) -> dict[str, str]:
    """Return {name as shown: what answers} of the controls that any benchmark of a results.json has."""
    having = {name for entry in results["benchmarks"].values() for name in entry["controls"]}
    return {name.replace("_", " "): meaning for name, meaning in CONTROL_MEANINGS.items() if name in having}


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


def coverage(entry: Mapping[str, Any], key: str) -> str:
    """Return which questions a score covers: "the 56 closed of 60 questions"; "" where it covers all of them."""
    n, records = entry["model"][key]["n"], entry["counts"]["records"]
    if n == records:
        return ""
    # Older results hold no number of closed questions.
    closed = key.startswith("closed_accuracy") and n == entry["counts"].get("closed")
    return f"the {n} closed of {records} questions" if closed else f"{n} of {records} questions"


def interval_notes(entry: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a benchmark's intervals must know of them: too few patients, intervals without width."""
    patients = entry["counts"]["patients"]
    notes = []
    if patients < FEW_PATIENTS:
        notes.append(
            f"Only {counted(patients, 'patient')}: further patients may well score outside of the brackets, which are "
            f"too narrow for fewer than {FEW_PATIENTS}."
        )
    groups = [scores for values in (entry.get("groupings") or {}).values() for scores in values.values()]
    reports = (entry.get("report_findings") or {}).get("model") or {}
    shown = [score for scores in (entry["model"], reports, *groups) for score in scores.values()]
    if any(interval[0] == interval[1] for score in shown if (interval := score.get("ci95")) is not None):
        notes.append(
            "An interval without width, such as [1.00, 1.00], arises if all answers are right, or all are wrong: the bootstrap then "
            "says nothing of what further patients would give."
        )
    return notes


def base_table(results: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return the scores of a model beside those of the model that it was fine-tuned from, as Markdown.

    Args:
        results: content of a results.json.
        base: the same of the other model, on the same questions.

    Raises:
        EvaluationError: if they are not about the same questions, as far as their numbers show.
    """
    rows = []
    for name, entry in results["benchmarks"].items():
        before = base["benchmarks"].get(name, {"model": {}})
        for key, score in entry["model"].items():
            earlier = before["model"].get(key)
            if earlier is not None and earlier["n"] != score["n"]:
                raise EvaluationError(
                    f"{name}: {key} is a score of {score['n']} questions, and of {earlier['n']} in the base's results. Evaluate both "
                    "models on the same questions."
                )
            if earlier is not None:
                difference = f"{score['value'] - earlier['value']:+.3f}"
                rows.append([name, key, str(score["n"]), score_text(earlier), score_text(score), difference])
    if not rows:
        raise EvaluationError(
            "The base's results have no score in common with the model's. Evaluate both on the same benchmark."
        )
    header = ["benchmark", "metric", "n", "before", "this model", "difference"]
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def benchmark_rows(entry: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one benchmark's table."""
    controls = control_names(entry)
    header = ["metric", "n", "model", *(name.replace("_", " ") for name in controls), gain_name(entry)]
    rows = []
    for key, score in entry["model"].items():
        cells = [score_text(entry["controls"][name].get(key)) for name in controls]
        rows.append([key, str(score["n"]), score_text(score), *cells, image_text(entry["image"].get(key))])
    return header, rows


def grouping_rows(entry: Mapping[str, Any], name: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one grouping of a benchmark: metric by metric, the lowest value of the model first.

    Groups that no picture decides have no row; `undecided_groups` names them.
    """
    controls = control_names(entry)
    groups = entry["groupings"][name]
    rows = []
    for key in dict.fromkeys(key for scores in groups.values() for key in scores):
        having = [(scores[key], value) for value, scores in groups.items() if key in scores]
        having = [pair for pair in having if not _needs_no_picture(pair[0])]
        for score, value in sorted(having, key=lambda pair: (pair[0]["value"], pair[1])):
            theirs = [score["controls"].get(control) for control in controls]
            cells = ["–" if found is None else f"{found:.3f}" for found in theirs]
            rows.append([value, key, str(score["n"]), score_text(score), *cells, _gain_of_group(score)])
    shown = [control.replace("_", " ") for control in controls]
    return [name, "metric", "n", "model", *shown, gain_name(entry)], rows


def undecided_groups(entry: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return {metric: the groups of a grouping that no picture decides, with their numbers of questions}."""
    found: dict[str, list[str]] = {}
    for value, scores in entry["groupings"][name].items():
        for key, score in scores.items():
            if _needs_no_picture(score):
                found.setdefault(key, []).append(f"{value} (n = {score['n']})")
    return {key: ", ".join(texts) for key, texts in found.items()}


def _needs_no_picture(score: Mapping[str, Any]) -> bool:
    """Whether all answers of a group are right, and also those of a control that does not see the right picture."""
    return score["value"] == 1 and 1 in _asked(score)


def _asked(score: Mapping[str, Any]) -> list[float]:
    """Return the values of a group's controls that ask the model."""
    return [value for control, value in score["controls"].items() if control not in FLOORS]


def _gain_of_group(score: Mapping[str, Any]) -> str:
    """Return the model minus the strongest control that asks the model; a dash without one."""
    asked = _asked(score)
    return f"{score['value'] - max(asked):+.3f}" if asked else "–"


def _groupings_tables(entry: Mapping[str, Any]) -> list[str]:
    """Return the groupings of a benchmark as Markdown lines."""
    lines = []
    for name in entry.get("groupings") or {}:
        header, rows = grouping_rows(entry, name)
        lines += [line(header), line(["---"] * len(header)), *map(line, rows), ""] if rows else []
        for key, text in undecided_groups(entry, name).items():
            lines += [f"Without the right picture {key} is 1.000 as well, so that it shows nothing: {text}.", ""]
    return lines


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return all benchmarks of a results.json as Markdown."""
    parts = ["# Results", ""]
    parts += [*(f"- {name}: {meaning}" for name, meaning in control_meanings(results).items()), ""]
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
            *(text for note in interval_notes(entry) for text in (note, "")),
        ]
        parts += _groupings_tables(entry)
        parts += _findings_table(entry)
        parts += [*(f"- {note}" for note in entry.get("notes") or ()), ""]
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
