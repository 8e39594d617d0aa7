"""The processor: samples and raw inputs become tensors, in training, evaluation and serving alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.errors import CheckpointError, DataError
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.visual_tokens import count_visual_tokens
from medmvl.processing.chat import IGNORE, Placeholder, Rendered, render, tokenize
from medmvl.processing.collate import collate
from medmvl.processing.image2d import ImageLike, ImageProcessor
from medmvl.processing.templates import load_template, native_template
from medmvl.processing.volume3d import VolumeLike, VolumeProcessor

logger = logging.getLogger(__name__)

#: Files one of which holds a tokenizer's vocabulary.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class MedMVLProcessor(ProcessorMixin):
    """Tokenizer, image processor, volume processor and chat template of one model.

    Args:
        tokenizer: the LLM's tokenizer; `<image>` and `<image3d>` are added to it if it lacks them.
        image: settings of the image processor, or None without an image tower.
        volume: settings of the volume processor (geometry, normalisation), or None without a volume tower.
        image_tokens, volume_tokens: LLM positions that one image or volume takes.
        max_length: longest sequence in tokens, visual ones included; None for no limit.
        chat_template: Jinja source with generation blocks.
        slow_spaces: tokenise as the slow sentencepiece tokenizers did; see `medmvl.processing.chat.tokenize`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image: dict[str, Any] | None = None,
        volume: dict[str, Any] | None = None,
        image_tokens: int = 0,
        volume_tokens: int = 0,
        max_length: int | None = None,
        chat_template: str | None = None,
        slow_spaces: bool = False,
    ) -> None:
        if tokenizer is None:
            raise CheckpointError("A processor needs a tokenizer.")
        missing = [p for p in (IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER) if p not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_tokens(missing, special_tokens=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(tokenizer, chat_template=chat_template)
        self.image, self.volume = image, volume
        self.image_tokens, self.volume_tokens = image_tokens, volume_tokens
        self.max_length = max_length
        self.slow_spaces = slow_spaces
        self.image_processor = ImageProcessor(image) if image else None
        self.volume_processor = VolumeProcessor.from_dict(volume) if volume else None

    @classmethod
    def from_parts(
        cls,
        config: MedMVLConfig,
        tokenizer: PreTrainedTokenizerBase | str,
        *,
        image: ImageProcessor | None = None,
        volume: VolumeProcessor | None = None,
        template: str | None = None,
        max_length: int | None = None,
    ) -> MedMVLProcessor:
        """Make the processor of a new model and tell the model's config its placeholder ids.

        Args:
            config: the model's; `image_token_id` and `volume_token_id` are set to the tokenizer's.
            tokenizer: a tokenizer, or a folder or hub name.
            template: name of a template; default: the tokenizer's own chat format.

        Raises:
            DataError: if a tower lacks its processor, or the geometry's size is not the tower's.
        """
        if isinstance(tokenizer, str):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        tokens = {name: count_visual_tokens(config.tower(name)) for name in config.towers}
        for modality, given in {"image": image, "volume": volume}.items():
            if (modality in config.towers) != (given is not None):
                raise DataError(
                    f"The model {'has' if given is None else 'lacks'} a {modality} tower: give its processor."
                )
        if volume is not None and volume.geometry.size != config.tower("volume").input_size:
            raise DataError(
                f"The geometry gives volumes of {volume.geometry.size}, the volume tower takes "
                f"{config.tower('volume').input_size}. Make them equal (geometry size or volume_size)."
            )
        processor = cls(
            tokenizer,
            image=image.settings if image else None,
            volume=volume.to_dict() if volume else None,
            image_tokens=tokens.get("image", 0),
            volume_tokens=tokens.get("volume", 0),
            max_length=max_length,
            chat_template=load_template(template or native_template(tokenizer)),
        )
        config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
        config.volume_token_id = tokenizer.convert_tokens_to_ids(VOLUME_PLACEHOLDER)
        return processor

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:
        """Load the processor of a checkpoint folder; nothing in it has a default.

        Raises:
            CheckpointError: if its files are missing or damaged.
        """
        wanted: tuple[tuple[str, ...], ...] = (("processor_config.json",), ("chat_template.jinja",), _TOKENIZERS)
        missing = [names[0] for names in wanted if not any((Path(folder) / name).is_file() for name in names)]
        try:
            if missing:  # transformers would go on with nothing in its place
                raise OSError(f"{', '.join(missing)} missing.")
            return super().from_pretrained(str(folder), *args, **{"local_files_only": True, **options})
        except (OSError, ValueError, KeyError, TypeError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"The processor in {folder} cannot be loaded: {first_line} A checkpoint needs processor_config.json, "
                "chat_template.jinja and the tokenizer's files; copy the folder again from where it was written."
            ) from error

    @property
    def placeholders(self) -> dict[str, Placeholder]:
        """Placeholder text -> its token id and how many of it stand for one image or volume."""
        ids = self.tokenizer.convert_tokens_to_ids
        return {
            IMAGE_PLACEHOLDER: Placeholder(ids(IMAGE_PLACEHOLDER), self.image_tokens),
            VOLUME_PLACEHOLDER: Placeholder(ids(VOLUME_PLACEHOLDER), self.volume_tokens),
        }

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids of the special tokens with which the chat template ends an answer; empty if it ends with the text itself."""
        messages = (Message("user", "."), Message("assistant", "."))
        ids, labels = self.tokenize(render(messages, self.chat_template, self.tokenizer))
        last = next(
            (token for token, label in zip(reversed(ids), reversed(labels), strict=True) if label != IGNORE), None
        )
        return [last] if last is not None and last in self.tokenizer.added_tokens_decoder else []

    def tokenize(self, rendered: Rendered) -> tuple[list[int], list[int]]:
        """Return token ids and labels of a rendered conversation, placeholders expanded."""
        return tokenize(rendered, self.tokenizer, self.placeholders, slow_spaces=self.slow_spaces)

    def with_template(self, name: str) -> MedMVLProcessor:
        """Use the template `name` from now on; returns the processor itself."""
        self.chat_template = load_template(name)
        return self

    def encode(
        self,
        sample: Sample,
        train: bool = True,
        images: Sequence[ImageLike] | None = None,
        volumes: Sequence[VolumeLike] | None = None,
    ) -> dict[str, Tensor]:
        """Return the tensors of one sample, unbatched.

        Args:
            sample: messages with placeholders, and paths.
            train: with labels, over the whole conversation; else the prompt up to the answer that is asked for.
            images, volumes: stand in for the sample's paths (already read or prepared ones).

        Returns:
            input_ids (T,), labels (T,) if training, pixel_values (n, 3, H, W), volume_values (m, C, D, H, W).

        Raises:
            DataError: naming the sample, if placeholders and media do not match, nothing is supervised, or the
                sample is too long even without its history.
        """
        images = sample.images if images is None else images
        volumes = sample.volumes if volumes is None else volumes
        if not train:
            sample = sample.as_question()
        ids, labels = self._fit(sample, train, len(images), len(volumes))
        encoded = {"input_ids": torch.tensor(ids)}
        if train:
            encoded["labels"] = torch.tensor(labels)
        encoded.update(self._media(images, volumes))
        return encoded

    def encode_text(self, sample: Sample, train: bool = True) -> tuple[list[int], list[int]]:
        """Return token ids and labels of one sample, placeholders expanded; reads no media.

        Raises:
            DataError: as `encode` does.
        """
        sample = sample if train else sample.as_question()
        return self._fit(sample, train, len(sample.images), len(sample.volumes))

    def collate(
        self,
        samples: Sequence[dict[str, Tensor]],
        padding_side: Literal["left", "right"] = "right",
        length: int | None = None,
    ) -> dict[str, Tensor]:
        """Pad and stack encoded samples; see `medmvl.processing.collate.collate`."""
        return collate(samples, self.tokenizer.pad_token_id, padding_side, length)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Sequence[ImageLike] | ImageLike | None = None,
        volumes: Sequence[VolumeLike] | VolumeLike | None = None,
        return_tensors: str | None = "pt",
        padding_side: Literal["left", "right"] = "left",
        **_: Any,
    ) -> BatchFeature:
        """Tokenise finished prompts as they stand (no template) and prepare their media.

        Args:
            text: one prompt or several, with `<image>` and `<image3d>` placeholders.
            images, volumes: those of all prompts together, in reading order.

        Returns:
            input_ids (B, T), attention_mask (B, T), and pixel_values / volume_values.

        Raises:
            DataError: if placeholders and media do not match.
        """
        if return_tensors not in (None, "pt"):
            raise DataError(f"return_tensors must be 'pt', got {return_tensors!r}.")
        images, volumes = _as_list(images), _as_list(volumes)
        batch: dict[str, Tensor] = {}
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            prompts = [prompt.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER) for prompt in prompts]
            self._check_media("(call)", "".join(prompts), len(images), len(volumes))
            rows = [self.tokenize(Rendered(prompt, ()))[0] for prompt in prompts]
            batch = self.collate([{"input_ids": torch.tensor(row)} for row in rows], padding_side)
        batch.update(self._media(images, volumes))
        return BatchFeature(batch)

    def _media(self, images: Sequence[ImageLike], volumes: Sequence[VolumeLike]) -> dict[str, Tensor]:
        media = {}
        if images:
            assert self.image_processor is not None
            media["pixel_values"] = torch.stack([self.image_processor(image) for image in images])
        if volumes:
            assert self.volume_processor is not None
            media["volume_values"] = torch.stack([self.volume_processor(volume) for volume in volumes])
        return media

    def _check_media(self, name: str, text: str, images: int, volumes: int) -> None:
        """Compare the placeholders of a rendered prompt (a template may drop or add some) with the media."""
        for what, placeholder, given, processor in (
            ("image", IMAGE_PLACEHOLDER, images, self.image_processor),
            ("volume", VOLUME_PLACEHOLDER, volumes, self.volume_processor),
        ):
            if given and processor is None:
                raise DataError(f"Sample {name}: it holds {given} {what}(s), but this model has no {what} tower.")
            if text.count(placeholder) != given:
                raise DataError(
                    f"Sample {name}: {text.count(placeholder)} {placeholder} placeholder(s) for {given} {what}(s) in the "
                    f"prompt. Write one {placeholder} into the text for each {what}."
                )

    def _fit(self, sample: Sample, train: bool, images: int, volumes: int) -> tuple[list[int], list[int]]:
        """Tokenise; if too long, forget whole early rounds that hold no media, never a part of an answer."""
        messages = list(sample.messages)
        while True:
            rendered = render(messages, self.chat_template, self.tokenizer, ask=not train)
            self._check_media(sample.id, rendered.text, images, volumes)
            ids, labels = self.tokenize(rendered)
            if train and all(label == IGNORE for label in labels):
                raise DataError(f"Sample {sample.id}: nothing to learn, it has no answer. Add an assistant turn.")
            if self.max_length is None or len(ids) <= self.max_length:
                return ids, labels
            forgotten = _forgettable_round(messages)
            if forgotten is None:
                raise DataError(
                    f"Sample {sample.id}: {len(ids)} tokens, the model takes {self.max_length}. Shorten the text, split the "
                    "conversation, or raise the model's max_length."
                )
            logger.warning("Sample %s: too long, a round of its history is left out.", sample.id)
            del messages[forgotten : forgotten + 2]


def _forgettable_round(messages: Sequence[Message]) -> int | None:
    """Return where the first question-answer pair without media starts that is not the last; None if there is none."""
    for index in range(len(messages) - 3):
        question, answer = messages[index : index + 2]
        holds_media = IMAGE_PLACEHOLDER in question.text or VOLUME_PLACEHOLDER in question.text
        if question.role == "user" and answer.role == "assistant" and not holds_media:
            return index
    return None


def _as_list(media: Any) -> list[Any]:
    if media is None:
        return []
    return list(media) if isinstance(media, list | tuple) else [media]
