"""The trained parts of a contrastive stage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from medmvl.models.contrastive import DualEncoder
from medmvl.models.contrastive.text import pool_text
from medmvl.training.engine.trainable import Adaptation, TrainableModel, freeze_and_adapt
from medmvl.training.recipe import ContrastiveStage, PartSection


def contrastive_adaptation(stage: ContrastiveStage) -> Adaptation:
    """Return the adaptation of a contrastive stage: the encoder, the text encoder as it says, and the projections."""
    adaptation, text = Adaptation.of(stage), stage.contrastive.text
    parts = {"text_encoder": text.train if text else PartSection(), "head": PartSection()}
    return replace(adaptation, train={**adaptation.train, **parts})


def adapt_dual_encoder(dual: DualEncoder, adaptation: Adaptation) -> TrainableModel:
    """Make the parts of an adaptation trainable, without weights that the loss does not depend on.

    Raises:
        RecipeError: if `only` or `targets` match nothing.
    """
    result = freeze_and_adapt(dual, adaptation)
    unused = _unused(dual)
    for part in result.trained:
        for name in [name for name, parameter in part.parameters.items() if parameter in unused]:
            part.parameters.pop(name).requires_grad_(False)
    return result


def _unused(dual: DualEncoder) -> set[nn.Parameter]:
    """Return the trained weights of the text encoder that its pooled features do not depend on, such as another pooling's.

    They would never get a gradient, and data parallelism would wait for one.
    """
    encoder = dual.text_encoder
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if not trained:
        return set()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=trained[0].device)
    training = encoder.training
    encoder.eval()  # draws no random numbers
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        pooled = pool_text(encoder, ids, None, dual.config.spec.text_pooling)
        gradients = torch.autograd.grad(pooled.float().sum(), trained, allow_unused=True)
    encoder.train(training)
    return {parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None}
