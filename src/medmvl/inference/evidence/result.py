"""Evidence for a sentence of an answer: heat map on the input's own grid, values per slice, and what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medmvl.errors import DataError, RecipeError, did_you_mean, shown
from medmvl.imaging import Volume
from medmvl.inference.evidence.neutral import NEUTRALS, Neutral
from medmvl.inference.evidence.places import Places

Method = Literal["occlusion", "attention-preview"]
METHODS: tuple[str, ...] = get_args(Method)

#: Drop in nats below which a place hardly matters (0.1 nats: 10 % less likely). It is drawn faintly, and if none drops further, no place
#: is evidence.
LEAST_SCALE = 0.1
#: A sentence hardly depends on the picture if a neutral picture keeps more than this share of its probability.
_HARDLY = 0.8

Doubt = Literal["hardly", "none"]
_WARNINGS: dict[Doubt, str] = {
    "hardly": "This sentence is nearly as likely, or likelier, without the picture: it hardly depends on the picture. Distrust it.",
    "none": "No single place matters: replacing any one of them makes this sentence less than 10 % less likely, on average over the windows "
    "that cover it. The map points nowhere.",
}

_CAPTIONS = {
    "occlusion": "Occlusion: by how much the log-probability of the sentence drops when this place is replaced by neutral content. "
    "It shows what this model used, not whether the sentence is true.",
    "attention-preview": "Attention preview: where the language model attended while it wrote the sentence. It is no evidence: "
    "attention does not show what decided the answer. Use occlusion for that.",
}


def _likelihood(log_probability: float) -> str:
    """Return a log-probability as a probability and in nats: a long sentence's probability says little."""
    return f"{math.exp(log_probability):.3g} ({log_probability:.2f} nats)"


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """How evidence is computed.

    Attributes:
        method: "occlusion", or "attention-preview", which is fast and no evidence.
        neutral: what replaces an occluded place, see `medmvl.inference.evidence.neutral`.
        windows: most windows of each level after the first.
        levels: levels of windows, each half as large as the one before.
        batch_size: occluded inputs that are run at once.
        max_new_tokens: longest answer, if it is generated.
    """

    method: Method = "occlusion"
    neutral: Neutral = "blur"
    windows: int = 48
    levels: int = 2
    batch_size: int = 16
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("neutral", NEUTRALS)):
            if (value := getattr(self, name)) not in known:
                raise RecipeError(f"Unknown {name} {shown(value)}. {did_you_mean(str(value), known)}")
        for name in ("windows", "levels", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RecipeError(f"{name} must be a whole number of at least 1, not {shown(value)}.")


@dataclass(frozen=True)
class Target:
    """The visual input whose places are tested.

    Attributes:
        modality: "image" or "volume".
        index: which of that modality, from 0.
    """

    modality: str
    index: int = 0

    @classmethod
    def choose(cls, given: str | None, images: int, volumes: int) -> Target:
        """Return the target that a user named as "image", "volume", "image:1" ...; the only visual input by default.

        Raises:
            DataError: if there is none, or several and none is named, or no such one.
        """
        known = [*(f"image:{i}" for i in range(images)), *(f"volume:{i}" for i in range(volumes))]
        if not known:
            raise DataError("There is no image or volume, so no place in it can be evidence. Give images or volumes.")
        if given is None and len(known) > 1:
            raise DataError(f"There are several images or volumes. Say which one: target one of {', '.join(known)}.")
        name = known[0] if given is None else given if ":" in str(given) else f"{given}:0"
        if name not in known:
            raise DataError(f"There is no target {shown(given)}. {did_you_mean(name, known)}")
        modality, index = name.split(":")
        return cls(modality, int(index))

    def __str__(self) -> str:
        return f"{self.modality}:{self.index}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Places of an image or a volume that a sentence of an answer depends on.

    Attributes:
        method: "occlusion" or "attention-preview".
        question, answer, sentence: the last question, the answer, and the part of it that is explained.
        log_probability: of the sentence in nats, given the input as it is and what precedes the sentence.
        tokens: number of the sentence's tokens.
        heat: float32 on the input's own grid, (H, W) of an image or (D, H, W) of a volume as `Volume.array`. Occlusion: drop of
            the log-probability in nats, averaged over the windows that cover a place and over the levels; below 0 where
            the sentence becomes more likely. Attention: share of the attention to the input.
        slices: (n,) float32 along `slice_axis` of the input: drop of the log-probability when the slices around are replaced, for
            attention the sum of the heat; empty for an image.
        slice_axis: the input's axis that `slices` runs along.
        target: which input, "image:0" or "volume:0".
        neutral: what replaced occluded places; None for attention.
        neutral_log_probability: of the sentence if the input is neutral everywhere; None for attention.
        patch: size of the encoder's patch in pixels of the input, per axis.
        evaluations: number of inputs that were run.
        picture: the image (H, W, 3) uint8 or the volume that the heat belongs to; None for a prepared tensor.
        model_heat: the heat on the model's own grid, (H, W) or (D, H, W).
        places: where the model's pixels are in the input.
    """

    method: Method
    question: str
    answer: str
    sentence: str
    log_probability: float
    tokens: int
    heat: NDArray[np.float32]
    slices: NDArray[np.float32]
    slice_axis: int
    target: str
    neutral: str | None
    neutral_log_probability: float | None
    patch: tuple[float, ...]
    evaluations: int
    picture: Volume | NDArray[np.uint8] | None = field(repr=False)
    model_heat: NDArray[np.float32] = field(repr=False)
    places: Places = field(repr=False)

    @property
    def caption(self) -> str:
        """What the heat map shows, in a sentence for its reader."""
        return _CAPTIONS[self.method]

    @property
    def is_preview(self) -> bool:
        """Whether this is a quick preview and no evidence."""
        return self.method != "occlusion"

    @property
    def scale(self) -> float:
        """The heat that is drawn as hottest: the highest, but of a drop no less than `LEAST_SCALE`."""
        return max(float(self.heat.max()), 1e-12 if self.is_preview else LEAST_SCALE)

    @property
    def share(self) -> NDArray[np.float32]:
        """The heat as it is drawn, from 0 to 1 of `scale`, same shape; places that speak against the sentence are 0."""
        return np.clip(self.heat / np.float32(self.scale), 0, 1)

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Why to distrust the sentence: "hardly" depends on the picture, "none" of its places matters; empty for attention."""
        found: list[Doubt] = []
        neutral = self.neutral_log_probability
        if neutral is not None and neutral > self.log_probability + math.log(_HARDLY):
            found.append("hardly")
        if not self.is_preview and float(self.heat.max()) < LEAST_SCALE:
            found.append("none")
        return tuple(found)

    @property
    def focus(self) -> tuple[int, ...]:
        """Index in `heat` of the place to show: the peak, or the middle if no place matters, where a peak is chance."""
        return tuple(length // 2 for length in self.heat.shape) if "none" in self.doubts else self.peak

    @property
    def numbers(self) -> str:
        """How likely the sentence is with the picture and without it, for a reader."""
        with_picture = _likelihood(self.log_probability)
        if self.neutral_log_probability is None:
            return f"Probability of the sentence: {with_picture}"
        without = _likelihood(self.neutral_log_probability)
        return f"Probability of the sentence: {with_picture}; with a neutral picture: {without}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """The doubts as sentences for a reader."""
        return tuple(_WARNINGS[doubt] for doubt in self.doubts)

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """(4, 4) affine of a volume, array index (d, h, w) -> RAS+ mm; None for images and prepared tensors."""
        return self.picture.affine if isinstance(self.picture, Volume) else None

    @property
    def peak(self) -> tuple[int, ...]:
        """Index of the hottest place in `heat`: the middle of the places that share the highest value."""
        places = np.argwhere(self.heat >= self.heat.max() - 1e-7 * max(1.0, abs(float(self.heat.max()))))
        middle = places.mean(0)
        return tuple(int(n) for n in places[np.argmin(((places - middle) ** 2).sum(1))])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values; the heat map itself is written as a picture or a NIfTI file."""
        return {
            "format": 1,
            "method": self.method,
            "is_preview": self.is_preview,
            "caption": self.caption,
            "warnings": list(self.warnings),
            "question": self.question,
            "answer": self.answer,
            "sentence": self.sentence,
            "tokens": self.tokens,
            "log_probability": self.log_probability,
            "neutral": self.neutral,
            "neutral_log_probability": self.neutral_log_probability,
            "target": self.target,
            "shape": list(self.heat.shape),
            "peak": list(self.peak),
            "peak_value": float(self.heat[self.peak]),
            "slice_axis": self.slice_axis,
            "slices": [float(f"{value:.6g}") for value in self.slices],
            "patch": [float(f"{size:.6g}") for size in self.patch],
            "evaluations": self.evaluations,
        }
