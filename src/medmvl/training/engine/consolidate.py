"""A finished checkpoint from the pieces of several processes.

Where weights are sharded over processes, the checkpoint is written from their pieces, one output shard in memory at a time:
trained values come from the pieces, the others from the checkpoint that the stage started from, and LoRA adapters are merged
layer by layer. No process holds the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import GenerationConfig

from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.models.weight_writer import Entry, expected_tensors, write_weights
from medmvl.models.weights import Weights
from medmvl.training.engine.state import BUFFERS, WEIGHTS, ValueReader
from medmvl.training.engine.trainable import Adaptation, freeze_and_adapt


def write_consolidated(target: Path, source: Path, pieces: Path, adaptation: Adaptation, dtype: str) -> None:
    """Write config and weights of a finished stage.

    Args:
        target: the folder to write into.
        source: the checkpoint that the stage started from.
        pieces: folder of the trained values, as `TrainedState.write_weights` of all processes wrote them, and of the model's
            buffers if it has some.
        adaptation: how the stage changed the model.
        dtype: of the weights, such as "bfloat16".

    Raises:
        CheckpointError: if pieces and source do not make up the model.
    """
    config = MedMVLConfig.from_pretrained(source)
    names = [name for name in (WEIGHTS, BUFFERS) if any(pieces.glob(f"{name}*.safetensors"))]
    values = _Values(Weights(source), [ValueReader(pieces, name) for name in names], getattr(torch, dtype))
    expected = expected_tensors(config, values.names)
    entries = dict(_entries(_skeleton(config, adaptation), values, set(expected)))
    if missing := sorted(expected.keys() - entries.keys()):
        raise CheckpointError(f"{source} has no {missing[0]} (of {len(missing)} missing). Start the stage again.")
    write_weights(entries, target)
    config.architectures = [MedMVLForConditionalGeneration.__name__]
    config.dtype = config.text_config.dtype = dtype
    config.save_pretrained(target)
    GenerationConfig.from_pretrained(source).save_pretrained(target)


class _Values:
    """Weights by their names in the plain model: the trained value if there is one, else that of the start."""

    def __init__(self, start: Weights, changed: Sequence[ValueReader], dtype: torch.dtype) -> None:
        self._start, self._dtype = start, dtype
        self._changed = {name: reader for reader in changed for name in reader.names}
        self.names = {*self._changed, *start}

    def __contains__(self, name: str) -> bool:
        return name in self._changed or name in self._start

    def __getitem__(self, name: str) -> Tensor:
        return self._changed[name][name] if name in self._changed else self._start[name]

    def entry(self, name: str, load: Callable[[], Tensor]) -> Entry:
        """Return the entry that writes the value of `load` under `name`, in the checkpoint's dtype."""
        shape = self._changed[name].shape(name) if name in self._changed else self._start.shape(name)
        return Entry(name, shape, lambda: self._cast(load()))

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if value.is_floating_point() else value


def _skeleton(config: MedMVLConfig, adaptation: Adaptation) -> nn.Module:
    """Return the model as the stage trained it, with adapters, without its weights."""
    with torch.device("meta"):
        model = MedMVLForConditionalGeneration(config)
        skeleton: nn.Module = freeze_and_adapt(model, adaptation.structure_only()).model
        return skeleton


def _entries(skeleton: nn.Module, values: _Values, wanted: set[str]) -> Iterator[tuple[str, Entry]]:
    """Yield (name in the plain model, entry)."""
    adapted = {name: module for name, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    for layer_name, layer in adapted.items():
        for weight, _ in layer.get_base_layer().named_parameters():
            name = f"{layer_name}.{weight}"
            yield name, values.entry(name, partial(_merged, layer_name, layer, weight, values))
    inside = tuple(f"{name}." for name in adapted)
    for name in wanted:
        if not name.startswith(inside) and name in values:
            yield name, values.entry(name, partial(values.__getitem__, name))


def _merged(layer_name: str, layer: Any, weight: str, values: _Values) -> Tensor:
    """Return one weight (or bias) of a layer with its adapter merged. The layer holds its weights only meanwhile."""
    names = {key: f"{layer_name}.{key}" for key in layer.state_dict()}
    state = {key: values[name if name in values else name.replace(".base_layer.", ".")] for key, name in names.items()}
    layer.load_state_dict(state, assign=True)
    layer.merge(safe_merge=True)
    merged: Tensor = dict(layer.get_base_layer().named_parameters())[weight].detach()
    layer.merged_adapters.clear()
    layer.to("meta")
    return merged
