"""Samples as pairs of an image or volume and its text, for contrastive training and retrieval."""

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
from medmvl.errors import CheckpointError, DataError, counted
from medmvl.files import PathLike, read_json, write_json
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.pretrained import open_pretrained, translate_load_errors
from medmvl.processing.collate import collate
from medmvl.processing.image2d import ImageProcessor
from medmvl.processing.volume3d import VolumeProcessor

Modality = Literal["image", "volume"]

FILE = "pair_processor.json"


class PairProcessor:
    """Makes pairs: one image or volume, and the text of the assistant's turns (or the `answer`) of its record.

    Args:
        tokenizer: of the text encoder.
        modality: whether images or volumes are paired.
        visual: prepares them.
        max_length: tokens of a text at most; a longer one is cut at its end.
        padded: pad every text to `max_length`, without a mask, as SigLIP's text encoder wants it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        modality: Modality,
        visual: ImageProcessor | VolumeProcessor,
        max_length: int,
        padded: bool = False,
    ) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.modality, self.visual = tokenizer, modality, visual
        self.max_length, self.padded = max_length, padded

    @property
    def image_processor(self) -> ImageProcessor | None:
        """The image processor if images are paired, else None."""
        return self.visual if isinstance(self.visual, ImageProcessor) else None

    @property
    def volume_processor(self) -> VolumeProcessor | None:
        """The volume processor if volumes are paired, else None."""
        return self.visual if isinstance(self.visual, VolumeProcessor) else None

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
            int64, and `visual_key` and `text_key`, (1,) int64, equal where the image (volume) or the truncated text of two pairs is.

        Raises:
            DataError: naming the sample, if it is not a pair.
        """
        path, (ids, _) = visual_input_of(sample, self.modality), self.tokenize(sample)
        return {
            "input_ids": torch.tensor(ids),
            PIXEL_KEYS[self.modality]: self.visual(path)[None],
            "visual_key": torch.tensor([_key(path)]),
            "text_key": torch.tensor([_key(repr(ids))]),
        }

    def collate(self, pairs: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """Return a batch: pixels (N, ...), input_ids and attention_mask (N, T), visual_key and text_key (N,)."""
        batch: dict[str, Any] = dict(collate(pairs, self.tokenizer.pad_token_id))
        batch["pixels"] = batch.pop(PIXEL_KEYS[self.modality])
        if self.padded:
            missing = self.max_length - batch["input_ids"].shape[1]
            batch["input_ids"] = torch.nn.functional.pad(
                batch["input_ids"], (0, missing), value=self.tokenizer.pad_token_id
            )
            batch["attention_mask"] = None
        for key in ("visual_key", "text_key"):
            batch[key] = torch.cat([pair[key] for pair in pairs])
        return batch

    def blank_like(self, pixels: Tensor) -> Tensor:
        """Return a black image or a volume of air, (C, [D,] H, W), for the blank control."""
        if isinstance(self.visual, ImageProcessor):
            return self.visual(PILImage.new("RGB", (pixels.shape[-1], pixels.shape[-2])))
        return self.visual.normalization(torch.zeros_like(pixels))

    def save_pretrained(self, folder: PathLike) -> None:
        """Write the tokenizer's files and `pair_processor.json`."""
        settings = self.visual.settings if isinstance(self.visual, ImageProcessor) else self.visual.to_dict()
        self.tokenizer.save_pretrained(str(folder))
        facts = {"modality": self.modality, "max_length": self.max_length, "padded": self.padded}
        write_json(Path(folder) / FILE, {**facts, "visual": settings})

    @classmethod
    def from_pretrained(cls, folder: PathLike) -> PairProcessor:
        """Read what `save_pretrained` wrote.

        Raises:
            CheckpointError: if a file is missing or not right.
        """
        path = Path(folder)
        if not (path / FILE).is_file():
            raise CheckpointError(f"{path} is not the folder of a dual encoder: it has no {FILE}.")
        with translate_load_errors(f"The processor in {path} cannot be loaded", "Copy the folder again."):
            settings = read_json(path / FILE)
            image = settings["modality"] == "image"
            visual = ImageProcessor(settings["visual"]) if image else VolumeProcessor.from_dict(settings["visual"])
            tokenizer = open_pretrained(AutoTokenizer, str(path), local_files_only=True)
            return cls(tokenizer, settings["modality"], visual, settings["max_length"], settings["padded"])


def visual_input_of(sample: Sample, modality: Modality) -> str:
    """Return the path of the one image or volume of a sample.

    Raises:
        DataError: naming the sample, if it has none, several, or one of each kind.
    """
    found = {"image": sample.images, "volume": sample.volumes}
    if len(found[modality]) == 1 and sum(map(len, found.values())) == 1:
        return found[modality][0]
    raise DataError(
        f"Sample {sample.id}: it has {counted(len(sample.images), 'image')} and {counted(len(sample.volumes), 'volume')}; a pair is one "
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
