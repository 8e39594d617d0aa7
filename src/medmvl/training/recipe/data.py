"""The `data` and `phantoms` sections of a recipe, and the augmentation of a stage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from medmvl.data.read_options import ReadOptions
from medmvl.errors import DataError
from medmvl.imaging.preprocessing.augment import Augmentation
from medmvl.training.recipe.base import Positive, Section


class DataSection(Section):
    """A file of records."""

    path: str
    """JSON array, JSON Lines or Parquet file of records, below `data_root`, or its URL."""
    image_root: str | None = None
    """Folder of the images, below `data_root`, or its URL; default: the file's own folder."""
    volume_root: str | None = None
    """Folder of the volumes, below `data_root`, or its URL; default: the file's own folder."""
    weight: Positive = 1.0
    """Number of times a record is seen per epoch; with 0.5 each epoch has half of the records, in turn."""
    tasks: list[str] | None = None
    """Use only records whose `task` is one of these, such as [report]; the whole file is read once to find them."""
    read: dict[str, Any] = {}
    """Options for reading its files, such as {units: arbitrary} or {series: thinnest}; a record's own `read` takes
    precedence."""

    @field_validator("read")
    @classmethod
    def _check_read(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            ReadOptions.parse(value)
        except DataError as error:
            raise ValueError(str(error)) from error
        return value


class AugmentSection(Section):
    """Random changes of images and volumes, different in each epoch; they depend on seed, epoch and record id alone."""

    image: Augmentation | None = None
    """Augmentation of images; `{}` uses the defaults."""
    volume: Augmentation | None = None
    """Augmentation of volumes; `{}` uses the defaults."""

    def settings(self) -> dict[str, Augmentation]:
        """Return modality -> its augmentation, of those that have one."""
        both = {"image": self.image, "volume": self.volume}
        return {modality: changes for modality, changes in both.items() if changes is not None}


class PhantomSection(Section):
    """Synthetic patients that are drawn on first use, so that a recipe needs no data.

    Below `data_root` they become `phantoms/slake` and `phantoms/ct-rate` in the layouts of those data sets, and the
    records `phantoms/2d/{train,validation,test}.jsonl` and `phantoms/ct/{train,valid}.jsonl`.
    """

    train: Annotated[int, Field(ge=2)] = 24
    """Number of training patients; even, since phantoms come in pairs of opposite findings."""
    val: Annotated[int, Field(ge=2)] = 4
    """Patients of the 2D validation split."""
    test: Annotated[int, Field(ge=2)] = 8
    """Patients of the 2D test split and of CT-RATE's `valid` split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawing."""
    size: tuple[int, int, int] = (24, 64, 64)
    """Voxels (D, H, W) of a scan."""
    radiograph: Annotated[int, Field(ge=32)] = 64
    """Side of a radiograph in pixels."""
    text_only_patients: Annotated[int, Field(ge=0)] = 0
    """Number of patients described in words only (`phantoms/text-only-patients.jsonl`), from which an LLM with random weights
    learns to answer. If there are any, the drawn patients also get `phantoms/{radiograph,ct}-captions.jsonl`, `-described.jsonl` and
    `phantoms/{radiograph,ct}-closed.jsonl`."""
