"""What a checkpoint folder says of its model: parts, preprocessing, training, data, software."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from medmvl.errors import CheckpointError
from medmvl.files import load_yaml, read_json, sha256
from medmvl.imaging import Geometry
from medmvl.models import MedMVLConfig
from medmvl.models.weights import Weights
from medmvl.pretrained import translate_load_errors

#: Larger files of records are not hashed for a card.
MAX_HASHED_BYTES = 4_000_000_000
#: The same for all weights of a base together; they are read once in a run.
MAX_HASHED_WEIGHTS = 20_000_000_000


@dataclass(frozen=True)
class DataFacts:
    """A data set that a stage saw.

    Attributes:
        name: its name in the recipe.
        stages: names of the stages that trained on it.
        digest: SHA-256 of its file as it is now; "" if the file is not there.
        records: from the converter's report, where there is one; else None.
        license: the same.
        title: the same.
        synthetic: whether they are phantoms drawn by this toolkit, as far as the report says.
    """

    name: str
    stages: tuple[str, ...]
    digest: str = ""
    records: int | None = None
    license: str | None = None
    title: str | None = None
    synthetic: bool = False


@dataclass(frozen=True)
class Base:
    """What a model started from.

    Attributes:
        name: folder or hub name, or the layout it was converted from.
        version: SHA-256 of the weights of a folder, or the revision of a hub name, in words; "" if neither is known.
        local: whether it is a folder here.
    """

    name: str
    version: str = ""
    local: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.version})" if self.version else self.name


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a checkpoint folder.

    Attributes:
        name: of the recipe, else of the folder.
        parts: (what, description) of the LLM and each tower.
        inputs: (what, description) of preprocessing.
        parameters: number of values of all weights.
        base: the parts or checkpoints that it started from.
        stages: (name, what trains and how long) of each stage up to this one.
        data: the training data.
        software: package -> version; empty if not known.
        recipe: YAML text, "" if there is none.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str], ...]
    parameters: int
    base: tuple[Base, ...]
    stages: tuple[tuple[str, str], ...]
    data: tuple[DataFacts, ...]
    software: dict[str, str]
    recipe: str

    @property
    def synthetic(self) -> list[str]:
        """Names of training data that are synthetic."""
        return [entry.name for entry in self.data if entry.synthetic]


def collect_facts(folder: Path) -> ModelFacts:
    """Return the facts of a checkpoint folder; weights are not loaded.

    Raises:
        CheckpointError: if it is not a MedM-VL checkpoint, or is damaged.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json.")
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict) or raw.get("model_type") != MedMVLConfig.model_type:
        raise CheckpointError(
            f"{folder} is not a MedM-VL checkpoint (model_type {raw.get('model_type') if isinstance(raw, dict) else raw!r}). "
            "Convert it first: `medmvl checkpoint convert`."
        )
    weights = Weights(folder)
    recipe_file = folder / "recipe.yaml"
    advice = "Copy it again, or remove it."
    with translate_load_errors(f"{recipe_file} cannot be read", advice):
        recipe_text = recipe_file.read_text(encoding="utf-8") if recipe_file.is_file() else ""
        recipe = load_yaml(recipe_text) if recipe_text else {}
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{recipe_file} must hold keys and values, as a recipe does. {advice}")
    environment = read_json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    stages = _stages_until(recipe, environment.get("stage"))
    data = tuple(_data(recipe, stages))
    return ModelFacts(
        name=str(recipe.get("name") or folder.resolve().name),
        parts=tuple(_parts(MedMVLConfig(**raw))),
        inputs=tuple(_inputs(folder)),
        parameters=sum(math.prod(weights.shape(name)) for name in weights),
        base=tuple(_base(folder, recipe)),
        stages=tuple((stage["name"], _stage_text(stage)) for stage in stages),
        data=data,
        software={str(name): str(version) for name, version in environment.get("packages", {}).items()},
        recipe=recipe_text,
    )


def _parts(config: MedMVLConfig) -> list[tuple[str, str]]:
    text = config.text_config
    rows = [("LLM", f"{text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers")]
    for modality in config.towers:
        tower = config.tower(modality)
        size = " × ".join(map(str, tower.input_size))
        connector = f"{tower.connector.pooling['name']} pooling, {tower.connector.projector}"
        tokens = tower.output_grid().tokens
        rows.append((f"{modality} tower", f"{tower.encoder['name']} at {size}, {connector}, {tokens} tokens"))
    return rows


