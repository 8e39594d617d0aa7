"""Opening of configs, tokenizers, processors and models with transformers; code that comes with a folder is never run.

All of the toolkit opens them here, except its own classes. Without `trust_remote_code` transformers asks on standard
input whether to run such code; with False it refuses instead (`resolve_trust_remote_code` in its
`dynamic_module_utils.py`).
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmvl.errors import CheckpointError, MedMVLError
from medmvl.files import BAD_JSON, PathLike, json_fault

#: Keyword argument of every `from_pretrained` and `from_config` of transformers.
NO_REMOTE_CODE = {"trust_remote_code": False}

#: Settings of PEFT in a folder of adapters.
ADAPTER_CONFIG = "adapter_config.json"

#: Settings that say how often a part of a model is built, and the most that is allowed: building 10^9 layers takes days, even
#: without memory for their weights. Published models have up to some hundred.
_REPEATS = re.compile(r"(\w+_)?(layers?|depths?|blocks|experts|stages)")
_MOST_REPEATS = 2000
#: Most values of a model per byte of its weight files (4 bits each are 2), and a number that is always allowed.
_VALUES_PER_BYTE, _FEW_VALUES = 4, 2**24


def open_pretrained(loader: Any, source: PathLike, **options: Any) -> Any:
    """Call `loader.from_pretrained(source, ...)` with remote code off.

    Args:
        loader: a class of transformers (or an Auto class).
        source: folder or hub name.
        options: further arguments of the loader.

    Raises:
        CheckpointError: if PEFT adapters would be applied to the weights, if the config describes a far larger model than
            the weights, or as `check_folder`.
    """
    check_folder(source)
    refuse_adapters(source)
    if hasattr(loader, "from_config") or hasattr(
        loader, "can_generate"
    ):  # a class of models, not of configs or tokenizers
        _check_size(loader, source, options)
    loaded = loader.from_pretrained(source, **{**options, **NO_REMOTE_CODE})
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if getattr(
        model, "_hf_peft_config_loaded", False
    ):  # set by transformers; of a hub name the files are not known before
        raise CheckpointError(_adapter_message(source))
    return loaded


def build_from_config(auto: Any, config: Any) -> Any:
    """Return the model with fresh weights that an Auto class of transformers makes of `config`, with remote code off."""
    return auto.from_config(config, **NO_REMOTE_CODE)


def _check_size(loader: Any, source: PathLike, options: dict[str, Any]) -> None:
    if "gguf_file" in options or not Path(source).is_dir():
        return
    from transformers import AutoConfig

    check_size(loader, source, options.get("config") or AutoConfig.from_pretrained(source, **NO_REMOTE_CODE))


def check_size(loader: Any, source: PathLike, config: Any) -> None:
    """Raise if a config describes a model with far more values than the weight files have bytes.

    Counted on the meta device, because transformers would allocate what is missing and fill it with random numbers.

    Args:
        loader: class of the model, or an Auto class.
        source: folder or hub name; nothing is checked without weight files.
        config: the model's.

    Raises:
        CheckpointError: with both numbers.
    """
    files = [file for file in Path(source).glob("*") if file.suffix in (".safetensors", ".bin")]
    if not files:
        return
    import torch

    with torch.device("meta"):
        model = build_from_config(loader, config) if hasattr(loader, "from_config") else loader(config)
    values, stored = sum(tensor.numel() for tensor in model.parameters()), sum(file.stat().st_size for file in files)
    if values > _VALUES_PER_BYTE * stored + _FEW_VALUES:
        raise CheckpointError(
            f"The config.json in {source} describes a model of {values:,} values, and the weights have {stored:,} bytes. The "
            "config was edited or a weight file is missing; copy the folder again."
        )


def check_folder(source: PathLike) -> None:
    """Raise if a local model folder holds a pipe, a device or a link to itself, or a config with absurdly many layers.

    A pipe would never end, and a device such as /dev/zero fills the memory.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        entries = sorted(Path(source).iterdir())
    except (OSError, ValueError):  # no local folder
        return
    for entry in entries:
        try:
            mode = entry.stat().st_mode
        except FileNotFoundError:  # a link to nothing
            continue
        except OSError as error:
            raise CheckpointError(f"{entry} cannot be opened: {error.strerror}. Copy the folder again.") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise CheckpointError(
                f"{entry} is a pipe or a device, not a file. A model folder holds files only; remove it."
            )
    _check_repeats(Path(source) / "config.json")


def _check_repeats(file: Path) -> None:
    """Raise if a setting of a config.json would build a part more than `_MOST_REPEATS` times.

    Raises:
        CheckpointError: naming the setting.
    """
    try:
        sections = [json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, *BAD_JSON):  # whoever needs the file says what is wrong with it
        return
    while sections:
        section = sections.pop()
        if not isinstance(section, dict):
            continue
        for name, value in section.items():
            values = value if isinstance(value, list) else [value]
            sections += [item for item in values if isinstance(item, dict)]
            numbers = [item for item in values if isinstance(item, int | float) and item > _MOST_REPEATS]
            if numbers and _REPEATS.fullmatch(name):
                raise CheckpointError(
                    f"{file} has {name} = {numbers[0]}; at most {_MOST_REPEATS} are built. The config was edited or is damaged; "
                    "copy it again."
                )


def read_raw_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json as plain data.

    Raises:
        CheckpointError: if the folder or the file is missing or is not JSON.
    """
    check_folder(folder)
    file = folder / "config.json"
    if not file.is_file():
        what = "is not a folder" if not folder.is_dir() else "has no config.json"
        raise CheckpointError(f"{folder} {what}. Give the folder of a checkpoint.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except BAD_JSON as error:
        raise CheckpointError(f"{file} is not valid JSON: {json_fault(error)}. Copy it again.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not a {type(raw).__name__}.")
    return raw


def refuse_adapters(source: PathLike) -> None:
    """Raise if a local folder holds PEFT adapters, which transformers would apply to the weights without a word.

    Raises:
        CheckpointError: naming the file.
    """
    if (Path(source) / ADAPTER_CONFIG).is_file():
        raise CheckpointError(_adapter_message(source))


def _adapter_message(source: PathLike) -> str:
    return (
        f"{source} holds PEFT adapters ({ADAPTER_CONFIG}), which are not applied. Merge them first "
        "(medmvl checkpoint merge), or remove the adapter files if only the model is meant."
    )


@contextmanager
def translate_load_errors(problem: str, advice: str, error: type[MedMVLError] = CheckpointError) -> Iterator[None]:
    """Turn whatever a library raises on a damaged or edited file into one error of ours.

    Libraries raise TypeError, KeyError, JSONDecodeError, bare Exception and others, depending on the damage.

    Args:
        problem: such as "The tokenizer in runs/a cannot be loaded".
        advice: what the user can do, a sentence.
        error: class of the error.

    Raises:
        MedMVLError: of the class `error`; errors of ours pass unchanged.
    """
    try:
        yield
    except (MedMVLError, MemoryError):
        raise
    except Exception as found:
        raise error(f"{problem}: {first_line(found)} {advice}") from found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message as a sentence; the name of its class if there is none."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip()[:500] if lines else type(error).__name__
    if isinstance(error, KeyError | TypeError | AttributeError) and lines:
        text = f"{type(error).__name__}: {text}"
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."
