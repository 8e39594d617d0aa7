"""One folder in, answers out: the only way the toolkit asks a model anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import LogitsProcessorList, TextIteratorStreamer

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.errors import CheckpointError, RecipeError
from medmvl.files import PathLike
from medmvl.inference.confidence import ChosenTokens, beam_probabilities
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import MedMVLProcessor
from medmvl.processing.image2d import ImageLike
from medmvl.processing.volume3d import VolumeLike

#: How many prepared volumes are kept: records of one patient usually follow each other.
_KEPT_VOLUMES = 4

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0 for greedy (or beam) search, above for sampling.
        num_beams: 1 for greedy.
        seed: of the sampling.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1 or self.temperature < 0:
            raise RecipeError(
                f"max_new_tokens and num_beams must be at least 1 and temperature at least 0, got {self.max_new_tokens}, "
                f"{self.num_beams} and {self.temperature}."
            )

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `generate`."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.temperature > 0,
        }
        if self.temperature > 0:
            arguments["temperature"] = self.temperature
        return arguments


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        text: what a reader sees.
        token_ids: as generated, the end token included.
        confidence: the probability that the model gave to exactly these tokens (the product of theirs), before any
            temperature.
    """

    text: str
    token_ids: list[int]
    confidence: float


class Predictor:
    """A model and its processor, ready to answer.

    Args:
        model: in evaluation mode on its device.
        processor: the one saved with the model.
    """

    def __init__(self, model: MedMVLForConditionalGeneration, processor: MedMVLProcessor) -> None:
        self.model = model.eval()
        self.processor = processor
        self._prepare_volume = lru_cache(maxsize=_KEPT_VOLUMES)(self._read_and_prepare)

    @classmethod
    def from_pretrained(
        cls, folder: PathLike, *, device: str | None = None, dtype: str = "auto", template: str | None = None
    ) -> Predictor:
        """Load a checkpoint folder; needs no network.

        Args:
            device: such as "cpu", "cuda:0", "mps"; default: the first accelerator, else the CPU.
            dtype: "float32", "bfloat16", "float16", or "auto": as stored on an accelerator, float32 on the CPU.
            template: name of another chat template than the saved one.

        Raises:
            CheckpointError: if the folder is not a whole checkpoint.
        """
        path = Path(folder)
        target, wanted = place(device, dtype)
        model = MedMVLForConditionalGeneration.from_pretrained(path, dtype=wanted).to(target)
        processor = MedMVLProcessor.from_pretrained(path)
        if template is not None:
            processor.with_template(template)
        return cls(model, processor)

    def answer(
        self,
        text: str,
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        **options: Any,
    ) -> str:
        """Answer one question.

        Args:
            text: the question; placeholders for the media are put in front if it has none.
            images, volumes: paths or already read ones.
            options: fields of `GenerationOptions`.
        """
        sample = question(text, len(images), len(volumes))
        encoded = self.encode(sample, images, volumes)
        return self.generate([encoded], GenerationOptions(**options))[0].text

    def stream(
        self, text: str, images: Sequence[ImageLike] = (), volumes: Sequence[VolumeLike] = (), **options: Any
    ) -> Iterator[str]:
        """Answer one question piece by piece as it is generated."""
        encoded = self.encode(question(text, len(images), len(volumes)), images, volumes)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def run() -> None:
            try:
                self.generate([encoded], GenerationOptions(**options), streamer=streamer)
            except BaseException as error:
                failure.append(error)
                streamer.end()

        worker = Thread(target=run, daemon=True)
        worker.start()
        yield from streamer
        worker.join()
        if failure:
            raise failure[0]

    def encode(
        self, sample: Sample, images: Sequence[ImageLike] | None = None, volumes: Sequence[VolumeLike] | None = None
    ) -> dict[str, Tensor]:
        """Return the prompt tensors of a sample; volumes read from paths are kept for the records that follow."""
        volumes = sample.volumes if volumes is None else volumes
        prepared = [self._prepare_volume(volume) if isinstance(volume, str) else volume for volume in volumes]
        return self.processor.encode(sample, train=False, images=images, volumes=prepared)

    def _read_and_prepare(self, path: str) -> Tensor:
        if self.processor.volume_processor is None:
            raise CheckpointError(f"This model has no volume tower and cannot look at {path}.")
        return self.processor.volume_processor.prepare(path)

    def blank(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the encoded sample with black images and volumes of air: what the model says without looking."""
        blank = dict(encoded)
        if "pixel_values" in encoded:
            height, width = encoded["pixel_values"].shape[-2:]
            assert self.processor.image_processor is not None
            black = self.processor.image_processor(PILImage.new("RGB", (width, height)))
            blank["pixel_values"] = black.expand_as(encoded["pixel_values"])
        if "volume_values" in encoded:
            assert self.processor.volume_processor is not None
            zeros = torch.zeros_like(encoded["volume_values"])
            blank["volume_values"] = self.processor.volume_processor.normalisation(zeros)
        return blank

    @torch.inference_mode()
    def generate(
        self, encoded: Sequence[dict[str, Tensor]], options: GenerationOptions, streamer: Any = None
    ) -> list[Answer]:
        """Answer a batch of encoded prompts, in order."""
        batch = self._to_device(self.processor.collate(encoded, padding_side="left"))
        if options.temperature > 0:
            torch.manual_seed(options.seed)
        stops, chosen = self.stop_ids, ChosenTokens()
        beams = options.num_beams > 1
        found = self.model.generate(
            **batch,
            **options.arguments(),
            eos_token_id=stops or None,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            streamer=streamer,
            logits_processor=LogitsProcessorList([] if beams else [chosen]),
            return_dict_in_generate=True,
            output_scores=beams,
        )
        new = found.sequences[:, batch["input_ids"].shape[1] :].tolist()
        answers = [_until_stop(ids, stops) for ids in new]
        lengths = [len(ids) for ids in answers]
        if beams:
            penalty = self.model.generation_config.length_penalty
            confidences = beam_probabilities(found.sequences_scores, lengths, penalty)
        else:
            confidences = chosen.probabilities(found.sequences, lengths)
        return [self._answer(ids, confidence) for ids, confidence in zip(answers, confidences, strict=True)]

    @torch.inference_mode()
    def losses(self, encoded: Sequence[dict[str, Tensor]]) -> list[tuple[float, int]]:
        """Return per sample the mean negative log-likelihood (nats) over its supervised tokens, and their number.

        Args:
            encoded: samples encoded for training, with labels.
        """
        batch = self._to_device(self.processor.collate(encoded))
        labels = batch.pop("labels")
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        supervised = shifted != -100
        logits = self.model(**batch, logits_to_keep=supervised).logits.float()  # (1, supervised tokens, V)
        per_token = torch.nn.functional.cross_entropy(logits.flatten(0, -2), shifted[supervised], reduction="none")
        counts = supervised.sum(1).tolist()
        return [
            (float(tokens.mean()) if count else 0.0, count)
            for tokens, count in zip(per_token.split(counts), counts, strict=True)
        ]

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end an answer: the tokenizer's, the chat template's, and those of the generation config."""
        configured = self.model.generation_config.eos_token_id
        known = configured if isinstance(configured, list) else [configured]
        own = (self.processor.tokenizer.eos_token_id, *self.processor.stop_token_ids)
        return sorted({token for token in (*known, *own) if token is not None})

    def _answer(self, ids: list[int], confidence: float) -> Answer:
        return Answer(self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids, confidence)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.model.device) for key, value in batch.items()}


def question(text: str, images: int, volumes: int) -> Sample:
    """Return a question as a sample; missing placeholders are put in front, a line each."""
    text = text.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER)
    if IMAGE_PLACEHOLDER not in text and VOLUME_PLACEHOLDER not in text:
        text = f"{IMAGE_PLACEHOLDER}\n" * images + f"{VOLUME_PLACEHOLDER}\n" * volumes + text
    return Sample("(question)", (Message("user", text),))


def _until_stop(ids: list[int], stops: list[int]) -> list[int]:
    """Return the ids up to and including the first stop token; what follows is padding."""
    end = next((index + 1 for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def place(device: str | None, dtype: str) -> tuple[torch.device, Any]:
    """Return where a model goes and what its weights are loaded as, of a user's words; see `Predictor.from_pretrained`.

    Raises:
        RecipeError: for an unknown dtype.
    """
    target = torch.device(device) if device else _default_device()
    if dtype not in (*_DTYPES, "auto"):
        raise RecipeError(f"Unknown dtype {dtype!r}. Known: auto, {', '.join(_DTYPES)}.")
    return target, _DTYPES.get(dtype, torch.float32 if target.type == "cpu" else "auto")


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")
