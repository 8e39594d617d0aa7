"""DeepSpeed's ZeRO-2: gradients and optimiser state spread over processes, the model whole on each (arXiv 1910.02054).

DeepSpeed's own checkpoints are pickles that fit one number of processes. Ours are kept instead: weights and optimiser
state by parameter name, gathered through DeepSpeed's interface, so that a run may go on with another number of processes
or another strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmvl.errors import require
from medmvl.training.recipe import StageSection
from medmvl.training.state import STATE_MARK, ValueReader

#: Adam's moments, by torch's names.
MOMENTS = ("exp_avg", "exp_avg_sq")


_SIZES = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")


def settings(stage: StageSection) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a stage.

    Raises:
        MissingExtraError: if DeepSpeed is not installed.
    """
    require("deepspeed", "deepspeed")
    return {
        # Which records make a step is the sampler's affair; transformers fills these in so that they fit each other.
        **dict.fromkeys(_SIZES, "auto"),
        "gradient_clipping": stage.max_grad_norm,
        "zero_optimization": {"stage": 2, "overlap_comm": torch.cuda.is_available(), "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": stage.precision == "bf16"},
        "fp16": {"enabled": stage.precision == "fp16"},
    }


def zero_optimizer(optimizer: Any) -> Any:
    """Return DeepSpeed's optimiser below accelerate's wrapper; None if it is another one."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if hasattr(inner, "single_partition_of_fp32_groups") else None


def full_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return name -> whole fp32 master copy, on the CPU; all processes must call it."""
    api = _api()
    return {name: api.safe_get_full_fp32_param(p).detach().to("cpu", copy=True) for name, p in parameters.items()}


def optimizer_values(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's state as `state.optimizer_values` does; all processes must call it."""
    api, steps = _api(), _steps(optimizer)
    _link(optimizer)
    values = {}
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            full = api.safe_get_full_optimizer_state(parameter, moment)
            values[f"{name}{STATE_MARK}{moment}"] = full.detach().to("cpu", copy=True)
        values[f"{name}{STATE_MARK}step"] = steps.clone()
    return values


def load(folder: Path, weights: str, state: str, optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put whole weights (already in the parameters' own dtype) and optimiser state into this process's pieces."""
    api, masters, moments = _api(), ValueReader(folder, weights), ValueReader(folder, state)
    steps = next((moments[name] for name in moments.names if name.endswith(f"{STATE_MARK}step")), None)
    if steps is not None:
        for group in optimizer.optimizer.param_groups:
            for piece in group["params"]:
                fresh = {moment: torch.zeros_like(piece) for moment in MOMENTS}
                optimizer.optimizer.state[piece] = {"step": steps.clone(), **fresh}
        _link(optimizer)
    for name, parameter in parameters.items():
        api.safe_set_full_fp32_param(parameter, masters[name].to(parameter.device))
        for moment in MOMENTS if steps is not None else ():
            value = moments[f"{name}{STATE_MARK}{moment}"].to(parameter.device)
            api.safe_set_full_optimizer_state(parameter, value, moment)


def _link(optimizer: Any) -> None:
    """Let DeepSpeed find every parameter's moments.

    It does so once, after the first group of parameters has taken its first step, when the other groups have none yet.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def _steps(optimizer: Any) -> Tensor:
    """Return Adam's step count, which is the same everywhere."""
    return next(state["step"] for state in optimizer.optimizer.state.values() if "step" in state)


def _api() -> Any:
    return require("deepspeed.utils", "deepspeed")
