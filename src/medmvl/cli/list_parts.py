"""`medmvl list`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer


def _encoders() -> list[str]:
    from medmvl.models.encoders import ENCODERS

    return ENCODERS.names()


def _connectors() -> list[str]:
    from medmvl.models.connectors import POOLINGS, PROJECTORS

    return [f"pooling: {name}" for name in POOLINGS] + [f"projector: {name}" for name in PROJECTORS]


def _llms() -> list[str]:
    from medmvl.models.llms import LLM_FAMILIES

    return list(LLM_FAMILIES)


def _templates() -> list[str]:
    from medmvl.processing.templates import template_names

    return template_names()


def _geometries() -> list[str]:
    from medmvl.imaging import geometry_names

    return geometry_names()


def _benchmarks() -> list[str]:
    from medmvl.evaluation import BENCHMARKS

    return BENCHMARKS.names()


def _datasets() -> list[str]:
    from medmvl.data.prepare import DATASETS

    return DATASETS.names()


def _recipes() -> list[str]:
    from medmvl.training.shipped import recipes_folder, shipped_recipes

    folder = recipes_folder()
    return [f"{path.relative_to(folder).with_suffix('')}: {path}" for path in shipped_recipes()]


_KINDS: dict[str, Callable[[], list[str]]] = {
    "encoders": _encoders,
    "connectors": _connectors,
    "llms": _llms,
    "templates": _templates,
    "geometries": _geometries,
    "benchmarks": _benchmarks,
    "datasets": _datasets,
    "recipes": _recipes,
}


def list_parts(kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(_KINDS)}.")] = None) -> None:
    """List what can be named in recipes and commands."""
    from medmvl.errors import RecipeError, did_you_mean

    if kind is not None and kind not in _KINDS:
        raise RecipeError(f"Unknown kind {kind!r}. {did_you_mean(kind, _KINDS)}")
    for name in [kind] if kind else _KINDS:
        typer.echo(f"{name}:")
        for entry in _KINDS[name]():
            typer.echo(f"  {entry}")
