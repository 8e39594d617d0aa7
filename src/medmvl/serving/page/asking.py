"""Questions of a visitor: streamed answers, probabilities of options, and preferences between two models."""

from __future__ import annotations

import asyncio
import json
import random
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from medmvl.data.sample import Sample
from medmvl.errors import MedMVLError
from medmvl.inference.decoding import Row
from medmvl.serving.page.conversation import Turn, checked_question, conversation
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.models import PageModel
from medmvl.serving.page.sessions import Session
from medmvl.serving.page.settings import PageSettings

#: Turns of a conversation.
MOST_TURNS = 200
_CHOICES = ("first", "second", "same", "neither")


class Asking:
    """Answers questions about the studies of a session.

    Args:
        models: one, or two that are compared.
        settings: limits, the file of preferences, and the threshold below which answers are withheld.

    Raises:
        RecipeError: if the threshold is not one, or shall be the stored one and a model stores none.
    """

    def __init__(self, models: Sequence[PageModel], settings: PageSettings) -> None:
        self.models, self._settings = models, settings
        self._analyses = 0
        self._random = random.Random()
        for number in range(len(models)):
            self._threshold(number)

    async def ask(self, session: Session, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what happens while a question is answered; leaving the iterator stops the answer.

        The events are `queue` (place, from 1), `piece` (of an answer; with `answer`, its number), and last `turn`.

        Args:
            request: `version`, `text`; `regenerate` replaces the last turn; `follow_up` lets the model read the earlier
                turns, else the question is asked on its own; `without_picture` allows a question about nothing; `compare` asks two models, `blind` in random order.

        Raises:
            PageError: if it is not answered.
        """
        session.check(request.get("version"))
        text = checked_question(request.get("text"))
        _require_picture(session, request)
        _require_room(session, request)
        if session.busy.locked():
            raise PageError(409, "The last answer is not finished. Stop it first.", "busy")
        async with session.busy:
            version = session.version
            earlier = session.turns[:-1] if request.get("regenerate") else session.turns
            turn, read = self._new_turn(text, request), _read_turns(earlier, request)
            turn.follow_up = bool(read)
            found = [self._row(session, read, model, text) for model in sorted(turn.order)]
            rows, turn.left_out = [row for row, _ in found], max(left_out for _, left_out in found)
            finished = False
            try:
                async with aclosing(self._merged(turn, rows)) as events:
                    async for event in events:
                        if session.version != version or session.closed:
                            return
                        if "piece" in event:
                            number = turn.order[event["answer"]]
                            if self._threshold(number) > 0:
                                # Whether it is sure enough is known at the end. An event without text is still sent: only
                                # by sending does the server notice a visitor who has left.
                                event["piece"] = ""
                            turn.answers[number] += event["piece"]
                        yield event
                finished = True
            finally:
                # A stopped answer stays as far as it came, so that what is shown and what is remembered agree.
                if session.version == version and not session.closed:
                    self._finish(turn, rows, finished)
                    session.turns = [*earlier, turn]
        yield {"turn": turn.facts()}

    async def chances(self, session: Session, request: dict[str, Any]) -> dict[str, Any]:
        """Return a finished turn of a closed question: the probabilities of its options, the most likely as the answer.

        Args:
            request: `version`, `text`, `options`, `follow_up`.

        Raises:
            PageError: if it is not answered.
        """
        session.check(request.get("version"))
        text, options = checked_question(request.get("text")), request.get("options")
        _require_picture(session, request)
        _require_room(session, request)
        if not isinstance(options, list) or not 2 <= len(options) <= 20:
            raise PageError(400, "A closed question has 2 to 20 options.", "options")
        options = [str(option).strip()[:200] for option in options]
        version = session.version
        read = _read_turns(session.turns, request)
        left_out = self._too_long(session, read, 0, text)
        sample = self._sample(session, read[left_out:], 0, text)
        visual = self.models[0].visual(session.studies, 0)
        found = await self.analyze(self.models[0].chances, sample, options, visual)
        session.check(version)
        best = max(found, key=lambda option: found[option])
        turn = Turn(text, answers=[best], confidences=[found[best]], chances=found)
        turn.follow_up, turn.left_out = bool(read), left_out
        if self._withhold(turn, 0):
            turn.chances = None  # they tell the answer
        session.turns = [*session.turns, turn]
        return {"turn": turn.facts()}

    async def analyze(self, work: Any, *arguments: Any) -> Any:
        """Run work that computes for a while in another thread; a bounded number may wait.

        Raises:
            PageError: 503 if too many wait, 400 for a user's mistake.
        """
        if self._analyses >= self._settings.analyses:
            raise PageError(503, "Too many visitors wait for an explanation. Try again later.", "full")
        self._analyses += 1
        try:
            return await asyncio.to_thread(work, *arguments)
        except MedMVLError as error:
            raise PageError(400, str(error)) from None
        finally:
            self._analyses -= 1

    def prefer(self, session: Session, request: dict[str, Any]) -> dict[str, Any]:
        """Keep which of two answers the visitor prefers; returns the names of the models in the order of the answers.

        Raises:
            PageError: for an unknown turn or choice.
        """
        turn = find_turn(session, request.get("turn"))
        choice = request.get("choice")
        if choice not in _CHOICES or len(turn.order) != 2:
            raise PageError(400, f"A preference is one of {', '.join(_CHOICES)}, about a turn with two answers.")
        turn.preferred = choice
        names = [self.models[place].name for place in turn.order]
        if self._settings.preferences is not None:
            # Neither question nor answers: they may tell about a patient.
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "models": names, "preferred": choice}
            with self._settings.preferences.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return {"models": names}

    def _new_turn(self, text: str, request: dict[str, Any]) -> Turn:
        if not request.get("compare") or len(self.models) < 2:
            return Turn(text)
        order = [0, 1]
        if request.get("blind"):
            self._random.shuffle(order)
        return Turn(text, answers=["", ""], confidences=[None, None], withheld=[None, None], order=tuple(order))

    def _threshold(self, number: int) -> float:
        """Return the confidence below which a model's answers are withheld; 0 for never."""
        return self.models[number].predictor.calibration.resolve(self._settings.abstain_below)

    def _withhold(self, turn: Turn, number: int) -> bool:
        """Remove a model's answer from a turn if its confidence is below the threshold; returns whether it is."""
        confidence, threshold = turn.confidences[number], self._threshold(number)
        if confidence is None or confidence >= threshold:
            return False
        turn.answers[number], turn.withheld[number] = "", threshold
        return True

    def _sample(self, session: Session, turns: Sequence[Turn], model: int, text: str) -> Sample:
        kinds = [study.kind for study in session.studies]
        return conversation(turns, model, text, kinds.count("image"), kinds.count("volume"))

    def _row(self, session: Session, turns: Sequence[Turn], number: int, text: str) -> tuple[Row, int]:
        """Return the row of a question, and the number of earlier turns that are left out because they are too long."""
        model, left_out = self.models[number], self._too_long(session, turns, number, text)
        sample = self._sample(session, turns[left_out:], number, text)
        return model.row(sample, model.visual(session.studies, number), self._settings.new_tokens), left_out

    def _too_long(self, session: Session, turns: Sequence[Turn], number: int, text: str) -> int:
        """Return how many of the first turns must be left out so that the model reads the rest and has room to answer."""
        # By halves: tokenizing a long conversation once for each of its turns would hold up all visitors.
        fits = self.models[number].fits
        return bisect_left(
            range(len(turns)), True, key=lambda first: fits(self._sample(session, turns[first:], number, text))
        )

    async def _merged(self, turn: Turn, rows: Sequence[Row]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of all models as they come, with the number of the answer in the order of the turn."""
        news: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()

        async def follow(number: int, row: Row) -> None:
            try:
                async with aclosing(self.models[number].stream(row)) as events:
                    async for event in events:
                        await news.put({**event, "answer": turn.order.index(number)})
            except PageError as error:
                await news.put(error)
            finally:
                news.put_nowait(None)

        tasks = [
            asyncio.ensure_future(follow(number, row)) for number, row in zip(sorted(turn.order), rows, strict=True)
        ]
        try:
            for _ in tasks:
                while (event := await news.get()) is not None:
                    if isinstance(event, Exception):
                        raise event
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, turn: Turn, rows: Sequence[Row], finished: bool) -> None:
        turn.stopped = not finished
        for number, row in zip(sorted(turn.order), rows, strict=True):
            if row.finish in ("stop", "length"):
                turn.answers[number] = self.models[number].final(row)
                turn.confidences[number] = row.confidence
                self._withhold(turn, number)


def find_turn(session: Session, name: Any) -> Turn:
    """Return the turn with an id.

    Raises:
        PageError: 404 if there is none.
    """
    turn = next((turn for turn in session.turns if turn.id == name), None)
    if turn is None:
        raise PageError(404, "There is no such answer any more.", "changed")
    return turn


def _read_turns(earlier: Sequence[Turn], request: dict[str, Any]) -> Sequence[Turn]:
    """Return the earlier turns that the model reads with a question; none unless the visitor asks for a follow-up."""
    return earlier if request.get("follow_up") is True else ()


def _require_picture(session: Session, request: dict[str, Any]) -> None:
    if not session.studies and request.get("without_picture") is not True:
        raise PageError(400, "No picture is open. Open one, or say that you want to ask without.", "no_picture")


def _require_room(session: Session, request: dict[str, Any]) -> None:
    if len(session.turns) >= MOST_TURNS and not request.get("regenerate"):
        raise PageError(400, f"A conversation has at most {MOST_TURNS} questions here. Begin a new one.", "too_long")
