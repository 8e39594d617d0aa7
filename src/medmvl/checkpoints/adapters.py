"""LoRA adapters as ordinary PEFT folders, with the connectors they were trained with; and their merge.

A folder written by `PeftModel.save_pretrained` on `adapt(model)` holds the adapters of the LLM and whole copies of the
connectors, so that it stands for a trained model together with the base checkpoint it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, ModulesToSaveWrapper, get_peft_model_state_dict

from medmvl.checkpoints.probe import probe_batch, probe_logits
from medmvl.checkpoints.write import whole_folder
from medmvl.errors import CheckpointError
from medmvl.files import PathLike, read_json
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.llms import lora_targets
from medmvl.models.quantized import Quantizer, quantize_linears
from medmvl.models.weights import open_weights
from medmvl.processing import MedMVLProcessor

ADAPTER_CONFIG = "adapter_config.json"

#: Largest difference of the probe's logits before and after a merge, relative to the largest logit. A merge rounds each
#: weight once; these are some ten roundings of the dtype.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class Merge:
    """What a merge did.

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
    """Return PEFT's settings for adapters on the LLM's linear layers.

    Args:
        r, alpha, dropout: LoRA's rank, scale and dropout.
        connectors: train the connectors as well, whole, and save them in the adapter's folder.
    """
    names = "|".join(lora_targets(model.language_model))
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"language_model\..*\.({names})",
        modules_to_save=["connector"] if connectors and model.towers else None,
    )


def adapt(
    model: MedMVLForConditionalGeneration, config: LoraConfig | None = None, *, quantize: Quantizer | None = None
) -> PeftModel:
    """Return the model with fresh adapters; only they and the connectors train.

    Args:
        quantize: keep the LLM's linear layers in few bits (QLoRA); needs the extra `quantize`.
    """
    config = config or lora_config(model)
    if quantize is not None:
        quantize_linears(model.language_model, quantize)
    return get_peft_model(model, config)


def load_adapted(folder: PathLike, base: PathLike | None = None, *, quantize: Quantizer | None = None) -> PeftModel:
    """Load an adapter folder on the base checkpoint it names.

    Args:
        base: the base checkpoint's folder; default: what the adapter names.
        quantize: the LLM's linear layers in few bits, as the adapters were trained.

    Raises:
        CheckpointError: if either is not whole, or they do not fit.
    """
    path = Path(folder)
    model = MedMVLForConditionalGeneration.from_pretrained(base_folder(path, base))
    if quantize is not None:
        quantize_linears(model.language_model, quantize)
    stored = _stored_names(path)
    try:
        adapted = PeftModel.from_pretrained(model, str(path), low_cpu_mem_usage=True)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"The adapters in {path} do not fit their base: {str(error).strip().splitlines()[0]} Give the checkpoint they were "
            "trained on with --base."
        ) from error
    if strange := sorted(
        stored ^ set(get_peft_model_state_dict(adapted))
    ):  # PEFT warns of some, is silent about others
        raise CheckpointError(
            f"The adapters in {path} are not those that its {ADAPTER_CONFIG} describes on this base: {len(strange)} weight(s) "
            f"missing or left over, such as {strange[0]}. Copy the folder again, or give the right checkpoint with --base."
        )
    # PEFT trains copies of the connectors in float32; they run beside a base that may be in less.
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.to(next(module.original_module.parameters()).dtype)
    return adapted


def _stored_names(folder: Path) -> set[str]:
    """Return the names of the weights in an adapter folder, read without running anything."""
    for file in (folder / SAFETENSORS_WEIGHTS_NAME, folder / WEIGHTS_NAME):
        if file.is_file():
            return set(open_weights(file).keys())
    raise CheckpointError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}. Copy the folder again, all files of it.")


def base_folder(adapter: Path, base: PathLike | None = None) -> Path:
    """Return the folder of the checkpoint that an adapter was trained on.

    Raises:
        CheckpointError: if `adapter` is no adapter folder, or the base is not there.
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
    """Fold adapters into the weights and write a plain checkpoint.

    Args:
        source: adapter folder.
        target: folder to write; must not exist, or be empty.
        base: the base checkpoint; default: what the adapter names.

    Raises:
        CheckpointError: if the parts do not fit, or the merged model's logits are not the adapted one's.
    """
    root = base_folder(Path(source), base)
    adapted = load_adapted(source, root)
    model = adapted.get_base_model()
    adapted_count = sum("lora_A" in name or "modules_to_save" in name for name, _ in adapted.named_parameters())
    batch = probe_batch(model.config)
    expected = probe_logits(model, batch)
    merged = adapted.merge_and_unload(safe_merge=True)
    difference = float((probe_logits(merged, batch) - expected).abs().max() / expected.abs().max())
    tolerance = _TOLERANCES.get(merged.dtype, 1e-4)
    if not difference <= tolerance:
        raise CheckpointError(
            f"After merging, logits differ by {difference:.2e} of their size (allowed in {merged.dtype}: {tolerance:.0e}). "
            "Nothing was written. Merge in float32: load the base with that dtype and save it first."
        )
    with whole_folder(Path(target)) as folder:
        merged.save_pretrained(folder)
        MedMVLProcessor.from_pretrained(str(root)).save_pretrained(folder)
    return Merge(str(root), adapted_count, difference)
