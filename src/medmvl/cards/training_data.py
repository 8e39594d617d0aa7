"""Training data of a checkpoint: of its recipe's stages, and of the bases that it started from.

A stage stores them in its folder (`training_data.json`), so that a model that starts from it inherits them, also when the files of
records are no longer there. Nothing is invented: what neither a file nor a report nor a card says stays unknown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from medmvl.data.formats import count_records, read_records
from medmvl.data.roots import MediaRoots
from medmvl.data.synthetic import LICENSE, read_note
from medmvl.errors import MedMVLError
from medmvl.files import load_yaml, read_json, sha256, write_json

FILE = "training_data.json"
#: Larger files of records are not hashed for a card.
MAX_HASHED_BYTES = 4_000_000_000
#: Larger files are counted without a look at their patients.
MAX_PARSED_BYTES = 200_000_000
#: The same for all weights of a base together; they are read once in a run.
MAX_HASHED_WEIGHTS = 20_000_000_000
#: Characters of a README that are searched for its front matter and title.
_README_CHARACTERS = 100_000
#: Bases of bases that are followed through recipes; a longer chain is a circle.
_MAX_DEPTH = 8
_SYNTHETIC_TAGS = {"synthetic", "synthetic-data"}


@dataclass(frozen=True)
class DataFacts:
    """A data set that a stage saw.

    Attributes:
        name: its name in the recipe.
        stages: names of the stages that used it.
        digest: SHA-256 of its file as it is now; "" if the file is not there.
        records: how many of them the stages use; None if it is not known.
        patients: of those records; None if not all of them name one.
        license: from the converter's report; None without one.
        title: the same.
        synthetic: whether they are phantoms drawn by this toolkit; None if nothing says so or otherwise.
    """

    name: str
    stages: tuple[str, ...]
    digest: str = ""
    records: int | None = None
    patients: int | None = None
    license: str | None = None
    title: str | None = None
    synthetic: bool | None = None


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
        return f"{self.name} ({self.version})" if self.version else self.name

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
        tuple(_data_set(name, recipe, stages_of) for name, stages_of in used.items() if stages_of),
        tuple(_data_set(name, recipe, stages_of) for name, stages_of in evaluated.items() if stages_of),
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


def _data_set(name: str, recipe: Mapping[str, Any], stages: tuple[str, ...]) -> DataFacts:
    """Return what the file, its conversion report and the mark of synthetic media say of a data set."""
    section = recipe["data"][name]
    root = Path(recipe.get("data_root") or ".")
    file = root / section["path"]
    notes = [note for folder in _media_roots(file, root, section) if (note := read_note(folder))]
    if not file.is_file():
        facts = DataFacts(name, stages)
        return replace(facts, license=LICENSE, title=notes[0], synthetic=True) if notes else facts
    report = _report(file.with_name("report.json"))
    changed, tasks = file.stat().st_mtime_ns, section.get("tasks")
    records, patients = _counts(file.resolve(), changed, None if tasks is None else tuple(tasks))
    counts = report.get("records")
    if records is None and tasks is None and isinstance(counts, dict):
        records = counts.get(file.stem)
    return DataFacts(
        name,
        stages,
        _digest(file.resolve(), changed) if file.stat().st_size <= MAX_HASHED_BYTES else "",
        records,
        patients,
        report.get("license") or (LICENSE if notes else None),
        report.get("title") or (notes[0] if notes else None),
        True if notes else report.get("synthetic"),
    )


def _media_roots(file: Path, root: Path, section: Mapping[str, Any]) -> list[Path]:
    image, volume = (root / given if (given := section.get(f"{kind}_root")) else None for kind in ("image", "volume"))
    # A data set with one root that is set has media of that kind only; the default root is for those that set none.
    given = [folder for folder in (image, volume) if folder is not None]
    try:
        return given or [folder for folder in MediaRoots().of_file(file) if isinstance(folder, Path)][:1]
    except MedMVLError:  # a report that cannot be read
        return []


def _report(file: Path) -> dict[str, Any]:
    """Return the converter's report next to a file of records; empty if there is none that can be read."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


