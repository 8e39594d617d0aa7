"""The registries are the test matrix: every part, tiny and random, in every combination that its grid allows."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import zoo
from torch import Tensor

from medmvl.errors import ModelError
from medmvl.models import MedMVLForConditionalGeneration, parts
from medmvl.models.assemble import tower_spec
from medmvl.models.connectors import POOLINGS, PROJECTORS
from medmvl.models.encoders import ENCODERS, EncoderSpec, encoder_spec
from medmvl.models.encoders.positions import log_interpolation
from medmvl.models.llms import LLM_FAMILIES, lora_targets
from medmvl.models.tower import Tower, TowerSpec

COMBINATIONS = [(e, p, q) for e in zoo.ENCODERS for p in zoo.POOLINGS for q in zoo.PROJECTORS]
WIDTH = 16


def test_the_zoo_holds_every_registered_part() -> None:
    assert {key.partition(":")[0] for key in zoo.ENCODERS} == set(ENCODERS.names())
    assert set(zoo.POOLINGS) == set(POOLINGS.names())
    assert set(PROJECTORS.names()) <= set(zoo.PROJECTORS)
    assert set(zoo.LLMS) == set(LLM_FAMILIES)


@pytest.mark.parametrize("key", zoo.ENCODERS)
def test_encoder_keeps_its_word(key: str) -> None:
    """Grid, width, channels and a gradient for every weight."""
    spec = encoder_spec(zoo.encoder(key))
    assert encoder_spec(spec.to_dict()) == spec
    module = spec.build().train()
    features = module(inputs(spec))
    assert features.shape == (2, spec.grid().tokens, spec.hidden_size)
    features.square().sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(("encoder", "pooling", "projector"), COMBINATIONS)
def test_tower(encoder: str, pooling: str, projector: str) -> None:
    """A combination builds and gives the tokens it counts, or is refused with the grid it cannot take."""
    spec = TowerSpec(encoder=zoo.encoder(encoder), connector={"pooling": zoo.pooling(pooling), "projector": projector})
    if not allowed(spec.encoder_spec, pooling):
        with pytest.raises(ModelError, match=pooling):
            spec.output_grid()
        return
    tokens = spec.output_grid().tokens
    tower = spec.build(WIDTH)
    with torch.no_grad():
        assert tower(inputs(spec.encoder_spec)).shape == (2, tokens, WIDTH)


@pytest.mark.parametrize("pooling", [name for name in zoo.POOLINGS if name != "average"])
@pytest.mark.parametrize("projector", zoo.PROJECTORS)
def test_connector_trains(pooling: str, projector: str) -> None:
    """Every weight of the connector has a gradient, no weight of a frozen encoder has one."""
    spec = tower_spec(zoo.encoder("siglip"), {"pooling": zoo.pooling(pooling), "projector": projector})
    tower: Tower = spec.build(WIDTH)
    tower.encoder.requires_grad_(False)
    tower(inputs(spec.encoder_spec)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.connector.parameters())
    assert all(p.grad is None for p in tower.encoder.parameters())


MODELS = [
    *zip(zoo.ENCODERS, cycle(zoo.LLMS)),
    *(("siglip", kind) for kind in [*zoo.LLMS, *zoo.OTHER_LLMS]),
]


@pytest.mark.parametrize(("encoder", "llm"), sorted(set(MODELS)))
def test_model(encoder: str, llm: str, tmp_path: Path) -> None:
    """Loss, gradients where it trains and none where frozen, the same numbers after saving and loading, generation."""
    torch.manual_seed(0)
    model = assemble(encoder, llm)
    batch = prompt(model)
    parts(model)["llm"].requires_grad_(False)
    labels = batch["input_ids"].clone()
    labels[:, :-3] = -100
    loss = model(**batch, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in parts(model)["llm"].parameters())
    for name, part in parts(model).items():
        if name != "llm":
            assert all(p.grad is not None for p in part.parameters()), name

    model.eval().requires_grad_(True)
    with torch.no_grad():
        expected = model(**batch).logits
    model.save_pretrained(tmp_path / "saved")
    loaded = MedMVLForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
    out = loaded.generate(**batch, max_new_tokens=2, do_sample=False)
    assert out.shape[1] <= batch["input_ids"].shape[1] + 2


@pytest.mark.parametrize("kind", zoo.LLMS)
def test_the_tables_layer_names_are_all_linear_layers(kind: str) -> None:
    model = assemble("siglip", kind).language_model
    head = model.get_output_embeddings()
    linear = {
        n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    }
    assert set(lora_targets(model)) == linear


def test_an_llm_outside_the_table_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = assemble("siglip", "olmo2").language_model
    assert {"q_proj", "down_proj"} <= set(lora_targets(model))
    assert "olmo2" in caplog.text


@pytest.mark.parametrize(
    "key", ["siglip", "clip", "siglip2:naflex", "dinov2", "dinov3", "convnext", "vit3d", "m3dclip", "medmclip"]
)
def test_another_resolution(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """An encoder runs at another size than it was trained at; a log line names it where positions are interpolated."""
    log_interpolation.cache_clear()  # it logs once per process
    spec = encoder_spec(zoo.encoder(key))
    size = tuple(2 * side for side in spec.input_size)
    module = spec.build().eval()
    with torch.no_grad():
        features = module(torch.randn(1, spec.channels, *size))
    assert features.shape == (1, spec.grid(size).tokens, spec.hidden_size)
    logged = [record.message for record in caplog.records if "interpolated" in record.message]
    # A CNN has no positions; NaFlex was trained at many grids.
    assert [message.split()[2] for message in logged] == ([] if key in ("convnext", "siglip2:naflex") else [spec.name])


def inputs(spec: EncoderSpec) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, spec.channels, *spec.input_size, generator=generator)


def allowed(spec: EncoderSpec, pooling: str) -> bool:
    """What the poolings say of themselves, in a second wording."""
    grid = spec.grid()
    return {
        "none": True,
        "attention": True,
        "perceiver": True,
        "average": len(grid.shape) == 3 and (grid.slicewise or grid.num_prefix_tokens == 0),
        "spatial": grid.num_prefix_tokens == 0 and min(grid.shape) >= 2,
        "pixel_shuffle": grid.num_prefix_tokens == 0
        and all(n % 2 == 0 for n in grid.shape[-2 if grid.slicewise else 0 :]),
    }[pooling]


def assemble(encoder: str, llm: str) -> MedMVLForConditionalGeneration:
    spec = encoder_spec(zoo.encoder(encoder))
    tower: dict[str, Any] = {spec.modality: (spec, "mlp2x_gelu")}
    return MedMVLForConditionalGeneration.from_parts(llm=zoo.llm(llm), **tower)


def prompt(model: MedMVLForConditionalGeneration) -> dict[str, Tensor]:
    (modality,) = model.towers
    tower = model.config.tower(modality)
    placeholder = torch.full((2, tower.output_grid().tokens), model.config.placeholder_id(modality))
    text = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([text[:, :2], placeholder, text[:, 2:]], dim=1)
    key = {"image": "pixel_values", "volume": "volume_values"}[modality]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), key: inputs(tower.encoder_spec)}
