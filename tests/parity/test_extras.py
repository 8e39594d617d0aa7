"""What the reference does beyond the usual batch: preprocessing of all files, LoRA, beams, a stop token, text alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.parity.sets import HERE

from medmvl.checkpoints import convert
from medmvl.checkpoints.base_parts import load_image_processor
from medmvl.data.record import parse_record
from medmvl.data.sample import Sample
from medmvl.inference import Predictor

V1 = "v1_siglip_mlp_qwen2"


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "fixtures" / f"{name}.npz") as numbers:
        return {key: numbers[key] for key in numbers}


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("v1") / "model"
    convert(HERE / "checkpoints" / V1, folder)
    return Predictor.from_pretrained(folder, device="cpu")


def samples() -> list[Sample]:
    items = json.loads((HERE / f"fixtures/model/{V1}.json").read_text())["items"]
    return [parse_record(item, "fixture") for item in items]


def images(sample: Sample) -> list[str]:
    return [str(HERE / "data" / name) for name in sample.images]


@pytest.mark.parametrize("encoder", ["siglip", "clip"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_images(encoder: str, index: int) -> None:
    """Measured worst error 0, under Pillow 12 and 13."""
    processor = load_image_processor(HERE / "pretrained" / f"{encoder}-tiny")
    expected = arrays("preprocess/preprocess")[f"{encoder}_img{index}"]
    assert np.abs(processor(str(HERE / f"data/img{index}.png")).numpy() - expected).max() <= 1e-6


def test_text_alone(v1: Predictor) -> None:
    """Two samples without images: the loss that ignores padding, not the reference's, which counts it."""
    numbers = arrays("model/v1_extras")
    texts = json.loads((HERE / "fixtures/model/v1_extras.json").read_text())
    items = texts.get("textonly_items") or texts.get("items")
    batch = v1.processor.collate([v1.processor.encode(parse_record(item, "fixture"), train=True) for item in items])
    assert torch.equal(batch["input_ids"], torch.from_numpy(numbers["textonly_input_ids"]))
    with torch.no_grad():
        output = v1.model(**batch)
    assert float(output.loss) == pytest.approx(float(numbers["textonly_loss_padding_ignored"]), rel=1e-5)
    valid = output.logits[batch["attention_mask"].bool()]
    found = valid[:, numbers["textonly_logits_valid_cols"]].numpy()
    assert np.abs(found - numbers["textonly_logits_valid_at_cols"]).max() <= 2e-4


def generate(v1: Predictor, **options: object) -> list[list[int]]:
    encoded = [v1.encode(sample.as_question(), images=images(sample)) for sample in samples()]
    batch = v1.processor.collate(encoded, padding_side="left")
    settings = {
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": v1.processor.tokenizer.pad_token_id,
        **options,
    }
    return v1.model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :].tolist()


def test_three_beams(v1: Predictor) -> None:
    assert generate(v1, num_beams=3) == arrays("model/v1_extras")["gen_beam3_batch_ids"].tolist()


def test_a_stop_token(v1: Predictor) -> None:
    numbers = arrays("model/v1_extras")
    assert generate(v1, eos_token_id=int(numbers["gen_stop_id"])) == numbers["gen_stop_batch_ids"].tolist()


def test_lora_merged_model(v1: Predictor, tmp_path: Path) -> None:
    """v7: the reference's merged tensors on v1; measured worst logit error 5e-6."""
    numbers = arrays("model/v7_lora")
    state = load_file(HERE / "checkpoints" / V1 / "model.safetensors")
    state.update(load_file(HERE / "checkpoints/v7_lora/merged_changed_tensors.safetensors"))
    source = tmp_path / "v7"
    source.mkdir()
    from safetensors.torch import save_file

    save_file(state, source / "model.safetensors")
    (source / "config.json").write_text((HERE / "checkpoints" / V1 / "config.json").read_text())
    names = {f"pretrained/{name}": HERE / "pretrained" / name for name in ("qwen2-tiny", "siglip-tiny")}
    convert(source, tmp_path / "out", names)
    predictor = Predictor.from_pretrained(tmp_path / "out", device="cpu")
    processor = predictor.processor
    batch = processor.collate([processor.encode(sample, images=images(sample)) for sample in samples()])
    with torch.no_grad():
        output = predictor.model(**batch)
    assert float(output.loss) == pytest.approx(float(numbers["loss"]), rel=1e-5)
    valid = output.logits[batch["attention_mask"].bool()]
    found = valid[:, numbers["logits_valid_cols"]].numpy()
    assert np.abs(found - numbers["logits_valid_at_cols"]).max() <= 2e-4
    assert generate(predictor) == numbers["gen_batch_ids"].tolist()
