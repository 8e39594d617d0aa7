"""Targets: files of model folders, caches, feature stores and unfinished outputs."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmvl.checkpoints import inspect_folder
from medmvl.checkpoints.adapters import adapt, load_adapted
from medmvl.data.dataset import SampleDataset
from medmvl.errors import DataError
from medmvl.imaging import geometry
from medmvl.imaging.cache import CacheReader, CacheWriter, Fingerprint
from medmvl.imaging.feature_store import FeatureStore
from medmvl.inference import Predictor
from medmvl.inference.row_job import RowJob
from tiny import make_model

from .mutators import BINARY, JSON, TEXT, Mutator
from .target import Change, Target

_SIZE = (2, 4, 4)


def _model(*names: str) -> Callable[[Path], list[Path]]:
    def prepare(folder: Path) -> list[Path]:
        target = folder / "zz-model"
        model, processor = make_model()
        model.save_pretrained(target)
        processor.save_pretrained(target)
        return [target / name for name in names]

    return prepare


def _sharded(folder: Path) -> list[Path]:
    target = folder / "zz-model"
    model, processor = make_model()
    model.save_pretrained(target, max_shard_size="100KB")
    processor.save_pretrained(target)
    return [target / "model.safetensors.index.json"]


def _bin(folder: Path) -> list[Path]:
    target = folder / "zz-model"
    model, processor = make_model()
    model.save_pretrained(target)
    processor.save_pretrained(target)
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    return [target / "pytorch_model.bin"]


def answer(path: Path) -> Any:
    """Inspect a model folder, load it and ask it a question."""
    inspect_folder(path.parent)
    predictor = Predictor.from_pretrained(path.parent, device="cpu")
    with contextlib.suppress(DataError):  # a template can make the question too long
        predictor.answer("Is there a pleural effusion?", max_new_tokens=2)
    return sum(parameter.numel() for parameter in predictor.model.parameters())


def whole_model(good: int, found: int, change: Change) -> str:
    """Refuse models of a weights file that was cut."""
    return "the weights were cut" if change.is_cut else ""


def _adapter(folder: Path) -> list[Path]:
    base = folder / "zz-base"
    model, processor = make_model()
    model.save_pretrained(base)
    processor.save_pretrained(base)
    adapt(model).save_pretrained(str(folder / "zz-adapter"))
    return [folder / "zz-adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")]


def adapted(path: Path) -> int:
    """Load adapters on their base."""
    return sum(1 for _ in load_adapted(path.parent, path.parents[1] / "zz-base").parameters())


def _cache(folder: Path) -> list[Path]:
    writer = CacheWriter(folder / "zz-cache", geometry("medm-vl-ct", size=_SIZE), shard_size=2)
    for index in range(5):
        writer.add(f"k{index}", np.full((1, *_SIZE), index, np.uint8), Fingerprint(1, 2, "a"))
    writer.close({"failed": 0})
    return sorted((folder / "zz-cache").iterdir())


def cached(path: Path) -> list[str]:
    """Read all rows of a cache, and open a copy of it to write on."""
    wanted = geometry("medm-vl-ct", size=_SIZE)
    reader = CacheReader(path.parent, wanted)
    rows = [reader[f"k{index}"].tobytes().hex() for index in range(5) if f"k{index}" in reader]
    copy = path.parents[1] / "copy"
    try:
        shutil.copytree(path.parent, copy)
        CacheWriter(copy, wanted, shard_size=2).close()
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return rows


def whole_cache(good: list[str], found: list[str], change: Change) -> str:
    """Refuse rows of another size, and rows of a file that was cut."""
    size = 2 * math.prod(_SIZE)
    if any(len(row) != size for row in found):
        return "a row has another size"
    return "the file was cut and its rows changed" if change.is_cut and not set(found) <= set(good) else ""


def _features(folder: Path) -> list[Path]:
    store = FeatureStore(folder / "zz-store", "e", "p")
    for index in range(3):
        store.put(f"k{index}", torch.full((2, 3), float(index)))
    return [folder / "zz-store" / "manifest.json", *sorted((folder / "zz-store").glob("??/*"))]


def features(path: Path) -> list[Any]:
    """Read all features of a store."""
    folder = path.parent if path.name == "manifest.json" else path.parents[1]
    store = FeatureStore(folder, "e", "p")
    found = [store.get(f"k{index}") for index in range(3)]
    return [None if one is None else one.shape for one in found]


def _rows(folder: Path) -> list[Path]:
    lines = [json.dumps({"id": f"r{i}", "conversations": [{"from": "human", "value": "What?"}]}) for i in range(4)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    out = folder / "out.jsonl"
    RowJob(out, SampleDataset(folder / "data.jsonl"), {"model": "m", "settings": [1]}, None).run(_some_rows, 2)
    return [out, folder / "out.jsonl.run.json"]


def _some_rows(indices: Any) -> Any:
    for index in indices:
        yield {"id": f"r{index}", "prediction": "no"}


def continued(path: Path) -> list[str]:
    """Continue a copy of an unfinished output and return its ids."""
    folder = path.parent / "again"
    folder.mkdir()
    try:
        for name in ("data.jsonl", "out.jsonl", "out.jsonl.run.json"):
            shutil.copy(path.parent / name, folder / name)
        out = folder / "out.jsonl"
        RowJob(out, SampleDataset(folder / "data.jsonl"), {"model": "m", "settings": [1]}, None).run(_some_rows, 2)
        return [json.loads(line)["id"] for line in out.read_bytes().split(b"\n") if line.strip()]
    finally:
        shutil.rmtree(folder)


def each_row_once(good: list[str], found: list[str], change: Change) -> str:
    """Refuse outputs that lack a row or have one twice."""
    return "" if sorted(found) == sorted(good) else f"rows {found}"


def targets() -> list[Target]:
    """Return the targets of this module."""

    def model(
        name: str, files: tuple[str, ...], mutators: tuple[Mutator, ...] = JSON, weight: int = 8, **rules: Any
    ) -> Target:
        return Target(f"model folder: {name}", _model(*files), answer, mutators=mutators, weight=weight, **rules)

    return [
        model("config.json", ("config.json",), weight=8),
        model("tokenizer", ("tokenizer.json", "tokenizer_config.json"), weight=3),
        model("processor, generation config", ("processor_config.json", "generation_config.json"), weight=4),
        model("chat template", ("chat_template.jinja",), TEXT, 2),
        model("safetensors", ("model.safetensors",), BINARY, judge=whole_model),
        Target("model folder: index of shards", _sharded, answer, mutators=JSON, weight=3),
        Target("model folder: .bin", _bin, answer, whole_model, weight=6),
        Target("adapters", _adapter, adapted, mutators=(*JSON, *BINARY), weight=3),
        Target("cache of volumes", _cache, cached, whole_cache, (*JSON, *BINARY), 25),
        Target("store of features", _features, features, mutators=(*JSON, *BINARY), weight=15),
        Target("unfinished predictions", _rows, continued, each_row_once, (*JSON, *BINARY), 25),
    ]
