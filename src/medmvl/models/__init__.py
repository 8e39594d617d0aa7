"""The model: an LLM with towers for images and volumes. This package imports neither `imaging` nor `data`.

Names are imported at first use: reading headers of weights needs no torch.
"""

from typing import TYPE_CHECKING

from medmvl.lazy import lazy_names

if TYPE_CHECKING:
    from medmvl.models.configuration import MedMVLConfig
    from medmvl.models.modeling import MedMVLForConditionalGeneration, MedMVLOutput, parts

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MedMVLConfig": "medmvl.models.configuration",
        "MedMVLForConditionalGeneration": "medmvl.models.modeling",
        "MedMVLOutput": "medmvl.models.modeling",
        "parts": "medmvl.models.modeling",
    },
)

__all__ = [
    "MedMVLConfig",
    "MedMVLForConditionalGeneration",
    "MedMVLOutput",
    "parts",
]
