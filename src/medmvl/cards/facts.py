"""What a checkpoint folder says of its model: parts, preprocessing, training, data, software."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.cards.data_facts import DataFacts
from medmvl.cards.training_data import (
    Base,
    collect_training_data,
    read_training_data,
    stages_until,
    whole_model,
    with_stored,
)
from medmvl.errors import CheckpointError
from medmvl.files import load_yaml, read_json
from medmvl.imaging import Geometry
from medmvl.models import MedMVLConfig
from medmvl.models.weights import Weights, parameter_count
from medmvl.pretrained import translate_load_errors


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a checkpoint folder.

    Attributes:
        name: of the recipe, else of the folder.
        parts: (what, description) of the LLM and each tower.
        inputs: (what, description) of preprocessing.
        parameters: number of values of all parameters, without buffers.
        base: the parts or checkpoints that it started from.
        every_base: the same with what these started from.
        tuned_from: the whole model that it was fine-tuned from; None if it started from parts, or if that is not known.
        stages: (name, what trains and how long) of each stage that it was trained by.
        seed: of the recipe; None without one.
        data: the training data.
        held_out: the data on which the stages were evaluated.
        software: package -> version; empty if not known.
        recipe: YAML text, "" if there is none.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str], ...]
    parameters: int
    base: tuple[Base, ...]
    every_base: tuple[Base, ...]
    tuned_from: str | None
    stages: tuple[tuple[str, str], ...]
    seed: int | None
    data: tuple[DataFacts, ...]
    held_out: tuple[DataFacts, ...]
    software: dict[str, str]
    recipe: str

    @property
    def synthetic(self) -> list[str]:
        """Names of training data that are synthetic."""
        return [entry.name for entry in self.data if entry.synthetic]

    @property
    def synthetic_bases(self) -> list[str]:
        """Names of bases, and of bases of these, that were trained on synthetic data."""
        return [base.label for base in self.every_base if base.synthetic]


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
    stages = stages_until(recipe, environment.get("stage"))
    found = with_stored(collect_training_data(recipe, environment.get("stage")), read_training_data(folder))
    converted = _conversion(folder)
    return ModelFacts(
        name=str(recipe.get("name") or folder.resolve().name),
        parts=tuple(_parts(MedMVLConfig(**raw))),
        inputs=tuple(_inputs(folder)),
        parameters=parameter_count(weights),
        base=(*converted, *found.base),
        every_base=(*converted, *found.every_base),
        tuned_from=whole_model(recipe, stages),
        stages=tuple((stage["name"], _stage_text(stage, environment.get("steps") or {})) for stage in stages),
        seed=recipe.get("seed", DEFAULTS["seed"]) if recipe else None,
        data=found.data,
        held_out=found.held_out,
        software={str(name): str(version) for name, version in environment.get("packages", {}).items()},
        recipe=recipe_text,
    )


def _parts(config: MedMVLConfig) -> list[tuple[str, str]]:
    text = config.text_config
    rows = [("LLM", f"architecture {text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers")]
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
            (
                "images",
                f"{size.get('height')} × {size.get('width')}, prepared by transformers' class "
                f"{settings['image'].get('image_processor_type')}",
            )
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


def _conversion(folder: Path) -> tuple[Base, ...]:
    """Return what a converted checkpoint was converted from."""
    file = folder / "conversion.json"
    return (Base(str(read_json(file).get("source"))),) if file.is_file() else ()


#: Values of settings that recipes omit where they are the defaults of `medmvl.training.recipe`, which a test compares.
DEFAULTS = {"seed": 42, "r": 16, "alpha": 32}

#: Settings of a stage that a card shows where the recipe gives them; the recipe omits defaults.
_SHOWN = ("max_steps", "epochs", "batch_size", "lr", "optimizer", "precision")


def _stage_text(stage: Mapping[str, Any], steps: Mapping[str, int]) -> str:
    """Return what a stage trained and how long; `steps` are those of stages that were recorded."""
    parts = ", ".join(f"{part} ({_mode(setting)})" for part, setting in (stage.get("train") or {}).items())
    settings = "".join(f"; {key} {stage[key]}" for key in _SHOWN if stage.get(key) is not None)
    done = f"; {steps[stage['name']]} steps" if stage["name"] in steps else ""
    return f"{stage.get('objective', 'language')}: {parts or 'nothing trains'}{settings}{done}"


def _mode(setting: Any) -> str:
    """Return how a part trains: recipes write a word, or a mapping without the default mode, full."""
    mode = setting if isinstance(setting, str) else str((setting or {}).get("mode", "full"))
    if mode != "lora":
        return mode
    lora = DEFAULTS | ((setting.get("lora") or {}) if isinstance(setting, Mapping) else {})
    return f"lora, rank {lora['r']}, alpha {lora['alpha']}"
