"""Importing this module registers every converter."""

from __future__ import annotations

from medmvl.data.prepare import (
    amos_mm,
    ct_rate,
    llava,
    m3d,
    medmnist,
    merlin,
    mimic_cxr,
    mpx_single,
    own_folder,
    path_vqa,
    sa_med2d,
    slake,
)

__all__ = [
    "amos_mm",
    "ct_rate",
    "llava",
    "m3d",
    "medmnist",
    "merlin",
    "mimic_cxr",
    "mpx_single",
    "own_folder",
    "path_vqa",
    "sa_med2d",
    "slake",
]
