"""Label files of other programs: true labels for records that have none, or labels of the generated reports.

CSV (CT-RATE's `*_predicted_labels.csv`, CheXpert's, or any: first column the key, the others findings) or JSON
(`{key: {finding: 0 or 1}}`). The key is the record's id or the file name of its volume or image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medmvl.data.tables import iter_csv
from medmvl.errors import EvaluationError, shown
from medmvl.evaluation.items import Faults, Item
from medmvl.files import existing_file, read_json

LabelTable = dict[str, dict[str, float]]


def read_label_file(path: Path) -> LabelTable:
    """Read a label file: {key: {finding: value}}; an empty cell (CheXpert: not mentioned) is 0.

    Raises:
        DataError: if the file is missing or is not JSON.
        EvaluationError: if it holds no table of numbers.
    """
    file = existing_file(path, "label file")
    rows = read_json(file) if file.suffix == ".json" else _csv_rows(file)
    if not isinstance(rows, Mapping) or not rows:
        raise EvaluationError(f"{file} holds no labels. It needs a row per report: its key, then a column per finding.")
    table: LabelTable = {}
    for key, row in rows.items():
        if not isinstance(row, Mapping):
            raise EvaluationError(f"{file}, row {shown(key)}: it must be an object of findings, not {shown(row)}.")
        table[str(key)] = {str(name): _value(file, key, name, cell) for name, cell in row.items()}
    return table


def _csv_rows(file: Path) -> dict[str, dict[str, str]]:
    rows = list(iter_csv(file))
    columns = list(rows[0]) if rows else []
    if len(columns) < 2:
        raise EvaluationError(f"{file} has the columns {columns}; a key and at least one finding are needed.")
    return {row[columns[0]]: {name: row[name] for name in columns[1:]} for row in rows}


def _value(file: Path, key: Any, name: str, cell: Any) -> float:
    try:
        value = float(cell or 0)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise EvaluationError(
            f"{file}, row {shown(key)}: the label {shown(name)} is {shown(cell)}, not a number. Use 1, 0, -1 or an empty cell."
        )
    return value


def keys_of(item: Item) -> list[str]:
    """Return the keys under which a label file may hold this item: its id, then file names with and without suffix."""
    keys = [item.id]
    for path in (*item.volumes, *item.images):
        base = Path(path).name
        keys += [base, base.split(".")[0]]
    return keys


def attach_labels(items: list[Item], table: LabelTable, key: str, faults: Faults, what: str) -> list[Item]:
    """Return the items with `key` filled from the table; items that it lacks stay as they are and are faults."""
    labeled = []
    for item in items:
        found = next((table[name] for name in keys_of(item) if name in table), None)
        if found is None:
            faults.add(f"no {what} in the label file", item.id)
            labeled.append(item)
        else:
            labeled.append(replace(item, record={**item.record, key: found}))
    return labeled