@lru_cache(maxsize=1000)
def _counts(file: Path, changed: int, tasks: tuple[str, ...] | None) -> tuple[int | None, int | None]:
    """Return the number of records and of patients of a file that was last changed at a time, each None if it is not known."""
    if file.stat().st_size > MAX_PARSED_BYTES:
        return (count_records(file) if tasks is None else None), None
    patients: list[object] = []
    try:
        for record in read_records(file):
            if tasks is None or (isinstance(record, dict) and record.get("task") in tasks):
                patients.append(record.get("patient") if isinstance(record, dict) else None)
    except (MedMVLError, OSError, ImportError):
        return None, None
    named = bool(patients) and all(isinstance(patient, str | int) and patient != "" for patient in patients)
    return len(patients), len(set(patients)) if named else None


@lru_cache(maxsize=1000)
def _digest(file: Path, changed: int) -> str:
    """Return the SHA-256 of a file that was last changed at a time; each stage of a run has the same base."""
    return sha256(file)


# --- what it started from ---------------------------------------------------------------------------------------------


def _sources(recipe: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the folders and hub names of the weights that the stages started from."""
    names = {stage["name"] for stage in recipe.get("stages") or []}
    first = stages[0].get("from") if stages else None
    if first is not None and first not in names:
        yield str(first)  # instead of the recipe's model
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
    title, license_, tags = _readme(folder / "README.md")
    found = read_training_data(folder)
    if found == TrainingData():
        recipe, last = recipe_of(folder)
        found = collect_training_data(recipe, last, depth + 1)
    marked = bool(_SYNTHETIC_TAGS & tags) or _questions_are_synthetic(folder)
    marked = marked and not found.synthetic  # then it is known which of its data are
    return replace(base, title=title, license=license_, marked=marked, data=found.data, bases=found.every_base)


def recipe_of(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the recipe stored in a base's folder and the stage that wrote it; empty if they cannot be read."""
    try:
        recipe = load_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"))
        file = folder / "environment.json"
        last = read_json(file).get("stage") if file.is_file() else None
        stages = recipe.get("stages") or []
        if all(isinstance(stage["name"], str) for stage in stages) and isinstance(recipe.get("data") or {}, dict):
            return recipe, last
    except (OSError, MedMVLError, yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        pass
    return {}, None


def _questions_are_synthetic(folder: Path) -> bool:
    return _report(folder / "prompts.json").get("synthetic") is True


def _readme(file: Path) -> tuple[str | None, str | None, set[str]]:
    """Return title, license and tags of a model's README, as far as it has them."""
    try:
        with file.open(encoding="utf-8", errors="replace") as handle:
            text = handle.read(_README_CHARACTERS)
    except OSError:
        return None, None, set()
    facts: Any = None
    if text.startswith("---\n") and (end := text.find("\n---", 3)) > 0:
        try:
            facts = load_yaml(text[4:end])
        except (yaml.YAMLError, MedMVLError, ValueError, RecursionError):
            facts = None
        text = text[end + 4 :]
    facts = facts if isinstance(facts, dict) else {}
    title = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), None)
    tags, license_ = facts.get("tags"), facts.get("license")
    return (
        title or None,
        license_ if isinstance(license_, str) else None,
        {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set(),
    )


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's weights; "" if there are none, or more than `MAX_HASHED_WEIGHTS`.

    Of several files it is the SHA-256 of the lines that `sha256sum` prints of them, sorted by name.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files or sum(file.stat().st_size for file in files) > MAX_HASHED_WEIGHTS:
        return ""
    digests = [_digest(file.resolve(), file.stat().st_mtime_ns) for file in files]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return digests[0] if len(files) == 1 else hashlib.sha256(lines.encode()).hexdigest()


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
