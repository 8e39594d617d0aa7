"""Freezing, adapters and parameter groups of a stage, and their removal at its end.

LoRA adapters are merged into the weights when the stage is finished, so that every finished checkpoint is a plain model
folder. Frozen parts run in bf16 if the stage's precision is bf16; their full-precision values are restored at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from medmvl.errors import RecipeError, did_you_mean
from medmvl.models.llms import lora_targets
from medmvl.models.quantized import quantize_linears, restore_linears
from medmvl.training.acceleration.compiled import compile_layers
from medmvl.training.recipe import LoRASection, PartSection, StageSection

ADAPTER = "default"


@dataclass(frozen=True)
class Adaptation:
    """How a model is changed for a stage.

    Attributes:
        stage: name of the stage, for messages.
        train: part -> how it trains.
        lr: peak learning rate of parts without their own.
        weight_decay: of parts without their own.
        half: store frozen weights in bf16.
        checkpointing: recompute activations, of all parts or of those listed.
        compile: compile layers.
    """

    stage: str
    train: Mapping[str, PartSection]
    lr: float | None
    weight_decay: float = 0.0
    half: bool = False
    checkpointing: bool | tuple[str, ...] = False
    compile: bool = False

    @classmethod
    def of(cls, stage: StageSection) -> Adaptation:
        """Return the adaptation that a stage's section describes."""
        chosen = stage.activation_checkpointing
        return cls(
            stage.name,
            dict(stage.train.items()),
            stage.lr,
            stage.weight_decay,
            stage.precision == "bf16",
            chosen if isinstance(chosen, bool) else tuple(chosen),
            stage.compile,
        )

    def structure_only(self) -> Adaptation:
        """Return the adaptation for a model without weights (on the meta device)."""
        return replace(self, half=False, compile=False)


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
class TrainableModel:
    """The result of `freeze_and_adapt`.

    Attributes:
        model: the model, changed in place.
        trained: the parts that train.
        originals: parameter name -> its full-precision values, for frozen parts that run in less.
    """

    model: Any
    trained: list[TrainedPart]
    originals: dict[str, Tensor] = field(default_factory=dict)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of all that trains, in a fixed order."""
        return {name: p for part in self.trained for name, p in part.parameters.items()}

    def buffers(self) -> dict[str, Tensor]:
        """Return name -> buffer (channels,) that training changes and a checkpoint holds: running statistics of batch norm."""
        kept = self.model.state_dict().keys()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in kept}

    def rebind(self) -> None:
        """Look up the parameters by name again, after sharding has replaced them."""
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

    def restore(self) -> None:
        """Give frozen weights that are stored in bf16 their full-precision values back.

        Those that were half-precision before the stage become fp32 too: merged into half precision, an adapter would be rounded.
        """
        for name, parameter in self.model.named_parameters():
            if name in self.originals:
                parameter.data = self.originals[name].to(parameter.device)
            elif parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter) is nn.Parameter:
                parameter.data = parameter.data.float()
        self.originals.clear()

    def finish(self) -> Any:
        """Restore the full precision of frozen weights, merge adapters, and return the plain model."""
        self.restore()
        for part in self.trained:
            if part.adapters is not None:
                restore_linears(part.adapters)
                self.restore()  # of layers that were quantized
                part.adapters.merge_and_unload(safe_merge=True)
        self.model.requires_grad_(True)
        return self.model


def freeze_and_adapt(model: Any, adaptation: Adaptation, *, keep_originals: bool = True) -> TrainableModel:
    """Freeze everything, then make the parts of an adaptation trainable, in place.

    Args:
        model: a model with a method `parts`, which returns its parts by name.
        adaptation: how the parts train.
        keep_originals: keep the full-precision values of frozen weights that are stored in bf16, for `finish`.

    Raises:
        RecipeError: if the model lacks a part, or `only` or `targets` match nothing.
    """
    model.requires_grad_(False)
    available = model.parts()
    trained: list[TrainedPart] = []
    for name, setting in adaptation.train.items():
        if name not in available:
            raise RecipeError(f"Stage {adaptation.stage!r} trains {name!r}. {did_you_mean(name, available)}")
        if setting.mode == "full":
            _unfreeze(available[name], setting, name)
            trained.append(_trained_part(model, name, setting, adaptation, None))
        elif setting.mode == "lora":
            adapters = _add_adapters(available[name], setting.lora, name)
            trained.append(_trained_part(model, name, setting, adaptation, adapters))
    result = TrainableModel(model, trained)
    for parameter in result.trainable().values():
        parameter.data = parameter.data.float()  # the optimizer's master copy
    if adaptation.half:
        _shrink_frozen(result, keep_originals)
    checkpoint_activations(model, adaptation.checkpointing)
    if adaptation.compile:
        compile_layers(available)
    return result


def checkpoint_activations(model: Any, chosen: bool | Sequence[str]) -> None:
    """Let layers recompute their activations in the backward pass: of all parts, or of the chosen ones.

    Raises:
        RecipeError: if the model has no such part, or the part has no layers that can do so.
    """
    available = model.parts()
    names = (available if chosen else []) if isinstance(chosen, bool) else chosen
    for name in names:
        if name not in available:
            raise RecipeError(f"activation_checkpointing names {name!r}. {did_you_mean(name, available)}")
        layers = [module for module in available[name].modules() if hasattr(module, "gradient_checkpointing")]
        if not layers and not isinstance(chosen, bool):
            raise RecipeError(f"activation_checkpointing names {name!r}, which has no layers that can recompute.")
        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def _unfreeze(part: nn.Module, setting: PartSection, name: str) -> None:
    """Make a part's parameters trainable, or those whose name one of `only` finds."""
    names: dict[int, list[str]] = {}
    for parameter_name, parameter in part.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(parameter_name)
    found = False
    for parameter in part.parameters():
        own = names[id(parameter)]
        chosen = [n for n in own if not setting.only or any(re.search(pattern, n) for pattern in setting.only)]
        if chosen and len(chosen) < len(own):
            other = next(n for n in own if n not in chosen)
            raise RecipeError(
                f"train.{name}.only {setting.only} names {chosen[0]!r}, whose values are tied to {other!r}: training one trains "
                "both. Name both, or leave it out."
            )
        parameter.requires_grad_(bool(chosen))
        found |= bool(chosen)
    if not found:
        example = next((n for n, _ in part.named_parameters()), "(none)")
        raise RecipeError(f"train.{name}.only {setting.only} finds no parameter; a name in this part is {example!r}.")


