"""Questions about one study to a model, and its answers with probabilities."""

from __future__ import annotations

import hashlib
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.errors import ModelError
from medmvl.files import PathLike, existing_folder, sha256
from medmvl.imaging import Image, Volume

if typing.TYPE_CHECKING:
    from medmvl import Predictor


@dataclass(frozen=True, eq=False)
class Visuals:
    """The images and volumes that a question is about.

    Attributes:
        images, volumes: already read.
    """

    images: tuple[Image, ...] = ()
    volumes: tuple[Volume, ...] = ()


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: the generated answer, or the most likely option.
        probabilities: per option; they sum to 1. Empty for a generated answer.
    """

    text: str
    probabilities: dict[str, float] = field(default_factory=dict)


class Answerer(typing.Protocol):
    """Interface of a model for `process_study`."""

    name: str
    fingerprint: str

    def answer(self, ask: str, visuals: Visuals, options: Sequence[str] | None, max_new_tokens: int) -> Reply:
        """Answer one question: the most likely of `options`, or generated text if there are none."""
        ...


class ModelAnswerer:
    """Answers of a checkpoint folder, through `Predictor`.

    Attributes:
        name: name of the folder.
        fingerprint: SHA-256 over the names and contents of its files.
    """

    def __init__(self, predictor: Predictor, name: str, fingerprint: str) -> None:
        self._predictor = predictor
        self._prepared: tuple[Visuals, list[Any]] | None = None
        self.name, self.fingerprint = name, fingerprint

    @classmethod
    def from_folder(cls, folder: PathLike, *, device: str | None = None, dtype: str = "auto") -> ModelAnswerer:
        """Load a checkpoint folder.

        Args:
            device, dtype: as in `Predictor.from_pretrained`.

        Raises:
            CheckpointError: if the folder is not a whole checkpoint.
        """
        from medmvl import Predictor  # imports torch, which takes seconds

        path = existing_folder(folder, "checkpoint folder")
        predictor = Predictor.from_pretrained(path, device=device, dtype=dtype)
        return cls(predictor, path.resolve().name, folder_fingerprint(path))

    def answer(self, ask: str, visuals: Visuals, options: Sequence[str] | None, max_new_tokens: int) -> Reply:
        """Answer one question about the visuals.

        Args:
            options: the possible answers; None to generate one.
            max_new_tokens: longest generated answer.
        """
        volumes = self._volumes(visuals)
        if options is None:
            text = self._predictor.answer(ask, images=visuals.images, volumes=volumes, max_new_tokens=max_new_tokens)
            return Reply(text)
        probabilities = dict(zip(options, self._option_probabilities(ask, visuals, volumes, options), strict=True))
        return Reply(max(probabilities, key=lambda option: probabilities[option]), probabilities)

    def _volumes(self, visuals: Visuals) -> list[Any]:
        """Return the volumes as the model's input; a study's are prepared once for all its questions."""
        if self._prepared is None or self._prepared[0] is not visuals:
            processor = self._predictor.processor.volume_processor
            if visuals.volumes and processor is None:
                raise ModelError(f"The model {self.name} has no volume tower; use read_as: image or another model.")
            self._prepared = visuals, [processor.prepare(volume) for volume in visuals.volumes] if processor else []
        return self._prepared[1]

    def _option_probabilities(
        self, ask: str, visuals: Visuals, volumes: list[Any], options: Sequence[str]
    ) -> list[float]:
        """Return the probability of each option: the softmax of their log-likelihoods as whole answers."""
        from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, Message, Sample

        marks = f"{IMAGE_PLACEHOLDER}\n" * len(visuals.images) + f"{VOLUME_PLACEHOLDER}\n" * len(volumes)
        samples = [
            Sample("(question)", (Message("user", marks + ask), Message("assistant", option))) for option in options
        ]
        encode = self._predictor.processor.encode
        encoded = [encode(sample, train=True, images=visuals.images, volumes=volumes) for sample in samples]
        logs = [-loss * tokens for loss, tokens in self._predictor.losses(encoded)]
        weights = [math.exp(value - max(logs)) for value in logs]
        return [weight / math.fsum(weights) for weight in weights]


def folder_fingerprint(folder: Path) -> str:
    """Return the SHA-256 over the relative names and contents of all files in a folder."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return total.hexdigest()
