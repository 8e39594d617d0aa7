"""Modalities under which vLLM hands over images and volumes, and the processor of a checkpoint."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from medmvl.errors import CheckpointError
from medmvl.processing import MedMVLProcessor

#: Our name in vLLM's registries of renderers, tokenizers and readers of videos.
MODE = "medmvl"

#: vLLM's modality -> tower. Over HTTP its modalities are a closed list, so that a volume comes as a video there.
TOWERS = {"image": "image", "volume": "volume", "video": "volume"}

#: vLLM's modality -> key of the prepared values that the model receives.
VALUE_KEYS = {modality: f"{modality}_values" for modality in TOWERS}


@lru_cache(maxsize=4)
def load_processor(folder: str) -> MedMVLProcessor:
    """Return the processor of a checkpoint folder; the same object for the same folder.

    Raises:
        CheckpointError: if it is not a folder, or its files are missing or damaged.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give vLLM the folder of a checkpoint, not its name on a hub.")
    processor: MedMVLProcessor = MedMVLProcessor.from_pretrained(folder)
    return processor
