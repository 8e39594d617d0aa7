"""Quantized linear layers: they compute what they restore, take every adapter, and are exchanged back exactly."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from medmvl.errors import MissingExtraError
from medmvl.models.quantized import QuantizedLinear, Quantizer, quantize_linears, restore_linears

PACKAGES: dict[Quantizer, str] = {"nf4": "bitsandbytes", "int8": "torchao"}
PRESENT = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package} (extra quantize)"),
    )
    for kind, package in PACKAGES.items()
]


def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 33, bias=False), nn.LayerNorm(33))


@pytest.mark.parametrize("kind", PRESENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_with_the_weight_that_it_restores(kind: Quantizer, dtype: torch.dtype) -> None:
    part, plain = block().to(dtype), block().to(dtype)
    assert quantize_linears(part, kind) == 2
    assert isinstance(part[0], QuantizedLinear)
    assert not part[0].inner.weight.requires_grad
    x = torch.randn(5, 64, dtype=dtype, requires_grad=True)
    computed = part(x)
    computed.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    error = (part[0].weight - plain[0].weight.detach()).abs().max() / plain[0].weight.detach().abs().max()
    assert 0 < float(error) < {"nf4": 0.2, "int8": 0.01}[kind]
    assert restore_linears(part) == 2
    assert [type(layer) for layer in part] == [type(layer) for layer in plain]
    assert part.state_dict().keys() == plain.state_dict().keys()
    assert part[0].weight.dtype == dtype
    assert torch.allclose(part(x), computed, atol=1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("kind", PRESENT)
def test_the_weights_take_less_room(kind: Quantizer) -> None:
    part = nn.Sequential(nn.Linear(256, 512, bias=False))
    quantize_linears(part, kind)
    weight = part[0].inner.weight
    stored = weight.qdata if kind == "int8" else weight.data
    assert stored.nbytes <= 256 * 512 * {"nf4": 0.5, "int8": 1.0}[kind]


@pytest.mark.parametrize(("kind", "package"), PACKAGES.items())
def test_without_the_package_the_extra_is_named(kind: Quantizer, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"medmvl\[quantize\]"):
        quantize_linears(block(), kind)
