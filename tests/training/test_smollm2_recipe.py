"""recipes/smollm2-cpu as it is run, with an LLM folder and a quickstart checkpoint of a few thousand weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medmvl.models import MedMVLForConditionalGeneration, parts
from medmvl.processing import MedMVLProcessor
from medmvl.training.run import train
from medmvl.training.shipped import recipes_folder

from .conftest import CONNECTORS, MODEL

RECIPE = recipes_folder() / "smollm2-cpu" / "recipe.yaml"
NAMES = ("radiograph-captions", "ct-captions", "radiograph-closed", "ct-closed")


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of SmolLM2's kind with a ChatML tokenizer, as `medmvl fetch` leaves it."""
    folder = tmp_path_factory.mktemp("llm")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[1], eos_token=special[2], pad_token=special[2], unk_token=special[0]
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**MODEL["llm"]["config"] | {"vocab_size": len(tokenizer), "tie_word_embeddings": True})
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quickstart_model(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the quickstart's kinds of encoders, whose volume grid can be shuffled by (1, 2, 2)."""
    model = copy.deepcopy(MODEL)
    convolutions = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16]}
    model["image"]["encoder"] = {"name": "resnet", "size": [16, 16], "vision_config": convolutions | {"depths": [1, 1]}}
    model["volume"]["encoder"]["patch"] = [2, 4, 4]
    model["volume"]["geometry"] = {"name": "medm-vl-ct", "windows": [[-600, 200]]}
    stage = {"name": "s", "train": CONNECTORS, "lr": 1e-3, "max_steps": 1, "batch_size": 4}
    recipe = {"name": "qs", "data_root": str(data_folder), "model": model, "stages": [stage]}
    recipe |= {"data": {"d": {"path": "d.jsonl"}}, "run": {"progress": False, "device": "cpu"}}
    return train(recipe, tmp_path_factory.mktemp("qs") / "run")


def test_all_stages_run_and_encoders_stay_unchanged(
    llm_folder: Path, quickstart_model: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = [f"data.{name}.path=d.jsonl" for name in NAMES]
    steps = [f"stages.{name}.max_steps=2" for name in ("align", "read", "answer")]
    sources = [
        f"data_root={data_folder}",
        f"model.llm.init_from={llm_folder}",
        f"model.image.encoder.init_from={quickstart_model}",
        f"model.volume.encoder.init_from={quickstart_model}",
    ]
    roots = [f"data.{name}.image_root=." for name in NAMES]
    roots += [f"data.{name}.volume_root=." for name in NAMES]
    folder = train(RECIPE, tmp_path / "run", overrides=[*sources, *data, *roots, *steps, "run.device=cpu"])
    start, aligned, final = (
        parts(MedMVLForConditionalGeneration.from_pretrained(path))
        for path in (quickstart_model, tmp_path / "run" / "align", folder)
    )
    pretrained = LlamaForCausalLM.from_pretrained(llm_folder)
    for name in ("image_encoder", "volume_encoder"):
        for key, value in start[name].state_dict().items():
            assert torch.equal(final[name].state_dict()[key], value), key
    query = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(aligned["llm"].state_dict()[query], pretrained.state_dict()[query])
    assert not torch.equal(final["llm"].state_dict()[query], pretrained.state_dict()[query])
    for name in CONNECTORS:
        changed = [
            not torch.equal(a, b) for a, b in zip(aligned[name].parameters(), final[name].parameters(), strict=True)
        ]
        assert all(changed)
    taken = MedMVLProcessor.from_pretrained(folder).volume_processor.geometry
    assert taken.to_dict()["windows"] == MedMVLProcessor.from_pretrained(quickstart_model).volume["geometry"]["windows"]
