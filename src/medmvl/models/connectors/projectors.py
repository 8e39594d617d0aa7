"""Projectors: features of the encoder's width become embeddings of the LLM's width."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from medmvl.errors import RecipeError, did_you_mean
from medmvl.registry import Registry

PROJECTORS: Registry[Callable[[int, int], nn.Module]] = Registry("projector")

_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


@PROJECTORS.register("linear")
def linear(in_features: int, out_features: int) -> nn.Module:
    """One linear layer."""
    return nn.Sequential(nn.Linear(in_features, out_features))


def mlp(depth: int, in_features: int, out_features: int) -> nn.Sequential:
    """Return `depth` linear layers with exact (erf) GELU between them (LLaVA-1.5, arXiv 2310.03744)."""
    layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(out_features, out_features)]
    return nn.Sequential(*layers)


@PROJECTORS.register("mlp2x_gelu")
def mlp2x_gelu(in_features: int, out_features: int) -> nn.Module:
    """Two linear layers with GELU between: the usual LLaVA projector."""
    return mlp(2, in_features, out_features)


@PROJECTORS.register("norm_mlp2x_gelu")
def norm_mlp2x_gelu(in_features: int, out_features: int) -> nn.Module:
    """A layer norm, then two linear layers with GELU between (InternVL, arXiv 2404.16821).

    Features from before an encoder's final norm may be large, and a frozen LLM works poorly with embeddings that are many
    times longer than its word embeddings. The layer norm gives all of them about the same length from the first step.
    """
    return nn.Sequential(nn.LayerNorm(in_features), *mlp(2, in_features, out_features))


def check_projector(name: str) -> str:
    """Return `name` if it is a projector: a registered one, or `mlpNx_gelu` for any depth N.

    Raises:
        RecipeError: otherwise.
    """
    if name in PROJECTORS or _MLP.fullmatch(name):
        return name
    raise RecipeError(f"Unknown projector {name!r}. {did_you_mean(name, [*PROJECTORS.names(), 'mlp3x_gelu'])}")


def build_projector(name: str, in_features: int, out_features: int) -> nn.Module:
    """Return the projector called `name`."""
    if name in PROJECTORS:
        return PROJECTORS[name](in_features, out_features)
    depth = _MLP.fullmatch(check_projector(name))
    assert depth is not None
    return mlp(int(depth[1]), in_features, out_features)
