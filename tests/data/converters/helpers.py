"""What the converter tests share: tiny pictures, and reading what a converter wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmvl.data.check import check_records
from medmvl.data.converters import Conversion, convert
from medmvl.data.roots import MediaRoots


def picture(path: Path, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> Path:
    """Write a small picture of (width, height) pixels whose content depends on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[Any]]) -> Path:
    """Write rows, the first of them the header."""
    import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    return path


def run(name: str, source: Path, out: Path, **options: Any) -> tuple[dict[str, list[dict[str, Any]]], Conversion]:
    """Convert, allowing any share of faults; return split -> records, which our own checker has found faultless."""
    result = convert(name, source, out, options=options, max_fault_share=1.0)
    records = {}
    for split, file in result.files.items():
        faults = check_records(file, MediaRoots(result.media_root, result.media_root))
        assert not faults, faults[0]
        records[split] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return records, result


def question(record: dict[str, Any], turn: int = 0) -> str:
    """Return a human turn of a record."""
    return record["conversations"][2 * turn]["value"]
