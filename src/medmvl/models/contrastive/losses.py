"""Contrastive losses of CLIP and SigLIP, on the features of a whole step."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

LossName = Literal["clip", "siglip"]

#: Largest factor of the cosines: "clipped to prevent scaling the logits by more than 100" (CLIP, arXiv 2103.00020, 2.5).
MAX_SCALE = 100.0

#: First temperature of each loss: 0.07 (CLIP, 2.5), and 1 / t' with t' = 10 (SigLIP, arXiv 2303.15343, algorithm 1).
FIRST_TEMPERATURE: dict[LossName, float] = {"clip": 0.07, "siglip": 0.1}

#: First bias of the sigmoid loss: most of the B * B pairs are no pairs, and the loss starts from there (SigLIP, 3.2).
FIRST_BIAS = -10.0


def clip_loss(visual: Tensor, texts: Tensor, belongs: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of CLIP (arXiv 2103.00020, figure 3), in nats.

    The mean of the cross-entropies "which text belongs to this image" and "which image to this text" among all of the
    batch. Where several belong, the target is spread evenly over them, as in UniCL (arXiv 2204.03610).

    Args:
        visual, texts: (B, dim), of length 1.
        belongs: (B, B) bool, whether text j belongs to image i; at least the diagonal.
        scale: scalar, 1 / temperature.
    """
    logits = scale * visual @ texts.T
    return (_spread_cross_entropy(logits, belongs) + _spread_cross_entropy(logits.T, belongs.T)) / 2


def _spread_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy with a target spread evenly over the `right` columns."""
    target = right / right.sum(1, keepdim=True)
    return -(target * log_softmax(logits, dim=1)).sum(1).mean()


def siglip_loss(visual: Tensor, texts: Tensor, belongs: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the sigmoid loss of SigLIP (arXiv 2303.15343, eq. 1 and algorithm 1), in nats per image.

    Every image with every text is one binary classification, "do they belong together?". The loss is the sum of
    -log sigmoid(z * (scale * cosine + bias)) over all B * B of them, divided by B; z is 1 for those that do, else -1.

    Args:
        visual, texts, belongs, scale: as for `clip_loss`.
        bias: scalar.
    """
    sign = belongs.to(visual.dtype) * 2 - 1
    return -logsigmoid(sign * (scale * visual @ texts.T + bias)).sum() / len(visual)


def contrastive_loss(
    name: LossName, visual: Tensor, texts: Tensor, belongs: Tensor, log_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Return the loss called `name`, a scalar.

    Args:
        name: "clip" or "siglip".
        visual, texts, belongs: as for `clip_loss`.
        log_scale: scalar, the learned logarithm of the scale.
        bias: scalar, for "siglip" only.
    """
    if name == "clip":
        return clip_loss(visual, texts, belongs, log_scale.exp())
    assert bias is not None
    return siglip_loss(visual, texts, belongs, log_scale.exp(), bias)


def log_scale_of(temperature: float) -> float:
    """Return the logarithm of 1 / temperature."""
    return -math.log(temperature)
