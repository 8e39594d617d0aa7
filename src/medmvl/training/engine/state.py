"""Weights and optimizer state on disk, by parameter name, whole or in the shards of several processes.

The files are safetensors. A value that is sharded over processes is split along its first axis, as FSDP2 does it (for
DeepSpeed see `medmvl.training.acceleration.deepspeed`), and each process writes its piece. A reader joins the pieces of one
value at a time, so the number of processes may differ between writing and reading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from medmvl.errors import CheckpointError

#: Names of a checkpoint's files.
WEIGHTS, BUFFERS, OPTIMIZER, AVERAGE = "trainable", "buffers", "optimizer", "average"

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
#: Stands between a parameter's name and the name of a value of its optimizer state.
STATE_MARK = "/"


class TrainedState:
    """Saving and loading of trained weights and optimizer state, whole on every process or sharded by FSDP2.

    Args:
        parameters: name -> parameter, of all that trains.
        optimizer: torch's; None before there is one.
        rank, world: this process among all.

    Attributes:
        shard: (rank, world) of the pieces that are written; (0, 1) if values are whole.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer | None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.parameters, self._optimizer = parameters, optimizer
        self.shard = (rank, world) if self.is_sharded else (0, 1)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds and writes a piece of every value; reading and writing then need all of them."""
        return any(isinstance(parameter, DTensor) for parameter in self.parameters.values())

    def write_weights(self, folder: Path, name: str) -> None:
        """Write the weights, or this process's piece of them."""
        write_values(folder, name, self.parameters, *self.shard)

    def write_optimizer(self, folder: Path, name: str) -> None:
        """Write the optimizer's state, or this process's piece of it."""
        assert self._optimizer is not None
        write_values(folder, name, optimizer_values(self._optimizer, self.parameters), *self.shard)

    def load_weights(self, folder: Path, name: str) -> None:
        """Load a checkpoint's weights into the model; every name and shape must be the same.

        Raises:
            CheckpointError: if the checkpoint holds other weights than this stage trains.
        """
        load_weights(folder, name, self.parameters)

    def load_optimizer(self, folder: Path, name: str) -> None:
        """Load a checkpoint's state into the optimizer."""
        assert self._optimizer is not None
        load_optimizer(folder, name, self._optimizer, self.parameters)


def write_values(folder: Path, name: str, values: Mapping[str, Tensor], rank: int = 0, world: int = 1) -> None:
    """Write this process's piece of `values` as `<name>.safetensors` or `<name>-<rank>-of-<world>.safetensors`.

    Args:
        values: name -> tensor of any shape; of a DTensor the local piece is written.
    """
    file = f"{name}.safetensors" if world == 1 else f"{name}-{rank}-of-{world}.safetensors"
    local = {key: _local(value).detach().to("cpu").contiguous() for key, value in values.items()}
    save_file(local, folder / file, metadata={"format": "pt"})


class ValueReader:
    """Reads the values that all processes wrote with `write_values`.

    Raises:
        CheckpointError: if there is no file, or the piece of a process is missing.
    """

    def __init__(self, folder: Path, name: str) -> None:
        whole = folder / f"{name}.safetensors"
        files = [whole] if whole.exists() else sorted(folder.glob(f"{name}-*-of-*.safetensors"), key=_rank)
        world = int(_SHARD.search(files[0].name)[2]) if files and files != [whole] else 1  # type: ignore[index]
        if len(files) != world:
            raise CheckpointError(f"{folder} holds {len(files)} of {world} pieces of {name!r}.")
        self._handles = [safe_open(file, framework="pt", device="cpu") for file in files]
        self.names = list(self._handles[0].keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole value."""
        shapes = [handle.get_slice(name).get_shape() for handle in self._handles]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def __getitem__(self, name: str) -> Tensor:
        """Return the whole value, on the CPU."""
        pieces = [handle.get_tensor(name) for handle in self._handles]
        return torch.cat(pieces) if len(pieces) > 1 and pieces[0].ndim else pieces[0]


def load_weights(folder: Path, name: str, parameters: Mapping[str, Tensor]) -> None:
    """Load values into parameters or buffers of the same names and shapes.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    reader = matching(folder, name, {key: tuple(parameter.shape) for key, parameter in parameters.items()})
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(_like(parameter, reader[key]))


def matching(folder: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> ValueReader:
    """Return a reader of values of exactly these names and shapes.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    reader = ValueReader(folder, name)
    strange = sorted(set(reader.names) ^ set(shapes)) or [
        key for key, shape in shapes.items() if reader.shape(key) != shape
    ]
    if strange:
        raise CheckpointError(
            f"{folder} was written by a stage that trains other weights (such as {strange[0]}). "
            "Resume with the recipe it was started with, or start again in another folder."
        )
    return reader


def optimizer_values(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return an optimizer's state as `<parameter>/<value>` -> tensor of the parameter's shape, or a scalar."""
    return {
        f"{name}{STATE_MARK}{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    folder: Path, name: str, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Load a saved state into an optimizer; scalars such as Adam's step count stay on the CPU, as torch keeps them."""
    reader = ValueReader(folder, name)
    for key in reader.names:
        parameter_name, _, value_name = key.rpartition(STATE_MARK)
        parameter, value = parameters[parameter_name], reader[key]
        if value.ndim:
            value = _like(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][value_name] = value


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value` on the parameter's device, sharded as the parameter is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _rank(file: Path) -> int:
    match = _SHARD.search(file.name)
    assert match is not None
    return int(match[1])
