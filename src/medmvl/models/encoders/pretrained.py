"""Loading of pretrained weights into our modules; unknown and missing tensors are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from medmvl.errors import CheckpointError, ModelError, counted
from medmvl.files import BAD_JSON
from medmvl.models.weights import Weights
from medmvl.pretrained import check_folder, open_pretrained, translate_load_errors

#: A published name -> the name in our module, or None for a tensor that is known and not used.
Renaming = Callable[[str], str | None]


def read_config(folder: str, what: str) -> dict[str, Any]:
    """Return the config.json of a local folder as plain data; code it may point at is never run.

    Raises:
        ModelError: if the folder or the file is not there or is not JSON.
    """
    check_folder(folder)
    path = Path(folder) / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, *BAD_JSON) as error:
        raise ModelError(
            f"The {what} {folder!r} cannot be read: {path} is missing or not JSON. Give a local folder that holds "
            "config.json and the weights."
        ) from error


def load_pretrained(auto: Any, source: str, **options: Any) -> tuple[Any, set[str]]:
    """Return a transformers model with the weights of a folder or hub name, and the names of weights it did not find there.

    transformers' report of unused weights (a text tower, a classifier) is suppressed.

    Raises:
        ModelError: if it cannot be loaded.
    """
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with translate_load_errors(
            f"{source!r} cannot be loaded", "Give a folder with config.json and weights.", ModelError
        ):
            model, info = open_pretrained(auto, source, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(level)
    return model, set(info["missing_keys"])


def check_found(module: nn.Module, missing: set[str], source: str, prefix: str = "") -> None:
    """Raise if weights of a module were not in its folder and would be random.

    Args:
        missing: names without `prefix`; those of parts that the module has dropped do not matter.

    Raises:
        CheckpointError: naming one.
    """
    lost = sorted(name for name in missing if f"{prefix}{name}" in module.state_dict())
    if lost:
        raise CheckpointError(
            f"{source!r} lacks {counted(len(lost), 'weight')} of the model that its config.json describes, such as {lost[0]}. Copy the "
            "folder again."
        )


def load_pretrained_weights(module: nn.Module, folder: str, rename: Renaming) -> None:
    """Fill `module` from a folder of published weights.

    Raises:
        CheckpointError: if a tensor is unknown, missing or of another shape.
    """
    weights = Weights(folder)
    wanted = module.state_dict()
    state = {target: name for name in weights if (target := rename(name)) is not None}
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = sorted(t for t, s in state.items() if t in wanted and weights.shape(s) != tuple(wanted[t].shape))
    if missing or unknown or wrong:
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json: {len(missing)} missing {missing[:2]}, {len(unknown)} "
            f"unknown {[state[u] for u in unknown[:2]]}, {len(wrong)} of another shape {wrong[:2]}."
        )
    module.load_state_dict({target: weights[name].to(wanted[target].dtype) for target, name in state.items()})
