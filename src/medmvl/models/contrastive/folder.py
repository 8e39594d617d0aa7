"""Folder of the dual encoder of a finished contrastive stage."""

from __future__ import annotations

from pathlib import Path

from medmvl.auto_classes import DUAL_ENCODER_TYPE
from medmvl.models.contrastive.configuration import DualEncoderConfig
from medmvl.models.encoders.medmvl_checkpoint import medmvl_checkpoint_kind

#: Name of its folder inside the folder of a model with an LLM.
ENCODER = "encoder"


def dual_encoder_folder(folder: Path, modality: str | None = None) -> Path | None:
    """Return the folder of the dual encoder: `folder` itself, or `encoder` in it; None if there is none.

    Args:
        modality: "image" or "volume"; one of the other kind counts as none.
    """
    for place in (folder, folder / ENCODER):
        if medmvl_checkpoint_kind(str(place)) == DUAL_ENCODER_TYPE:
            found = DualEncoderConfig.from_pretrained(place).modality
            return place if modality in (None, found) else None
    return None
