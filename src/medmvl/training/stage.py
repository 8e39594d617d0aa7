"""A stage applied to a model: what is frozen, what trains, at which rate; and, when it is over, undone.

LoRA adapters are merged into the weights when the stage is finished, so that every finished checkpoint is one plain
model folder. Frozen parts run in bf16 where the stage's precision is bf16, and get their own numbers back at the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from medmvl.errors import RecipeError, did_you_mean
from medmvl.models import MedMVLForConditionalGeneration, parts
from medmvl.models.llms import lora_targets
from medmvl.models.quantized import quantize_linears, restore_linears
from medmvl.training.compiled import compile_layers
from medmvl.training.recipe import LoRASection, PartSection, StageSection

ADAPTER = "default"


@dataclass
class TrainedPart:
    """A part that trains in this stage.

    Attributes:
        name: of the part.
        mode: "full" or "lora".
        lr: peak learning rate.
        weight_decay: for matrices; biases and norms have none.
        parameters: name in the model -> parameter.
        adapters: the LoRA layers, if any.
    """

    name: str
    mode: str
    lr: float
    weight_decay: float
    parameters: dict[str, nn.Parameter]
    adapters: LoraModel | None = None


@dataclass
class AppliedStage:
    """The result of `apply_stage`.

    Attributes:
        model: the model, changed in place.
        trained: the parts that train.
        originals: parameter name -> its full-precision values, for frozen parts that run in less.
    """

    model: MedMVLForConditionalGeneration
    trained: list[TrainedPart]
    originals: dict[str, Tensor] = field(default_factory=dict)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of all that trains, in a fixed order."""
        return {name: p for part in self.trained for name, p in part.parameters.items()}

    def buffers(self) -> dict[str, Tensor]:
        """Return name -> what a checkpoint holds beside weights and training changes: running statistics of batch norm."""
        kept = self.model.state_dict().keys()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in kept}

    def rebind(self) -> None:
        """Find the parameters again after something (sharding) has put others in their places, of the same names."""
        now = dict(self.model.named_parameters())
        for part in self.trained:
            part.parameters = {name: now[name] for name in part.parameters}

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Return torch's parameter groups: per part one with weight decay and one without."""
        groups: list[dict[str, Any]] = []
        for part in self.trained:
            for decays in (True, False):
                chosen = [p for name, p in part.parameters.items() if _decays(name, p) == decays]
                if chosen:
                    decay = part.weight_decay if decays else 0.0
                    groups.append({"params": chosen, "lr": part.lr, "weight_decay": decay, "part": part.name})
        return groups

    def finish(self) -> MedMVLForConditionalGeneration:
        """Give frozen weights their full precision back, merge adapters, and return the plain model."""
        for name, parameter in self.model.named_parameters():
            if name in self.originals:
                parameter.data = self.originals[name].to(parameter.device)
        self.originals.clear()
        for part in self.trained:
            if part.adapters is not None:
                restore_linears(part.adapters)
                part.adapters.merge_and_unload(safe_merge=True)
        self.model.requires_grad_(True)
        return self.model


def apply_stage(
    model: MedMVLForConditionalGeneration, stage: StageSection, *, keep_originals: bool = True
) -> AppliedStage:
    """Freeze everything, then make trainable what the stage says, in place.

    Args:
        keep_originals: keep the full values of frozen weights that run in less, for `finish`.

    Raises:
        RecipeError: if the stage trains a part that the model lacks, or `only`/`targets` match nothing.
    """
    model.requires_grad_(False)
    available = parts(model)
    trained: list[TrainedPart] = []
    for name, setting in stage.train.items():
        if name not in available:
            raise RecipeError(f"Stage {stage.name!r} trains {name!r}. {did_you_mean(name, available)}")
        if setting.mode == "full":
            _unfreeze(available[name], setting, name)
            trained.append(_trained_part(model, name, setting, stage, None))
        elif setting.mode == "lora":
            adapters = _add_adapters(available[name], setting.lora, name)
            trained.append(_trained_part(model, name, setting, stage, adapters))
    applied = AppliedStage(model, trained)
    for parameter in applied.trainable().values():
        parameter.data = parameter.data.float()  # the optimiser's master copy
    if stage.precision == "bf16":
        _shrink_frozen(applied, keep_originals)
    checkpoint_activations(model, stage.activation_checkpointing)  # type: ignore[arg-type]
    if stage.compile:
        compile_layers(available)
    return applied


