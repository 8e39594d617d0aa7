"""Types that all sections of a recipe share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

#: The parts of a model that a stage can train.
PART_NAMES = ("llm", "image_encoder", "image_connector", "volume_encoder", "volume_connector")
PartName = Literal["llm", "image_encoder", "image_connector", "volume_encoder", "volume_connector"]

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)
