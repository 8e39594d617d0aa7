"""Measured checks that the shortcuts of a language stage do not change the results of the model that is trained.

Packing (`medmvl.training.acceleration.packing_check`), supervised logits and the loss in pieces are right for most causal LMs,
but not for all. Before a stage starts, two short texts run through its LLM with and without each shortcut. A shortcut whose
result differs by more than rounding is not used, and a warning says so. An LLM in half precision is measured in fp32 if it is
not too large, since rounding in half precision can hide a wrong result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from medmvl.errors import ModelError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.head_loss import linear_head
from medmvl.models.labels import supervised_targets
from medmvl.models.probe import probe_batch
from medmvl.models.tower import Tower
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.training.acceleration.attention import PACKED, attention
from medmvl.training.acceleration.compiled import rounded
from medmvl.training.acceleration.cpu import HALF, whole_attention_on_cpu
from medmvl.training.acceleration.packing import Packing, pack
from medmvl.training.engine.modes import evaluating

#: Lengths of the two texts.
LENGTHS = (7, 5)
#: Largest difference that counts as rounding, relative to the largest logit (or to the loss), by dtype of the weights.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
#: Largest number of half-precision weights that are measured in fp32: 2 ** 30 of them take 4 GB meanwhile.
WIDENED = 2**30


@contextmanager
def in_fp32(llm: PreTrainedModel) -> Iterator[None]:
    """Context in which the half-precision weights of an LLM are fp32, if they are at most `WIDENED` values."""
    halves = [tensor for tensor in (*llm.parameters(), *llm.buffers()) if tensor.dtype in HALF]
    stored = [tensor.data for tensor in halves] if sum(tensor.numel() for tensor in halves) <= WIDENED else []
    for tensor, values in zip(halves, stored, strict=False):
        tensor.data = values.float()
    try:
        yield
    finally:
        for tensor, values in zip(halves, stored, strict=False):
            tensor.data = values


def why_no_supervised_logits(model: MedMVLForConditionalGeneration) -> str | None:
    """Return why logits must be computed at all positions; None if those at chosen positions are the same."""
    return _compare_losses(model, None)


def why_no_pieces(model: MedMVLForConditionalGeneration) -> str | None:
    """Return why the loss must not be computed in pieces; None if it is the same."""
    if linear_head(model.language_model) is None:
        return "its logits are not the output of a linear head"
    return _compare_losses(model, "chunked")


def why_not_compiled(
    model: MedMVLForConditionalGeneration, packing: Packing | None, autocast: Any = None
) -> str | None:
    """Return why the compiled layers must not be used; None if LLM and encoders give what the plain layers give.

    Args:
        model: with compiled layers, on its device.
        packing: what keeps the samples of a row apart; None if rows are padded.
        autocast: context factory of the stage's precision, if it has one.
    """
    llm, context = model.language_model, autocast or nullcontext
    samples = [short_sample(llm, number) for number in range(len(LENGTHS))]
    batch = pack(samples, rounded(sum(LENGTHS)))
    kernel = packing is Packing.KERNEL
    extra = {"position_ids": batch["position_ids"]} if packing else {}
    extra |= {"segments": batch["segments"]} if kernel else {}

    def run() -> list[Tensor]:
        found = [row_logits(llm, batch["input_ids"], **extra)]
        for modality, pixels in _noise(model).items():
            found.append(model.tower(modality).encode_pooled(pixels).float())
        return found

    training = model.training
    model.eval()
    try:
        with torch.no_grad(), attention(llm, PACKED if kernel else None), context():
            compiled = run()
            with torch.compiler.set_stance("force_eager"):
                plain = run()
    finally:
        model.train(training)
    half = torch.float32 if autocast is None else torch.bfloat16
    return next(
        filter(None, (too_different("results", *pair, half) for pair in zip(compiled, plain, strict=True))), None
    )


def why_no_fp32_attention(model: MedMVLForConditionalGeneration, autocast: Any) -> str | None:
    """Return why attention must stay in half precision on the CPU; None if fp32 gives the same up to rounding.

    Args:
        autocast: context factory of the stage's precision.
    """
    llm = model.language_model
    ids = short_sample(llm, 0)["input_ids"].unsqueeze(0)
    with evaluating(model), autocast():
        plain = row_logits(llm, ids)
        try:
            with whole_attention_on_cpu():
                whole = row_logits(llm, ids)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"its attention does not take fp32 ({str(error).splitlines()[0]})"
    return too_different("logits", whole, plain, torch.bfloat16)


def why_not_stored(tower: Tower, pixels: Tensor, autocast: Any = None) -> str | None:
    """Return why the features of a frozen encoder must not be stored; None if training would compute the same ones.

    They differ if the encoder has dropout that stays on while it is frozen, or if its result depends on the rest of the batch.

    Args:
        pixels: (2, C, [D,] H, W), on the tower's device.
        autocast: context factory of the stage's precision, if it has one.
    """
    training, context = tower.training, autocast or nullcontext
    buffers = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    with torch.no_grad(), context(), torch.compiler.set_stance("force_eager"):
        try:
            stored = tower.eval().encode_pooled(pixels[:1])
            trained = tower.train().encode_pooled(pixels)[:1]
        finally:
            tower.train(training)
            for name, buffer in tower.named_buffers():
                buffer.copy_(buffers[name])
    return too_different("features", stored.float(), trained.float(), stored.dtype)


def _noise(model: MedMVLForConditionalGeneration) -> dict[str, Tensor]:
    """Return modality -> one input (1, C, [D,] H, W) of seeded noise."""
    batch = probe_batch(model.config)
    return {modality: batch[key].to(model.device) for modality, key in PIXEL_KEYS.items() if key in batch}


def _compare_losses(model: MedMVLForConditionalGeneration, kernel: str | None) -> str | None:
    llm = model.language_model
    samples = [short_sample(llm, number) for number in range(len(LENGTHS))]
    rows = {key: torch.stack([s[key][: min(LENGTHS)] for s in samples]).to(llm.device) for key in samples[0]}
    mask, targets = supervised_targets(rows["labels"])
    with evaluating(model), in_fp32(llm):
        plain = model(**rows, use_cache=False).loss
        chosen = {"logits_to_keep": mask, "shift_labels": targets, "cross_entropy": kernel}
        try:
            short = model(input_ids=rows["input_ids"], use_cache=False, **chosen).loss
        except (TypeError, IndexError, RuntimeError, ModelError) as error:
            return f"it does not take a choice of positions ({str(error).splitlines()[0]})"
        return too_different("loss", short, plain, llm.dtype)


def short_sample(llm: PreTrainedModel, number: int) -> dict[str, Tensor]:
    """Return a short text of fixed ids, `input_ids` and `labels` (T,), the first half without labels."""
    vocabulary = min(llm.get_input_embeddings().weight.shape[0], llm.config.vocab_size)  # Moshi's head has a row less
    ids = (torch.arange(LENGTHS[number]) * 37 + 11 * (number + 1)) % vocabulary
    labels = ids.clone()
    labels[: LENGTHS[number] // 2] = -100
    return {"input_ids": ids, "labels": labels}


def row_logits(llm: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Return logits (1, T, V) in float32 of a row (1, T)."""
    moved = {key: value.to(llm.device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    logits: Tensor = llm(input_ids=input_ids.to(llm.device), use_cache=False, **moved).logits
    return logits.float()


def too_different(what: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> str | None:
    """Return by how much two results of equal shape differ; None if it is rounding of such weights."""
    difference = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
    if difference <= TOLERANCE.get(dtype, TOLERANCE[torch.float32]):
        return None
    return f"its {what} then differ by {difference:.1e} of their largest value"
