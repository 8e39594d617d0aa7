"""Training data of a checkpoint: of its recipe's stages, and of the bases that it started from.

A stage stores them in its folder (`training_data.json`), so that a model that starts from it inherits them, also when the files of
records are no longer there. Nothing is invented: what neither a file nor a report nor a card says stays unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import try_to_load_from_cache

from medmvl.cards.base_folder import questions_are_synthetic, readme_facts, recipe_of, weights_digest
from medmvl.cards.data_facts import DataFacts, data_set
from medmvl.files import write_json

FILE = "training_data.json"
#: Bases of bases that are followed through recipes; a longer chain is a circle.
_MAX_DEPTH = 8
_SYNTHETIC_TAGS = {"synthetic", "synthetic-data"}


@dataclass(frozen=True)
class Base:
    """What a model started from.

    Attributes:
        name: folder or hub name, or the layout it was converted from.
        version: SHA-256 of the weights of a folder, or the revision of a hub name, in words; "" if neither is known.
        local: whether it is a folder here.
        title: first heading of its README; None without one.
        license: of the base, from the front matter of its README; None without one.
        marked: whether its README or its stored questions say that it was trained on synthetic data, and not on which.
        data: its training data; empty if they are not recorded.
        bases: what it started from itself, with the bases of these.
    """

    name: str
    version: str = ""
    local: bool = False
    title: str | None = None
    license: str | None = None
    marked: bool = False
    data: tuple[DataFacts, ...] = ()
    bases: tuple[Base, ...] = ()

    def __str__(self) -> str:
        return f"{self.label} ({self.version})" if self.version else self.label

    @property
    def label(self) -> str:
        """The name for readers: the end of an absolute path, since the rest of it may name a person or a machine."""
        path = PurePath(self.name)
        return f"…/{'/'.join(path.parts[-2:])}" if path.is_absolute() else self.name

    @property
    def synthetic(self) -> bool:
        """Whether any of its own training data is known to be synthetic."""
        return self.marked or any(entry.synthetic for entry in self.data)


@dataclass(frozen=True)
class TrainingData:
    """Training data of a checkpoint.

    Attributes:
        data: of the recipe's stages up to the one that wrote the checkpoint.
        held_out: on which these stages were evaluated.
        base: what the first of them started from.
    """

    data: tuple[DataFacts, ...] = ()
    held_out: tuple[DataFacts, ...] = ()
    base: tuple[Base, ...] = field(default=())

    @property
    def every_base(self) -> tuple[Base, ...]:
        """The bases and the bases of these, each name once."""
        found = {base.name: base for direct in self.base for base in direct.bases}
        return tuple((found | {base.name: base for base in self.base}).values())

    @property
    def synthetic(self) -> bool:
        """Whether any data that it or a base was trained on is known to be synthetic."""
        return any(entry.synthetic for entry in self.data) or any(base.synthetic for base in self.every_base)


def collect_training_data(recipe: Mapping[str, Any], last: str | None = None, depth: int = 0) -> TrainingData:
    """Return the training data of a recipe's stages, from the files that it names.

    Args:
        recipe: as it is stored; settings with default values may be missing.
        last: the stage that wrote the checkpoint; default: all stages count.
        depth: number of models that are built on this one.
    """
    stages = stages_until(recipe, last)
    sections = recipe.get("data") or {}
    used = {name: tuple(stage["name"] for stage in stages if _trains_on(stage, name)) for name in sections}
    evaluated = {name: tuple(stage["name"] for stage in stages if name in _evaluated(stage)) for name in sections}
    return TrainingData(
        tuple(data_set(name, recipe, stages_of) for name, stages_of in used.items() if stages_of),
        tuple(data_set(name, recipe, stages_of) for name, stages_of in evaluated.items() if stages_of),
        tuple(base_of(source, depth) for source in dict.fromkeys(_sources(recipe, stages)) if depth < _MAX_DEPTH),
    )


def write_training_data(folder: Path, found: TrainingData) -> None:
    """Store training data in a checkpoint folder."""
    write_json(folder / FILE, {"format": 1, **asdict(found)})


def read_training_data(folder: Path) -> TrainingData:
    """Return the training data that a checkpoint folder stores; empty without a file that can be read."""
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return TrainingData(
            tuple(_data_from(entry) for entry in stored["data"]),
            tuple(_data_from(entry) for entry in stored["held_out"]),
            tuple(_base_from(entry) for entry in stored["base"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return TrainingData()


def with_stored(found: TrainingData, stored: TrainingData) -> TrainingData:
    """Return found training data, completed by the stored ones where files or bases are no longer there."""
    if found == TrainingData():  # no recipe, as of a merged adapter
        return stored
    return TrainingData(
        _completed(found.data, stored.data),
        _completed(found.held_out, stored.held_out),
        tuple(
            next((old for old in stored.base if old.name == base.name and not _is_known(base)), base)
            for base in found.base
        ),
    )


def stages_until(recipe: Mapping[str, Any], last: str | None) -> list[dict[str, Any]]:
    """Return the stages that a checkpoint was trained by: the one that wrote it and those it builds on; all if that is not known."""
    stages = list(recipe.get("stages") or [])
    names = [stage["name"] for stage in stages]
    if last not in names:
        return stages
    chain: list[dict[str, Any]] = []
    name: str | None = last
    while name in names and len(chain) < len(stages):
        index = names.index(name)
        chain.insert(0, stages[index])
        name = stages[index].get("from") or (names[index - 1] if index else None)
    return chain


# --- the recipe's data ------------------------------------------------------------------------------------------------


def _evaluated(stage: Mapping[str, Any]) -> Sequence[str]:
    return (stage.get("evaluate") or {}).get("data") or []


def _trains_on(stage: Mapping[str, Any], name: str) -> bool:
    """Whether a stage trains on a data set: one that it names, or, if it names none, any that it does not hold out."""
    return name in stage["data"] if stage.get("data") is not None else name not in _evaluated(stage)


# --- what it started from ---------------------------------------------------------------------------------------------


def whole_model(recipe: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the folder or hub name of the whole model that the stages started from; None if they started from parts."""
    found = _instead_of_the_model(recipe, stages) or (recipe.get("model") or {}).get("from")
    return None if found is None else str(found)


