"""Answers as findings: which are positive, which are sent, and their wording."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medmvl.ward.answering import Reply
from medmvl.ward.protocol import Question

#: a box in hundredths of the picture's width and height: {<x1><y1><x2><y2>}
_BOX = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")


@dataclass(frozen=True)
class Finding:
    """A question of the protocol with the model's reply."""

    question: Question
    reply: Reply

    @property
    def option(self) -> str | None:
        """The option that `probability` is of: the word for yes, or the most likely option; None if generated."""
        choices = self.question.choices
        if choices is None:
            return None
        return choices[0] if self.question.kind == "yes-no" else self.reply.text

    @property
    def probability(self) -> float | None:
        """Of yes for a yes-no question, of the most likely option for a choice; None for a generated answer."""
        return None if self.option is None else self.reply.probabilities[self.option]

    @property
    def positive(self) -> bool | None:
        """Whether the probability reaches the question's threshold; None for a generated answer."""
        return None if self.probability is None else self.probability >= self.question.positive_from

    @property
    def sent(self) -> bool:
        """Whether this finding is part of the results."""
        return self.question.send == "always" or bool(self.positive)

    @property
    def answer(self) -> str:
        """The words of the answer; a yes-no question is decided by its threshold, not by the more likely word."""
        choices = self.question.choices
        if self.question.kind == "yes-no" and choices is not None:
            return choices[0] if self.positive else choices[1]
        return self.reply.text

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The first box of a box answer, (x1, y1, x2, y2) as shares of width and height; None if it has none."""
        found = _BOX.search(self.reply.text) if self.question.kind == "box" else None
        if found is None:
            return None
        x1, y1, x2, y2 = (min(int(number), 100) / 100 for number in found.groups())
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def percent(probability: float) -> str:
    """Return a probability as whole percent, "<1 %" and ">99 %" at the ends."""
    if probability < 0.01:
        return "<1 %"
    return ">99 %" if probability > 0.99 else f"{probability * 100:.0f} %"
