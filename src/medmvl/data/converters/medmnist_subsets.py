"""Facts of the MedMNIST subsets that the .npz files do not hold (from the package medmnist 3.0.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Subset:
    """One MedMNIST subset.

    Attributes:
        picture: word for its pictures in the question.
        classes: class names in the order of their ids.
        multi_label: whether a picture may have several classes or none.
        volume: whether it holds 3D volumes.
        license: license of the data.
    """

    picture: str
    classes: tuple[str, ...]
    multi_label: bool = False
    volume: bool = False
    license: str = "CC BY 4.0"


def _load() -> dict[str, Subset]:
    """Return flag -> subset from the table `medmnist_subsets.json`."""
    table = json.loads(files(__package__).joinpath("medmnist_subsets.json").read_text(encoding="utf-8"))
    return {flag: Subset(**(facts | {"classes": tuple(facts["classes"])})) for flag, facts in table.items()}


SUBSETS: dict[str, Subset] = _load()


def spoken(name: str) -> str:
    """Return a class name as Uni-Med writes it: "kidney-left" becomes "left kidney"; lower case."""
    organ, _, side = name.rpartition("-")
    return f"{side} {organ}" if side in ("left", "right") and organ else name.lower()
