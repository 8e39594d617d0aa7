"""Four optimization steps from v1 as the reference's trainer takes them: gradients flow to the same places alike.

AdamW (0.9, 0.999, 1e-8), constant rate 1e-3, gradient norm clipped at 1, one batch of three items a step, float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.sets import HERE
from torch import nn

from medmvl.checkpoints import convert
from medmvl.data.record import parse_record
from medmvl.models import MedMVLForConditionalGeneration, parts
from medmvl.processing import MedMVLProcessor

V1 = "v1_siglip_mlp_qwen2"
RECORDED = json.loads((HERE / "fixtures/model/v1_training.json").read_text())
TENSORS = load_file(HERE / "fixtures/model/v1_training_tensors.safetensors")

#: name in the reference's state dict -> ours
NAMES = {
    "connector_image.connector.": "towers.image.connector.projector.",
    "encoder_image.encoder.vision_model.": "towers.image.encoder.model.",
    "llm.": "language_model.",
}


@pytest.fixture
def start(tmp_path: Path) -> tuple[MedMVLForConditionalGeneration, dict[str, torch.Tensor]]:
    convert(HERE / "checkpoints" / V1, tmp_path / "model")
    model = MedMVLForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    processor = MedMVLProcessor.from_pretrained(str(tmp_path / "model"))
    items = json.loads((HERE / f"fixtures/model/{V1}.json").read_text())["items"]
    encoded = []
    for item in items:
        sample = parse_record(item, "fixture")
        encoded.append(processor.encode(sample, images=[str(HERE / "data" / name) for name in sample.images]))
    return model.train(), processor.collate(encoded)


def optimize(
    model: nn.Module, groups: list[dict[str, object]], batch: dict[str, torch.Tensor]
) -> list[tuple[float, float]]:
    """Return (loss, gradient norm) of each of four steps."""
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    log = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        log.append((float(loss.detach()), float(norm)))
    return log


def check(model: MedMVLForConditionalGeneration, log: list[tuple[float, float]], run: str, tolerance: float) -> None:
    for (loss, norm), recorded in zip(log, RECORDED[run]["log"], strict=True):
        assert loss == pytest.approx(recorded["loss"], abs=2e-3)
        assert norm == pytest.approx(recorded["grad_norm"], rel=2e-3)
    state = model.state_dict()
    prefix = f"after_{run}."
    compared = 0
    for name, expected in TENSORS.items():
        if name.startswith(prefix):
            published = name.removeprefix(prefix)
            ours = next(new + published.removeprefix(old) for old, new in NAMES.items() if published.startswith(old))
            assert float((state[ours] - expected).abs().max()) <= tolerance, ours
            compared += 1
    assert compared == 4


def test_connector_only(start: tuple[MedMVLForConditionalGeneration, dict[str, torch.Tensor]]) -> None:
    """Within the 1e-4 that the recorded losses (four digits) allow."""
    model, batch = start
    model.requires_grad_(False)
    connector = parts(model)["image_connector"].requires_grad_(True)
    log = optimize(model, [{"params": list(connector.parameters()), "weight_decay": 0.0}], batch)
    check(model, log, "connector_only", 1e-4)


def test_everything(start: tuple[MedMVLForConditionalGeneration, dict[str, torch.Tensor]]) -> None:
    """Weight decay 0.1 on all but biases and LayerNorms, as there (so RMSNorm weights decay)."""
    model, batch = start
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    spared = [p for n, p in model.named_parameters() if n.endswith("bias") or n in norms]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or n in norms)]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": spared, "weight_decay": 0.0},
    ]
    check(model, optimize(model, groups, batch), "full", 1e-3)
