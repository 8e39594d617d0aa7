"""Where the dual encoder of a finished contrastive stage lies."""

from __future__ import annotations

from pathlib import Path

from medmvl.models.contrastive.configuration import DualEncoderConfig
from medmvl.models.encoders.own import DUAL_ENCODER, own_kind

#: Beside a model with an LLM it has a folder of its own.
ENCODER = "encoder"


def dual_encoder_folder(folder: Path, modality: str | None = None) -> Path | None:
    """Return the folder of the dual encoder: `folder` itself, or `encoder` in it; None if there is none.

    Args:
        modality: "image" or "volume"; one of the other kind counts as none.
    """
    for place in (folder, folder / ENCODER):
        if own_kind(str(place)) == DUAL_ENCODER:
            found = DualEncoderConfig.from_pretrained(place).modality
            return place if modality in (None, found) else None
    return None
