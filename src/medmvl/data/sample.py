"""The one currency of the toolkit: a sample is a conversation about some images and volumes.

The text of a message holds a placeholder for each image (`<image>`) and volume (`<image3d>`), in the order of
`Sample.images` and `Sample.volumes`. Data sets make samples, the processor turns them into tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

IMAGE_PLACEHOLDER = "<image>"
VOLUME_PLACEHOLDER = "<image3d>"
VOLUME_ALIAS = "<volume>"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the text with its placeholders."""

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
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    answer: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether it holds an answer: a turn of the assistant, or `answer`."""
        return self.answer is not None or any(message.role == "assistant" for message in self.messages)

    def as_question(self) -> Sample:
        """Return the sample as it is asked: without a closing assistant turn, which becomes the answer.

        An explicit `answer` wins over the dropped turn.
        """
        if not self.messages or self.messages[-1].role != "assistant":
            return self
        answer = self.answer if self.answer is not None else self.messages[-1].text
        return replace(self, messages=self.messages[:-1], answer=answer)
