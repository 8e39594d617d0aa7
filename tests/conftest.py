"""Fixtures written by code: a toy tokenizer, a saved tiny model, images and CTs."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that wants the network is a wrong test

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tiny import make_model, make_tokenizer

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint folder of the tiny model; read only."""
    folder = tmp_path_factory.mktemp("model")
    model, processor = make_model()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images a.png, b.png, c.png and two volumes a.npy, b.npy (int16, HU)."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    for name in "ab":
        volume = np.full((6, 40, 40), -1024, dtype=np.int16)
        volume[1:5, 8:32, 6:34] = rng.integers(-900, 900, (4, 24, 28))
        np.save(folder / f"{name}.npy", volume)
    return folder
