"""A 2D model as the pair of files llama.cpp's multimodal runner wants: `model.gguf` (LLM) and `mmproj.gguf`.

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

from medmvl.checkpoints.export_llava import check_expressible, without_generation
from medmvl.checkpoints.gguf_llm import add_hyperparameters, architecture, llm_tensors
from medmvl.checkpoints.gguf_tokenizer import add_tokenizer
from medmvl.checkpoints.gguf_vision import add_vision_facts, check_vision, vision_tensors
from medmvl.checkpoints.write import whole_folder
from medmvl.errors import CheckpointError, require
from medmvl.files import PathLike
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.encoders.transformers_vision import TransformersVisionSpec
from medmvl.processing import MedMVLProcessor

MODEL_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"


@dataclass
class GGUFExport:
    """What an export did.

    Attributes:
        files: names of the written files.
        tensors: how many tensors were written, read back and found equal.
        notes: what the user should know.
    """

    files: tuple[str, ...]
    tensors: int = 0
    notes: list[str] = field(default_factory=list)


def export_gguf(source: PathLike, target: PathLike) -> GGUFExport:
    """Write a checkpoint of ours as GGUF files, read them back and compare every tensor.

    Matrices keep their dtype, vectors become float32 as llama.cpp wants them; nothing is quantised.

    Raises:
        CheckpointError: with the reason, if llama.cpp cannot express the model; nothing is written then.
        MissingExtraError: without the package gguf.
    """
    require("gguf", "gguf")
    model = MedMVLForConditionalGeneration.from_pretrained(Path(source))
    processor = MedMVLProcessor.from_pretrained(str(source))
    spec = check_expressible(model.config, bias_of_the_head=True)
    check_vision(model.config, spec)
    export = GGUFExport((MODEL_FILE, VISION_FILE), notes=_notes(processor, spec))
    with whole_folder(Path(target)) as folder:
        export.tensors += _write_llm(model, processor, folder / MODEL_FILE)
        export.tensors += _write_vision(model, processor, spec, folder / VISION_FILE)
    return export


def _write_llm(model: MedMVLForConditionalGeneration, processor: MedMVLProcessor, file: Path) -> int:
    gguf = require("gguf", "gguf")
    config = model.config.text_config
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture(config)])
    writer.add_name("medmvl")
    add_hyperparameters(writer, config)
    add_tokenizer(writer, processor.tokenizer, config.vocab_size, without_generation(processor.chat_template or ""))
    return _write(writer, file, llm_tensors(config, model.language_model.state_dict()))


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
    """Write all tensors, then read the file again and compare; returns their number.

    Args:
        matrices: dtype of bf16 matrices, where the graph's convolution has no bf16; default: as they are.
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
    if processor.slow_spaces:
        notes.append("Text right after an image is tokenised slightly differently by llama.cpp.")
    return notes
