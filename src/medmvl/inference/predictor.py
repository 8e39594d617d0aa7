"""A checkpoint folder that answers questions."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image as PILImage
from torch import Tensor

from medmvl.data.read_options import ReadOptions, reading_of
from medmvl.data.sample import Message, Sample
from medmvl.errors import CheckpointError, DataError, RecipeError, naming, require_path, shown
from medmvl.files import PathLike
from medmvl.imaging import Image, read_image
from medmvl.inference.calibration import Calibration
from medmvl.inference.chat import Chat
from medmvl.inference.decoding import Decoder, Row
from medmvl.inference.decoding.choose import unsupported_rules
from medmvl.inference.decoding.prefixes import Prefixes
from medmvl.inference.engine import (
    Answer,
    GenerationOptions,
    generate_answers,
    named_options,
    score_samples,
    supervised_logits,
)
from medmvl.inference.evidence import (
    Cancel,
    Evidence,
    Explained,
    Explainer,
    ExplainOptions,
    ExplainRequest,
    Target,
    Watch,
    opened,
)
from medmvl.inference.questions import question, visual_inputs
from medmvl.inference.visual_cache import VisualCache
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.quantized import Quantizer, quantize_linears
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.processing import MedMVLProcessor
from medmvl.processing.image2d import ImageLike
from medmvl.processing.volume3d import VolumeLike

#: How many prepared volumes and read images are kept: records of one patient usually follow each other.
_KEPT_VOLUMES, _KEPT_IMAGES = 4, 4

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Predictor:
    """A model and its processor, ready to answer.

    Args:
        model: in evaluation mode on its device.
        processor: the one saved with the model.
        calibration: of the confidences; default: they are the model's own.
    """

    def __init__(
        self,
        model: MedMVLForConditionalGeneration,
        processor: MedMVLProcessor,
        calibration: Calibration | None = None,
    ) -> None:
        self.calibration = calibration or Calibration()
        self.model = model.eval()
        self.processor = processor
        self.visual_cache = VisualCache()
        self.prefixes = Prefixes()
        self._prepare_volume = lru_cache(maxsize=_KEPT_VOLUMES)(self._read_and_prepare)
        self._open_image = lru_cache(maxsize=_KEPT_IMAGES)(_read_image)

    @classmethod
    def from_pretrained(
        cls,
        folder: PathLike,
        *,
        device: str | None = None,
        dtype: str = "auto",
        template: str | None = None,
        quantize: Quantizer | None = None,
    ) -> Predictor:
        """Load a checkpoint folder; needs no network.

        Args:
            device: such as "cpu", "cuda:0", "mps"; default: the first accelerator, else the CPU.
            dtype: "float32", "bfloat16", "float16", or "auto": as stored on an accelerator, float32 on the CPU.
            template: name of another chat template than the saved one.
            quantize: store the LLM's linear layers (without the head) in few bits: "int8" or "nf4" (extra `quantize`).

        Raises:
            CheckpointError: if the folder is not a complete checkpoint.
            RecipeError: for an unknown quantizer.
            MissingExtraError: without the quantizer's package.
        """
        path = Path(require_path(folder, "checkpoint folder"))
        target, wanted = resolve_device(device, dtype)
        if quantize not in (None, *get_args(Quantizer)):
            raise RecipeError(f"Unknown quantizer {quantize!r}. Known: {', '.join(get_args(Quantizer))}.")
        with naming(path):
            model = MedMVLForConditionalGeneration.from_pretrained(path, dtype=wanted).to(target)
            if quantize is not None:
                quantize_linears(model.language_model, quantize)
            processor = MedMVLProcessor.from_pretrained(path)
            if template is not None:
                processor.with_template(template)
            processor.check_rows(model.config)
            processor.configure_generation(model.generation_config)
            return cls(model, processor, Calibration.load(path))

    def with_calibration(self, calibration: Calibration) -> Predictor:
        """Return a predictor with the same model and another calibration."""
        return Predictor(self.model, self.processor, calibration)

    def answer(
        self,
        text: str,
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        read: ReadOptions | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Answer one question.

        Args:
            text: the question; placeholders for images and volumes are put in front if it has none.
            images, volumes: paths or already read ones.
            read: how paths are read, such as `{"series": "thinnest"}`; see `ReadOptions`.
            options: fields of `GenerationOptions`.

        Raises:
            DataError: if `images` or `volumes` is no list, or a file cannot be read.
        """
        images, volumes = visual_inputs("images", images, read), visual_inputs("volumes", volumes, read)
        sample = question(text, len(images), len(volumes))
        encoded = self.encode(sample, images, volumes)
        return self.generate([encoded], GenerationOptions.of(options))[0].text

    def answer_many(
        self,
        texts: Sequence[str],
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        batch_size: int = 32,
        read: ReadOptions | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer several questions about the same images and volumes, in order.

        The images and volumes are read and encoded once, and the part of the prompt that the questions share is run once.

        Args:
            texts: the questions; see `answer`.
            images, volumes, read: as for `answer`.
            batch_size: questions that are answered at once.
            options: fields of `GenerationOptions`.
        """
        settings = GenerationOptions.of(options)
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise DataError(f"texts must be a list of questions, not {type(texts).__name__}.")
        if batch_size < 1:
            raise DataError(f"The batch size must be at least 1, got {batch_size}.")
        images, volumes = visual_inputs("images", images, read), visual_inputs("volumes", volumes, read)
        encoded = self._encode_questions(texts, images, volumes)
        answers: list[str] = []
        for start in range(0, len(encoded), batch_size):
            part = encoded[start : start + batch_size]
            keys = [str(start + place) for place in range(len(part))]
            answers += [found.text for found in self.generate(part, settings, keys)]
        return answers

    def choose(
        self,
        text: str,
        options: Sequence[str],
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        read: ReadOptions | Mapping[str, Any] | None = None,
    ) -> str:
        """Return the most likely of several answers to a question; see `choice_probabilities`."""
        probabilities = self.choice_probabilities(text, options, images, volumes, read=read)
        return max(probabilities, key=lambda option: probabilities[option])

    def choice_probabilities(
        self,
        text: str,
        options: Sequence[str],
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        read: ReadOptions | Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Return the probability of each of several answers, given that the answer is one of them.

        The likelihood of an answer is that of its tokens with the end of the turn; they are normalized over the options.

        Raises:
            DataError: with fewer than two options, or one that occurs twice.
        """
        images, volumes = visual_inputs("images", images, read), visual_inputs("volumes", volumes, read)
        return self.weigh(question(text, len(images), len(volumes)), options, images, volumes)

    def weigh(
        self,
        sample: Sample,
        options: Sequence[str],
        images: Sequence[ImageLike] | None = None,
        volumes: Sequence[VolumeLike] | None = None,
        *,
        blank: bool = False,
    ) -> dict[str, float]:
        """Return the probability of each of several answers to a sample; see `choice_probabilities`.

        Args:
            sample: ends with the question.
            options: the answers.
            images, volumes: stand in for the sample's paths.
            blank: whether black images and volumes of air are shown instead.

        Raises:
            DataError: with fewer than two options, or one that occurs twice.
        """
        _check_options(options)
        prompt = self.encode(sample, images, volumes)
        prompt = self.blank(prompt) if blank else prompt
        return self.weigh_encoded(sample, options, {key: prompt[key] for key in prompt if key != "input_ids"})

    def weigh_encoded(self, sample: Sample, options: Sequence[str], visual: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the probability of each of several answers about prepared visual inputs; see `weigh`.

        Args:
            visual: pixel_values (n, 3, H, W) and volume_values (m, C, D, H, W), each if there are any.

        Raises:
            DataError: with fewer than two options, or one that occurs twice.
        """
        _check_options(options)
        counts = [len(visual.get(PIXEL_KEYS[name], ())) for name in ("image", "volume")]
        encoded = []
        for option in options:
            # Earlier answers are compared as well; they are the same for all options.
            answered = replace(sample, messages=(*sample.messages, Message("assistant", option)), answer=None)
            ids, labels = self.processor.encode_text(answered, images=counts[0], volumes=counts[1])
            encoded.append({"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), **visual})
        logs = torch.tensor([-loss * count for loss, count in self.losses(encoded)], dtype=torch.float64)
        shares = torch.softmax(logs / self.calibration.temperature, dim=0)  # the order stays
        return dict(zip(options, shares.tolist(), strict=True))

    def explain(
        self,
        text: str | Sequence[Message],
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        answer: str | None = None,
        sentence: str | None = None,
        target: str | None = None,
        read: ReadOptions | Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
        on_level: Callable[[Evidence], None] | None = None,
        cancel: Cancel | None = None,
        **options: Any,
    ) -> Evidence:
        """Return the places of an image or a volume that a sentence of an answer depends on.

        Args:
            text: the question, or the turns of a conversation that ends with it, placeholders included.
            images, volumes, read: as for `answer`.
            answer: the answer; default: the model's own, generated greedily.
            sentence: a part of the answer, such as one sentence of a report; default: all of it.
            target: the input whose places are tested, "image:0" or "volume:1"; needed if there are several.
            progress: called with (inputs run, inputs in all).
            on_level: called with coarser evidence before finer one is computed.
            cancel: stops the computation once its `is_set()` is true, such as a `threading.Event`.
            options: fields of `ExplainOptions`, such as `method="attention-preview"`.

        Raises:
            CancelledError: if the caller cancels.
            DataError: if there is nothing to look at, the target is not clear, or the sentence is no part of the answer.
            RecipeError: for an unknown option.
        """
        settings = named_options(ExplainOptions, options)
        request = ExplainRequest(text, images, volumes, answer, sentence, target, read)
        explainer = Explainer(self.model, self.processor, self.visual_cache)
        return explainer.explain(self.explained(request, settings), settings, Watch(progress, on_level, cancel))

    def explained(self, request: ExplainRequest, settings: ExplainOptions | None = None) -> Explained:
        """Return the prepared inputs of a request, with the answer."""
        images = visual_inputs("images", request.images, request.read)
        volumes = visual_inputs("volumes", request.volumes, request.read)
        chosen = Target.choose(request.target, len(images), len(volumes))
        text = request.text
        sample = (
            question(text, len(images), len(volumes)) if isinstance(text, str) else Sample("(question)", tuple(text))
        )
        inputs = {"image": images, "volume": volumes}
        own = inputs[chosen.modality]
        own[chosen.index] = opened(own[chosen.index], chosen.modality)
        encoded = self.encode(sample, images, volumes)
        answer = request.answer
        if answer is None:
            longest = (settings or ExplainOptions()).max_new_tokens
            answer = self.generate([encoded], GenerationOptions(longest))[0].text
        pixels = {key: value for key, value in encoded.items() if key != "input_ids"}
        explainer = Explainer(self.model, self.processor, self.visual_cache)
        values = pixels[PIXEL_KEYS[chosen.modality]][chosen.index]
        places, picture = explainer.locate(chosen, own[chosen.index], values)
        whole = answer if request.sentence is None else request.sentence
        return Explained(sample, answer, whole, pixels, chosen, places, picture)

    def _encode_questions(
        self, texts: Sequence[str], images: Sequence[ImageLike], volumes: Sequence[VolumeLike]
    ) -> list[dict[str, Tensor]]:
        pixels = self.processor.encode_visual_inputs(images, self._prepared(volumes))
        encoded = []
        for text in texts:
            sample = question(text, len(images), len(volumes))
            ids, _ = self.processor.encode_text(sample, train=False, images=len(images), volumes=len(volumes))
            encoded.append({"input_ids": torch.tensor(ids), **pixels})
        return encoded

    def _prepared(self, volumes: Sequence[VolumeLike]) -> list[Any]:
        """Return volumes with paths replaced by prepared tensors, kept for the questions that follow."""
        return [self._prepare_volume(volume) if isinstance(volume, str) else volume for volume in volumes]

    def stream(
        self,
        text: str,
        images: Sequence[ImageLike] = (),
        volumes: Sequence[VolumeLike] = (),
        *,
        read: ReadOptions | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generator[str, None, Answer]:
        """Answer one question piece by piece as it is generated; arguments as for `answer`.

        Closing the iterator stops the generation. Beams, and `abstain_below`, give the answer in one piece.

        Returns:
            The whole answer with its confidence, as the value of `yield from` or of `StopIteration`.
        """
        images, volumes = visual_inputs("images", images, read), visual_inputs("volumes", volumes, read)
        encoded = self.encode(question(text, len(images), len(volumes)), images, volumes)
        settings = GenerationOptions.of(options)
        if not self._continuous(settings) or self.calibration.resolve(settings.abstain_below) > 0:
            answer = self.generate([encoded], settings)[0]
            yield answer.text  # whether it is sure enough is known at the end
            return answer
        decoder, row = self.decoder(), Row(encoded, settings.row("0"))
        yield from decoder.stream(row)
        return _answer(decoder, row)

    def chat(self, *, system: str | None = None) -> Chat:
        """Return a new conversation, whose turns keep what was run for earlier ones.

        Args:
            system: text of a system turn.

        Raises:
            CheckpointError: if the generation config has rules that the decoder does not follow.
        """

        def pixels(images: Sequence[ImageLike], volumes: Sequence[VolumeLike]) -> dict[str, Tensor]:
            return self.processor.encode_visual_inputs(images, self._prepared(volumes))

        self.decoder()
        return Chat(self.processor, self.decoder, pixels, system)

    def decoder(self) -> Decoder:
        """Return a new decoder that shares the kept features and prefixes.

        Raises:
            CheckpointError: if the generation config has rules that it does not follow.
        """
        temperature = self.calibration.temperature
        return Decoder(self.model, self.processor, self.visual_cache, self.prefixes, temperature)

    def _continuous(self, options: GenerationOptions) -> bool:
        """Whether the decoder can answer; beams and rare rules of a generation config need transformers' `generate`."""
        return options.num_beams == 1 and not unsupported_rules(self.model.generation_config)

    def encode(
        self, sample: Sample, images: Sequence[ImageLike] | None = None, volumes: Sequence[VolumeLike] | None = None
    ) -> dict[str, Tensor]:
        """Return the prompt tensors of a sample: `input_ids` (T,) and visual inputs (n, ...).

        Images and volumes read from paths are kept for the records that follow.
        """
        images = sample.images if images is None else images
        volumes = sample.volumes if volumes is None else volumes
        opened = [self._open_image(image) if isinstance(image, str) else image for image in images]
        return self.processor.encode(sample, train=False, images=opened, volumes=self._prepared(volumes))

    def _read_and_prepare(self, path: str) -> Tensor:
        if self.processor.volume_processor is None:
            raise CheckpointError(f"This model has no volume tower and cannot look at {path}.")
        return self.processor.volume_processor.prepare(path)

    def blank(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a copy of an encoded sample with black images and volumes of air of the same shapes."""
        blank = dict(encoded)
        if (key := PIXEL_KEYS["image"]) in encoded:
            height, width = encoded[key].shape[-2:]
            assert self.processor.image_processor is not None
            black = self.processor.image_processor(PILImage.new("RGB", (width, height)))
            blank[key] = black.expand_as(encoded[key])
        if (key := PIXEL_KEYS["volume"]) in encoded:
            assert self.processor.volume_processor is not None
            blank[key] = self.processor.volume_processor.normalization(torch.zeros_like(encoded[key]))
        return blank

    def generate(
        self, encoded: Sequence[dict[str, Tensor]], options: GenerationOptions, keys: Sequence[str] | None = None
    ) -> list[Answer]:
        """Answer a batch of encoded prompts, in order.

        Args:
            encoded: from `encode`: `input_ids` (T,) and visual inputs (n, ...).
            options: how to generate.
            keys: one per row for sampling, such as record ids; default: positions in the batch.
        """
        threshold = self.calibration.resolve(options.abstain_below)
        return [answer.unless_below(threshold) for answer in self._generate(encoded, options, keys)]

    def _generate(
        self, encoded: Sequence[dict[str, Tensor]], options: GenerationOptions, keys: Sequence[str] | None
    ) -> list[Answer]:
        if not self._continuous(options):
            encoded = [self.visual_cache.encode(self.model, sample) for sample in encoded]
            temperature = self.calibration.temperature
            return generate_answers(self.model, self.processor, encoded, options, keys=keys, calibration=temperature)
        names = keys if keys is not None else [str(place) for place in range(len(encoded))]
        rows = [Row(sample, options.row(name)) for sample, name in zip(encoded, names, strict=True)]
        decoder = self.decoder()
        decoder.add(rows)
        while decoder.rows:
            decoder.step()
        return [_answer(decoder, row) for row in rows]

    def losses(self, encoded: Sequence[dict[str, Tensor]]) -> list[tuple[float, int]]:
        """Return loss and number of supervised tokens per sample; shapes as for `medmvl.inference.engine.score_samples`."""
        encoded = [self.visual_cache.encode(self.model, sample) for sample in encoded]
        return score_samples(self.model, self.processor, encoded)

    def calibrated_losses(self, encoded: Sequence[dict[str, Tensor]]) -> list[float]:
        """Return the mean negative log-likelihood in nats of each sample's supervised tokens (T,) at the calibration's temperature."""
        encoded = [self.visual_cache.encode(self.model, sample) for sample in encoded]
        scored = score_samples(self.model, self.processor, encoded, self.calibration.temperature)
        return [loss for loss, _ in scored]

    def supervised_logits(self, encoded: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
        """Return logits (K, V), targets (K,) and their number per sample, see `medmvl.inference.engine.supervised_logits`."""
        encoded = [self.visual_cache.encode(self.model, sample) for sample in encoded]
        return supervised_logits(self.model, self.processor, encoded)


def _answer(decoder: Decoder, row: Row) -> Answer:
    return Answer(decoder.end.decode(row.token_ids), row.token_ids, row.confidence)


def _check_options(options: Sequence[str]) -> None:
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise DataError(f"options must be a list of texts, not {shown(options)}.")
    if len(options) < 2 or len(set(options)) != len(options):
        raise DataError(f"A choice needs at least two options that differ, got {list(options)}.")


def _read_image(path: str) -> Image:
    return read_image(path, **reading_of(path).for_image())


def resolve_device(device: str | None, dtype: str) -> tuple[torch.device, Any]:
    """Return the device and the dtype that a user named; see `Predictor.from_pretrained`.

    Raises:
        RecipeError: for an unknown dtype, or a device that is unknown or not in this machine.
    """
    target = _default_device() if device is None else _known_device(device)
    if dtype not in (*_DTYPES, "auto"):
        raise RecipeError(f"Unknown dtype {dtype!r}. Known: auto, {', '.join(_DTYPES)}.")
    return target, _DTYPES.get(dtype, torch.float32 if target.type == "cpu" else "auto")


def _known_device(name: str) -> torch.device:
    known = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        known += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or str(device) not in {*known, "cpu:0", *(full.partition(":")[0] for full in known)}:
        raise RecipeError(f"There is no device {name!r} here. Known: {', '.join(known)}.")
    return device


def _default_device() -> torch.device:
    """Return the first accelerator, under torchrun this process's; else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(accelerator.type, rank % torch.accelerator.device_count())