def _add_adapters(part: nn.Module, settings: LoRASection, name: str) -> LoraModel:
    """Put LoRA layers into a part, in place; on quantized layers if the settings ask for it."""
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
        adapters = LoraModel(part, config, ADAPTER)
    except ValueError as error:
        known = ", ".join(_linear_names(part))
        raise RecipeError(
            f"train.{name}.lora.targets {targets}: {error} Linear layers of this part: {known}."
        ) from error
    _refuse_tied(adapters, name)
    return adapters


def _refuse_tied(adapters: LoraModel, name: str) -> None:
    """Raise if an adapter sits on a weight that another layer shares: merging it would change that layer, too.

    Raises:
        RecipeError: naming the layer.
    """
    owners: dict[int, list[str]] = {}
    for layer_name, layer in adapters.model.named_modules():
        weight = getattr(layer, "weight", None) if not isinstance(layer, LoraLayer) else None
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(layer_name)
    for layer_name, layer in adapters.model.named_modules():
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else None
        others = [
            owner for owner in owners.get(id(getattr(base, "weight", None)), []) if not owner.startswith(layer_name)
        ]
        if others:
            raise RecipeError(
                f"train.{name}.lora.targets names {layer_name!r}, whose weight is tied to {others[0]!r}: a merged adapter "
                "would change both. Leave it out of the targets, or train the part with mode full."
            )


def _linear_names(part: nn.Module) -> list[str]:
    """Return the last names of a part's linear layers; a number keeps the name before it, since blocks have numbers too."""
    names = {_last_name(name) for name, module in part.named_modules() if isinstance(module, nn.Linear)}
    # torch's MultiheadAttention reads its output layer's weight without calling the layer, so no adapter can sit there.
    return sorted(names - {"out_proj"} if _has_fused_attention(part) else names)


def _last_name(name: str) -> str:
    steps = name.split(".")
    return ".".join(steps[-2:]) if steps[-1].isdigit() else steps[-1]


def _has_fused_attention(part: nn.Module) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in part.modules())


def _trained_part(
    model: Any,
    name: str,
    setting: PartSection,
    stage: Adaptation,
    adapters: LoraModel | None,
) -> TrainedPart:
    own = {id(p) for p in model.parts()[name].parameters() if p.requires_grad}
    chosen = {full: p for full, p in model.named_parameters() if id(p) in own}
    lr = setting.lr if setting.lr is not None else stage.lr
    assert lr is not None  # the recipe checks it
    decay = setting.weight_decay if setting.weight_decay is not None else stage.weight_decay
    return TrainedPart(name, setting.mode, lr, decay, chosen, adapters)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to biases, norms and other vectors."""
    return parameter.ndim > 1 and not name.endswith("bias")


def _shrink_frozen(applied: TrainableModel, keep_originals: bool) -> None:
    """Store frozen fp32 weights in bf16; with `keep_originals` their values are kept on the CPU for `finish`.

    Batch norms stay as they are: their running statistics are in fp32, and torch takes no weights of another type beside them.
    """
    norms = (module for module in applied.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    kept = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    for name, parameter in applied.model.named_parameters():
        plain = type(parameter) is nn.Parameter  # torchao's quantized weights say float32 and are not
        if not parameter.requires_grad and parameter.dtype == torch.float32 and plain and id(parameter) not in kept:
            if keep_originals:
                applied.originals[name] = parameter.data.to("cpu", copy=True)
            parameter.data = parameter.data.to(torch.bfloat16)


def print_stage(applied: TrainableModel, stage: str, console: Console | None = None) -> None:
    """Print how each part trains, with parameter counts."""
    table = Table(title=f"Stage {stage}", title_justify="left")
    for column in ("part", "mode"):
        table.add_column(column)
    for column in ("lr", "trainable", "frozen"):
        table.add_column(column, justify="right")
    trained = {part.name: part for part in applied.trained}
    for name, module in applied.model.parts().items():
        total = sum(p.numel() for p in module.parameters())
        part = trained.get(name)
        count = sum(p.numel() for p in part.parameters.values()) if part else 0
        mode, lr = (part.mode, f"{part.lr:g}") if part else ("frozen", "")
        table.add_row(name, mode, lr, f"{count:,}" if count else "", f"{total - count:,}" if total > count else "")
    (console or Console(stderr=True)).print(table)