def _instead_of_the_model(recipe: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the `from` of the first stage if it is no other stage; it takes the place of the recipe's model."""
    names = {stage["name"] for stage in recipe.get("stages") or []}
    first = stages[0].get("from") if stages else None
    return None if first is None or first in names else str(first)


def _sources(recipe: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the folders and hub names of the weights that the stages started from."""
    first = _instead_of_the_model(recipe, stages)
    if first is not None:
        yield first
    else:
        yield from _model_sources(recipe.get("model") or {})
    for stage in stages:
        text = (stage.get("contrastive") or {}).get("text") or {}
        if text.get("init_from"):
            yield str(text["init_from"])


def _model_sources(model: Mapping[str, Any]) -> Iterable[str]:
    encoders = [(model.get(tower) or {}).get("encoder") or {} for tower in ("image", "volume")]
    inner = [encoder.get("encoder") for encoder in encoders]  # of a wrapper such as slicewise
    parts = [model.get("llm") or {}, *encoders, *(one for one in inner if isinstance(one, Mapping))]
    for source in (model.get("from"), *(part.get("init_from") for part in parts)):
        if source:
            yield str(source)


def base_of(source: str, depth: int = 0) -> Base:
    """Return a base with its version: of a folder as it is now, of a hub name as it is in the cache of this machine."""
    if Path(source).is_dir():
        digest = weights_digest(Path(source))
        base = Base(source, f"SHA-256 of the weights {digest}" if digest else "", local=True)
        return _described(base, Path(source), depth)
    try:
        cached = try_to_load_from_cache(source, "config.json")
    except ValueError:  # no hub name either, such as an absolute path on another machine
        cached = None
    if not isinstance(cached, str):
        return Base(source)
    return _described(Base(source, f"revision {Path(cached).parent.name}"), Path(cached).parent, depth)


def _described(base: Base, folder: Path, depth: int) -> Base:
    """Return a base with what its folder says: README, stored questions, and training data, stored or of its recipe."""
    title, license_, tags = readme_facts(folder / "README.md")
    found = read_training_data(folder)
    if found == TrainingData():
        recipe, last = recipe_of(folder)
        found = collect_training_data(recipe, last, depth + 1)
    marked = bool(_SYNTHETIC_TAGS & tags) or questions_are_synthetic(folder)
    marked = marked and not found.synthetic  # then it is known which of its data are
    return replace(base, title=title, license=license_, marked=marked, data=found.data, bases=found.every_base)


# --- the stored file --------------------------------------------------------------------------------------------------


def _completed(found: Iterable[DataFacts], stored: Iterable[DataFacts]) -> tuple[DataFacts, ...]:
    known = {entry.name: entry for entry in stored if entry.digest}
    return tuple(
        replace(known[entry.name], stages=entry.stages) if not entry.digest and entry.name in known else entry
        for entry in found
    )


def _is_known(base: Base) -> bool:
    return base.local or bool(base.version)


def _data_from(entry: Mapping[str, Any]) -> DataFacts:
    return DataFacts(**{**entry, "stages": tuple(entry["stages"])})


def _base_from(entry: Mapping[str, Any]) -> Base:
    data = tuple(_data_from(one) for one in entry["data"])
    return Base(**{**entry, "data": data, "bases": tuple(_base_from(one) for one in entry["bases"])})
