"""Foreign checkpoints become self-contained folders of ours, or nothing is written."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

import medmvl
from medmvl.checkpoints.llava import is_llava, read_llava
from medmvl.checkpoints.reference import read_reference
from medmvl.checkpoints.reference_config import is_reference
from medmvl.checkpoints.resolve import Resolver
from medmvl.checkpoints.source import Source
from medmvl.checkpoints.tinyllava import is_tinyllava, read_tinyllava
from medmvl.checkpoints.write import check_complete, whole_folder
from medmvl.errors import CheckpointError
from medmvl.files import PathLike, write_json
from medmvl.models.weight_writer import expected_tensors, write_weights


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Attributes:
        layout: what the source was.
        tensors: how many tensors our folder holds, and their `bytes`.
        unused: part of the source -> how many of its tensors the model does not need.
        names: name of a base part -> how it was found.
        notes: what the user should know.
    """

    layout: str
    tensors: int
    bytes: int
    unused: dict[str, int]
    names: dict[str, str]
    notes: list[str]


def convert(
    source: PathLike,
    target: PathLike,
    resolve: Mapping[str, PathLike] | None = None,
    *,
    template: str | None = None,
    hub_generation: bool = False,
    lora_alpha: float | None = None,
    towers: Sequence[str] | None = None,
) -> Conversion:
    """Convert a reference, TinyLLaVA or HF LLaVA checkpoint to a folder of ours.

    Only the configs, tokenizers and processors of the base parts are needed, never their weights. Tensors are streamed;
    the folder appears whole or not at all.

    Args:
        source: the checkpoint folder.
        target: the folder to write; must not exist, or be empty.
        resolve: name in the checkpoint -> local folder.
        template: another chat template than the one the source was trained with.
        hub_generation: of a reference checkpoint, take over the LLM's generation settings (repetition penalty, sampling).
        lora_alpha: of a reference checkpoint's unmerged intermediate save.
        towers: what the 2D encoder of a reference checkpoint is to serve: "image", "volume" or both; default: volumes if
            its connector pools by attention, else images.

    Raises:
        CheckpointError: if the source is not one of these, a part cannot be found, or a tensor is missing, unknown or of
            another shape.
    """
    folder, destination = Path(source), Path(target)
    raw = read_raw_config(folder)
    resolver = Resolver(folder, dict(resolve or {}))
    if is_reference(raw):
        found = read_reference(
            folder, raw, resolver, hub_generation=hub_generation, lora_alpha=lora_alpha, towers=towers
        )
    elif is_tinyllava(raw):
        found = read_tinyllava(folder, raw, resolver)
    elif is_llava(raw):
        found = read_llava(folder, raw)
    else:
        raise CheckpointError(_unknown_layout(folder, raw))
    if unused := resolver.unused():
        found.notes.append(f"--resolve was given for {', '.join(unused)}, which this checkpoint does not name.")
    if template is not None:
        found.processor.with_template(template)
    check_complete(found, expected_tensors(found.config))
    return _write(found, destination)


def read_raw_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json as plain data.

    Raises:
        CheckpointError: if the folder or the file is missing or is not JSON.
    """
    file = folder / "config.json"
    if not file.is_file():
        what = "is not a folder" if not folder.is_dir() else "has no config.json"
        raise CheckpointError(f"{folder} {what}. Give the folder of a checkpoint.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}. Copy it again.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not a {type(raw).__name__}.")
    return raw


def _write(found: Source, destination: Path) -> Conversion:
    with whole_folder(destination) as folder:
        size = write_weights(found.entries, folder)
        found.config.architectures = ["MedMVLForConditionalGeneration"]
        found.config.save_pretrained(folder)
        found.processor.save_pretrained(folder)
        GenerationConfig(**found.generation).save_pretrained(folder)
        unused = Counter(_part(name) for name in found.unused)
        done = Conversion(found.layout, len(found.entries), size, dict(unused), found.names, found.notes)
        write_json(folder / "conversion.json", _provenance(found))
    return done


def _part(name: str) -> str:
    """Return the beginning of a tensor's name that says which part it is of."""
    words = name.split(".")
    cut = next((i for i, word in enumerate(words) if word.isdigit()), len(words) - 1)
    return ".".join(words[: min(cut, 4)])


def _provenance(found: Source) -> dict[str, Any]:
    return {
        "source": found.layout,
        "base_parts": found.names,
        "unused_tensors": found.unused,
        "notes": found.notes,
        "versions": {
            "medmvl": medmvl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _unknown_layout(folder: Path, raw: dict[str, Any]) -> str:
    kind = raw.get("model_type")
    if kind == "medmvl":
        return f"{folder} is a checkpoint of ours already: use it as it is."
    remote = " It asks for code of its own (auto_map), which is never run." if "auto_map" in raw else ""
    return (
        f"{folder} is not a layout that can be converted (model_type {kind!r}).{remote} Known: MedM-VL reference checkpoints "
        "(model_type 'lvlm', or the older layout with llm_name_or_path), TinyLLaVA (model_type 'tinyllava...') and HF LLaVA "
        "(model_type 'llava')."
    )
