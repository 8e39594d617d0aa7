"""`medmvl list`: names that recipes and commands take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

#: Names per kind. They are written here because the modules that register them import torch, which takes seconds; a test
#: compares them with the registries.
NAMES: dict[str, tuple[str, ...]] = {
    "encoders": (
        "clip",
        "dinov2",
        "dinov3",
        "siglip",
        "resnet",
        "convnext",
        "convnextv2",
        "transformers",
        "vit3d",
        "m3dclip",
        "medmclip",
        "siglip2",
        "slicewise",
        "tiled",
    ),
    "connectors": (
        "pooling: none",
        "pooling: average",
        "pooling: spatial",
        "pooling: attention",
        "pooling: perceiver",
        "pooling: pixel_shuffle",
        "projector: linear",
        "projector: mlp2x_gelu",
        "projector: norm_mlp2x_gelu",
    ),
    "llms": ("llama", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "smollm3", "mistral"),
    "geometries": (
        "medm-vl-ct",
        "medm-vl-ct-medmclip",
        "medm-vl-ct-m3dclip",
        "m3d",
        "ct-clip",
        "merlin",
        "chest-multiwindow",
    ),
    "benchmarks": (
        "calibration",
        "evidence",
        "ct-rate-long",
        "ct-rate-short",
        "ct-rate-choice",
        "ct-rate-report",
        "m3d-report",
        "m3d-vqa",
        "medmnist-path",
        "medmnist-chest",
        "medmnist-derma",
        "medmnist-oct",
        "medmnist-pneumonia",
        "medmnist-retina",
        "medmnist-breast",
        "medmnist-blood",
        "medmnist-tissue",
        "medmnist-organa",
        "medmnist-organc",
        "medmnist-organs",
        "medmnist-organ3d",
        "medmnist-nodule3d",
        "medmnist-adrenal3d",
        "medmnist-fracture3d",
        "medmnist-vessel3d",
        "medmnist-synapse3d",
        "own",
        "medpix",
        "mimic-cxr",
        "pathvqa",
        "samed-refer",
        "samed-identify",
        "slake-refer",
        "slake-identify",
        "slake-vqa",
        "slake-vqa-zh",
        "phantom-2d",
        "phantom-ct",
        "retrieval",
    ),
}

#: All kinds, in the order in which they are listed.
KINDS = ("encoders", "connectors", "llms", "templates", "geometries", "benchmarks", "datasets", "recipes")


def list_parts(kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}.")] = None) -> None:
    """List the names that recipes and commands take."""
    from medmvl.errors import RecipeError, did_you_mean

    if kind is not None and kind not in KINDS:
        raise RecipeError(f"Unknown kind {kind!r}. {did_you_mean(kind, KINDS)}")
    for name in [kind] if kind else KINDS:
        typer.echo(f"{name}:")
        for entry in _entries(name):
            typer.echo(f"  {entry}")


def _entries(kind: str) -> list[str]:
    import medmvl

    if kind == "templates":
        folder = Path(medmvl.__file__).parent / "processing" / "templates"
        return sorted(path.stem for path in folder.glob("*.jinja"))
    if kind == "datasets":  # a converter registers its name as a literal; importing all of them takes a second
        files = sorted((Path(medmvl.__file__).parent / "data" / "converters").glob("*.py"))
        sources = "\n".join(file.read_text(encoding="utf-8") for file in files)
        return sorted(re.findall(r'DATASETS\.add\(\s*"([^"]+)"', sources))
    if kind == "recipes":
        from medmvl.training.shipped import recipes_folder, shipped_evaluations, shipped_recipes

        folder = recipes_folder()
        files = [*shipped_evaluations(), *shipped_recipes()]
        return [f"{path.relative_to(folder).with_suffix('')}: {path}" for path in files]
    return list(NAMES[kind])
