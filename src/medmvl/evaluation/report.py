"""report.html: one self-contained page made of an evaluation folder (results.json and details/)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from medmvl.evaluation.curves import loss_curve
from medmvl.evaluation.published import filled_tables
from medmvl.evaluation.table import (
    control_meanings,
    control_names,
    coverage,
    gain_name,
    grouping_rows,
    interval_notes,
    undecided_groups,
)
from medmvl.files import iter_jsonl, read_json, write_json, write_text

DETAILS = "details"
TRAINING = "training.json"
MAX_LOG_ROWS = 4000

LABELS = {
    "closed_accuracy": "closed accuracy (strict)",
    "closed_accuracy_published": "closed accuracy (as published)",
    "token_f1_unimed": "token F1 (Uni-Med)",
    "bleu1": "BLEU-1 (as published)",
    "bleu1_nltk_mean": "BLEU-1, NLTK, mean",
    "bleu1_hf_mean": "BLEU-1, HF, mean",
    "bleu1_coco_corpus": "BLEU-1, COCO, corpus",
    **{f"bleu{order}_coco_corpus": f"BLEU-{order}, COCO, corpus" for order in (2, 3, 4)},
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "rouge_l_coco": "ROUGE-L, COCO",
    "meteor": "METEOR (exact and stem)",
    "cider": "CIDEr-D (corpus)",
    "open_recall": "open recall",
    "open_f1": "open F1",
    "accuracy": "accuracy (equality)",
    "letter_accuracy": "letter accuracy (strict)",
    "letter_accuracy_published": "letter accuracy (as published)",
    "miou": "mean IoU",
    "miou_published": "mean IoU (as published)",
    "acc_iou50": "accuracy at IoU 0.5",
    "label_f1_macro": "label F1, macro (rule-based)",
    "label_f1_micro": "label F1, micro (rule-based)",
    **{
        f"{key}_over_types": f"{text}, mean over question types"
        for key, text in (
            *(("bleu1", "BLEU-1 (as published)"), ("rouge_1", "ROUGE-1"), ("meteor", "METEOR (exact and stem)")),
            *(
                ("letter_accuracy_published", "letter accuracy (as published)"),
                ("letter_accuracy", "letter accuracy (strict)"),
            ),
        )
    },
    **{
        f"{key}{suffix}": f"{text}{of}"
        for key, text in (
            ("pointing", "peak at the finding"),
            ("pointing_strict", "peak in the finding's box"),
            ("answer_changes", "answer changes without the finding"),
            ("insertion", "insertion area"),
            ("deletion", "deletion area (lower is better)"),
            ("faithfulness", "insertion minus deletion"),
        )
        for suffix, of in (("", ""), ("_images", ", images"), ("_volumes", ", volumes"))
    },
    "ece": "expected calibration error (lower is better)",
    "brier": "Brier score (lower is better)",
    "nll": "NLL of the reference (lower is better)",
    "coverage": "share answered at the threshold",
    "selective_accuracy": "accuracy of what is answered",
    **{f"image_to_text_r_at_{k}": f"image → report, R@{k}" for k in (1, 5, 10, 50, 100)},
    **{f"text_to_image_r_at_{k}": f"report → image, R@{k}" for k in (1, 5, 10, 50, 100)},
}
KINDS = (
    ("changed", "What the image changed most", "Answers that score most above the better one of the controls."),
    ("best", "Best answers", "One per kind of question in turn. Boxes: green is the truth, orange the model's."),
    ("worst", "Worst answers", "One per kind of question in turn. Boxes: green is the truth, orange the model's."),
)


def label(key: str) -> str:
    """Return a metric's name for people."""
    return LABELS.get(key, key)


def number(value: float | None) -> str:
    """Return three decimals, a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Return "[0.81, 0.93]", nothing for None."""
    return "" if bounds is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def plain(question: str) -> str:
    """Return a question without its media placeholders."""
    return re.sub(r"<(?:image|image3d|volume)>", " ", question).strip()


def _place(value: float) -> str:
    """Return the x of a value on the 200 px strip whose rail runs from 5 to 195."""
    return f"{5 + 190 * min(1.0, max(0.0, value)):.1f}"


