"""The paper's two tables with our rows under the published ones, and what may be compared with what.

Published numbers: the MedM-VL paper's Tables 1 and 2 (its baseline rows are quoted there from the Uni-Med and CT-CHAT
papers). How each was scored was found by matching the published rows cell by cell with the public scorers; see
docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Cells = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class OwnRow:
    """A row of ours: its name, and per column the metric key that is scored as the published rows of its kind."""

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One published table.

    Attributes:
        title: its caption, in short.
        columns: heading -> benchmark of ours.
        rows: (name, cells, note) as published, fractions; None where the paper has a dash.
        own: our rows.
        notes: what a reader must know before comparing.
    """

    title: str
    columns: Mapping[str, str]
    rows: tuple[tuple[str, Cells, str], ...]
    own: tuple[OwnRow, ...]
    notes: tuple[str, ...]


_UNIMED = "scored by the Uni-Med scorer, quoted by the paper"
_CT_CHAT = "CT-CHAT's scorer: corpus BLEU-1 on white-space tokens"
_MEDM_VL = "MedM-VL's scorer: mean of sentence BLEU-1 on 13a tokens"

TABLE_1 = PaperTable(
    title="Table 1 of the MedM-VL paper (2D)",
    columns={
        "MedMNIST": "medmnist-organs",
        "MedPix": "medpix",
        "MIMIC-CXR": "mimic-cxr",
        "PathVQA": "pathvqa",
        "SAMed": "samed-identify",
        "SLAKE": "slake-vqa",
    },
    rows=(
        ("Med-Flamingo", (0.089, 0.081, 0.233, 0.334, None, 0.215), _UNIMED),
        ("LLaVA-Med", (0.668, 0.151, 0.204, 0.378, 0.458, 0.337), _UNIMED),
        ("RadFM", (0.189, None, 0.068, 0.248, None, 0.817), _UNIMED),
        ("MedM-VL-2D", (0.808, 0.126, 0.199, 0.634, 0.693, 0.841), "same scorer; Qwen2.5-3B and SigLIP-256"),
    ),
    own=(OwnRow("this run", ("accuracy", "bleu1", "bleu1", "bleu1", "bleu1", "bleu1")),),
    notes=(
        "All rows use one scorer, so rows of a column are comparable when the test items are the same.",
        "MedMNIST: the baseline rows are OrganSMNIST; MedM-VL-2D's 0.808 may be DermaMNIST (its model card gives derma "
        "0.8105 and organs 0.7214). Compare it with medmnist-derma as well.",
        "SAMed is the naming of boxes (samed-identify), not grounding; its test selection is unpublished, so this column "
        "is comparable only on the authors' own files.",
        "No column measures where a box lies; see samed-refer and slake-refer.",
    ),
)
TABLE_2 = PaperTable(
    title="Table 2 of the MedM-VL paper (CT-RATE)",
    columns={
        "Long": "ct-rate-long",
        "Short": "ct-rate-short",
        "Choice": "ct-rate-choice",
        "RG": "ct-rate-report",
    },
    rows=(
        ("CT-CHAT, Mistral 7B", (0.470, 0.275, 0.833, 0.389), _CT_CHAT),
        ("CT-CHAT, Vicuna 13B", (0.475, 0.277, 0.830, 0.389), _CT_CHAT),
        ("CT-CHAT, Llama 3.1 8B", (0.480, 0.280, 0.837, 0.381), _CT_CHAT),
        ("CT-CHAT, Llama 3.1 70B", (0.482, 0.274, 0.838, 0.395), _CT_CHAT),
        ("MedM-VL-CT-Chest, 3D", (0.619, 0.658, 0.924, 0.419), _MEDM_VL),
        ("MedM-VL-CT-Chest, 2D-Avg", (0.622, 0.664, 0.920, 0.441), _MEDM_VL),
        ("MedM-VL-CT-Chest, 2D-Attn", (0.623, 0.667, 0.924, 0.439), _MEDM_VL),
    ),
    own=(
        OwnRow("this run, as the CT-CHAT rows", ("bleu1_coco_corpus",) * 4),
        OwnRow("this run, as the MedM-VL rows", ("bleu1",) * 4),
    ),
    notes=(
        "CT-CHAT's and MedM-VL's rows are scored differently and must not be compared with each other; short answers "
        "move most. Each of our two rows is comparable only with the rows it names.",
        "Choice: the CT-CHAT rows are BLEU-1; whether MedM-VL's 0.92 is BLEU-1 or the letter accuracy is not known. "
        "letter_accuracy is the number that means what it says.",
        "Whether report references were cut to 50 words is not known.",
    ),
)
TABLES = (TABLE_1, TABLE_2)


def filled_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the paper's tables of which `results` holds at least one column, with our rows, ready to print.

    Each is {"title", "columns", "rows": [{"name", "cells", "note", "own"}], "notes"}; cells are texts.
    """
    entries = results["benchmarks"]
    return [_filled(table, entries) for table in TABLES if any(name in entries for name in table.columns.values())]


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
