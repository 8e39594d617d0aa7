"""Targets: files of records, tables, labels, predictions, recipes and other settings."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from medmvl.data.audit import audit
from medmvl.data.check import check_records
from medmvl.data.converters import convert
from medmvl.data.converters.safe_pickle import load_plain_pickle
from medmvl.data.dataset import SampleDataset
from medmvl.data.tables import iter_table
from medmvl.errors import DataError
from medmvl.evaluation.evaluate_predictions import evaluate_predictions
from medmvl.evaluation.label_files import read_label_file
from medmvl.experiments.compare.matrix import load_matrix
from medmvl.imaging import geometry
from medmvl.training.recipe_io import load_recipe
from medmvl.ward import load_protocol

from .mutators import BINARY, JSON, TEXT
from .target import Change, Target

_ROOT = Path(__file__).resolve().parents[2]
_PROTOCOL = """name: chest
series: {modality: CT, slice_thickness: {max: 5}, kernel: ["B*", "*sharp*"]}
questions:
  - {id: effusion, ask: "Is there a pleural effusion?", kind: yes-no, finding: pleural effusion, threshold: 0.4}
  - {id: report, ask: Describe the findings.}
results: {send: [sr, pdf]}
destinations:
  - {name: pacs, dicom: {host: pacs.local, port: 104, ae_title: PACS}}