def _inputs(folder: Path) -> list[tuple[str, str]]:
    file = folder / "processor_config.json"
    settings = read_json(file) if file.is_file() else {}
    rows = []
    if settings.get("image"):
        size = settings["image"].get("size") or {}
        rows.append(
            ("images", f"{settings['image'].get('image_processor_type')}, {size.get('height')} × {size.get('width')}")
        )
    if settings.get("volume"):
        geometry = Geometry.from_dict(settings["volume"]["geometry"])
        size = " × ".join(map(str, geometry.size))
        rows.append(
            (
                "volumes",
                f"geometry {geometry.name} v{geometry.version} (hash {geometry.hash}), {geometry.units}, {size}",
            )
        )
    return rows


def _base(folder: Path, recipe: dict[str, Any]) -> list[Base]:
    found = []
    if (folder / "conversion.json").is_file():
        found.append(Base(str(read_json(folder / "conversion.json").get("source"))))
    model = recipe.get("model") or {}
    sources = [model.get("from"), (model.get("llm") or {}).get("init_from")]
    sources += [((model.get(tower) or {}).get("encoder") or {}).get("init_from") for tower in ("image", "volume")]
    return [*found, *(_base_of(str(source)) for source in dict.fromkeys(sources) if source)]


def _base_of(source: str) -> Base:
    """Return a base with its version: of a folder as it is now, of a hub name as it is in the cache of this machine."""
    if Path(source).is_dir():
        digest = weights_digest(Path(source))
        return Base(source, f"SHA-256 of the weights {digest}" if digest else "", local=True)
    try:
        cached = try_to_load_from_cache(source, "config.json")
    except ValueError:  # no hub name either, such as an absolute path on another machine
        cached = None
    return Base(source, f"revision {Path(cached).parent.name}" if isinstance(cached, str) else "")


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


@lru_cache(maxsize=1000)
def _digest(file: Path, changed: int) -> str:
    """Return the SHA-256 of a file that was last changed at a time; each stage of a run has the same base."""
    return sha256(file)


def _stages_until(recipe: dict[str, Any], last: str | None) -> list[dict[str, Any]]:
    """Return the recipe's stages up to the one that wrote the folder; all if that is not known."""
    stages = list(recipe.get("stages") or [])
    names = [stage["name"] for stage in stages]
    return stages[: names.index(last) + 1] if last in names else stages


#: Settings of a stage that a card shows where the recipe gives them; the recipe omits defaults.
_SHOWN = ("max_steps", "epochs", "batch_size", "lr", "optimizer", "precision")


def _stage_text(stage: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} ({_mode(setting)})" for part, setting in (stage.get("train") or {}).items())
    settings = "".join(f"; {key} {stage[key]}" for key in _SHOWN if stage.get(key) is not None)
    return f"{stage.get('objective', 'language')}: {parts or 'nothing trains'}{settings}"


def _mode(setting: Any) -> str:
    """Return how a part trains: recipes write a word, or a mapping without the default mode, full."""
    return setting if isinstance(setting, str) else str((setting or {}).get("mode", "full"))


def _data(recipe: dict[str, Any], stages: list[dict[str, Any]]) -> list[DataFacts]:
    sections = recipe.get("data") or {}
    root = Path(recipe.get("data_root") or ".")
    used = {name: tuple(stage["name"] for stage in stages if _trains_on(stage, name)) for name in sections}
    return [_data_set(name, root / sections[name]["path"], where) for name, where in used.items() if where]


def _trains_on(stage: dict[str, Any], name: str) -> bool:
    """Whether a stage trains on a data set: one that it names, or, if it names none, any that it does not hold out."""
    if stage.get("data") is not None:
        return name in stage["data"]
    return name not in ((stage.get("evaluate") or {}).get("data") or [])


def _data_set(name: str, file: Path, stages: tuple[str, ...]) -> DataFacts:
    if not file.is_file():
        return DataFacts(name, stages)
    digest = sha256(file) if file.stat().st_size <= MAX_HASHED_BYTES else ""
    report = _report(file.with_name("report.json"))
    counts = report.get("records")
    records = counts.get(file.stem) if isinstance(counts, dict) else None
    return DataFacts(
        name, stages, digest, records, report.get("license"), report.get("title"), bool(report.get("synthetic"))
    )


def _report(file: Path) -> dict[str, Any]:
    """Return the converter's report next to a file of records; empty if there is none that can be read."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
