"""Samples as pairs of a medium and its text, for contrastive training and retrieval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, Sample
from medmvl.errors import CheckpointError, DataError
from medmvl.files import PathLike, read_json, write_json
from medmvl.processing.collate import PIXELS, collate
from medmvl.processing.image2d import ImageProcessor
from medmvl.processing.volume3d import VolumeProcessor

Modality = Literal["image", "volume"]

FILE = "pair_processor.json"


class PairProcessor:
    """Makes pairs: one image or volume, and the text of the assistant's turns (or the `answer`) of its record.

    Args:
        tokenizer: of the text encoder.
        modality: which media are paired.
        media: prepares them.
        max_length: tokens of a text at most; a longer one is cut at its end.
        padded: pad every text to `max_length`, without a mask, as SigLIP's text encoder wants it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        modality: Modality,
        media: ImageProcessor | VolumeProcessor,
        max_length: int,
        padded: bool = False,
    ) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.modality, self.media = tokenizer, modality, media
        self.max_length, self.padded = max_length, padded

    @property
    def image_processor(self) -> ImageProcessor | None:
        """What prepares images, if these are what is paired."""
        return self.media if isinstance(self.media, ImageProcessor) else None

    @property
    def volume_processor(self) -> VolumeProcessor | None:
        """What prepares volumes, if these are what is paired."""
        return self.media if isinstance(self.media, VolumeProcessor) else None

    def tokenize(self, sample: Sample) -> tuple[list[int], bool]:
        """Return the token ids of a sample's text, and whether it had to be cut.

        Raises:
            DataError: as `text_of` does.
        """
        text = text_of(sample)
        ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        cut = len(ids) == self.max_length and len(self.tokenizer(text, verbose=False)["input_ids"]) > len(ids)
        return list(ids), cut

    def encode(self, sample: Sample) -> dict[str, Tensor]:
        """Return the tensors of a pair.

        Returns:
            pixel_values (1, C, H, W) or volume_values (1, C, D, H, W) float32 as of `MedMVLProcessor.encode`, input_ids (T,)
            int64, and `media_key` and `text_key`, (1,) int64, equal where the medium or the (cut) text of two pairs is.

        Raises:
            DataError: naming the sample, if it is not a pair.
        """
        path, (ids, _) = medium_of(sample, self.modality), self.tokenize(sample)
        return {
            "input_ids": torch.tensor(ids),
            PIXELS[self.modality]: self.media(path)[None],
            "media_key": torch.tensor([_key(path)]),
            "text_key": torch.tensor([_key(repr(ids))]),
        }

    def collate(self, pairs: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """Return a batch: pixels (N, ...), input_ids and attention_mask (N, T), media_key and text_key (N,)."""
        batch: dict[str, Any] = dict(collate(pairs, self.tokenizer.pad_token_id))
        batch["pixels"] = batch.pop(PIXELS[self.modality])
        if self.padded:
            missing = self.max_length - batch["input_ids"].shape[1]
            batch["input_ids"] = torch.nn.functional.pad(
                batch["input_ids"], (0, missing), value=self.tokenizer.pad_token_id
            )
            batch["attention_mask"] = None
        for key in ("media_key", "text_key"):
            batch[key] = torch.cat([pair[key] for pair in pairs])
        return batch

    def blank_like(self, pixels: Tensor) -> Tensor:
        """Return what stands for a medium without a picture: a black image, a volume of air; (C, [D,] H, W)."""
        if isinstance(self.media, ImageProcessor):
            return self.media(PILImage.new("RGB", (pixels.shape[-1], pixels.shape[-2])))
        return self.media.normalisation(torch.zeros_like(pixels))

    def save_pretrained(self, folder: PathLike) -> None:
        """Write the tokenizer's files and `pair_processor.json`."""
        settings = self.media.settings if isinstance(self.media, ImageProcessor) else self.media.to_dict()
        self.tokenizer.save_pretrained(str(folder))
        facts = {"modality": self.modality, "max_length": self.max_length, "padded": self.padded}
        write_json(Path(folder) / FILE, {**facts, "media": settings})

    @classmethod
    def from_pretrained(cls, folder: PathLike) -> PairProcessor:
        """Read what `save_pretrained` wrote.

        Raises:
            CheckpointError: if a file is missing or not right.
        """
        path = Path(folder)
        if not (path / FILE).is_file():
            raise CheckpointError(f"{path} is not the folder of a dual encoder: it has no {FILE}.")
        try:
            settings = read_json(path / FILE)
            image = settings["modality"] == "image"
            media = ImageProcessor(settings["media"]) if image else VolumeProcessor.from_dict(settings["media"])
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            return cls(tokenizer, settings["modality"], media, settings["max_length"], settings["padded"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"The processor in {path} cannot be loaded: {error}. Copy the folder again."
            ) from error


def medium_of(sample: Sample, modality: Modality) -> str:
    """Return the path of the one image or volume of a sample.

    Raises:
        DataError: naming the sample, if it has none, several, or other media besides.
    """
    found = {"image": sample.images, "volume": sample.volumes}
    if len(found[modality]) == 1 and sum(map(len, found.values())) == 1:
        return found[modality][0]
    raise DataError(
        f"Sample {sample.id}: it has {len(sample.images)} image(s) and {len(sample.volumes)} volume(s); a pair is one "
        f"{modality} and its text. Leave the record out, or make one record of each {modality}."
    )


def text_of(sample: Sample) -> str:
    """Return the text of a sample: its assistant turns, a line each, and the `answer` to a question that stands last.

    Raises:
        DataError: naming the sample, if there is no text.
    """
    said = [message.text for message in sample.messages if message.role == "assistant"]
    if sample.answer and not (sample.messages and sample.messages[-1].role == "assistant"):
        said.append(sample.answer)
    text = "\n".join(said).replace(IMAGE_PLACEHOLDER, " ").replace(VOLUME_PLACEHOLDER, " ").strip()
    if not text:
        raise DataError(f"Sample {sample.id}: it has no text to pair with. Give it an answer, or leave it out.")
    return text


def _key(text: str) -> int:
    """Return a number of 63 bits that is the same for the same text, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
