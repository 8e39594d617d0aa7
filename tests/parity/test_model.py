"""Every reference checkpoint, converted: its tensors, features, logits, losses and greedy tokens are the reference's.

The measured worst errors of the committed set (float32, CPU) are given next to the tolerances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.sets import Variant, variants
from torch import Tensor

from medmvl.checkpoints import convert
from medmvl.data.record import parse_record
from medmvl.data.sample import Sample
from medmvl.inference import GenerationOptions, Predictor

IMAGE, VOLUME = -200, -201  # the reference's ids for placeholders


@dataclass
class Converted:
    variant: Variant
    predictor: Predictor
    samples: list[Sample]
    numbers: dict[str, np.ndarray]
    facts: dict[str, Any]

    def batch(self) -> dict[str, Tensor]:
        processor = self.predictor.processor
        return processor.collate([processor.encode(sample, train=True) for sample in self.samples])


@pytest.fixture(scope="module", params=variants(), ids=str)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    variant: Variant = request.param
    folder = tmp_path_factory.mktemp("converted") / "model"
    names = {f"pretrained/{path.name}": path for path in (variant.root / "pretrained").iterdir()}
    config = (variant.checkpoint / "config.json").read_text()
    convert(variant.checkpoint, folder, {name: path for name, path in names.items() if f'"{name}"' in config})
    facts = variant.facts
    data = variant.root / "data"
    samples = [_located(parse_record(item, "fixture"), data) for item in facts["items"]]
    return Converted(variant, Predictor.from_pretrained(folder, device="cpu"), samples, variant.numbers, facts)


def _located(sample: Sample, data: Path) -> Sample:
    return replace(
        sample,
        images=tuple(str(data / name) for name in sample.images),
        volumes=tuple(str(data / name) for name in sample.volumes),
    )


def test_processed_tensors(converted: Converted) -> None:
    batch, numbers = converted.batch(), converted.numbers
    if "image" in numbers:
        assert_close(batch["pixel_values"], numbers["image"], 1e-5)  # measured 0
    elif "image3d_uint8" in numbers:
        expected = torch.from_numpy(numbers["image3d_uint8"]).float().unsqueeze(1) / 255 * 2 - 1
        assert_close(batch["volume_values"].expand(-1, 3, -1, -1, -1), expected.expand(-1, 3, -1, -1, -1), 1e-5)
    else:
        volumes = batch["volume_values"]
        assert_close(volumes[:, :, ::4, ::16, ::16], numbers["image3d_subsample"], 1e-4)
        sums = volumes.double().sum(dim=(1, 3, 4))
        assert_close(sums, numbers["image3d_slice_sums"], 1e-4 * volumes[0, 0, 0].numel())


def test_token_ids_and_labels(converted: Converted) -> None:
    numbers = converted.numbers
    for row, sample in enumerate(converted.samples):
        encoded = converted.predictor.processor.encode(sample, train=True)
        ids = collapse(encoded["input_ids"].tolist(), converted.predictor)
        mask = numbers["attention_mask"][row]
        assert ids == numbers["input_ids"][row][mask].tolist()
        merged = numbers["merged_attention_mask"][row]
        expected = numbers["merged_labels"][row][merged].tolist()
        if sentencepiece_defect(converted.variant, sample):
            assert any(label != -100 for label in encoded["labels"].tolist())
        else:
            assert encoded["labels"].tolist() == expected


def test_features_and_embeddings(converted: Converted) -> None:
    """Measured worst errors: features 2.6e-6, embeddings 1.2e-6."""
    batch, numbers, model = converted.batch(), converted.numbers, converted.predictor.model
    modality, key = ("image", "pixel_values") if "pixel_values" in batch else ("volume", "volume_values")
    tower = model.towers[modality]
    with torch.no_grad():
        features = tower.encode(batch[key])
        embeddings = tower(features=features)
    if "encoder_features" in numbers:
        assert_close(features, numbers["encoder_features"], 1e-5)
    if "encoder_features_slices_0_15_31" in numbers:
        slices = features.unflatten(1, (32, -1))
        assert_close(slices[:, [0, 15, 31]], numbers["encoder_features_slices_0_15_31"], 1e-5)
    if "encoder_features_every_8th_token" in numbers:
        assert_close(features[:, ::8], numbers["encoder_features_every_8th_token"], 1e-5)
    if "encoder_features_mean" in numbers:
        assert_close(features.mean(1), numbers["encoder_features_mean"], 1e-5)
    if "connector_output" in numbers:
        assert_close(embeddings, numbers["connector_output"], 1e-5)


def test_logits_and_loss(converted: Converted) -> None:
    """Measured worst errors: logits 9.4e-6, loss 1e-7 relative."""
    batch, numbers = converted.batch(), converted.numbers
    with torch.no_grad():
        output = converted.predictor.model(**batch)
    valid = output.logits[batch["attention_mask"].bool()]
    assert_close(valid[:, numbers["logits_valid_cols"]], numbers["logits_valid_at_cols"], 2e-4)
    assert_close(valid.logsumexp(-1), numbers["logits_valid_logsumexp"], 2e-4)
    assert valid.argmax(-1).tolist() == numbers["logits_valid_argmax"].tolist()
    if not any(sentencepiece_defect(converted.variant, sample) for sample in converted.samples):
        assert float(output.loss) == pytest.approx(float(numbers["loss"]), rel=1e-4)


def test_greedy_tokens(converted: Converted) -> None:
    predictor = converted.predictor
    questions = [predictor.encode(sample.as_question()) for sample in converted.samples]
    options = GenerationOptions(max_new_tokens=12)
    together = predictor.generate(questions, options)
    assert [answer.token_ids for answer in together] == converted.numbers["gen_batch_ids"].tolist()
    alone_ids = converted.facts.get("gen_single_ids", [])  # not recorded for the older code
    for sample, question, recorded in zip(converted.samples, questions, alone_ids, strict=bool(alone_ids)):
        alone = predictor.generate([question], options)[0].token_ids
        # The reference returns the prompt as well for a sample without media.
        assert alone == (recorded if sample.images or sample.volumes else recorded[-12:])


def collapse(ids: list[int], predictor: Predictor) -> list[int]:
    """Write each expanded placeholder as the one id the reference uses."""
    collapsed: list[int] = []
    index = 0
    names = {"<image>": IMAGE, "<image3d>": VOLUME}
    by_id = {place.token_id: (names[text], place.tokens) for text, place in predictor.processor.placeholders.items()}
    while index < len(ids):
        placeholder, length = by_id.get(ids[index], (ids[index], 1))
        collapsed.append(placeholder)
        index += length
    return collapsed


def sentencepiece_defect(variant: Variant, sample: Sample) -> bool:
    """The reference's labels of several rounds are a defect with sentencepiece tokenizers."""
    config = (variant.checkpoint / "config.json").read_text()
    return ("phi3-" in config or "llama-" in config) and len(sample.messages) > 2


def assert_close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float) -> None:
    wanted = torch.as_tensor(expected)
    assert actual.shape == wanted.shape
    worst = float((actual.double() - wanted.double()).abs().max())
    assert worst <= tolerance, f"worst error {worst:.2e} exceeds {tolerance:.0e}"
