"""Augmentation in training: what a record's images and volumes become in this pass over the data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, stack

from medmvl.data.sample import Sample
from medmvl.imaging.augment import Augmentation, Range
from medmvl.processing import MedMVLProcessor
from medmvl.processing.collate import PIXELS


@dataclass(frozen=True)
class Augmenter:
    """Changes encoded samples after reading, cache and normalisation, all of which are the same in every epoch.

    Attributes:
        settings: modality -> what is changed.
        ranges: modality -> least and greatest value after the normalisation; None: those of each tensor.
        mirror_axes: modality -> the axis between the patient's sides.
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
            encoded: of `MedMVLProcessor.encode`.
            sample: the record, whose id decides what is done and whose texts whether it may be mirrored.
            epoch: passes over the record's data set before this one.
        """
        changed = dict(encoded)
        texts = [*(message.text for message in sample.messages), *([sample.answer] if sample.answer else [])]
        for modality, augment in self.settings.items():
            key = PIXELS[modality]
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
