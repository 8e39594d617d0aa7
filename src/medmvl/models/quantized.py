"""Quantized frozen linear layers for LoRA (QLoRA, arXiv 2305.14314).

The layers of a model in memory are replaced one by one, and restored at the end. PEFT's ordinary adapters (also DoRA) work on
top, trained weights keep the names they have without quantization, and adapters are merged into the weights as the quantizer
rounded them, so the finished model is the one that was trained. `BitsAndBytesConfig` works while a model is loaded; here parts of
a model in memory are quantized, and restored at the end of the stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from medmvl.errors import require

#: nf4: 4-bit NormalFloat with double quantization (bitsandbytes); int8: one scale per output row (torchao).
Quantizer = Literal["nf4", "int8"]

_EXTRA = "quantize"


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantized weight; a subclass of `nn.Linear`, so that PEFT accepts it.

    Args:
        inner: the quantizer's layer with weight and bias.
        compute: (inner, x) -> (..., out).
        restore: (inner) -> its dequantized weight (out, in), in its original dtype.
    """

    def __init__(self, inner: Any, compute: Callable[[Any, Tensor], Tensor], restore: Callable[[Any], Tensor]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.inner = inner
        self._compute, self._restore = compute, restore

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out, in), dequantized at each access."""
        return self._restore(self.inner)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias (out,), which is never quantized."""
        return self.inner.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for (..., in)."""
        return self._compute(self.inner, x)

    def plain(self) -> nn.Linear:
        """Return an ordinary layer with the dequantized weight."""
        weight = self.weight.detach()
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.inner.bias
        return layer


def quantize_linears(part: nn.Module, quantizer: Quantizer) -> int:
    """Replace the linear layers of a part (except an LLM's head) by quantized ones, in place; return their number.

    Raises:
        MissingExtraError: without the quantizer's package.
    """
    exchange = {"nf4": _nf4, "int8": _int8}[quantizer]
    head = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
    return _exchange(part, lambda layer: type(layer) is nn.Linear and layer is not head, exchange)


def restore_linears(part: nn.Module) -> int:
    """Replace quantized layers by ordinary ones with dequantized weights, in place; return their number."""
    return _exchange(part, lambda layer: isinstance(layer, QuantizedLinear), lambda layer: layer.plain())


def _exchange(part: nn.Module, wanted: Callable[[nn.Module], bool], exchange: Callable[[Any], nn.Module]) -> int:
    places = [(parent, name) for parent in part.modules() for name, child in parent.named_children() if wanted(child)]
    for parent, name in places:
        setattr(parent, name, exchange(getattr(parent, name)))
    return len(places)


def _nf4(layer: nn.Linear) -> QuantizedLinear:
    bnb = require("bitsandbytes", _EXTRA)
    inner = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type="nf4", device="meta"
    )
    inner.weight = bnb.nn.Params4bit(
        layer.weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=inner
    )
    inner.bias = layer.bias
    # bitsandbytes quantizes when the layer is moved, also to the device where it already is.
    return QuantizedLinear(inner.to(layer.weight.device), _compute_nf4, _restore_nf4)


def _compute_nf4(inner: Any, x: Tensor) -> Tensor:
    # Not the layer's own forward: on CPUs with AVX-512 it repacks the weight irreversibly on its first call without gradient.
    bnb = require("bitsandbytes", _EXTRA)
    bias = None if inner.bias is None else inner.bias.to(x.dtype)
    return bnb.matmul_4bit(x, inner.weight, bias=bias, quant_state=inner.weight.quant_state)


def _restore_nf4(inner: Any) -> Tensor:
    bnb = require("bitsandbytes", _EXTRA)
    return bnb.functional.dequantize_4bit(inner.weight.data, inner.weight.quant_state)


def _int8(layer: nn.Linear) -> QuantizedLinear:
    torchao = require("torchao.quantization", _EXTRA)
    inner = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    inner.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    inner.bias = layer.bias
    torchao.quantize_(inner, torchao.Int8WeightOnlyConfig())
    return QuantizedLinear(inner.requires_grad_(False), lambda inner, x: inner(x), _restore_int8)


def _restore_int8(inner: Any) -> Tensor:
    with torch.no_grad():
        return inner.weight.dequantize()
