"""A tiny data set of three kinds of rows and a tiny recipe that trains on it, both written by code."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import medmvl.training.run  # noqa: F401  (before gc.freeze)
from medmvl.data.formats import write_records

# Tiny tensors: more threads only wait for each other.
torch.set_num_threads(1)
# accelerate collects garbage at every start; what was imported need not be walked through each time (0.4 s).
gc.freeze()

MODEL = {
    "llm": {
        "config": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        },
        "tokenizer": {"vocab_size": 300},
    },
    "image": {
        "encoder": {
            "name": "siglip",
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
        }
    },
    "volume": {
        "encoder": {"name": "vit3d", "size": [4, 16, 16], "patch": [2, 8, 8], "width": 16, "layers": 1, "heads": 2},
        "connector": {"pooling": {"name": "attention", "heads": 2}, "projector": "linear"},
    },
}
CONNECTORS = {"image_connector": "full", "volume_connector": "full"}
#: An image encoder with batch norm.
RESNET = {
    "name": "resnet",
    "vision_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "size": [32, 32],
}
EVERYTHING = {"llm": "full", "image_encoder": "full", "volume_encoder": "full", **CONNECTORS}


def write_data(folder: Path, size: int = 18) -> Path:
    """Write images, volumes and a records file of image, volume, mixed and text-only rows of different lengths."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(size):
        PILImage.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / f"i{i}.png")
        np.save(folder / f"v{i}.npy", rng.integers(-900, 900, (6, 20, 20)).astype(np.int16))
        question = [
            "<image>\nBright?",
            "<image3d>\nIs there a nodule in it?",
            "<image> or <image3d>?",
            "What is a lung?",
        ]
        answer = ["yes", "no"][i % 2] + " indeed" * (i % 4)
        row = {"id": f"r{i}", "conversations": turns(question[i % 4], answer)}
        if i % 5 == 0:
            row["conversations"] += turns("And where?", "On the left.")
        if i % 4 in (0, 2):
            row["image"] = [f"i{i}.png"]
        if i % 4 in (1, 2):
            row["image3d"] = [f"v{i}.npy"]
        rows.append(row)
    write_records(folder / "d.jsonl", rows)
    return folder / "d.jsonl"


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def recipe(data_folder):
    """Return a function that makes a recipe of the given stages."""

    def make(*stages, **changes):
        defaults = {"lr": 1e-2, "batch_size": 6, "max_steps": 3}
        complete = []
        for number, stage in enumerate(stages):
            merged = {"name": f"s{number}", "train": EVERYTHING} | defaults | stage
            if "epochs" in stage:
                merged.pop("max_steps")
            complete.append(merged)
        return {
            "name": "tiny",
            "seed": 3,
            "data_root": str(data_folder),
            "model": copy.deepcopy(MODEL),
            "data": {"d": {"path": "d.jsonl"}},
            "stages": complete,
            "run": {"progress": False, "device": "cpu"},
        } | changes

    return make
