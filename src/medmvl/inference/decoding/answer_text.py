"""The text of an answer while it grows: stop strings, and pieces that no later token changes."""

from __future__ import annotations

from collections.abc import Sequence

from medmvl.inference.answer_end import AnswerEnd

#: What an incomplete character decodes to.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Decodes an answer token by token.

    Args:
        end: ends and decodes answers of the model.
        stops: texts that end this answer; they are not part of it.
    """

    def __init__(self, end: AnswerEnd, stops: Sequence[str] = ()) -> None:
        self._end = end
        self._stops = tuple(stops)
        self._given = 0

    def finished(self, ids: list[int]) -> bool:
        """Whether the last of `ids` ends the answer."""
        return self._end.ends(ids) or any(stop in self._decoded(ids) for stop in self._stops)

    def final(self, ids: list[int]) -> str:
        """Return the text of a finished answer, stripped, without its end or stop string."""
        text = self._end.decode(ids)
        return self._cut(text).strip() if self._stops else text

    def piece(self, ids: list[int], done: bool) -> str:
        """Return the text that follows the pieces returned before and that no later token will change.

        All pieces together are `final`. White space, incomplete characters and what may become a stop string are held back.
        """
        text = self.final(ids)
        stable = len(text) if done else self._stable(text)
        if stable <= self._given:
            return ""
        piece = text[self._given : stable]
        self._given = stable
        return piece

    def _decoded(self, ids: list[int]) -> str:
        return str(self._end.tokenizer.decode(ids, skip_special_tokens=True))

    def _cut(self, text: str) -> str:
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    def _stable(self, text: str) -> int:
        """Return the length of the part of a growing answer that later tokens cannot change."""
        text = text.rstrip(_INCOMPLETE)
        ends = (*self._stops, self._end.text) if self._end.text else self._stops
        # White space at the end of `text` was stripped, but may belong to a stop string.
        beginnings = (end[:length].rstrip() for end in ends for length in range(1, len(end)))
        held = max((len(begin) for begin in beginnings if begin and text.endswith(begin)), default=0)
        return len(text[: len(text) - held].rstrip())
