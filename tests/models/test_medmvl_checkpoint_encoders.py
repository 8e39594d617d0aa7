"""An encoder's `init_from` may be a MedM-VL checkpoint: its encoder is taken, weights and preparation of inputs alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from medmvl.errors import CheckpointError, ModelError
from medmvl.imaging import Volume
from medmvl.models import MedMVLForConditionalGeneration, parts
from medmvl.models.encoders.medmvl_checkpoint import medmvl_checkpoint_encoder, medmvl_checkpoint_spec
from medmvl.processing import MedMVLProcessor
from medmvl.training.build import image_processor, volume_processor
from medmvl.training.recipe import TowerSection

LLM = {"model_type": "llama", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny.make_model(seed=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def settings(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"name": name, "init_from": str(folder), **more}


def test_both_towers_see_what_the_checkpoint_sees(checkpoint: Path) -> None:
    trained = MedMVLForConditionalGeneration.from_pretrained(checkpoint).eval()
    new = MedMVLForConditionalGeneration.from_parts(
        {**LLM, **HEADS},
        image=(settings("siglip", checkpoint), "linear"),
        volume=(settings("slicewise", checkpoint), {"pooling": "average"}),
    ).eval()
    image = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    volume = torch.randn(2, 1, *tiny.VOLUME_SIZE)
    for name, pixels in (("image_encoder", image), ("volume_encoder", volume)):
        torch.testing.assert_close(parts(new)[name](pixels), parts(trained)[name](pixels), rtol=0, atol=0)
    assert parts(new)["image_connector"](torch.zeros(1, 16, 32)).shape[-1] == 24
    assert "init_from" not in str(new.config.to_dict())


def test_a_wrapper_is_put_around_the_image_encoder(checkpoint: Path) -> None:
    trained = parts(MedMVLForConditionalGeneration.from_pretrained(checkpoint).eval())["image_encoder"]
    wrapped = medmvl_checkpoint_encoder(
        str(checkpoint), {"name": "tiled", "encoder": {"name": "siglip"}, "tiles": (1, 2)}
    ).eval()
    pixels = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    torch.testing.assert_close(wrapped.encoder(pixels), trained(pixels), rtol=0, atol=0)


def test_inputs_are_prepared_as_the_encoder_was_trained(tmp_path: Path) -> None:
    model, processor = tiny.make_model()
    processor.image["image_mean"] = [0.25, 0.25, 0.25]
    processor.volume["geometry"]["windows"] = [[-600.0, 200.0]]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    trained = MedMVLProcessor.from_pretrained(tmp_path)
    image = TowerSection(encoder=settings("siglip", tmp_path))
    volume = TowerSection(encoder=settings("slicewise", tmp_path))
    config = MedMVLForConditionalGeneration.from_parts(
        {**LLM, **HEADS}, image=(image.encoder, "linear"), volume=(volume.encoder, {"pooling": "average"})
    ).config
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    scan = Volume.from_array(np.random.default_rng(1).normal(0, 500, (6, 40, 40)).astype(np.float32), units="HU")
    assert torch.equal(image_processor(image, config)(picture), trained.image_processor(picture))
    assert torch.equal(volume_processor(volume, config)(scan), trained.volume_processor(scan))
    named = volume.model_copy(update={"geometry": "medm-vl-ct"})
    assert not torch.equal(volume_processor(named, config)(scan), trained.volume_processor(scan))


def test_an_encoder_that_the_checkpoint_lacks_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"no encoder 'vit3d'.*it has siglip, slicewise"):
        medmvl_checkpoint_spec(str(checkpoint), {"name": "vit3d"})


def test_settings_that_the_weights_do_not_fit_are_refused(checkpoint: Path) -> None:
    larger = {**tiny.SIGLIP, "hidden_size": 64}
    with pytest.raises(CheckpointError, match="of another shape"):
        medmvl_checkpoint_encoder(str(checkpoint), {"name": "siglip", "vision_config": larger})
