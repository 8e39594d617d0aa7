"""The processor that turns samples and raw inputs into tensors, in training, evaluation and serving."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import GENERATION_CONFIG_NAME

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.errors import CheckpointError, DataError, counted, shown
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.labels import IGNORE_INDEX
from medmvl.models.tower import count_visual_tokens
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.pretrained import NO_REMOTE_CODE, check_folder, open_pretrained, translate_load_errors
from medmvl.processing.arguments import require_list, require_texts
from medmvl.processing.chat import Placeholder, Rendered, render, tokenize
from medmvl.processing.collate import collate
from medmvl.processing.conversation import read_conversation
from medmvl.processing.image2d import ImageLike, ImageProcessor
from medmvl.processing.system_turns import drops_system_turn
from medmvl.processing.templates import load_template, native_template
from medmvl.processing.volume3d import VolumeLike, VolumeProcessor

logger = logging.getLogger(__name__)

#: Files one of which holds a tokenizer's vocabulary.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


#: Placeholders of other models that their tokenizers name, though the LLM alone has no rows for them.
_FOREIGN_PLACEHOLDERS = ("image", "boi", "eoi", "audio", "boa", "eoa", "video")

#: The answer of the dialogue that shows how a template ends a turn.
_SHORT_ANSWER = "."


class MedMVLProcessor(ProcessorMixin):
    """Tokenizer, image processor, volume processor and chat template of one model.

    Args:
        tokenizer: the LLM's tokenizer; `<image>` and `<image3d>` are added to it if it lacks them.
        image: settings of the image processor, or None without an image tower.
        volume: settings of the volume processor (geometry, normalization), or None without a volume tower.
        image_tokens, volume_tokens: LLM positions that one image or volume takes.
        max_length: longest sequence in tokens, visual ones included; None for no limit.
        chat_template: Jinja source with generation blocks.
        slow_spaces: tokenize as the slow sentencepiece tokenizers did; see `medmvl.processing.chat.tokenize`.
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
        counts = {
            "image_tokens": image_tokens,
            "volume_tokens": volume_tokens,
            "max_length": 0 if max_length is None else max_length,
        }
        if wrong := {name: value for name, value in counts.items() if type(value) is not int or value < 0}:
            raise CheckpointError(f"A processor's settings must be whole numbers, not {wrong}.")
        super().__init__(tokenizer, chat_template=chat_template)
        self.image, self.volume = image, volume
        self.image_tokens, self.volume_tokens = image_tokens, volume_tokens
        self.max_length = max_length
        self.slow_spaces = slow_spaces
        self._warned_of_system = False
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
        """Make the processor of a new model and write its placeholder ids into the model's config.

        Args:
            config: the model's; `image_token_id` and `volume_token_id` are set to the tokenizer's.
            tokenizer: a tokenizer, or a folder or hub name.
            template: name of a template; default: the tokenizer's own chat format.

        Raises:
            DataError: if a tower lacks its processor, or the geometry's size is not the tower's.
        """
        if isinstance(tokenizer, str):
            tokenizer = open_pretrained(AutoTokenizer, tokenizer)
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
        chosen = template or native_template(tokenizer)
        processor = cls(
            tokenizer,
            image=image.settings if image else None,
            volume=volume.to_dict() if volume else None,
            image_tokens=tokens.get("image", 0),
            volume_tokens=tokens.get("volume", 0),
            max_length=max_length,
            chat_template=load_template(chosen),
        )
        processor._warn_of_turn_end(chosen)
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
        advice = (
            "A checkpoint needs processor_config.json, chat_template.jinja and the tokenizer's files; copy the folder again "
            "from where it was written."
        )
        with translate_load_errors(f"The processor in {folder} cannot be loaded", advice):
            check_folder(folder)
            if missing:  # transformers would continue without it
                raise OSError(f"{', '.join(missing)} missing.")
            loaded: MedMVLProcessor = super().from_pretrained(
                str(folder), *args, **{"local_files_only": True, **options, **NO_REMOTE_CODE}
            )
            # A tokenizer or an image processor with wrong settings loads, and fails when it is used.
            loaded.tokenize(loaded._short_dialogue())
            if loaded.image_processor is not None:
                loaded.image_processor.value_range()
            return loaded

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
        """Ids of the special tokens with which the chat template ends an answer; empty if it ends with text or nothing."""
        ids, labels = self.tokenize(self._short_dialogue())
        last = next(
            (token for token, label in zip(reversed(ids), reversed(labels), strict=True) if label != IGNORE_INDEX), None
        )
        return [last] if last is not None and last in self.tokenizer.added_tokens_decoder else []

    @property
    def turn_end_text(self) -> str | None:
        """Text with which the chat template ends an answer, if it is not a special token of this tokenizer; else None."""
        rendered = self._short_dialogue()
        if self.stop_token_ids or not rendered.spans:
            return None
        start, end = rendered.spans[-1]
        _, found, after = rendered.text[start:end].partition(_SHORT_ANSWER)
        return (after.strip() or None) if found else None

    def _short_dialogue(self) -> Rendered:
        messages = (Message("user", "."), Message("assistant", _SHORT_ANSWER))
        return render(messages, self.chat_template, self.tokenizer)

    def end_token_ids(self, config: GenerationConfig) -> list[int]:
        """Return the token ids that end an answer, sorted: those of a generation config, the tokenizer and the template."""
        configured = config.eos_token_id
        known = configured if isinstance(configured, list) else [configured]
        own = (self.tokenizer.eos_token_id, *self.stop_token_ids)
        return sorted({token for token in (*known, *own) if token is not None})

    def configure_generation(self, config: GenerationConfig) -> None:
        """Complete a generation config in place, so that every engine ends answers where the chat template does.

        Sets `eos_token_id` to `end_token_ids` and, if it has none, `pad_token_id` to the tokenizer's.
        """
        ends = self.end_token_ids(config)
        config.eos_token_id = ends if len(ends) > 1 else next(iter(ends), None)
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id

    def save_pretrained(self, folder: Any, *args: Any, **options: Any) -> Any:
        """Save the processor's files; if the folder already holds a generation config, complete it as well."""
        written = super().save_pretrained(folder, *args, **options)
        if (Path(folder) / GENERATION_CONFIG_NAME).is_file():
            config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
            self.configure_generation(config)
            config.save_pretrained(str(folder))
        return written

    def check_rows(self, config: MedMVLConfig) -> None:
        """Raise if a token has no row in the LLM's embedding table; placeholders need none.

        Tokens for pictures and sound of other models (Gemma's `<image_soft_token>`) are passed over: the batch refuses them.

        Raises:
            CheckpointError: naming the token and its id.
        """
        for name in ("image_token_id", "volume_token_id"):
            if type(index := getattr(config, name)) not in (int, type(None)):
                raise CheckpointError(
                    f"{name} in config.json must be a number, not {shown(index)}. Copy the file again."
                )
        rows = config.text_config.vocab_size
        exempt = {config.image_token_id, config.volume_token_id}
        exempt |= {getattr(self.tokenizer, f"{name}_token_id", None) for name in _FOREIGN_PLACEHOLDERS}
        lacking = sorted((index, token) for token, index in self.tokenizer.get_vocab().items() if index >= rows)
        lacking = [(index, token) for index, token in lacking if index not in exempt]
        if lacking:
            index, token = lacking[0]
            raise CheckpointError(
                f"The token {shown(token)} (id {index}) has no row in the LLM's embedding table of {rows} rows, nor have "
                f"{counted(len(lacking) - 1, 'other token')}. Call model.resize_token_embeddings({lacking[-1][0] + 1}) and train the "
                "new rows, or take the tokenizer that belongs to the LLM."
            )

    def tokenize(self, rendered: Rendered) -> tuple[list[int], list[int]]:
        """Return token ids and labels of a rendered conversation, placeholders expanded."""
        return tokenize(rendered, self.tokenizer, self.placeholders, slow_spaces=self.slow_spaces)

    def with_template(self, name: str) -> MedMVLProcessor:
        """Use the template `name` from now on; returns the processor itself."""
        self.chat_template = load_template(name)
        self._warn_of_turn_end(name)
        return self

    def _warn_of_turn_end(self, name: str) -> None:
        if (text := self.turn_end_text) is not None:
            logger.warning(
                "The chat template %r ends answers with %r, which is not a special token of this tokenizer. Predictions stop "
                "there all the same; other engines need it as a stop string. Prefer the template of the LLM's own format.",
                name,
                text,
            )

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
            DataError: naming the sample, if placeholders and visual inputs do not match, nothing is supervised, or the
                sample is too long even without its history.
        """
        if not isinstance(sample, Sample):
            raise DataError(f"encode takes a Sample, not a {type(sample).__name__}. Read records with SampleDataset.")
        images = sample.images if images is None else require_list("images", images)
        volumes = sample.volumes if volumes is None else require_list("volumes", volumes)
        if not train:
            sample = sample.as_question()
        ids, labels = self._fit(sample, train, len(images), len(volumes))
        encoded = {"input_ids": torch.tensor(ids)}
        if train:
            encoded["labels"] = torch.tensor(labels)
        encoded.update(self.encode_visual_inputs(images, volumes))
        return encoded

    def encode_text(
        self, sample: Sample, train: bool = True, images: int | None = None, volumes: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Return token ids and labels of one sample, placeholders expanded; reads no images and volumes.

        Args:
            sample, train: as for `encode`.
            images, volumes: how many the sample has; default: as many as it has paths.

        Raises:
            DataError: as `encode` does.
        """
        sample = sample if train else sample.as_question()
        given = len(sample.images) if images is None else images, len(sample.volumes) if volumes is None else volumes
        return self._fit(sample, train, *given)

    def collate(
        self,
        samples: Sequence[dict[str, Tensor]],
        padding_side: Literal["left", "right"] = "right",
        length: int | None = None,
    ) -> dict[str, Tensor]:
        """Pad and stack encoded samples; shapes as for `medmvl.processing.collate.collate`."""
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
        """Tokenize finished prompts without a template and prepare their visual inputs.

        Args:
            text: one prompt or several, with `<image>` and `<image3d>` placeholders.
            images, volumes: those of all prompts together, in reading order.

        Returns:
            input_ids (B, T), attention_mask (B, T), and pixel_values / volume_values.

        Raises:
            DataError: if placeholders and visual inputs do not match.
        """
        if return_tensors not in (None, "pt"):
            raise DataError(f"return_tensors must be 'pt', got {return_tensors!r}.")
        if padding_side not in ("left", "right"):
            raise DataError(f"padding_side must be 'left' or 'right', got {padding_side!r}.")
        images, volumes = _flatten(images), _flatten(volumes)
        batch: dict[str, Tensor] = {}
        if text is not None:
            prompts = [prompt.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER) for prompt in require_texts(text)]
            self._check_visual_inputs("(call)", "".join(prompts), len(images), len(volumes))
            rows = [self.tokenize(Rendered(prompt, ()))[0] for prompt in prompts]
            batch = self.collate([{"input_ids": torch.tensor(row)} for row in rows], padding_side)
        batch.update(self.encode_visual_inputs(images, volumes))
        return BatchFeature(batch)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> Any:
        """Render chat messages as transformers' processors do; the prompt is that of the same record.

        Args:
            conversation: a list of turns, or a list of such lists; see `medmvl.processing.conversation`.
            chat_template: Jinja source; default: the processor's own.
            add_generation_prompt: end with the opening of an assistant turn.
            continue_final_message: end within the last turn, the assistant's, which the model continues.
            tokenize: return tensors (`input_ids` alone without `return_dict`) instead of text.
            options: `images` and `volumes` stand in for those of the content parts; others are for other processors.

        Raises:
            DataError: if a turn breaks the format, or placeholders and visual inputs do not match.
        """
        if not isinstance(conversation, list | tuple):
            raise DataError(f"A conversation is a list of turns, not a {type(conversation).__name__}.")
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        read = [read_conversation(turns) for turns in (conversation if batched else [conversation])]
        template = chat_template or self.chat_template
        texts = []
        for one in read:
            prefix = one.messages[-1].text if continue_final_message else ""
            messages = one.messages[:-1] if continue_final_message else one.messages
            ask = add_generation_prompt or continue_final_message
            texts.append(render(messages, template, self.tokenizer, ask=ask).text + prefix)
        if not tokenize:
            return texts if batched else texts[0]
        images = options.get("images") or [image for one in read for image in one.images]
        volumes = options.get("volumes") or [volume for one in read for volume in one.volumes]
        batch = self(text=texts, images=images, volumes=volumes, return_tensors=return_tensors)
        return batch if return_dict else batch["input_ids"]

    def encode_visual_inputs(self, images: Sequence[ImageLike], volumes: Sequence[VolumeLike]) -> dict[str, Tensor]:
        """Return pixel_values (n, 3, H, W) and volume_values (m, C, D, H, W), each if there are any.

        Raises:
            DataError: if the model has no tower for them, or they are no lists.
        """
        images, volumes = require_list("images", images), require_list("volumes", volumes)
        for what, given, processor in (
            ("image", images, self.image_processor),
            ("volume", volumes, self.volume_processor),
        ):
            if given and processor is None:
                raise DataError(
                    f"{counted(len(given), f'{what} was', f'{what}s were')} given, but this model has no {what} tower."
                )
        media = {}
        if images:
            assert self.image_processor is not None
            media[PIXEL_KEYS["image"]] = torch.stack([self.image_processor(image) for image in images])
        if volumes:
            assert self.volume_processor is not None
            media[PIXEL_KEYS["volume"]] = torch.stack([self.volume_processor(volume) for volume in volumes])
        return media

    def _check_visual_inputs(self, name: str, text: str, images: int, volumes: int) -> None:
        """Compare the placeholders of a rendered prompt (a template may drop or add some) with the visual inputs."""
        for what, placeholder, given, processor in (
            ("image", IMAGE_PLACEHOLDER, images, self.image_processor),
            ("volume", VOLUME_PLACEHOLDER, volumes, self.volume_processor),
        ):
            if given and processor is None:
                raise DataError(f"Sample {name}: it holds {counted(given, what)}, but this model has no {what} tower.")
            if text.count(placeholder) != given:
                raise DataError(
                    f"Sample {name}: {counted(text.count(placeholder), f'{placeholder} placeholder')} for {counted(given, what)} in the "
                    f"prompt. Write one {placeholder} into the text for each {what}."
                )

    def _warn_of_dropped_system(self, sample: Sample) -> None:
        """Log once if the template leaves out a system turn."""
        if not self._warned_of_system and drops_system_turn(sample.messages, self.chat_template, self.tokenizer):
            self._warned_of_system = True
            logger.warning(
                "Sample %s: the chat template has no place for a system turn, so the model does not read it (nor those of other "
                "samples). Write it into the question, or use another template.",
                sample.id,
            )

    def _fit(self, sample: Sample, train: bool, images: int, volumes: int) -> tuple[list[int], list[int]]:
        """Tokenize; if too long, drop early rounds of question and answer without visual inputs, never a part of an answer."""
        messages = list(sample.messages)
        while True:
            rendered = render(messages, self.chat_template, self.tokenizer, ask=not train)
            self._warn_of_dropped_system(sample)
            self._check_visual_inputs(sample.id, rendered.text, images, volumes)
            ids, labels = self.tokenize(rendered)
            if train and all(label == IGNORE_INDEX for label in labels):
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
    """Return the index of the first round without visual inputs that is not the last one; None if there is none."""
    for index in range(len(messages) - 3):
        question, answer = messages[index : index + 2]
        holds_visual_input = IMAGE_PLACEHOLDER in question.text or VOLUME_PLACEHOLDER in question.text
        if question.role == "user" and answer.role == "assistant" and not holds_visual_input:
            return index
    return None


def _flatten(media: Any) -> list[Any]:
    """Return visual inputs given as one, as a list, or as a list for each prompt, as one list."""
    if media is None:
        return []
    return [one for item in media for one in _flatten(item)] if isinstance(media, list | tuple) else [media]
