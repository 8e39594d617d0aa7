"""Conversion of checkpoints of other frameworks to MedM-VL folders."""

from __future__ import annotations

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
from medmvl.checkpoints.compare import compare_written
from medmvl.checkpoints.llava import is_llava, read_llava
from medmvl.checkpoints.reference import read_reference
from medmvl.checkpoints.reference_config import is_reference
from medmvl.checkpoints.resolve import Resolver
from medmvl.checkpoints.source import Source, check_complete
from medmvl.checkpoints.tinyllava import is_tinyllava, read_tinyllava
from medmvl.errors import CheckpointError
from medmvl.files import PathLike, atomic_directory, check_new_folder, write_json
from medmvl.models.weight_writer import expected_tensors, write_weights
from medmvl.pretrained import read_raw_config, translate_load_errors


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        layout: name of the source's layout.
        tensors: number of tensors in the written folder.
        bytes: size of these tensors.
        unused: part of the source -> number of its tensors that the model does not need.
        names: name of a base part -> how it was found.
        notes: remarks for the user.
        difference: largest difference of a logit between the source and the written folder, relative to the largest logit.
    """

    layout: str
    tensors: int
    bytes: int
    unused: dict[str, int]
    names: dict[str, str]
    notes: list[str]
    difference: float


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
    """Convert a MedM-VL reference, TinyLLaVA or HF LLaVA checkpoint to a MedM-VL folder.

    Only configs, tokenizers and processors of the base parts are needed, not their weights. Tensors are read and written one
    shard at a time. The folder is loaded and its logits compared before it appears, complete or not at all.

    Args:
        source: the checkpoint folder.
        target: the folder to write; must not exist, or be empty.
        resolve: name in the checkpoint -> local folder.
        template: another chat template than the one the source was trained with.
        hub_generation: of a reference checkpoint, take over the LLM's generation settings (repetition penalty, sampling).
        lora_alpha: LoRA alpha of a reference checkpoint's intermediate save with unmerged adapters.
        towers: inputs of a reference checkpoint's 2D encoder: "image", "volume" or both; default: volumes if its connector
            pools by attention, otherwise images.

    Raises:
        CheckpointError: if the source is not one of these, a part cannot be found, or a tensor is missing, unknown or of
            another shape, or the written folder has other logits.
    """
    folder, destination = Path(source), Path(target)
    check_new_folder(destination)
    raw = read_raw_config(folder)
    resolver = Resolver(folder, dict(resolve or {}))
    advice = "A setting in one of its configs is damaged or impossible; copy the folder again."
    with translate_load_errors(f"{folder} cannot be converted", advice):
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
        expected = expected_tensors(found.config, found.entries)
    if unused := resolver.unused():
        found.notes.append(f"--resolve was given for {', '.join(unused)}, which this checkpoint does not name.")
    if template is not None:
        found.processor.with_template(template)
    check_complete(found, expected)
    return _write(found, destination)


def _write(found: Source, destination: Path) -> Conversion:
    with atomic_directory(destination) as folder:
        size = write_weights(found.entries, folder)
        found.config.architectures = ["MedMVLForConditionalGeneration"]
        found.config.save_pretrained(folder)
        GenerationConfig(**found.generation).save_pretrained(folder)
        found.processor.save_pretrained(folder)  # completes the generation config
        difference = compare_written(found, folder)
        unused = Counter(_part(name) for name in found.unused)
        done = Conversion(found.layout, len(found.entries), size, dict(unused), found.names, found.notes, difference)
        write_json(folder / "conversion.json", _provenance(found))
    return done


def _part(name: str) -> str:
    """Return the beginning of a tensor's name, which names its part."""
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
