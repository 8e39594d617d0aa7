"""Reading of a folder's weights, one tensor at a time and without running a pickle.

Names, shapes and dtypes are read from the headers of safetensors files, without torch.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from medmvl.errors import CheckpointError, counted, shown
from medmvl.files import BAD_JSON, PathLike
from medmvl.pretrained import check_folder

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


#: Ends of the names of tensors that are statistics of a normalization and no parameters.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")

#: Advice of a message about a folder whose weights and config do not fit.
COPY_AGAIN = "The folder is incomplete or its config was edited; copy it again from where it was written."

#: Settings that say how many layers are built.
_LAYERS = re.compile(r"(num|n)_(\w+_)?layers?|depth")


class Weights:
    """The tensors of a checkpoint folder by name; iterating gives the names in file order.

    Safetensors files are mapped into memory and read tensor by tensor. `.bin` files are read with torch's
    weights-only loading, mapped as well.

    Args:
        folder: holds `model.safetensors`, `pytorch_model.bin`, or an index of shards of either.

    Raises:
        CheckpointError: if there are no weights, a shard is missing or damaged, or a `.bin` file holds more than tensors.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        check_folder(folder)
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file, names in self._shards():
            self._check_and_add(file, names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        return list(self._open)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        source = self._open[self._where[name]]
        return tuple(source[name].shape) if isinstance(source, dict) else tuple(source.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype without reading it, in safetensors' short form (F32, BF16, ...)."""
        source = self._open[self._where[name]]
        if isinstance(source, dict):
            return str(source[name].dtype).removeprefix("torch.")
        return str(source.get_slice(name).get_dtype())

    def __getitem__(self, name: str) -> Tensor:
        file = self._where[name]
        source = self._open[file]
        if isinstance(source, dict):
            return source[name]
        # A separate mapping for each tensor, so that its memory is freed with it.
        with safe_open(file, framework="pt") as handle:
            return handle.get_tensor(name)

    def _shards(self) -> list[tuple[Path, set[str] | None]]:
        """Return the weight files and, if there is an index, the tensors that each must hold."""
        for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (BIN, BIN_INDEX)):
            if (self.folder / index).is_file():
                return self._indexed(self.folder / index)
            if (self.folder / single).is_file():
                return [(self.folder / single, None)]
        raise CheckpointError(
            f"{self.folder} holds no weights: looked for {SAFETENSORS}, {BIN} and their shard indexes. "
            "Copy the folder again, all files of it."
        )

    def _indexed(self, index: Path) -> list[tuple[Path, set[str] | None]]:
        try:
            where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if not all(isinstance(file, str) for file in where.values()):
                raise TypeError
        except (*BAD_JSON, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is not a shard index (JSON with `weight_map`). Copy the file again."
            ) from error
        shards: dict[Path, set[str] | None] = {}
        for file in sorted(set(where.values())):
            if Path(file).name != file or len(os.fsencode(file)) > 255:
                raise CheckpointError(
                    f"{index} names the shard {shown(file)}, which is not a plain file name. It is refused."
                )
            path = index.with_name(file)
            if not path.is_file():
                raise CheckpointError(f"The shard {file} named by {index} is missing. Copy the folder again.")
            shards[path] = {name for name, shard in where.items() if shard == file}
        return list(shards.items())

    def _check_and_add(self, file: Path, names: set[str] | None) -> None:
        source = open_weights(file)
        found = list(source) if isinstance(source, dict) else list(source.keys())
        if names is not None and (missing := names - set(found)):
            raise CheckpointError(
                f"{file} lacks {counted(len(missing), 'tensor')} that the index promises, such as {shown(min(missing))}. Copy it again."
            )
        self._open[file] = source
        for name in found:
            if name in self._where:
                raise CheckpointError(f"The tensor {name} stands in both {self._where[name].name} and {file.name}.")
            self._where[name] = file


def is_parameter(name: str, dtype: str) -> bool:
    """Whether a stored tensor is a parameter: a floating-point weight, no counter and no running statistic.

    Args:
        name: of the tensor.
        dtype: as `Weights.dtype` returns it.
    """
    return dtype.lower().startswith(("f", "bf")) and not name.endswith(_STATISTICS)


def parameter_count(weights: Weights) -> int:
    """Return the number of values of a folder's parameters; no weight is read."""
    return sum(math.prod(weights.shape(name)) for name in weights if is_parameter(name, weights.dtype(name)))


def open_weights(file: Path) -> Any:
    """Return a weight file as a mapping of tensors (`.bin`) or the open header of a safetensors file; both have `keys()`.

    Raises:
        CheckpointError: if it is damaged, or holds more than tensors.
    """
    return _open_bin(file) if file.suffix == ".bin" else _open_safetensors(file)


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")  # "pt" would import torch to read the header
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}. Copy it again.") from error


def _open_bin(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as plain tensors: it is damaged, or a pickle that would run code, which is never done. "
            "Convert it to safetensors where you trust it."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{file} holds other things than named tensors. Convert it to safetensors.")
    return state


def check_layers(folder: Path, allowed: int = 0) -> None:
    """Raise if a config promises more layers than there are tensors; building them would take hours and all memory.

    Args:
        allowed: number of layers that is never refused.

    Raises:
        CheckpointError: naming the setting.
    """
    files = list(folder.glob("*.safetensors"))
    if not files:
        return
    tensors = sum(len(open_weights(file).keys()) for file in files)
    settings = [json.loads((folder / "config.json").read_text(encoding="utf-8"))]
    while settings:
        section = settings.pop()
        settings += [value for value in section.values() if isinstance(value, dict)]
        for name, value in section.items():
            if _LAYERS.fullmatch(name) and isinstance(value, int) and value > max(tensors, allowed):
                raise CheckpointError(
                    f"{folder / 'config.json'} has {name} = {value}, and the weights are {tensors} tensors. {COPY_AGAIN}"
                )
