"""Adapters are ordinary PEFT folders with their connectors; a merged model equals base and adapter."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medmvl.cards import card_text
from medmvl.checkpoints import adapt, inspect_folder, load_adapted, merge
from medmvl.errors import CheckpointError, MedMVLError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.models.weights import Weights
from medmvl.processing.stored_prompts import read_prompts


@pytest.fixture(scope="module", params=["v1", "v2"])
def trained(
    request: pytest.FixtureRequest, converted: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, torch.Tensor]:
    """A base, adapters that changed it (some steps of training on noise), and the adapted model's logits."""
    base = converted(request.param)
    model = MedMVLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = adapt(model)
    batch = probe_batch(model.config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**batch, labels=batch["input_ids"].clamp(max=600)).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    adapted.save_pretrained(folder)
    return base, folder, probe_logits(adapted.get_base_model(), batch)


def test_the_folder_is_an_ordinary_peft_folder(trained: tuple[Path, Path, torch.Tensor]) -> None:
    _, folder, _ = trained
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    names = set(adapter_names(folder))
    assert any("lora_A" in name for name in names)
    assert any(".connector.projector." in name for name in names)
    assert all("connector" in name or "lora_" in name for name in names)


def adapter_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return list(file.keys())


def test_adapters_load_with_their_connector(trained: tuple[Path, Path, torch.Tensor]) -> None:
    base, folder, expected = trained
    plain = MedMVLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    batch = probe_batch(plain.config)
    assert not torch.allclose(probe_logits(plain, batch), expected, atol=1e-2)
    adapted = load_adapted(folder).get_base_model()
    difference = float((probe_logits(adapted, batch) - expected).abs().max() / expected.abs().max())
    assert difference <= (1e-5 if adapted.dtype == torch.float32 else 1e-1)


def test_merged_equals_base_and_adapter(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    """Measured worst difference, relative to the largest logit: 2e-6 in float32, 2e-2 in bfloat16."""
    base, folder, expected = trained
    done = merge(folder, tmp_path / "merged")
    assert done.adapted > 10
    merged = MedMVLForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert set(Weights(tmp_path / "merged")) == set(Weights(base))
    difference = float((probe_logits(merged, probe_batch(merged.config)) - expected).abs().max() / expected.abs().max())
    assert difference <= (1e-4 if merged.dtype == torch.float32 else 1e-1)
    assert (tmp_path / "merged" / "processor_config.json").is_file()


def test_merged_model_inherits_the_data_of_its_base(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base, folder, _ = trained
    drawn = shutil.copytree(base, tmp_path / "base")
    (drawn / "README.md").write_text("---\ntags: [synthetic-data]\n---\n")
    merge(folder, tmp_path / "merged", drawn)
    text = card_text(tmp_path / "merged")
    assert "- synthetic-data\n" in text
    assert f"| Started from | …/{tmp_path.name}/base (SHA-256 of the weights " in text
    assert read_prompts(tmp_path / "merged").synthetic


def test_the_base_may_have_moved(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base, folder, _ = trained
    shutil.copytree(folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "gone/base"}))
    with pytest.raises(CheckpointError, match="--base"):
        merge(tmp_path / "adapter", tmp_path / "out")
    merge(tmp_path / "adapter", tmp_path / "out", base)


def test_what_is_no_adapter(converted: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to merge"):
        merge(converted("v1"), tmp_path / "out")


def test_adapters_of_another_model(
    trained: tuple[Path, Path, torch.Tensor], converted: Callable[[str], Path], tmp_path: Path
) -> None:
    _, folder, _ = trained
    with pytest.raises(CheckpointError, match="do not fit"):
        merge(folder, tmp_path / "out", converted("v6c"))
    assert list(tmp_path.iterdir()) == []


def damage(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "damaged")
    return tmp_path / "damaged"


def test_adapters_that_lack_a_weight_or_have_one_too_many(
    trained: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    """PEFT warns of the first and is silent about the second."""
    folder = damage(trained[1], tmp_path)
    state = load_file(folder / "adapter_model.safetensors")
    lost = next(name for name in state if "lora_B" in name)
    for changed in (
        {name: value for name, value in state.items() if name != lost},
        {**state, lost.replace("layers.0", "layers.9"): state[lost].clone()},
    ):
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=r"1 weight missing or left over"):
            merge(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_adapters(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = damage(trained[1], tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        merge(folder, tmp_path / "out")
    weights.unlink()
    with pytest.raises(CheckpointError, match="holds no adapter_model"):
        merge(folder, tmp_path / "out")
    with (folder / "adapter_model.bin").open("wb") as handle:
        pickle.dump({"weight": Trap()}, handle)
    with pytest.raises(CheckpointError, match="never done"):
        merge(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    (folder / "adapter_config.json").write_text("{")
    for use in (lambda: merge(folder, tmp_path / "out"), lambda: inspect_folder(folder)):
        with pytest.raises(MedMVLError, match="not a valid UTF-8 JSON"):
            use()