@cache
def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped unless marked safe by us."""
    loader = jinja2.PackageLoader("medmvl.evaluation", "templates")
    found = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    found.globals.update(label=label, number=number, interval=interval, plain=plain, place=_place)
    found.globals.update(controls=control_names, gain_name=gain_name, signed=lambda value: f"{value:+.3f}", kinds=KINDS)
    found.globals.update(coverage=coverage, control_meanings=control_meanings, grouping_rows=grouping_rows)
    found.globals.update(interval_notes=interval_notes, undecided_groups=undecided_groups)
    found.globals.update(distinct=_distinct_groups, group_keys=_group_keys, scores_of=_variant_scores, verdict=_verdict)
    return found


def _distinct_groups(breakdown: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return {name: groups} of a breakdown; record keys that group all records in the same way share one entry."""
    names: list[list[str]] = []
    for key, groups in breakdown.items():
        equal = next((found for found in names if breakdown[found[0]] == groups), None)
        if equal is None:
            names.append([key])
        else:
            equal.append(key)
    return {" and ".join(key.replace("_", " ") for key in found): breakdown[found[0]] for found in names}


def _group_keys(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the metric keys that occur in any group, in the order of LABELS."""
    occurring = {key for scores in groups.values() for key in scores}
    return [key for key in LABELS if key in occurring] + sorted(occurring - set(LABELS))


def _verdict(test: Mapping[str, Any]) -> str:
    """Return how a paired difference is colored: only one whose interval leaves out 0 is better or worse."""
    low, high = test["ci95"] or (0.0, 0.0)
    return "better" if low > 0 else "worse" if high < 0 else ""


def _variant_scores(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return {variant: its metrics} of a comparison's benchmark."""
    return {name: found["metrics"] for name, found in entry["variants"].items()}


def write_details(out: Path, benchmark: str, cases: list[dict[str, Any]], singles: Sequence[float] = ()) -> None:
    """Save the drawn cases of a benchmark next to the results, so that the page can be made again.

    Args:
        out: the evaluation folder.
        benchmark: its name.
        cases: from `pick_cases`.
        singles: score of every answer that can be scored alone.
    """
    counts = {"scored": len(singles), "below_one": sum(score < 1 for score in singles)}
    write_json(out / DETAILS / f"{benchmark}.json", {"cases": cases, **counts}, indent=None)


def keep_training_log(out: Path, log: Path | Sequence[Mapping[str, Any]]) -> None:
    """Keep what the loss curve needs of a run's log.jsonl (or its rows): stage, step, loss; thinned if very long."""
    rows = list(iter_jsonl(log) if isinstance(log, str | Path) else log)
    kept = [{key: row.get(key) for key in ("stage", "step", "loss")} for row in rows if "loss" in row]
    every = max(1, -(-len(kept) // MAX_LOG_ROWS))
    write_json(out / DETAILS / TRAINING, kept[::every], indent=None)


def write_report(out: Path, title: str = "MedM-VL evaluation") -> Path:
    """Make report.html from results.json and details/ in `out` and return its path."""
    results = read_json(out / "results.json")
    details = {name: _details(out, name) for name in results["benchmarks"]}
    training = out / DETAILS / TRAINING
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            results=results,
            synthetic=any(entry.get("synthetic") for entry in results["benchmarks"].values()),
            curve=loss_curve(read_json(training)) if training.is_file() else "",
            cases=lambda name, kind: [case for case in details[name]["cases"] if case["kind"] == kind],
            no_worst=lambda name: _no_worst(details[name]),
            tables=filled_tables(results),
        )
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _details(out: Path, benchmark: str) -> dict[str, Any]:
    path = out / DETAILS / f"{benchmark}.json"
    found: dict[str, Any] = read_json(path) if path.is_file() else {"cases": []}
    return found


def _no_worst(details: Mapping[str, Any]) -> str:
    """Return why the page shows no worst answers; "" if that is not known (older folders hold no counts)."""
    if not details.get("scored"):
        return ""
    if details["below_one"]:
        return "All answers that score below 1 are shown above."
    return f"No wrong answer: each of the {details['scored']} answers that can be scored alone scores 1."
