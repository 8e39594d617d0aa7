"""Description of a checkpoint folder without loading it: parts, shapes, dtypes, geometry, template, recipe.

A folder of ours is described from its JSON files and the headers of its weights in a fraction of a second; dual encoders and
folders of other frameworks need torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medmvl.auto_classes import DUAL_ENCODER_TYPE, MODEL_TYPE
from medmvl.checkpoints.model_facts import model_facts
from medmvl.errors import naming, printable
from medmvl.files import PathLike, read_json
from medmvl.imaging import Geometry
from medmvl.models.weights import Weights, check_layers, is_parameter
from medmvl.pretrained import ADAPTER_CONFIG, read_raw_config, translate_load_errors
from medmvl.processing.templates import template_name

#: Beginning of a tensor's name -> the part it belongs to.
_PARTS = {
    "language_model.": "llm",
    "towers.image.encoder.": "image_encoder",
    "towers.image.connector.": "image_connector",
    "towers.volume.encoder.": "volume_encoder",
    "towers.volume.connector.": "volume_connector",
}


@dataclass
class PartFacts:
    """Number of tensors of a part, number of values of its parameters, tensors per dtype, and name and shape of the largest one."""

    tensors: int = 0
    values: int = 0
    dtypes: Counter[str] = field(default_factory=Counter)
    largest: tuple[str, tuple[int, ...]] = ("", ())


@dataclass
class Inspection:
    """Result of `inspect_folder`.

    Attributes:
        layout: kind of the folder.
        parts: part -> facts of its tensors.
        facts: name -> text, one line each.
    """

    layout: str
    parts: dict[str, PartFacts]
    facts: dict[str, str]


def inspect_folder(folder: PathLike) -> Inspection:
    """Describe a checkpoint folder; weights are not loaded.

    Raises:
        CheckpointError: if it is not a checkpoint, or is damaged.
    """
    path = Path(folder)
    with translate_load_errors(f"{path} cannot be described", "A file of it is damaged; copy it again."), naming(path):
        return _inspected(path)


def _inspected(path: Path) -> Inspection:
    if (path / ADAPTER_CONFIG).is_file():
        return _adapter(path)
    raw = read_raw_config(path)
    weights = Weights(path)
    if raw.get("model_type") == MODEL_TYPE:
        check_layers(path, allowed=1000)  # an incomplete folder is shown as far as possible
        return Inspection("medmvl", _parts(weights), _own_facts(path, raw, weights))
    if raw.get("model_type") == DUAL_ENCODER_TYPE:
        return Inspection("dual encoder of a contrastive stage", _parts(weights), _dual_facts(raw))
    return Inspection(f"{_foreign(raw)}; `medmvl checkpoint convert` reads it", _parts(weights), _names(raw))


def _foreign(raw: dict[str, Any]) -> str:
    from medmvl.checkpoints.llava import is_llava
    from medmvl.checkpoints.reference_config import is_reference
    from medmvl.checkpoints.tinyllava import is_tinyllava

    known = ((is_reference, "MedM-VL reference"), (is_tinyllava, "TinyLLaVA"), (is_llava, "HF LLaVA"))
    return next((name for test, name in known if test(raw)), f"unknown (model_type {raw.get('model_type')!r})")


def _names(raw: dict[str, Any]) -> dict[str, str]:
    """Return the names of base parts that a conversion has to find."""
    return {key: str(value) for key, value in raw.items() if key.endswith("name_or_path") and value}


def _adapter(path: Path) -> Inspection:
    settings = read_json(path / ADAPTER_CONFIG)
    keys = ("base_model_name_or_path", "peft_type", "r", "lora_alpha", "target_modules", "modules_to_save")
    return Inspection(
        "PEFT adapter; `medmvl checkpoint merge` folds it in", {}, {k: str(settings.get(k)) for k in keys}
    )


def _parts(weights: Weights) -> dict[str, PartFacts]:
    parts: dict[str, PartFacts] = {}
    for name in weights:
        part = next((p for prefix, p in _PARTS.items() if name.startswith(prefix)), name.partition(".")[0])
        facts = parts.setdefault(part, PartFacts())
        shape = weights.shape(name)
        values = math.prod(shape)
        dtype = weights.dtype(name)
        facts.tensors += 1
        facts.values += values if is_parameter(name, dtype) else 0
        facts.dtypes[dtype] += 1
        if values > math.prod(facts.largest[1]) or not facts.largest[0]:
            facts.largest = (name, shape)
    return parts


def _dual_facts(raw: dict[str, Any]) -> dict[str, str]:
    from medmvl.models.contrastive import DualEncoderConfig

    config = DualEncoderConfig(**raw)
    tower, text, spec = config.tower(config.modality), config.text_config, config.spec
    size, grid = "x".join(map(str, tower.input_size)), tower.encoder_spec.grid(tower.input_size)
    return {
        f"{config.modality} encoder": f"{tower.encoder['name']} at {size} -> {grid}, {spec.pooling} of its tokens",
        "text encoder": f"{text.model_type}, width {text.hidden_size}, vocabulary {text.vocab_size}, {spec.text_pooling} pooling",
        "compared": f"in {spec.dim} dimensions, by the loss {spec.loss}",
    }


def _own_facts(path: Path, raw: dict[str, Any], weights: Weights) -> dict[str, str]:
    facts = {**model_facts(raw, weights).lines(), **_processor_facts(path)}
    for file, name in (("recipe.yaml", "recipe"), ("conversion.json", "converted from")):
        if (path / file).is_file():
            text_of_file = (path / file).read_text(encoding="utf-8")
            facts[name] = json.loads(text_of_file)["source"] if file.endswith(".json") else text_of_file.strip()
    return facts


def _processor_facts(path: Path) -> dict[str, str]:
    file = path / "processor_config.json"
    if not file.is_file():
        return {"processor": "missing"}
    settings = read_json(file)
    facts = {}
    if settings.get("volume"):
        geometry = Geometry.from_dict(settings["volume"]["geometry"])
        facts["geometry"] = f"{geometry.name} v{geometry.version} ({geometry.hash}), size {geometry.size}"
    if settings.get("image"):
        facts["image processor"] = f"{settings['image'].get('image_processor_type')}, {settings['image'].get('size')}"
    facts["longest sequence"] = str(settings.get("max_length"))
    template = path / "chat_template.jinja"
    if template.is_file():
        facts["template"] = _template(template.read_text(encoding="utf-8"))
    return facts


def _template(source: str) -> str:
    """Return the name of a template that comes with medmvl; of another one its first line."""
    return template_name(source) or f"its own, {' '.join(source.strip().splitlines()[:1]) or 'empty'}"


def print_inspection(found: Inspection, console: Console | None = None) -> None:
    """Print an inspection as tables; names of a foreign folder are printed as they are, never as markup."""
    console = console or Console()
    console.print(Text(printable(found.layout), style="bold"))
    if found.parts:
        table = Table("part", "tensors", "parameters", "dtypes", "largest tensor")
        for name, facts in found.parts.items():
            dtypes = ", ".join(f"{dtype} x{count}" for dtype, count in facts.dtypes.items())
            shape = "x".join(map(str, facts.largest[1]))
            cells = (name, str(facts.tensors), f"{facts.values:,}", dtypes, f"{facts.largest[0]} {shape}")
            table.add_row(*(Text(printable(cell)) for cell in cells))
        console.print(table)
    for name, text in found.facts.items():
        console.print(Text(printable(f"{name}: {text}")))
