"""Settings of one part of the model in a stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from medmvl.training.recipe.base import Count, Positive, Section


class LoRASection(Section):
    """Low-rank adapters (arXiv 2106.09685) of a part; merged into the weights when the stage is finished."""

    r: Count = 16
    """Rank."""
    alpha: Count = 32
    """Scale; the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter."""
    targets: list[str] | None = None
    """Names of the linear layers to adapt; default: all except an LLM's head."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (arXiv 2312.03732)."""
    quantize: Literal["nf4", "int8"] | None = None
    """Store the part's frozen linear layers in few bits (QLoRA, arXiv 2305.14314): nf4 by bitsandbytes, int8 by torchao (extra
    `quantize`). The finished checkpoint is the model that was trained: the weights as the quantizer rounded them, adapters
    merged. With `strategy: ddp` only."""


class PartSection(Section):
    """How one part of the model takes part in a stage."""

    mode: Literal["frozen", "full", "lora"] = "full"
    """frozen: no weight trains; full: all weights train; lora: only adapters train."""
    lr: Positive | None = None
    """Learning rate of this part; default: the stage's."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of this part; default: the stage's."""
    only: list[str] = []
    """Regular expressions; with mode full, only parameters whose name matches one of them train (layer-wise freezing)."""
    lora: LoRASection = LoRASection()
    """Settings of the adapters."""


def _expand(value: Any) -> Any:
    """Expand the short form `llm: full` to `llm: {mode: full}`."""
    return {"mode": value} if isinstance(value, str) else value


PartSetting = Annotated[PartSection, BeforeValidator(_expand)]
