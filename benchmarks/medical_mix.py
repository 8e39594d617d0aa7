"""Synthetic records whose lengths are those of medical data, and recipes of a model that learns from them.

1 to 4 pictures of 64 tokens, questions of 10 to 40 words, answers of 2 to 120 with a heavy tail (log-normal, median 10),
each word one token: most samples are short, some are four times as long, and one token in ten carries the loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["nodule", "effusion", "left", "right", "lung", "heart", "is", "there", "a", "the", "in", "no", "small"]
#: Sizes of the model; "small" has 9 M parameters, about those of the first measurements of each lever.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vision": 96, "vocab": 4096},
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vision": 192, "vocab": 16384},
    "medium": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8, "vision": 384, "vocab": 32768},
}


def write_data(folder: Path, records: int, pixels: int = 128, pictures: tuple[int, int] = (1, 4)) -> None:
    """Write `d.jsonl` and its pictures of pixels x pixels, with (least, most) of them per record."""
    from PIL import Image

    from medmvl.data.formats import write_records

    rng = np.random.default_rng(0)
    rows = []
    for number in range(records):
        names = [f"{number}-{index}.png" for index in range(int(rng.integers(pictures[0], pictures[1] + 1)))]
        for name in names:
            Image.fromarray(rng.integers(0, 255, (pixels, pixels), dtype=np.uint8)).save(folder / name)
        rows.append({"id": str(number), "conversations": _conversation(rng, "<image>\n" * len(names)), "image": names})
    write_records(folder / "d.jsonl", rows)


def write_volumes(folder: Path, records: int, size: tuple[int, int, int]) -> None:
    """Write `d.jsonl` and one volume of `size` voxels per record."""
    from medmvl.data.formats import write_records

    rng = np.random.default_rng(0)
    rows = []
    for number in range(records):
        np.save(folder / f"{number}.npy", rng.integers(-1000, 1000, size).astype(np.int16))
        conversation = _conversation(rng, "<image3d>\n")
        rows.append({"id": str(number), "conversations": conversation, "image3d": [f"{number}.npy"]})
    write_records(folder / "d.jsonl", rows)


def _conversation(rng: np.random.Generator, media: str) -> list[dict[str, str]]:
    """Return a question behind its media and an answer."""
    question = " ".join(rng.choice(WORDS, int(rng.integers(10, 41))))
    answer = " ".join(rng.choice(WORDS, int(np.clip(rng.lognormal(2.3, 1.1), 2, 120))))
    return [{"from": "human", "value": media + question}, {"from": "gpt", "value": answer}]


def small_model(size: str) -> dict[str, Any]:
    """Return the recipe's `model` of one of `SIZES`: SigLIP of 64 tokens, an MLP and a Qwen2, from random weights."""
    numbers = SIZES[size]
    llm = {"model_type": "qwen2", "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    llm |= {key: numbers[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    llm |= {"vocab_size": numbers["vocab"], "tie_word_embeddings": True}
    vision = {"model_type": "siglip_vision_model", "hidden_size": numbers["vision"], "num_attention_heads": 6}
    vision |= {"intermediate_size": 4 * numbers["vision"], "num_hidden_layers": 6, "image_size": 128, "patch_size": 16}
    return {
        "llm": {"config": llm, "tokenizer": {"vocab_size": 512}},
        "image": {"encoder": {"name": "siglip", "vision_config": vision}},
    }


def recipe(
    folder: Path, model: dict[str, Any], train: dict[str, Any], settings: dict[str, Any], steps: int, batch: int
) -> dict[str, Any]:
    """Return a recipe of one stage `s` over the records in `folder`.

    Args:
        train: part -> how it trains.
        settings: more settings of the stage.
    """
    stage = {"name": "s", "train": train, "max_steps": steps, "batch_size": batch, "lr": 1e-4, "save_every": 10**6}
    return {
        "name": "benchmark",
        "seed": 0,
        "data_root": str(folder),
        "data": {"d": {"path": "d.jsonl"}},
        "model": model,
        "stages": [stage | settings],
        "run": {"progress": False, "cache_megabytes": 4096},
    }
