"""The end of a stage: its finished checkpoint, one plain model folder.

Where the weights are spread over processes, the folder is put together from their pieces, one shard of it in memory at
a time: what trained is read from the pieces, what did not from the checkpoint that the stage started from, and LoRA
adapters are merged layer by layer. No process holds the model for that.
"""

from __future__ import annotations

import shutil
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
from medmvl.processing import MedMVLProcessor
from medmvl.training import zero
from medmvl.training.distributed import barrier, is_main_process
from medmvl.training.recipe import Recipe, StageSection
from medmvl.training.run_folder import RunFolder, save_finished
from medmvl.training.stage import apply_stage
from medmvl.training.state import ValueReader, write_values
from medmvl.training.trainer import BUFFERS, WEIGHTS, StageTrainer

#: In a stage's folder, what its processes lay down for its finished checkpoint.
PIECES = ".pieces.ranks"


def finish_stage(
    recipe: Recipe,
    stage: StageSection,
    folder: RunFolder,
    source: Path,
    trainer: StageTrainer,
    processor: MedMVLProcessor,
) -> None:
    """Undo what the stage did to the model's form and write the finished checkpoint; all processes must call it.

    Args:
        source: the checkpoint that the stage started from.
    """
    target = folder.stage(stage.name)
    if not trainer.trained.cut:
        if is_main_process():
            model = trainer.applied.finish().to(getattr(torch, stage.save_dtype))
            model.config.text_config.dtype = stage.save_dtype
            save_finished(target, model.save_pretrained, processor, recipe, stage.name)
        barrier()
        return
    pieces = target / PIECES
    pieces.mkdir(parents=True, exist_ok=True)
    trainer.trained.write_weights(pieces, WEIGHTS)
    if is_main_process() and (buffers := trainer.applied.buffers()):
        write_values(pieces, BUFFERS, buffers)
    zero.leave()
    barrier()
    if is_main_process():
        write_model = partial(write_consolidated, source=source, pieces=pieces, stage=stage)
        save_finished(target, write_model, processor, recipe, stage.name)
        shutil.rmtree(pieces)
    barrier()


def write_consolidated(target: Path, source: Path, pieces: Path, stage: StageSection) -> None:
    """Write config and weights of a finished stage; the checkpoint's other files are not this function's affair.

    Args:
        target: the folder to write into.
        source: the checkpoint that the stage started from.
        pieces: folder of the trained values, as `TrainedState.write_weights` of all processes wrote them, and maybe of the
            model's buffers.

    Raises:
        CheckpointError: if pieces and source do not make up the model.
    """
    config = MedMVLConfig.from_pretrained(source)
    expected = expected_tensors(config)
    names = [name for name in (WEIGHTS, BUFFERS) if any(pieces.glob(f"{name}*.safetensors"))]
    values = _Values(Weights(source), [ValueReader(pieces, name) for name in names], getattr(torch, stage.save_dtype))
    entries = dict(_entries(_skeleton(config, stage), values, set(expected)))
    if missing := sorted(expected.keys() - entries.keys()):
        raise CheckpointError(f"{source} has no {missing[0]} (of {len(missing)} missing). Start the stage anew.")
    write_weights(entries, target)
    config.architectures = [MedMVLForConditionalGeneration.__name__]
    config.dtype = config.text_config.dtype = stage.save_dtype
    config.save_pretrained(target)
    GenerationConfig.from_pretrained(source).save_pretrained(target)


class _Values:
    """Weights by their names in the plain model: those that training changed if there are, else those of the start."""

    def __init__(self, start: Weights, changed: Sequence[ValueReader], dtype: torch.dtype) -> None:
        self._start, self._dtype = start, dtype
        self._changed = {name: reader for reader in changed for name in reader.names}

    def __contains__(self, name: str) -> bool:
        return name in self._changed or name in self._start

    def __getitem__(self, name: str) -> Tensor:
        return self._changed[name][name] if name in self._changed else self._start[name]

    def entry(self, name: str, load: Callable[[], Tensor]) -> Entry:
        """Return what writes the value of `load` under `name`, in the checkpoint's number format."""
        shape = self._changed[name].shape(name) if name in self._changed else self._start.shape(name)
        return Entry(name, shape, lambda: self._cast(load()))

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if value.is_floating_point() else value


def _skeleton(config: MedMVLConfig, stage: StageSection) -> nn.Module:
    """Return the model as the stage trained it, adapters and all, without its weights."""
    with torch.device("meta"):
        model = MedMVLForConditionalGeneration(config)
        # In fp32 nothing is set aside that would have to be given back.
        return apply_stage(model, stage.model_copy(update={"precision": "fp32", "compile": False})).model


def _entries(skeleton: nn.Module, values: _Values, wanted: set[str]) -> Iterator[tuple[str, Entry]]:
    """Yield name in the plain model -> where its value comes from."""
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
    """Return one weight (or bias) of a layer with its adapter merged; the layer is full for as long as that takes."""
    names = {key: f"{layer_name}.{key}" for key in layer.state_dict()}
    state = {key: values[name if name in values else name.replace(".base_layer.", ".")] for key, name in names.items()}
    layer.load_state_dict(state, assign=True)
    layer.merge(safe_merge=True)
    merged: Tensor = dict(layer.get_base_layer().named_parameters())[weight].detach()
    layer.merged_adapters.clear()
    layer.to("meta")
    return merged
