"""The adapters of a finished stage as a PEFT folder, kept beside the model that they were merged into.

The folder holds the LoRA layers and whole copies of the other parts that trained, such as connectors. On the checkpoint that the
stage started from they give the finished model: `medmvl.checkpoints.load_adapted` loads both, and `merge` merges them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from medmvl.files import read_json, write_json
from medmvl.models.weights import Weights
from medmvl.training.engine.trainable import ADAPTER, TrainableModel, TrainedPart

logger = logging.getLogger(__name__)

#: The folder within that of a finished stage, and PEFT's names in it.
FOLDER, CONFIG, WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class StageAdapters:
    """The adapters that a stage trained.

    Attributes:
        config: PEFT's settings.
        parameters: names of the adapters' parameters in the model.
        whole: prefixes, in the model, of the parts that are kept as whole copies.
    """

    config: LoraConfig
    parameters: list[str]
    whole: list[str]

    def write(self, folder: Path, read: Callable[[str], Tensor], base: str) -> None:
        """Write the folder `adapter` into a folder that holds the finished model.

        Args:
            folder: of the finished model, with its weights.
            read: name of a parameter -> its trained value, of any shape.
            base: the checkpoint that the stage started from, as a path from the run folder, or the recipe's name for it.
        """
        finished = Weights(folder)
        values = {_peft_name(name): read(name) for name in self.parameters}
        values |= {f"{_PREFIX}{name}": finished[name] for name in finished if name.startswith(tuple(self.whole))}
        target = folder / FOLDER
        target.mkdir()
        stored = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in values.items()}
        save_file(stored, target / WEIGHTS, metadata={"format": "pt"})
        self.config.base_model_name_or_path = base
        self.config.save_pretrained(target)
        settings = read_json(
            target / CONFIG
        )  # lists that come from sets have no order, and equal runs give equal files
        write_json(target / CONFIG, {key: _ordered(value) for key, value in settings.items()})


def stage_adapters(trainable: TrainableModel) -> StageAdapters | None:
    """Return the adapters of a stage; None if it trained none, or if PEFT's format cannot hold what it trained (logged)."""
    adapted = [part for part in trainable.trained if part.adapters is not None]
    if not adapted:
        return None
    settings = [part.adapters.peft_config[ADAPTER] for part in adapted if part.adapters is not None]
    reason = None
    if len({(config.use_dora, config.use_rslora) for config in settings}) > 1:
        reason = "its parts differ in dora or rslora, and PEFT's settings hold one value for all"
    elif any(part.name == "llm" and part.adapters is None for part in trainable.trained):
        reason = "the LLM trained in full"
    if reason is not None:
        logger.warning("The adapters of this stage are merged and not kept: %s.", reason)
        return None
    prefixes = _prefixes(trainable)
    whole = [prefixes[part.name] for part in trainable.trained if part.adapters is None]
    return StageAdapters(
        _joined(adapted, settings, prefixes, whole),
        [name for part in adapted for name in part.parameters],
        [f"{prefix}." for prefix in whole],
    )


def _joined(
    parts: Iterable[TrainedPart], settings: list[LoraConfig], prefixes: dict[str, str], whole: list[str]
) -> LoraConfig:
    """Return one config for the adapters of several parts; layers whose rank or alpha is not the first part's are named."""
    first = settings[0]
    layers = {
        f"{prefixes[part.name]}.{name}": config
        for part, config in zip(parts, settings, strict=True)
        for name in (part.adapters.targeted_module_names if part.adapters is not None else ())
    }
    return LoraConfig(
        r=first.r,
        lora_alpha=first.lora_alpha,
        lora_dropout=first.lora_dropout,
        target_modules=list(layers),
        rank_pattern={name: config.r for name, config in layers.items() if config.r != first.r},
        alpha_pattern={
            name: config.lora_alpha for name, config in layers.items() if config.lora_alpha != first.lora_alpha
        },
        use_dora=first.use_dora,
        use_rslora=first.use_rslora,
        bias="none",
        modules_to_save=whole or None,
        inference_mode=True,
    )


def _prefixes(trainable: TrainableModel) -> dict[str, str]:
    """Return part -> name of its module in the model."""
    names = {id(module): name for name, module in trainable.model.named_modules()}
    return {part: names[id(module)] for part, module in trainable.model.parts().items()}


def _peft_name(name: str) -> str:
    """Return the name under which PEFT stores a LoRA parameter; DoRA's magnitudes have no `.weight` there."""
    plain = name.replace(f".{ADAPTER}", "")
    return _PREFIX + (plain.removesuffix(".weight") if ".lora_magnitude_vector" in plain else plain)


def _ordered(value: object) -> object:
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
