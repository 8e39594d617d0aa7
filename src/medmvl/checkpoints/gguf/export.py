"""Export of a 2D model to the two files of llama.cpp's multimodal runner: `model.gguf` (LLM) and `mmproj.gguf`.

Use: `llama-mtmd-cli -m model.gguf --mmproj mmproj.gguf --image scan.png -p "..."`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmvl.checkpoints.gguf.llm import add_hyperparameters, architecture, llm_tensors
from medmvl.checkpoints.gguf.tokenizer import add_tokenizer, marks_words_alike, model_name
from medmvl.checkpoints.gguf.vision import add_vision_facts, check_vision, vision_tensors
from medmvl.checkpoints.llava_export import check_expressible, head_is_tied, remove_volume_tower
from medmvl.errors import CheckpointError, require
from medmvl.files import PathLike, atomic_directory, check_new_folder
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.encoders.transformers_vision import TransformersVisionSpec
from medmvl.processing import MedMVLProcessor

MODEL_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"


@dataclass
class GGUFExport:
    """Result of an export.

    Attributes:
        files: names of the written files.
        tensors: number of tensors that were written, read back and found equal.
        notes: remarks for the user.
    """

    files: tuple[str, ...]
    tensors: int = 0
    notes: list[str] = field(default_factory=list)


def export_gguf(source: PathLike, target: PathLike, *, drop_volume_tower: bool = False) -> GGUFExport:
    """Write a MedM-VL checkpoint as GGUF files, read them back and compare every tensor.

    Matrices keep their dtype, vectors become float32 as llama.cpp requires; nothing is quantized.

    Args:
        drop_volume_tower: leave out the volume tower of a model with both towers.

    Raises:
        CheckpointError: with the reason, if llama.cpp cannot express the model; nothing is written then.
        MissingExtraError: without the package gguf.
    """
    require("gguf", "gguf")
    check_new_folder(target)
    model = MedMVLForConditionalGeneration.from_pretrained(Path(source))
    processor = MedMVLProcessor.from_pretrained(str(source))
    if drop_volume_tower:
        remove_volume_tower(model)
    spec = check_expressible(model.config, bias_of_the_head=True)
    check_vision(model.config, spec)
    export = GGUFExport((MODEL_FILE, VISION_FILE), notes=_notes(processor, spec))
    with atomic_directory(Path(target)) as folder:
        export.tensors += _write_llm(model, processor, folder / MODEL_FILE)
        export.tensors += _write_vision(model, processor, spec, folder / VISION_FILE)
    return export


def _write_llm(model: MedMVLForConditionalGeneration, processor: MedMVLProcessor, file: Path) -> int:
    gguf = require("gguf", "gguf")
    config = model.config.text_config
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture(config)])
    writer.add_name(model_name(processor.tokenizer))
    add_hyperparameters(writer, config)
    add_tokenizer(writer, processor.tokenizer, config.vocab_size, processor.chat_template or "")
    # The end of a turn, which may be another token than the tokenizer's end of text.
    for token in processor.stop_token_ids:
        writer.add_eot_token_id(token)
    return _write(writer, file, llm_tensors(config, model.language_model.state_dict(), tied=head_is_tied(model)))


def _write_vision(
    model: MedMVLForConditionalGeneration, processor: MedMVLProcessor, spec: TransformersVisionSpec, file: Path
) -> int:
    gguf = require("gguf", "gguf")
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_name("medmvl")
    assert processor.image is not None
    add_vision_facts(writer, model.config, spec, processor.image)
    return _write(writer, file, vision_tensors(spec, model.state_dict()), matrices=torch.float16)


def _write(
    writer: Any, file: Path, tensors: Iterable[tuple[str, str, Tensor]], matrices: torch.dtype | None = None
) -> int:
    """Write all tensors, read the file back, compare, and return the number of tensors.

    Args:
        matrices: dtype for bf16 matrices, because llama.cpp's convolution has no bf16; default: unchanged.
    """
    written: dict[str, Tensor] = {}
    for _, target, tensor in tensors:
        if tensor.ndim < 2:
            tensor = tensor.float()
        elif tensor.dtype == torch.bfloat16 and matrices is not None:
            tensor = tensor.to(matrices)
        written[target] = tensor.detach().contiguous()
    gguf = require("gguf", "gguf")
    for target, tensor in written.items():
        if tensor.dtype == torch.bfloat16:  # numpy has no bf16: hand the bits over
            bits = tensor.view(torch.int16).numpy().view(np.uint8)
            writer.add_tensor(target, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(target, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _compare(file, written)
    return len(written)


def _compare(file: Path, written: dict[str, Tensor]) -> None:
    """Read a GGUF file and compare every tensor bit by bit.

    Raises:
        CheckpointError: if one is missing or different.
    """
    gguf = require("gguf", "gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    if found.keys() != written.keys():
        raise CheckpointError(f"{file.name} does not hold the tensors that were written; nothing is kept.")
    for name, tensor in written.items():
        stored = found[name]
        shape = tuple(int(side) for side in reversed(stored.shape.tolist()))
        values = tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        if shape != tuple(tensor.shape) or stored.data.tobytes() != values.tobytes():
            raise CheckpointError(f"{name} in {file.name} is not what was written; nothing is kept.")


def _notes(processor: MedMVLProcessor, spec: TransformersVisionSpec) -> list[str]:
    notes = [
        "llama.cpp's projector uses the tanh form of GELU where training used the exact one (differences about 1e-3)."
    ]
    assert processor.image is not None
    if not processor.image.get("do_pad"):
        notes.append(
            "llama.cpp prepares images itself: it pads them to a square and scales bilinearly. Give it square images of "
            f"{spec.input_size[0]} pixels to see what training saw."
        )
    if spec.num_prefix_tokens:
        notes.append(
            "llama.cpp computes wrong features for CLIP towers: it puts the class token last and drops the first patch "
            "(ggml-org/llama.cpp#25814). Use a version with that fixed and compare answers, or export --format llava-hf."
        )
    if not marks_words_alike(processor.tokenizer):
        notes.append(
            "llama.cpp marks the first word behind every special token, this tokenizer only the first of a text: words behind a "
            "special token become other tokens there. Logits for the same ids are equal; answers may differ."
        )
    if processor.slow_spaces:
        notes.append("Text right after an image is tokenized slightly differently by llama.cpp.")
    return notes
