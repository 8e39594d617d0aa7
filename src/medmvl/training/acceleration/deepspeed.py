"""DeepSpeed's ZeRO-2 and ZeRO-3 (arXiv 1910.02054): gradients and optimizer state, with ZeRO-3 also weights, are sharded.

DeepSpeed's own checkpoints are pickles for a fixed number of processes. Ours hold weights and optimizer state by parameter
name, read through DeepSpeed's public interface, so that a run can continue with another number of processes or another
strategy. Values are gathered and split one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DeepSpeedPlugin
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from medmvl.errors import RecipeError, require
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.training.engine.state import STATE_MARK, TrainedState, ValueReader, matching, write_values

#: Adam's moments, by torch's names.
MOMENTS = ("exp_avg", "exp_avg_sq")
#: Strategy -> DeepSpeed's stage.
LEVELS = {"zero2": 2, "zero3": 3}


def settings(
    level: int, *, accumulation: int, world: int, width: int, max_grad_norm: float, half: bool
) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        level: 2 or 3, DeepSpeed's own "stage".
        accumulation: micro-batches per step and device.
        world: number of devices.
        width: hidden size of the LLM, from which transformers derives ZeRO-3's buffer sizes in the same way.
        max_grad_norm: gradients are clipped to this norm.
        half: train in bf16.

    Raises:
        MissingExtraError: if DeepSpeed is not installed.
    """
    require("deepspeed", "deepspeed")
    buffers = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }
    return {
        # Our sampler decides which records make a step; DeepSpeed only checks that these numbers fit each other.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {
            "stage": level,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            **(buffers if level == 3 else {}),
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": half},
    }


def plugin(configuration: dict[str, Any]) -> DeepSpeedPlugin:
    """Return accelerate's plugin for a configuration of `settings`."""
    # DeepSpeed 0.19 calls functions that torch 2.13 has renamed, several times in each step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return DeepSpeedPlugin(hf_ds_config=configuration)


def use_all_towers(model: MedMVLForConditionalGeneration, stored: Collection[str], level: int) -> None:
    """Make every process run the same modules in the same order, whatever its batches hold.

    DeepSpeed reduces gradients in the order in which they come, and ZeRO-3 gathers the weights of a module when it is
    entered. A tower that a batch does not use therefore runs on a blank input, and its result is multiplied by zero.

    Args:
        model: its method `zero_from_unused_tower` is replaced.
        stored: modalities whose encoder does not run, since its features are stored.
        level: 2 or 3.

    Raises:
        RecipeError: if an encoder runs more often the more slices it is shown.
    """
    for name in model.towers:
        if level == 3 and getattr(model.config.tower(name).encoder_spec, "slices_per_pass", None):
            raise RecipeError(
                f"The {name} encoder takes `slices_per_pass` slices at once, so that it runs more often on one device than on "
                "another, and run.strategy zero3 would wait for ever. Use fsdp, or an encoder with slices_per_pass: 0."
            )

    def zero_from_unused_tower(modality: str) -> Tensor | None:
        if modality not in model.towers:
            return None
        tower: Any = model.towers[modality]
        spec = model.config.tower(modality)
        encoder = spec.encoder_spec
        if modality in stored and model.training:  # only training uses stored features
            blank = {"features": torch.zeros(1, tower.stored_tokens, encoder.hidden_size, device=model.device)}
        else:
            blank = {"pixels": torch.zeros(1, encoder.channels, *spec.input_size, device=model.device)}
        return tower(**blank).sum() * 0.0

    changeable: Any = model
    changeable.zero_from_unused_tower = zero_from_unused_tower


def leave() -> None:
    """End transformers' ZeRO-3 mode, in which the parameters of new models are sharded at creation."""
    unset_hf_deepspeed_config()


