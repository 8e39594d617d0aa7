"""Tables of published numbers with rows of the evaluated model below them.

The numbers are in published.yaml: Tables 1 and 2 of the MedM-VL paper (its baseline rows are quoted there from the Uni-Med
and CT-CHAT papers) and the model card of MedM-VL-2D. How each row was scored was found by comparing the published cells
with the output of the public scorers; see docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

Cells = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class OwnRow:
    """A row of the evaluated model.

    Attributes:
        name: its heading.
        keys: per column, the metric key with the same definition as the published rows it is compared with.
    """

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One published table.

    Attributes:
        title: short caption.
        columns: heading -> name of our benchmark.
        rows: (name, cells, how it was scored) as published, as fractions; None where the source has a dash.
        own: rows of the evaluated model.
        notes: conditions for a comparison.
    """

    title: str
    columns: Mapping[str, str]
    rows: tuple[tuple[str, Cells, str], ...]
    own: tuple[OwnRow, ...]
    notes: tuple[str, ...]


@cache
def published_tables() -> tuple[PaperTable, ...]:
    """Return the tables of published.yaml, which ships with the package."""
    text = resources.files("medmvl.evaluation").joinpath("published.yaml").read_text(encoding="utf-8")
    return tuple(_table(entry) for entry in yaml.safe_load(text)["tables"])


def _table(entry: Mapping[str, Any]) -> PaperTable:
    """Make a table of its entry in published.yaml."""
    scorers = entry["scorers"]
    rows = tuple((row["name"], tuple(row["cells"]), scorers[row["scorer"]]) for row in entry["rows"])
    own = tuple(OwnRow(row["name"], tuple(row["keys"])) for row in entry["own"])
    return PaperTable(entry["title"], entry["columns"], rows, own, tuple(entry["notes"]))


def filled_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the published tables with at least one column in `results`, with our rows, ready to print.

    Each is {"title", "columns", "rows": [{"name", "cells", "note", "own"}], "notes"}; cells are texts.
    """
    entries = results["benchmarks"]
    return [
        _filled(table, entries)
        for table in published_tables()
        if any(name in entries for name in table.columns.values())
    ]


def _filled(table: PaperTable, entries: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": name, "cells": [_cell(value) for value in cells], "note": note, "own": False}
        for name, cells, note in table.rows
    ]
    for own in table.own:
        found = [
            entries.get(benchmark, {}).get("model", {}).get(key)
            for benchmark, key in zip(table.columns.values(), own.keys, strict=True)
        ]
        cells = [_cell(score and score["value"]) for score in found]
        rows.append({"name": own.name, "cells": cells, "note": _keys_note(own, found), "own": True})
    return {"title": table.title, "columns": list(table.columns), "rows": rows, "notes": list(table.notes)}


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _keys_note(own: OwnRow, found: list[Any]) -> str:
    counts = "/".join(str(score["n"]) if score else "–" for score in found)
    return f"{', '.join(dict.fromkeys(own.keys))}; n = {counts}"
