"""A tiny model with both towers whose attention vLLM's CPU build takes, and what it has learned by heart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image as PILImage

from medmvl.data.formats import write_records
from medmvl.training.run import train
from tiny import SIGLIP

IMAGE_QUESTION, VOLUME_QUESTION = "What is seen?", "What is inside?"
COUNT = 48
_WORDS = ["nodule", "effusion", "normal", "mass", "edema", "fracture", "pneumothorax", "cyst"]
_EVERYTHING = ("llm", "image_encoder", "image_connector", "volume_encoder", "volume_connector")


@dataclass(frozen=True)
class Learned:
    """A trained checkpoint folder, and the images, volumes and answers that it has learned."""

    folder: Path
    images: list[Path]
    volumes: list[Path]
    answers: dict[Path, str]


def learn(folder: Path) -> Learned:
    """Train on `COUNT` images of noise and as many volumes of random blocks, each with an answer of its own."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    found = Learned(folder / "run" / "model", [], [], {})
    for number in range(COUNT):
        image, volume = folder / f"{number}.png", folder / f"{number}.nii.gz"
        PILImage.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image)
        blocks = rng.integers(-150, 230, (4, 4, 4))  # coarse, so that resampling keeps it
        inside = np.kron(blocks, np.ones((5, 5, 2))).astype(np.int16)
        voxels = np.pad(inside, 1, constant_values=-1024)  # air, by which Hounsfield units are known
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), volume)
        found.images.append(image)
        found.volumes.append(volume)
        found.answers[image] = f"{_WORDS[number % 8]} and {_WORDS[number // 8]}."
        found.answers[volume] = f"a {_WORDS[number // 8]} with {_WORDS[number % 8]}"
        rows += [
            _row(f"i{number}", "image", image, f"<image>\n{IMAGE_QUESTION}", found.answers[image]),
            _row(f"v{number}", "volume", volume, f"<image3d>\n{VOLUME_QUESTION}", found.answers[volume]),
        ]
    write_records(folder / "d.jsonl", rows)
    trained = train(_recipe(folder), folder / "run")
    return Learned(Path(trained), found.images, found.volumes, found.answers)


def _row(name: str, kind: str, file: Path, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, kind: [file.name], "conversations": turns}


def _recipe(folder: Path) -> dict[str, Any]:
    llm = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    llm |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    volume = {"name": "vit3d", "size": [4, 16, 16], "patch": [2, 8, 8], "width": 32, "layers": 1, "heads": 2}
    stage = {"name": "s", "train": dict.fromkeys(_EVERYTHING, "full"), "lr": 3e-3, "batch_size": 16, "max_steps": 500}
    return {
        "name": "r",
        "seed": 0,
        "data_root": str(folder),
        "model": {
            "llm": {"config": llm, "tokenizer": {"vocab_size": 400}},
            "image": {"encoder": {"name": "siglip", "vision_config": SIGLIP}},
            "volume": {"encoder": volume, "connector": "mlp2x_gelu"},
        },
        "data": {"d": {"path": "d.jsonl"}},
        "stages": [{**stage, "data": ["d"]}],
        "run": {"progress": False, "device": "cpu"},
    }
