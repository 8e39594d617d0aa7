"""Augmentation of a record's images and volumes in training, different in each epoch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, stack

from medmvl.data.sample import Sample
from medmvl.imaging.preprocessing.augment import Augmentation, Range
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.processing import MedMVLProcessor


@dataclass(frozen=True)
class Augmenter:
    """Augmentation of encoded samples, applied after reading, caches and normalization.

    Attributes:
        settings: modality -> its augmentation.
        ranges: modality -> least and greatest value after the normalization; None: use each tensor's own.
        mirror_axes: modality -> the left-right axis of the patient.
        seed: of the stage.
    """

    settings: dict[str, Augmentation]
    ranges: dict[str, Range | None]
    mirror_axes: dict[str, int]
    seed: int

    @classmethod
    def of(cls, settings: dict[str, Augmentation], processor: MedMVLProcessor, seed: int) -> Augmenter:
        """Return the augmenter for the tensors that `processor` makes."""
        ranges: dict[str, Range | None] = {}
        mirror_axes = {"image": -1}
        if processor.image_processor is not None:
            ranges["image"] = processor.image_processor.value_range()
        if processor.volume_processor is not None:
            ranges["volume"] = processor.volume_processor.value_range()
            sides = processor.volume_processor.geometry.orientation
            mirror_axes["volume"] = next(axis for axis, side in enumerate(sides) if side in "RL") - len(sides)
        return cls(settings, ranges, mirror_axes, seed)

    def __call__(self, encoded: dict[str, Tensor], sample: Sample, epoch: int) -> dict[str, Tensor]:
        """Return `encoded` with its pixels changed; the tensors given stay as they are.

        Args:
            encoded: from `MedMVLProcessor.encode`.
            sample: the record; its id seeds the changes, and its texts decide whether it may be mirrored.
            epoch: of the record's data set, from 0.
        """
        changed = dict(encoded)
        texts = [*(message.text for message in sample.messages), *([sample.answer] if sample.answer else [])]
        for modality, augment in self.settings.items():
            key = PIXEL_KEYS[modality]
            if key not in encoded:
                continue
            items = [
                augment(
                    one,
                    seed=self.seed,
                    epoch=epoch,
                    sample_id=sample.id,
                    item=number,
                    texts=texts,
                    value_range=self.ranges[modality],
                    mirror_axis=self.mirror_axes[modality],
                )
                for number, one in enumerate(encoded[key])
            ]
            changed[key] = stack(items)
        return changed
