"""The conversation of a session: turns, their prompt, and the boxes in answers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.inference.confidence import is_telling
from medmvl.inference.questions import question
from medmvl.serving.page.errors import PageError

#: Longest question in characters.
MOST_CHARACTERS = 4000
_BOX = re.compile(r"\{\s*<(\d{1,3})>\s*<(\d{1,3})>\s*<(\d{1,3})>\s*<(\d{1,3})>\s*\}")


@dataclass
class Turn:
    """A question and the answers to it.

    Attributes:
        text: the question.
        answers: one per model; the second one only if two models are compared.
        stopped: whether the visitor stopped the answer.
        confidences: probability that each model gave to exactly its answer; None if it was stopped.
        withheld: threshold that the confidence of each withheld answer did not reach; None for an answer that is shown. A
            withheld answer is kept nowhere: its text is empty.
        chances: option -> probability, for a closed question; None for another one, or if the answer is withheld.
        order: which model is shown first in a blind comparison.
        follow_up: whether the model also read earlier turns; else the question was asked on its own.
        left_out: earlier turns that the model did not read, because the conversation is longer than it reads.
        preferred: "first", "second", "same" or "neither" of a comparison; None before it was chosen.
        id: names the turn in later requests.
    """

    text: str
    answers: list[str] = field(default_factory=lambda: [""])
    stopped: bool = False
    confidences: list[float | None] = field(default_factory=lambda: [None])
    withheld: list[float | None] = field(default_factory=lambda: [None])
    chances: dict[str, float] | None = None
    order: tuple[int, ...] = (0,)
    follow_up: bool = False
    left_out: int = 0
    preferred: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def facts(self) -> dict[str, Any]:
        """Return what the page shows of a finished turn."""
        return {
            "id": self.id,
            "text": self.text,
            "answers": [self.answers[place] for place in self.order],
            "confidences": [self.confidences[place] for place in self.order],
            "confidence_shown": [is_telling(self.answers[place]) for place in self.order],
            "withheld": [self.withheld[place] for place in self.order],
            "boxes": [boxes_in(self.answers[place]) for place in self.order],
            "stopped": self.stopped,
            "follow_up": self.follow_up,
            "left_out": self.left_out,
            "chances": self.chances,
        }


def checked_question(text: Any) -> str:
    """Return the text of a question.

    Raises:
        PageError: if it is empty, too long, or holds a placeholder of a visual input.
    """
    if not isinstance(text, str) or not text.strip():
        raise PageError(400, "Type a question first.", "empty_question")
    if len(text) > MOST_CHARACTERS:
        raise PageError(400, f"A question has at most {MOST_CHARACTERS} characters here, this one {len(text)}.")
    for placeholder in (IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, VOLUME_ALIAS):
        if placeholder in text:
            raise PageError(400, f"A question must not hold {placeholder}: the page puts the pictures in itself.")
    return text.strip()


def conversation(turns: Sequence[Turn], model: int, text: str, images: int, volumes: int) -> Sample:
    """Return the conversation with a model up to a new question; the visual inputs come first.

    Args:
        turns: the earlier turns.
        model: index of the model, whose own answers are its history.
        text: the new question.
        images, volumes: how many are open.
    """
    messages: list[Message] = []
    for turn in turns:
        if model < len(turn.answers) and turn.answers[model]:
            messages += [Message("user", turn.text), Message("assistant", turn.answers[model])]
    messages.append(Message("user", text))
    messages[0] = question(messages[0].text, images, volumes).messages[0]
    return Sample("(page)", tuple(messages))


def boxes_in(text: str) -> list[dict[str, Any]]:
    """Return the boxes of an answer: `box`, (x1, y1, x2, y2) as shares of width and height, and its place in the text."""
    found = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (min(int(number), 100) / 100 for number in match.groups())
        box = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
        found.append({"box": box, "start": match.start(), "end": match.end()})
    return found


def box_in_text(box: Sequence[float]) -> str:
    """Return a box, (x1, y1, x2, y2) as shares of width and height, as answers write it.

    It is rounded, since the shares were read from hundredths; `data.converters.boxtext` truncates, as published data do.
    """
    return "{" + "".join(f"<{round(100 * share)}>" for share in box) + "}"
