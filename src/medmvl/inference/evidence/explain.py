"""Evidence for a sentence of an answer, computed with a model and its processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medmvl.data.read_options import ReadOptions
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.errors import CancelledError, DataError, shown
from medmvl.imaging import Image, Volume
from medmvl.inference.evidence.attention import attention_heat
from medmvl.inference.evidence.likelihood import SentenceLikelihood, sentence_labels
from medmvl.inference.evidence.neutral import TISSUE, Neutral, Replacement, tissue_value
from medmvl.inference.evidence.occlusion import Level, Plan, occlude
from medmvl.inference.evidence.places import Places, volume_places
from medmvl.inference.evidence.result import Evidence, ExplainOptions, Target
from medmvl.inference.visual_cache import VisualCache
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.labels import IGNORE_INDEX
from medmvl.models.visual_inputs import FEATURE_KEYS, PIXEL_KEYS
from medmvl.processing import MedMVLProcessor
from medmvl.processing.image2d import ImageLike
from medmvl.processing.volume3d import VolumeLike


class Cancel(Protocol):
    """Says whether to stop, as `threading.Event` does."""

    def is_set(self) -> bool:
        """Whether the caller wants no result any more."""


@dataclass(frozen=True)
class Watch:
    """What a caller wants to know while evidence is computed.

    Attributes:
        progress: called with (inputs run, inputs in all).
        on_level: called with the evidence so far after each level but the last.
        cancel: stops the computation.
    """

    progress: Callable[[int, int], None] | None = None
    on_level: Callable[[Evidence], None] | None = None
    cancel: Cancel | None = None

    def report(self, done: int, total: int) -> None:
        """Report the progress.

        Raises:
            CancelledError: if the caller has cancelled.
        """
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("The explanation was cancelled.")
        if self.progress is not None:
            self.progress(done, total)


@dataclass(frozen=True, eq=False)
class ExplainRequest:
    """What is to be explained.

    Attributes:
        text: the question, or the turns of a conversation that ends with it, placeholders included.
        images, volumes: what it is about: paths, or images and volumes already read.
        answer: the answer; default: the model's own, generated greedily.
        sentence: a part of the answer, such as one sentence of a report; default: all of it.
        target: the input whose places are tested, "image:0" or "volume:1"; needed if there are several.
        read: how the files are read.
    """

    text: str | Sequence[Message]
    images: Sequence[ImageLike] = ()
    volumes: Sequence[VolumeLike] = ()
    answer: str | None = None
    sentence: str | None = None
    target: str | None = None
    read: ReadOptions | Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Explained:
    """A sentence of an answer about prepared visual inputs.

    Attributes:
        sample: the conversation, which ends with the question.
        answer, sentence: the answer, and the part of it that is explained.
        pixels: visual inputs (n, C, [D,] H, W), by key.
        target: the one whose places are tested.
        places: where its pixels are in the user's input.
        picture: the user's input: a volume, or (H, W, 3) uint8.
    """

    sample: Sample
    answer: str
    sentence: str
    pixels: dict[str, Tensor]
    target: Target
    places: Places
    picture: Volume | NDArray[np.uint8] | None

    @property
    def values(self) -> Tensor:
        """(C, H, W) or (C, D, H, W): the input whose places are tested."""
        return self.pixels[PIXEL_KEYS[self.target.modality]][self.target.index]


class Explainer:
    """Computes evidence.

    Args:
        model: in evaluation mode.
        processor: the one saved with the model.
        cache: features of visual inputs.
    """

    def __init__(self, model: MedMVLForConditionalGeneration, processor: MedMVLProcessor, cache: VisualCache) -> None:
        self.model, self.processor, self.cache = model, processor, cache

    def locate(self, target: Target, given: Any, values: Tensor) -> tuple[Places, Volume | NDArray[np.uint8] | None]:
        """Return where the pixels of a prepared input are in the input that the user gave, and that input.

        Args:
            target: which input it is.
            given: an image, or a volume; see `opened`.
            values: (C, H, W) or (C, D, H, W), prepared.
        """
        if target.modality == "image":
            assert self.processor.image_processor is not None
            picture = np.asarray(given.to_pil() if isinstance(given, Image) else given.convert("RGB"))
            height, width = picture.shape[:2]
            return Places(self.processor.image_processor.positions(height, width), (height, width)), picture
        assert self.processor.volume_processor is not None
        if not isinstance(given, Volume):
            return Places.of_tensor(values.shape[1:]), None
        return volume_places(self.processor.volume_processor.geometry, given), given

    def explain(self, explained: Explained, options: ExplainOptions, watch: Watch) -> Evidence:
        """Return the evidence for a sentence.

        Raises:
            CancelledError: if the caller cancels.
            DataError: if the sentence is not a part of the answer.
            ModelError: if attention of this model shows no places.
        """
        watch.report(0, 1)
        likelihood = self.likelihood(explained)
        whole = likelihood.score(explained.values[None])[0]
        if options.method == "attention-preview":
            heat = attention_heat(likelihood, tuple(explained.values.shape[1:]))
            bars = heat.sum((1, 2)) if heat.ndim == 3 else np.zeros(0, dtype=np.float32)
            watch.report(1, 1)
            return self._evidence(explained, options, likelihood, whole, Level(heat, bars, 1, 1))
        replacement = self.replacement(explained, options.neutral)
        plan = self._plan(explained, options)
        neutral = likelihood.score(replacement.everything(plan.size(0))[None])[0]
        evidence: Evidence | None = None
        total = plan.total()
        for level in occlude(replacement, likelihood.score, whole, plan, lambda done: watch.report(done, total)):
            if evidence is not None and watch.on_level is not None:
                watch.on_level(evidence)
            found = self._evidence(explained, options, likelihood, whole, level)
            evidence = replace(found, neutral_log_probability=neutral)
        assert evidence is not None
        watch.report(evidence.evaluations, evidence.evaluations)
        return evidence

    def likelihood(self, explained: Explained) -> SentenceLikelihood:
        """Return the scorer of versions of the input whose places are tested."""
        ids, labels = self._labels(explained)
        encoded = self.cache.encode(self.model, explained.pixels)
        features = {name: encoded[key] for name, key in FEATURE_KEYS.items() if key in encoded}
        target = explained.target
        return SentenceLikelihood(self.model, ids, labels, features, target.modality, target.index)

    def replacement(self, explained: Explained, neutral: Neutral) -> Replacement:
        """Return what replaces places of the input that is tested."""
        return Replacement(explained.values, neutral, self._tissue(explained.target))

    def _labels(self, explained: Explained) -> tuple[Tensor, Tensor]:
        """Return ids (T,) of the conversation with the answer, and labels (T,) of the sentence alone."""
        answer, sentence = explained.answer, explained.sentence
        start = answer.find(sentence)
        if not answer.strip():
            raise DataError(
                "The answer is empty, so no part of it can be explained. Give another question, or an answer."
            )
        if start < 0 or not sentence.strip():
            raise DataError(f"The sentence {shown(sentence)} is not a part of the answer {shown(answer)}.")
        sample = explained.sample
        answered = replace(sample, messages=(*sample.messages, Message("assistant", answer)), answer=None)
        images, volumes = (len(explained.pixels.get(PIXEL_KEYS[name], ())) for name in ("image", "volume"))
        ids, labels = self.processor.encode_text(answered, images=images, volumes=volumes)
        last = _last_run(labels)
        own = [label if place in last else IGNORE_INDEX for place, label in enumerate(labels)]
        tokens = [labels[place] for place in last]
        texts = [self.processor.tokenizer.decode(tokens[:n], skip_special_tokens=True) for n in range(len(tokens) + 1)]
        shift = max(0, texts[-1].find(answer))
        kept = sentence_labels(own, texts, (start + shift, start + shift + len(sentence)))
        return torch.tensor(ids), torch.tensor(kept)

    def _plan(self, explained: Explained, options: ExplainOptions) -> Plan:
        shape = tuple(explained.values.shape[1:])
        finest = tuple(max(1, round(size / 2)) for size in self._patch(explained.target, shape))
        return Plan(shape, finest, options.levels, options.windows, options.batch_size)

    def _patch(self, target: Target, shape: tuple[int, ...]) -> tuple[float, ...]:
        """Return the size of the encoder's patch in pixels of its input."""
        grid = self.model.config.tower(target.modality).encoder_spec.grid(shape)
        return tuple(n / count for n, count in zip(shape, grid.shape, strict=True))

    def _tissue(self, target: Target) -> Tensor | None:
        """Return (C,) the value of soft tissue in a model's input, None if it is not known."""
        processor = self.processor.volume_processor
        if target.modality == "image" or processor is None or (limits := processor.value_range()) is None:
            return None
        windows = processor.geometry.windows
        if not windows or processor.geometry.minmax:
            return None
        units = [min(max((TISSUE - low) / (high - low), 0.0), 1.0) for low, high in windows]
        return tissue_value(torch.tensor(units), *limits)

    def _evidence(
        self,
        explained: Explained,
        options: ExplainOptions,
        likelihood: SentenceLikelihood,
        whole: float,
        level: Level,
    ) -> Evidence:
        places = explained.places
        slices, axis = places.profile(level.bars) if len(level.bars) else (np.zeros(0, dtype=np.float32), 0)
        patch = self._patch(explained.target, tuple(explained.values.shape[1:]))
        occluded = options.method == "occlusion"
        return Evidence(
            method=options.method,
            question=_plain(explained.sample.messages[-1].text),
            answer=explained.answer,
            sentence=explained.sentence,
            log_probability=whole,
            tokens=len(likelihood.positions),
            heat=places.to_input(level.heat),
            slices=slices,
            slice_axis=axis,
            target=str(explained.target),
            neutral=options.neutral if occluded else None,
            neutral_log_probability=None,
            patch=places.in_input_order(tuple(size * step for size, step in zip(patch, places.steps, strict=True))),
            evaluations=level.done,
            picture=explained.picture,
            model_heat=level.heat,
            places=places,
        )


def _plain(text: str) -> str:
    """Return a question without placeholders of images and volumes."""
    return text.replace(IMAGE_PLACEHOLDER, "").replace(VOLUME_PLACEHOLDER, "").strip()


def _last_run(labels: Sequence[int]) -> range:
    """Return the positions of the last uninterrupted run of labels: those of the last answer."""
    end = max(place for place, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    start = end
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return range(start, end)