node: {callers: [PACS], spool: spool}
"""
_GEOMETRY = "name: mine\nbase: medm-vl-ct\nsize: [4, 32, 32]\n"


def _rows(count: int = 6) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index in range(count):
        turns = [
            {"from": "human", "value": "<image>\nIs there an effusion?"},
            {"from": "gpt", "value": "No, there is none."},
        ]
        rows.append(
            {"id": f"r{index}", "conversations": turns, "image": ["a.png"], "patient": f"p{index}", "task": "vqa"}
        )
    rows[1] = {"id": "m", "messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Where?"}]},
                                       {"role": "assistant", "content": "Left."}]}  # fmt: skip
    rows[2] |= {"answer": "no", "read": {"frame": 0}}
    return rows


def _media(folder: Path) -> None:
    PIL.Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)).save(
        folder / "a.png"
    )


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _record_files(folder: Path) -> list[Path]:
    _media(folder)
    (folder / "r.jsonl").write_bytes(_lines(_rows()))
    (folder / "r.json").write_text(json.dumps(_rows()))
    return [folder / "r.jsonl", folder / "r.json"]


def check(path: Path) -> dict[str, int]:
    """Check a file of records, decode it as a data set, and audit it; return how many records were found."""
    seen: list[bool] = []
    faults = check_records(path, on_record=lambda sample: seen.append(sample is not None))
    located = len({fault.where for fault in faults})
    dataset = SampleDataset(path)
    good = 0
    for index in range(len(dataset)):
        try:
            dataset[index]
            good += 1
        except DataError:
            continue
    audit([path])
    return {"records": len(seen), "parsed": sum(seen), "good": good, "faulty": located, "length": len(dataset)}


def every_record(good: dict[str, int], found: dict[str, int], change: Change) -> str:
    """Refuse results in which a record is neither good nor a fault."""
    if found["records"] != found["length"]:
        return f"the check saw {found['records']} records, the data set has {found['length']}"
    if found["good"] + found["faulty"] < found["records"]:
        return "a record is neither good nor a fault"
    if change.before.lstrip().startswith(b"{"):
        lines = sum(bool(line.strip()) for line in change.after.split(b"\n"))
        if change.after.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and lines != found["records"]:
            return f"{lines} lines, {found['records']} records"
    return ""


def _parquet(folder: Path) -> list[Path]:
    _media(folder)
    rows = [row for row in _rows() if "messages" not in row]
    columns = {key: [row.get(key) for row in rows] for key in ("id", "conversations", "image", "patient", "answer")}
    pq.write_table(pa.table(columns), folder / "r.parquet")
    return [folder / "r.parquet"]


def check_parquet(path: Path) -> dict[str, int]:
    """Check a Parquet file and read it as a table."""
    seen: list[bool] = []
    check_records(path, on_record=lambda sample: seen.append(sample is not None))
    return {"records": len(seen), "rows": sum(1 for _ in iter_table(path))}


def _table_rows() -> list[list[Any]]:
    head = ["id", "image", "question", "answer", "patient"]
    return [head, *[[f"t{i}", "a.png", "Is it, or not?", "yes" if i % 2 else "no", f"p{i}"] for i in range(5)]]


def _csv(separator: str = ",") -> str:
    return "".join(separator.join(f'"{cell}"' for cell in row) + "\r\n" for row in _table_rows())


def _csv_files(folder: Path) -> list[Path]:
    (folder / "a.csv").write_text(_csv(), encoding="utf-8-sig", newline="")
    (folder / "b.csv").write_text(_csv(";").replace("yes", "ja, ä"), encoding="utf-8", newline="")
    (folder / "c.tsv").write_text(_csv("\t"), encoding="utf-16", newline="")
    return sorted(folder.iterdir())


def _packed_csv(folder: Path) -> list[Path]:
    words = "".join(f"n{index},a.png,{index * 7919 % 1009},{index * 104729 % 997},p\r\n" for index in range(400))
    (folder / "a.csv.gz").write_bytes(gzip.compress((_csv() + words).encode(), mtime=0))  # longer than a repeated block
    return [folder / "a.csv.gz"]


def _xlsx(folder: Path) -> list[Path]:
    book = openpyxl.Workbook()
    for row in _table_rows():
        book.active.append([*row, 3.5])
    book.save(folder / "a.xlsx")
    return [folder / "a.xlsx"]


def table(path: Path) -> list[Any]:
    """Read a table; rows that cannot be used are counted."""
    faults: list[str] = []
    rows = list(iter_table(path, ["id"], on_fault=lambda reason, name: faults.append(name), any_encoding=True))
    return [rows, len(faults)]


def same_table(good: list[Any], found: list[Any], change: Change) -> str:
    """Refuse other rows: the container has checksums."""
    return "the rows differ although the format has checksums" if found != good else ""


def _own_folder(folder: Path) -> list[Path]:
    _media(folder)
    (folder / "table.csv").write_text(_csv(), newline="")
    return [folder / "table.csv"]


def own_folder(path: Path) -> dict[str, int]:
    """Convert a table with pictures to records, and check these."""
    out = path.parent / "out"
    options = {
        "image": "image",
        "question": "question",
        "patient": "patient",
        "key_file": str(path.parent / "key"),
        "test_share": "0.5",
    }
    try:
        done = convert("folder", path.parent, out, options=options, max_fault_share=1.0)
        return {split: len(list(_checked(file))) for split, file in done.files.items()}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _checked(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_bytes().splitlines():
        yield json.loads(line)


def _label_files(folder: Path) -> list[Path]:
    labels = {f"r{i}": {"Nodule": i % 2, "Effusion": 0, "Mass": -1} for i in range(4)}
    (folder / "a.json").write_text(json.dumps(labels))
    (folder / "b.csv").write_text("id,Nodule,Effusion\n" + "".join(f"r{i},{i % 2},\n" for i in range(4)))
    return sorted(folder.iterdir())


def labels(path: Path) -> dict[str, dict[str, float]]:
    """Read a label file."""
    return read_label_file(path)


def finite_labels(good: Any, found: dict[str, dict[str, float]], change: Change) -> str:
    """Refuse labels that are no numbers."""
    values = [value for row in found.values() for value in row.values()]
    return "" if all(isinstance(value, float) and math.isfinite(value) for value in values) else "a label is no number"


def _prediction_files(folder: Path) -> list[Path]:
    rows = [
        *[{**row, "answer": "yes", "prediction": "no" if index % 2 else "Yes."} for index, row in enumerate(_rows())],
        {"id": "b", "question": "Where is the heart?", "boxes": [[20, 10, 80, 50]], "image_size": [200, 100], "task": "refer",
         "answer": "{<10><10><50><60>}", "prediction": "{<10><10><50><60>}", "answer_type": "OPEN"},
        {"id": "c", "question": "Describe.", "answer": "There is a pleural effusion.", "prediction": "No effusion.", "task": "report",
         "labels": {"Pleural effusion": 1, "Consolidation": 0}},
    ]  # fmt: skip
    (folder / "p.jsonl").write_bytes(_lines(rows))
    return [folder / "p.jsonl"]


def scores(path: Path) -> list[float | None]:
    """Score a predictions file by our own benchmark and return all numbers of results.json."""
    out = path.parent / "out"
    try:
        results = evaluate_predictions(path, "own", out)
        text = (out / "results.json").read_text()
        json.loads(text, parse_constant=_no_constant)
        return _numbers(results)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _no_constant(name: str) -> None:
    raise AssertionError(f"results.json holds {name}")


def _numbers(value: Any) -> list[float | None]:
    if isinstance(value, dict):
        return [number for key, item in value.items() if key not in ("other", "faults") for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def finite_scores(good: Any, found: list[float | None], change: Change) -> str:
    """Refuse scores that are not finite."""
    return "" if all(number is None or math.isfinite(number) for number in found) else "a score is not finite"


def _text_file(name: str, text: str) -> Callable[[Path], list[Path]]:
    def prepare(folder: Path) -> list[Path]:
        (folder / name).write_text(text)
        return [folder / name]

    return prepare


def _recipes(folder: Path) -> list[Path]:
    for recipe in sorted((_ROOT / "recipes").glob("*.yaml")):
        if "\nstages:" in recipe.read_text():  # the others are lists of data for recipes
            shutil.copy(recipe, folder / recipe.name)
    return sorted(folder.iterdir())


def _matrices(folder: Path) -> list[Path]:
    for matrix in sorted((_ROOT / "compare").glob("*.yaml")):
        shutil.copy(matrix, folder / matrix.name)
    return sorted(folder.iterdir())


def recipe(path: Path) -> str:
    """Read a recipe; return its JSON."""
    return json.dumps(load_recipe(path, ["seed=3"]).to_dict(), sort_keys=True)


def protocol(path: Path) -> str:
    """Read a protocol."""
    return load_protocol(path).model_dump_json()


def own_geometry(path: Path) -> str:
    """Read a geometry file."""
    return geometry(path).hash


def matrix(path: Path) -> str:
    """Read a matrix of a comparison."""
    return load_matrix(path).model_dump_json()


def _pickles(folder: Path) -> list[Path]:
    (folder / "a.pkl").write_bytes(pickle.dumps({"a": [1, 2.5, "x", None, (1, 2)], "b": {"c": {1, 2}}}))
    return [folder / "a.pkl"]


def targets() -> list[Target]:
    """Return the targets of this module."""
    both = (*BINARY, *TEXT)
    return [
        Target("records, JSON and JSON Lines", _record_files, check, every_record, JSON, 60),
        Target("records, Parquet", _parquet, check_parquet, mutators=BINARY, weight=20),
        Target("table, CSV", _csv_files, table, mutators=both, weight=30),
        Target("table, CSV in gzip", _packed_csv, table, same_table, weight=10),
        Target("table, Excel", _xlsx, table, same_table, weight=15),
        Target("own data: a table with pictures", _own_folder, own_folder, mutators=both, weight=20, names_file=False),
        Target("labels", _label_files, labels, finite_labels, JSON, 20),
        Target("predictions", _prediction_files, scores, finite_scores, JSON, 30),
        Target("recipe, YAML", _recipes, recipe, mutators=TEXT, weight=20),
        Target("protocol, YAML", _text_file("p.yaml", _PROTOCOL), protocol, mutators=TEXT, weight=20),
        Target("geometry, YAML", _text_file("g.yaml", _GEOMETRY), own_geometry, mutators=TEXT, weight=15),
        Target("comparison, YAML", _matrices, matrix, mutators=TEXT, weight=10),
        Target("plain pickle", _pickles, load_plain_pickle, weight=15),
    ]
