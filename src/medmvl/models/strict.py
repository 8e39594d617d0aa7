"""What all our models share as checkpoints: a folder is loaded whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from medmvl.errors import CheckpointError

#: Our kinds of models, in words.
_KINDS = {
    "medmvl": "a model with an LLM, which answers questions",
    "medmvl-dual-encoder": "the dual encoder of a contrastive stage, which finds reports (medmvl evaluate --benchmark "
    "retrieval) and is where other recipes' encoders start from (init_from)",
}


class StrictModel(PreTrainedModel):
    """A model whose folders must fit it to the last weight."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint folder; every weight must be there.

        Raises:
            CheckpointError: if the folder is not a whole checkpoint of this kind of model.
        """
        check_kind(Path(folder), cls.config_class.model_type)
        wants_info = kwargs.pop("output_loading_info", False)
        in_full = kwargs.get("dtype") in (torch.float32, "float32") and not kwargs.get("device_map")
        if in_full:
            kwargs["dtype"] = "auto"  # mapped from the file, nothing copied yet
        try:
            loaded: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be loaded as a model: {str(error).splitlines()[0]}") from error
        except RuntimeError as error:  # transformers has already shown a table of the shapes
            raise CheckpointError(
                f"The weights in {folder} do not fit its config.json: some have another shape. The folder is incomplete or its "
                "config was edited; copy it again from where it was written."
            ) from error
        model, info = loaded
        broken = {key: sorted(map(str, info[key])) for key in ("missing_keys", "mismatched_keys", "unexpected_keys")}
        if any(broken.values()):
            raise CheckpointError(
                f"The weights in {folder} do not fit its config.json: "
                + "; ".join(
                    f"{len(keys)} {kind.replace('_', ' ')} ({keys[0]}, ...)" for kind, keys in broken.items() if keys
                )
                + ". The folder is incomplete or its config was edited; copy it again from where it was written."
            )
        if in_full:
            _to_float32(model)
        return (model, info) if wants_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save under the module's own key names, so that whatever loads a state dict finds every key."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(*args, **kwargs)


def check_kind(folder: Path, wanted: str) -> None:
    """Refuse what is no checkpoint of this kind before anything is built: transformers would go to the hub for a name, and
    build a model of its default sizes, several billion parameters, for another model's config.

    Raises:
        CheckpointError: saying what the folder holds.
    """
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except OSError as error:
        adapters = (folder / "adapter_config.json").is_file()
        hint = "It holds PEFT adapters: merge them first (medmvl checkpoint merge)." if adapters else ""
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it has no config.json. {hint or 'Give the folder of a model.'}"
        ) from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object. Copy it again.") from error
    if found == wanted:
        return
    if found in _KINDS:
        raise CheckpointError(f"{folder} holds {_KINDS[found]}; wanted here is {_KINDS[wanted]}. Give another folder.")
    raise CheckpointError(
        f"{folder} holds a model of the type {found!r}, not one of ours ({wanted!r}). `medmvl checkpoint convert` brings "
        "checkpoints of other layouts in."
    )


def _to_float32(model: StrictModel) -> None:
    """Convert the weights in the order of their names, which is that of the files.

    So a file is let go when its last weight is converted, and both forms of the whole model are never in memory together.
    """
    for _, parameter in sorted(model.named_parameters()):
        parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    for config in (model.config, model.config.text_config):
        config.dtype = torch.float32