def checkpoint_activations(model: MedMVLForConditionalGeneration, chosen: bool | list[str]) -> None:
    """Let layers recompute their activations in the backward pass: of all parts, or of the chosen ones.

    Raises:
        RecipeError: if the model has no such part, or the part has no layers that can do so.
    """
    available = parts(model)
    names = (available if chosen else []) if isinstance(chosen, bool) else chosen
    for name in names:
        if name not in available:
            raise RecipeError(f"activation_checkpointing names {name!r}. {did_you_mean(name, available)}")
        layers = [module for module in available[name].modules() if hasattr(module, "gradient_checkpointing")]
        if not layers and not isinstance(chosen, bool):
            raise RecipeError(f"activation_checkpointing names {name!r}, which has no layers that can recompute.")
        for layer in layers:
            layer.gradient_checkpointing = True  # type: ignore[assignment]
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]


def _unfreeze(part: nn.Module, setting: PartSection, name: str) -> None:
    """Make a part's parameters trainable, or those whose name one of `only` finds."""
    found = False
    for parameter_name, parameter in part.named_parameters():
        if not setting.only or any(re.search(pattern, parameter_name) for pattern in setting.only):
            parameter.requires_grad_(True)
            found = True
    if not found:
        example = next((n for n, _ in part.named_parameters()), "(none)")
        raise RecipeError(f"train.{name}.only {setting.only} finds no parameter; a name in this part is {example!r}.")


def _add_adapters(part: nn.Module, settings: LoRASection, name: str) -> LoraModel:
    """Put LoRA layers into a part, in place; on quantised layers if the settings say so."""
    targets = settings.targets or (lora_targets(part) if isinstance(part, PreTrainedModel) else _linear_names(part))
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        bias="none",
    )
    if settings.quantize is not None:
        quantize_linears(part, settings.quantize)
    try:
        return LoraModel(part, config, ADAPTER)
    except ValueError as error:
        known = ", ".join(_linear_names(part))
        raise RecipeError(
            f"train.{name}.lora.targets {targets}: {error} Linear layers of this part: {known}."
        ) from error


def _linear_names(part: nn.Module) -> list[str]:
    """Return the last names of a part's linear layers; a number only with what it counts, since blocks have numbers too."""
    names = {_last_name(name) for name, module in part.named_modules() if isinstance(module, nn.Linear)}
    # torch's MultiheadAttention reads its output layer's weight without calling the layer, so no adapter can sit there.
    return sorted(names - {"out_proj"} if _has_fused_attention(part) else names)


def _last_name(name: str) -> str:
    steps = name.split(".")
    return ".".join(steps[-2:]) if steps[-1].isdigit() else steps[-1]


def _has_fused_attention(part: nn.Module) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in part.modules())


def _trained_part(
    model: MedMVLForConditionalGeneration,
    name: str,
    setting: PartSection,
    stage: StageSection,
    adapters: LoraModel | None,
) -> TrainedPart:
    own = {id(p) for p in parts(model)[name].parameters() if p.requires_grad}
    chosen = {full: p for full, p in model.named_parameters() if id(p) in own}
    lr = setting.lr if setting.lr is not None else stage.lr
    assert lr is not None  # the recipe checks it
    decay = setting.weight_decay if setting.weight_decay is not None else stage.weight_decay
    return TrainedPart(name, setting.mode, lr, decay, chosen, adapters)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay applies: to matrices, not to biases, norms and other vectors."""
    return parameter.ndim > 1 and not name.endswith("bias")


def _shrink_frozen(applied: AppliedStage, keep_originals: bool) -> None:
    """Hold frozen fp32 weights in bf16; their values are kept on the CPU if somebody will call `finish`."""
    for name, parameter in applied.model.named_parameters():
        plain = type(parameter) is nn.Parameter  # torchao's quantised weights say float32 and are not
        if not parameter.requires_grad and parameter.dtype == torch.float32 and plain:
            if keep_originals:
                applied.originals[name] = parameter.data.to("cpu", copy=True)
            parameter.data = parameter.data.to(torch.bfloat16)


def print_stage(applied: AppliedStage, stage: StageSection, console: Console | None = None) -> None:
    """Show which part trains how, with parameter counts."""
    table = Table(title=f"Stage {stage.name}", title_justify="left")
    for column in ("part", "mode"):
        table.add_column(column)
    for column in ("lr", "trainable", "frozen"):
        table.add_column(column, justify="right")
    trained = {part.name: part for part in applied.trained}
    for name, module in parts(applied.model).items():
        total = sum(p.numel() for p in module.parameters())
        part = trained.get(name)
        count = sum(p.numel() for p in part.parameters.values()) if part else 0
        mode, lr = (part.mode, f"{part.lr:g}") if part else ("frozen", "")
        table.add_row(name, mode, lr, f"{count:,}" if count else "", f"{total - count:,}" if total > count else "")
    (console or Console(stderr=True)).print(table)
