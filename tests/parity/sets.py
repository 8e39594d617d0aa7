"""Where the parity data are: the copy in this folder, and a larger set next to the repository if there is one."""

from __future__ import annotations

import filecmp
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "reference"
BESIDE = Path(__file__).parents[3] / "shared" / "parity"


@dataclass(frozen=True)
class Variant:
    """A checkpoint written by the reference, with the numbers the reference gives on it."""

    root: Path
    name: str

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoints" / self.name

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.root / "fixtures" / "model" / f"{self.name}.json").read_text())

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        with np.load(self.root / "fixtures" / "model" / f"{self.name}.npz") as arrays:
            return {key: arrays[key] for key in arrays}

    def __str__(self) -> str:
        return self.name if self.root == HERE else f"{self.name}-beside"


def variants() -> list[Variant]:
    """Return every variant of the committed set, and those next to the repository that differ from it."""
    here = [Variant(HERE, path.stem) for path in sorted((HERE / "fixtures/model").glob("*.json"))]
    beside = [Variant(BESIDE, path.stem) for path in sorted((BESIDE / "fixtures/model").glob("*.json"))]
    return [v for v in [*here, *(v for v in beside if not _same(v))] if (v.checkpoint / "config.json").is_file()]


def tokenizations() -> list[Path]:
    """Return the files of recorded prompts and ids, per LLM."""
    here = sorted((HERE / "fixtures/tokenization").glob("*.json"))
    beside = sorted((BESIDE / "fixtures/tokenization").glob("*.json"))
    return [*here, *(path for path in beside if not _copied(path))]


def _same(variant: Variant) -> bool:
    files = [variant.root / "fixtures/model" / f"{variant.name}.npz", *variant.checkpoint.glob("*.safetensors")]
    return all(_copied(file) for file in files)


def _copied(file: Path) -> bool:
    copy = HERE / file.relative_to(BESIDE)
    return copy.is_file() and filecmp.cmp(file, copy, shallow=False)
