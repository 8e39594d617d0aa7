"""Samples: conversations about images and volumes, the common form between data sets and the processor.

The text of a message holds a placeholder for each image (`<image>`) and volume (`<image3d>`), in the order of
`Sample.images` and `Sample.volumes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medmvl.data.read_options import DEFAULT_READING, ReadOptions
from medmvl.errors import DataError

IMAGE_PLACEHOLDER = "<image>"
VOLUME_PLACEHOLDER = "<image3d>"
VOLUME_ALIAS = "<volume>"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: the speaker's role, and the text with its placeholders."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training or evaluation item.

    Attributes:
        id: unique within a file.
        messages: the turns, in order.
        images: paths of 2D images, one per `<image>` placeholder in order.
        volumes: paths of volumes (file or DICOM folder), one per `<image3d>` placeholder in order.
        answer: the reference answer of an evaluation item; None where there is none.
        extra: every other key of the record, kept and passed through to predictions.
        reading: options with which its images and volumes are read.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    answer: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    reading: ReadOptions = DEFAULT_READING

    @property
    def answered(self) -> bool:
        """Whether it has an answer: a turn of the assistant, or `answer`."""
        return self.answer is not None or any(message.role == "assistant" for message in self.messages)

    def as_question(self) -> Sample:
        """Return the sample without its last assistant turn, whose text becomes the reference answer.

        An explicit `answer` wins over the dropped turn.
        """
        if not self.messages or self.messages[-1].role != "assistant":
            return self
        answer = self.answer if self.answer is not None else self.messages[-1].text
        return replace(self, messages=self.messages[:-1], answer=answer)

    def as_answered(self) -> Sample:
        """Return the sample with its `answer` as the closing assistant turn, if it ends with another turn and has one."""
        if self.answer is None or not self.messages or self.messages[-1].role == "assistant":
            return self
        return replace(self, messages=(*self.messages, Message("assistant", self.answer)))

    def as_compared(self) -> Sample:
        """Return the sample with its answer as the closing assistant turn.

        Raises:
            DataError: if it has no answer.
        """
        sample = self.as_answered()
        if not sample.messages or sample.messages[-1].role != "assistant":
            raise DataError(f"Sample {self.id!r}: it has no answer to compare with.")
        return sample
