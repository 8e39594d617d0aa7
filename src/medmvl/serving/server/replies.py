"""Answers in OpenAI's form, whole or as a stream of chunks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from medmvl.inference.calibration import ABSTENTION
from medmvl.inference.decoding import Decoder, Row
from medmvl.serving.server.scheduler import Job
from medmvl.serving.server.schemas import ChatRequest


@dataclass
class Reply:
    """The answer to one request.

    Attributes:
        id: of the request.
        name: of the model.
        fingerprint: of model and geometry.
        threshold: confidence below which an answer is withheld; above 0, a stream sends each answer in one piece.
    """

    id: str
    name: str
    fingerprint: str
    request: ChatRequest
    rows: list[Row]
    decoder: Decoder
    threshold: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> dict[str, Any]:
        """Return the body of a finished answer."""
        choices = [self._choice(index, row) for index, row in enumerate(self.rows)]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage()}

    async def chunks(self, job: Job) -> AsyncIterator[bytes]:
        """Yield server-sent events until the job is done."""
        texts = [self.decoder.text(row) for row in self.rows]
        by_token = self.request.logprobs or self.request.return_token_ids
        counts, ended = [0] * len(self.rows), [False] * len(self.rows)
        for index in range(len(self.rows)):
            yield self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        while True:
            done = job.done
            if job.failure is not None:
                yield _event(job.failure.body())
                return
            for index, row in enumerate(self.rows):
                if ended[index]:
                    continue
                finish = row.finish  # read first: when it is set, all tokens are there
                if self.threshold > 0 and finish is None:
                    continue  # whether it is sure enough is known at the end
                ids = list(row.token_ids)
                piece = texts[index].piece(ids, finish is not None)
                ended[index] = finish is not None
                if piece or finish is not None or (by_token and len(ids) > counts[index]):
                    yield self._chunk(self._delta(index, row, piece, (counts[index], len(ids)), finish))
                    counts[index] = len(ids)
            if done:
                break
            await job.changed.wait()
            job.changed.clear()
        if self.request.stream_options is not None and self.request.stream_options.include_usage:
            yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()})
        yield b"data: [DONE]\n\n"

    def usage(self) -> dict[str, Any]:
        """Return the numbers of tokens; those that needed no prefill are the cached ones."""
        prompt = len(self.rows[0].encoded["input_ids"])
        answers = sum(len(row.token_ids) for row in self.rows)
        cached = self.rows[0].reused
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answers,
            "total_tokens": prompt + answers,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _is_withheld(self, row: Row) -> bool:
        return row.confidence < self.threshold

    def _choice(self, index: int, row: Row) -> dict[str, Any]:
        if self._is_withheld(row):
            return {
                "index": index,
                "message": {"role": "assistant", "content": ABSTENTION},
                "finish_reason": "stop",
                "logprobs": None,
                "confidence": row.confidence,
                "abstained": True,
            }
        text = self.decoder.text(row).final(row.token_ids)
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "finish_reason": row.finish,
            "logprobs": self._logprobs(row, 0, len(row.token_ids)),
            "confidence": row.confidence,
        }
        if self.request.return_token_ids:
            choice["token_ids"] = row.token_ids
        return choice

    def _delta(self, index: int, row: Row, piece: str, span: tuple[int, int], finish: str | None) -> dict[str, Any]:
        if finish is not None and self._is_withheld(row):
            choice = {key: value for key, value in self._choice(index, row).items() if key != "message"}
            return {**choice, "delta": {"content": ABSTENTION}}
        delta: dict[str, Any] = {
            "index": index,
            "delta": {"content": piece} if piece else {},
            "finish_reason": finish,
            "logprobs": self._logprobs(row, *span),
        }
        if self.request.return_token_ids:
            delta["token_ids"] = row.token_ids[slice(*span)]
        return delta if finish is None else {**delta, "confidence": row.confidence}

    def _logprobs(self, row: Row, start: int, stop: int) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        return {"content": list(self._tokens(row, start, stop)), "refusal": None}

    def _tokens(self, row: Row, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for place in range(start, stop):
            top = row.top[place] if row.options.top_logprobs else []
            token = self._token(row.token_ids[place], row.logprobs[place])
            yield {**token, "top_logprobs": [self._token(*pair) for pair in top]}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = str(self.decoder.processor.tokenizer.decode([token]))
        # JSON has no -inf; OpenAI writes -9999 for tokens without a chance.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.name}
        return {**head, "system_fingerprint": self.fingerprint}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def finished(job: Job) -> None:
    """Wait until a job is done.

    Raises:
        RequestError: why it was not answered.
    """
    while not job.done:
        await job.changed.wait()
        job.changed.clear()
    if job.failure is not None:
        raise job.failure


async def started(job: Job) -> None:
    """Wait for the first token of a job, so that failures before it have a status.

    Raises:
        RequestError: why it was not answered.
    """
    while not (job.times.first or job.done):
        await job.changed.wait()
        job.changed.clear()
    if job.failure is not None:
        raise job.failure
