"""The table of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmvl.evaluation.table import CONTROL_MEANINGS, line, score_text

SHOWN = ("closed_accuracy", "bleu1", "token_f1_unimed", "rouge_l", "letter_accuracy", "label_f1_macro", "miou")


def shown_metrics(entry: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a benchmark that the table shows: the headline, then the usual ones that it has."""
    having = {key for variant in entry["variants"].values() for key in variant["metrics"]}
    return [entry["headline"], *(key for key in SHOWN if key in having and key != entry["headline"])]


def shown_controls(entry: Mapping[str, Any]) -> list[str]:
    """Return the controls that any variant has, in the order of the evaluation's table."""
    return [name for name in CONTROL_MEANINGS if any(name in found["controls"] for found in entry["variants"].values())]


def cost_cells(cost: Mapping[str, Any] | None) -> list[str]:
    """Return time, tokens, memory and parameters of a run as texts."""
    if cost is None:
        return ["–"] * 4
    return [
        f"{cost['train_seconds'] / 60:.1f} min",
        f"{cost['train_tokens'] / 1e6:.2f} M",
        f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB",
        f"{cost['parameters'] / 1e6:.2f} M",
    ]


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown: a table per benchmark, paired tests, cost."""
    seeds = summary["seeds"]
    parts = [f"# {summary['matrix']}", "", summary["description"], ""]
    for name, entry in summary["benchmarks"].items():
        metrics, controls = shown_metrics(entry), shown_controls(entry)
        header = ["variant", *metrics, *(f"{control} ({entry['headline']})" for control in controls)]
        rows = [
            [variant, *(score_text(found["metrics"].get(key)) for key in metrics)]
            + [f"{found['controls'][c]:.3f}" if c in found["controls"] else "–" for c in controls]
            for variant, found in entry["variants"].items()
        ]
        parts += [f"## {entry['title']} (`{name}`)", ""]
        parts += ["Synthetic data: no number here is a clinical claim.", ""] if entry["synthetic"] else []
        parts += [line(header), line(["---"] * len(header)), *map(line, rows), ""]
        parts += [
            f"Seeds {', '.join(map(str, seeds))} pooled; brackets: 95 % bootstrap interval over patients.",
            "",
            *_pairs(entry),
        ]
    parts += _costs(summary)
    parts += [f"- not finished: {what}" for what in summary["failed"]]
    return "\n".join(parts).rstrip() + "\n"


def _pairs(entry: Mapping[str, Any]) -> list[str]:
    if not entry["pairs"]:
        return []
    header = ["pair", f"difference in {entry['headline']}", "p", "p (Holm)"]
    rows = [
        [
            f"{pair['first']} minus {pair['second']}",
            score_text({"value": pair["difference"], "ci95": pair["ci95"]}, signed=True),
            _p(pair["p_value"]),
            _p(pair["p_holm"]),
        ]
        for pair in entry["pairs"]
    ]
    note = "Approximate randomization, runs swapped patient by patient; intervals are paired."
    return [line(header), line(["---"] * 4), *map(line, rows), "", note, ""]


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _costs(summary: Mapping[str, Any]) -> list[str]:
    if not summary["cost"]:
        return []
    header = ["variant", "training", "tokens", "peak memory", "parameters"]
    rows = [[variant, *cost_cells(cost)] for variant, cost in summary["cost"].items()]
    note = "Per run, shared stages counted in full."
    return ["## Cost", "", line(header), line(["---"] * 5), *map(line, rows), "", note, ""]