def zero_optimizer(optimizer: Any) -> Any:
    """Return DeepSpeed's optimizer from accelerate's wrapper; None if it is another one."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if _pieces_of(inner) is not None else None


def _pieces_of(zeros: Any) -> list[Tensor] | None:
    """Return this process's flat fp32 weights, which torch's optimizer updates."""
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # of stage 2, of stage 3
        if hasattr(zeros, name):
            return list(getattr(zeros, name))
    return None


class ZeroState(TrainedState):
    """Trained weights and optimizer state in DeepSpeed; every method must be called by all processes.

    Args:
        zeros: DeepSpeed's optimizer.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], zeros: Any, rank: int, world: int) -> None:
        super().__init__(parameters, None, rank, world)
        self._zeros = zeros
        self._api = require("deepspeed.utils", "deepspeed")

    @property
    def is_sharded(self) -> bool:
        """Always true."""
        return True

    def write_weights(self, folder: Path, name: str) -> None:
        """Write this process's piece of the fp32 weights."""
        write_values(folder, name, dict(self._gathered(self._api.safe_get_full_fp32_param)), *self.shard)

    def write_optimizer(self, folder: Path, name: str) -> None:
        """Write this process's piece of Adam's state."""
        # Adam's step count is the same everywhere; there is none before a step was taken.
        step = next((state["step"] for state in self._zeros.optimizer.state.values() if "step" in state), None)
        if step is None:
            write_values(folder, name, {}, *self.shard)
            return
        self._link()
        values = {f"{key}{STATE_MARK}step": step.clone() for key in self.parameters}
        for moment in MOMENTS:
            pieces = self._gathered(partial(self._api.safe_get_full_optimizer_state, optim_state_key=moment))
            values |= {f"{key}{STATE_MARK}{moment}": piece for key, piece in pieces}
        write_values(folder, name, values, *self.shard)

    def load_weights(self, folder: Path, name: str) -> None:
        """Load a checkpoint's weights into the model and into the fp32 copies.

        Raises:
            CheckpointError: if the checkpoint holds other weights than this stage trains.
        """
        reader = matching(folder, name, {key: _shape(p) for key, p in self.parameters.items()})
        for key, parameter in self.parameters.items():
            value = reader[key].to(parameter.device)
            if parameter.numel():  # all in the second stage, small ones in the third
                parameter.data.copy_(value)
            if hasattr(parameter, "ds_tensor"):
                piece = self._flat_piece(parameter, value)
                self._api.safe_set_local_fp32_param(parameter, piece)
                parameter.ds_tensor.data.copy_(piece)
            else:
                self._api.safe_set_full_fp32_param(parameter, value)

    def load_optimizer(self, folder: Path, name: str) -> None:
        """Load a checkpoint's state into Adam."""
        reader = ValueReader(folder, name)
        steps = next((reader[key] for key in reader.names if key.endswith(f"{STATE_MARK}step")), None)
        if steps is None:
            return
        for flat in _pieces_of(self._zeros) or ():
            fresh = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._zeros.optimizer.state[flat] = {"step": steps.clone(), **fresh}
        self._link()
        for key, parameter in self.parameters.items():
            for moment in MOMENTS:
                value = reader[f"{key}{STATE_MARK}{moment}"].to(parameter.device)
                if hasattr(parameter, "ds_tensor"):
                    self._api.safe_set_local_optimizer_state(parameter, self._flat_piece(parameter, value), moment)
                else:
                    self._api.safe_set_full_optimizer_state(parameter, value, moment)

    def _gathered(self, get: Callable[[nn.Parameter], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield this process's piece of what `get` gathers for each parameter, split as FSDP2 does."""
        rank, world = self.shard
        for key, parameter in self.parameters.items():
            whole = get(parameter).detach()
            piece = whole.tensor_split(world)[rank] if whole.ndim else whole
            yield key, piece.to("cpu", copy=True)

    def _flat_piece(self, parameter: Any, value: Tensor) -> Tensor:
        """Return this process's part of a value in ZeRO-3: a slice of the flat value, padded at its end."""
        rank, size = self.shard[0], parameter.ds_tensor.numel()
        flat = value.flatten().float()[rank * size : (rank + 1) * size]
        return nn.functional.pad(flat, (0, size - len(flat)))

    def _link(self) -> None:
        """Let ZeRO-2 look up every parameter's moments.

        DeepSpeed does so only once, after the first step of the first parameter group, when the other groups have none.
        """
        if hasattr(self._zeros, "_lazy_init_hp_params_optimizer_state"):
            self._zeros._hp_optimizer_states_linked = False
            self._zeros._lazy_init_hp_params_optimizer_state()


def _shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of the whole parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
