"""LoRA adapters in PEFT folders, and merging them into the base checkpoint.

`PeftModel.save_pretrained` on `adapt(model)` writes the LLM's adapters and complete copies of the connectors. Together with
the base checkpoint that the folder names they are the trained model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, ModulesToSaveWrapper, get_peft_model_state_dict

from medmvl.cards.training_data import TrainingData, base_of, write_training_data
from medmvl.errors import CheckpointError, counted
from medmvl.files import PathLike, atomic_directory, check_new_folder, read_json
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.llms import lora_targets
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.models.quantized import Quantizer, quantize_linears
from medmvl.models.weights import open_weights
from medmvl.pretrained import ADAPTER_CONFIG, check_folder, first_line
from medmvl.processing import MedMVLProcessor
from medmvl.processing.stored_prompts import StoredPrompts

#: Longest list of module names in an adapter's settings.
_MOST_NAMES = 5000

#: Largest allowed difference of the probe's logits before and after a merge, relative to the largest logit. A merge rounds
#: each weight once; the values are about ten roundings of the dtype.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class Merge:
    """Result of a merge.

    Attributes:
        base: the checkpoint that was adapted.
        adapted: number of weights that changed.
        difference: largest difference of logits before and after, relative to the largest logit.
    """

    base: str
    adapted: int
    difference: float


def lora_config(
    model: MedMVLForConditionalGeneration,
    r: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    *,
    connectors: bool = True,
) -> LoraConfig:
    """Return PEFT's settings for adapters on the linear layers of the LLM.

    Args:
        r, alpha, dropout: LoRA's rank, scale and dropout.
        connectors: whether the connectors train as well, without adapters, and are saved in the adapter's folder.
    """
    kinds = set(lora_targets(model.language_model))
    modules = (name for name, _ in model.named_modules() if name.startswith("language_model."))
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[name for name in modules if name.rpartition(".")[2] in kinds],
        modules_to_save=["connector"] if connectors and model.towers else None,
    )


def adapt(
    model: MedMVLForConditionalGeneration, config: LoraConfig | None = None, *, quantize: Quantizer | None = None
) -> PeftModel:
    """Return the model with new adapters; only the adapters and the connectors train.

    Args:
        quantize: quantization of the LLM's linear layers (QLoRA); needs the extra `quantize`.
    """
    config = config or lora_config(model)
    if quantize is not None:
        quantize_linears(model.language_model, quantize)
    return get_peft_model(model, config)


def load_adapted(folder: PathLike, base: PathLike | None = None, *, quantize: Quantizer | None = None) -> PeftModel:
    """Load an adapter folder on the base checkpoint it names.

    Args:
        base: the base checkpoint's folder; default: what the adapter names.
        quantize: quantization of the LLM's linear layers, as in training.

    Raises:
        CheckpointError: if the adapter or the base is incomplete, or they do not fit each other.
    """
    path = Path(folder)
    _check_settings(path)
    model = MedMVLForConditionalGeneration.from_pretrained(base_folder(path, base))
    if quantize is not None:
        quantize_linears(model.language_model, quantize)
    stored = _stored_names(path)
    _check_ranks(path)
    try:
        adapted = PeftModel.from_pretrained(model, str(path), low_cpu_mem_usage=True)
    except Exception as error:  # PEFT raises many types for settings that it does not know
        raise CheckpointError(
            f"The adapters in {path} do not fit their base: {first_line(error)} Give the checkpoint they were "
            "trained on with --base."
        ) from error
    if strange := sorted(
        stored ^ set(get_peft_model_state_dict(adapted))
    ):  # PEFT warns of some, is silent about others
        raise CheckpointError(
            f"The adapters in {path} are not those that its {ADAPTER_CONFIG} describes on this base: {counted(len(strange), 'weight')} "
            f"missing or left over, such as {strange[0]}. Copy the folder again, or give the right checkpoint with --base."
        )
    # PEFT trains copies of the connectors in float32; the base may have another dtype.
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.to(next(module.original_module.parameters()).dtype)
    return adapted


def _check_settings(folder: Path) -> None:
    """Raise if an adapter's settings hold regular expressions, which can take forever, or no LoRA.

    PEFT matches a text in `target_modules`, and the keys of the patterns, as regular expressions.

    Raises:
        CheckpointError: naming the setting.
    """
    check_folder(folder)
    file = folder / ADAPTER_CONFIG
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} must hold a JSON object. Copy it again.")
    if file.is_file() and settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type is {settings.get('peft_type')!r}; only LORA is supported.")
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = settings.get(key)
        if isinstance(value, list) and len(value) > _MOST_NAMES:  # PEFT compares each with each module
            raise CheckpointError(f"{file}: {key} lists {len(value)} modules; at most {_MOST_NAMES} are allowed.")
        if value is not None and not (isinstance(value, list) and all(_is_name(name) for name in value)):
            raise CheckpointError(f"{file}: {key} must be a list of module names, not {value!r:.100}.")
    for key in ("rank_pattern", "alpha_pattern"):
        value = settings.get(key) or {}
        if not (isinstance(value, dict) and all(_is_name(name) for name in value)):
            raise CheckpointError(f"{file}: the keys of {key} must be module names, not {value!r:.100}.")


def _check_ranks(folder: Path) -> None:
    """Raise if a rank is none of those of the stored adapters; PEFT would allocate adapters of any rank first.

    Raises:
        CheckpointError: naming the setting.
    """
    file = folder / ADAPTER_CONFIG
    settings = read_json(file)
    weights = open_weights(_weights_file(folder))
    shapes = {name: _shape(weights, name) for name in weights.keys() if "lora_A" in name}  # noqa: SIM118 - no dict
    ranks = {shape[0] for shape in shapes.values() if shape}
    for key, value in {"r": settings.get("r", 8), **(settings.get("rank_pattern") or {})}.items():
        if ranks and value not in ranks and not (key == "r" and settings.get("rank_pattern")):
            known = ", ".join(map(str, sorted(ranks)))
            raise CheckpointError(
                f"{file}: the rank of {key} is {value!r:.100}, and that of the stored adapters {known}."
            )
    for key, value in {"lora_alpha": settings.get("lora_alpha", 8), **(settings.get("alpha_pattern") or {})}.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CheckpointError(f"{file}: {key} must be a number, not {value!r:.100}.")


def _shape(weights: Any, name: str) -> list[int]:
    return list(weights[name].shape if isinstance(weights, dict) else weights.get_slice(name).get_shape())


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,300}", value) is not None


def _stored_names(folder: Path) -> set[str]:
    """Return the names of the weights in an adapter folder."""
    return set(open_weights(_weights_file(folder)).keys())


def _weights_file(folder: Path) -> Path:
    for file in (folder / SAFETENSORS_WEIGHTS_NAME, folder / WEIGHTS_NAME):
        if file.is_file():
            return file
    raise CheckpointError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}. Copy the folder again, all files of it.")


def base_folder(adapter: Path, base: PathLike | None = None) -> Path:
    """Return the folder of the checkpoint that an adapter was trained on.

    Raises:
        CheckpointError: if `adapter` is not an adapter folder, or the base is missing.
    """
    file = adapter / ADAPTER_CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{adapter} has no {ADAPTER_CONFIG}: it holds no LoRA adapters, so there is nothing to merge. Checkpoints that "
            "training writes at the end of a stage are merged already."
        )
    name = str(base or read_json(file).get("base_model_name_or_path") or "")
    places = [Path(name), *(parent / name for parent in adapter.resolve().parents)]
    found = next((place for place in places if name and (place / "config.json").is_file()), None)
    if found is None:
        raise CheckpointError(f"The base checkpoint of {adapter} ({name!r}) is not here. Say where it is with --base.")
    return found


def merge(source: PathLike, target: PathLike, base: PathLike | None = None) -> Merge:
    """Merge adapters into the weights of their base and write a plain checkpoint.

    Args:
        source: adapter folder.
        target: folder to write; must not exist, or be empty.
        base: the base checkpoint; default: what the adapter names.

    Raises:
        CheckpointError: if adapter and base do not fit, or the logits of the merged model differ from the adapted model's.
    """
    check_new_folder(target)
    root = base_folder(Path(source), base)
    adapted = load_adapted(source, root)
    model = adapted.get_base_model()
    adapted_count = sum("lora_A" in name or "modules_to_save" in name for name, _ in adapted.named_parameters())
    batch = probe_batch(model.config)
    expected = probe_logits(model, batch)
    merged = adapted.merge_and_unload(safe_merge=True)
    found = probe_logits(merged, batch)
    difference, tolerance = _relative(found, expected), _TOLERANCES.get(merged.dtype, 1e-4)
    if not difference <= tolerance:
        raise CheckpointError(
            f"After merging, logits differ by {difference:.2e} of their size (allowed in {merged.dtype}: {tolerance:.0e}). "
            "Nothing was written. Merge in float32: load the base with that dtype and save it first."
        )
    with atomic_directory(Path(target)) as folder:
        merged.save_pretrained(folder)
        MedMVLProcessor.from_pretrained(str(root)).save_pretrained(folder)
        known = TrainingData(base=(base_of(str(root)),))  # what the adapters were trained on is not
        write_training_data(folder, known)
        StoredPrompts(synthetic=known.synthetic).save(folder)
        written = probe_logits(MedMVLForConditionalGeneration.from_pretrained(folder), batch)
        if not _relative(written, found) <= tolerance:  # equal weights elsewhere in memory may round another way
            raise CheckpointError(
                "The merged folder does not load with the logits of the merged model; nothing is kept."
            )
    return Merge(str(root), adapted_count, difference)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two results of equal shape, relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
