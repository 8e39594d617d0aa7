"""The models of a page: one that answers, or two that are compared."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmvl.data.sample import Message, Sample
from medmvl.errors import MedMVLError
from medmvl.imaging import Volume
from medmvl.inference import Predictor
from medmvl.inference.decoding import Row, RowOptions
from medmvl.inference.evidence import Evidence
from medmvl.inference.visual_cache import digest
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.processing.chat import render
from medmvl.processing.stored_prompts import StoredPrompts
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.sessions import OpenStudy
from medmvl.serving.server.scheduler import Job, Scheduler

#: Seconds after which an answer is given up, the wait included.
_SECONDS = 900.0
#: Tokens of an answer for which a conversation must leave room; else its first turns are left out.
_LEAST_ANSWER = 32


@dataclass(eq=False)
class PageModel:
    """A model with the thread that decodes its answers.

    Attributes:
        name: shown on the page.
        predictor: model and processor.
        scheduler: decodes; the server shares its own with the page.
        prompts: questions that the model was trained with.
    """

    name: str
    predictor: Predictor
    scheduler: Scheduler
    prompts: StoredPrompts = field(default_factory=StoredPrompts)

    def __post_init__(self) -> None:
        # Choices and explanations run in other threads than the decoder, so they keep their own features and prefixes.
        self._analyst = self.predictor.with_calibration(self.predictor.calibration)
        self._analyzing = threading.Lock()

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""
        config = self.predictor.model.config.text_config
        known = (self.predictor.processor.max_length, getattr(config, "max_position_embeddings", None))
        return min((length for length in known if length), default=2**20)

    def visual(self, studies: Sequence[OpenStudy], index: int) -> dict[str, Tensor]:
        """Return the visual inputs of studies: pixel_values (n, 3, H, W) or volume_values (n, C, D, H, W).

        Args:
            index: number of this model among those of the page.
        """
        found: dict[str, list[Tensor]] = {}
        for study in studies:
            tensor = torch.from_numpy(np.load(study.folder / f"tensor-{index}.npy"))
            found.setdefault(PIXEL_KEYS[study.kind], []).append(tensor)
        return {key: torch.stack(tensors) for key, tensors in found.items()}

    def fits(self, sample: Sample) -> bool:
        """Whether a conversation leaves room for an answer."""
        processor = self.predictor.processor
        rendered = render(sample.messages, processor.chat_template, processor.tokenizer, ask=True)
        return len(processor.tokenize(rendered)[0]) + _LEAST_ANSWER <= self.context

    def row(self, sample: Sample, visual: Mapping[str, Tensor], new_tokens: int) -> Row:
        """Return the row that answers a conversation.

        Args:
            visual: from `visual`, shapes (n, ...).

        Raises:
            PageError: if the prompt is too long or the model does not take it.
        """
        counts = {f"{name}s": len(visual.get(key, ())) for name, key in PIXEL_KEYS.items()}
        try:
            ids, _ = self.predictor.processor.encode_text(sample, train=False, **counts)
        except MedMVLError as error:
            raise PageError(400, str(error).removeprefix("Sample (page): ")) from None
        room = self.context - len(ids)
        if room < 1:
            raise PageError(400, "The conversation is longer than the model reads. Begin a new one.", "too_long")
        keys = {name: [digest(value) for value in visual[key]] for name, key in PIXEL_KEYS.items() if key in visual}
        options = RowOptions(max_new_tokens=min(new_tokens, room), keep=True)
        return Row({"input_ids": torch.tensor(ids), **visual}, options, keys=keys)

    async def stream(self, row: Row) -> AsyncGenerator[dict[str, Any], None]:
        """Yield `{"queue": place}` and `{"piece": text}` as they come, until the row is answered.

        Leaving the iterator stops the answer.

        Raises:
            PageError: if it fails.
        """
        now = time.monotonic()
        job = Job([row], now + _SECONDS, _SECONDS, asyncio.get_running_loop())
        text = self.scheduler.decoder.text(row)
        self.scheduler.submit(job)
        place = -1
        try:
            while True:
                done = job.done
                if job.failure is not None:
                    raise PageError(job.failure.status, str(job.failure), "answer_failed")
                if row.token_ids or done:
                    finish = row.finish  # read first: when it is set, all tokens are there
                    if piece := text.piece(list(row.token_ids), finish is not None):
                        yield {"piece": piece}
                elif (waiting := self.scheduler.place(job)) != place:
                    place = waiting
                    yield {"queue": place}
                if done:
                    return
                try:
                    # The place in the queue changes without a sign to this job.
                    await asyncio.wait_for(job.changed.wait(), timeout=0.5 if not row.token_ids else None)
                except TimeoutError:
                    continue
                job.changed.clear()
        finally:
            if not job.done:
                self.scheduler.cancel(job)

    def explain(self, messages: Sequence[Message], studies: Sequence[Any], **options: Any) -> Evidence:
        """Return the evidence for a sentence of an answer; the call blocks. One explanation is computed at a time.

        Args:
            messages: the conversation, which ends with the question.
            studies: what is open, either images or volumes.
            options: of `Predictor.explain`.

        Raises:
            MedMVLError: if it cannot be explained, or was cancelled.
        """
        volumes = [study for study in studies if isinstance(study, Volume)]
        images = [study for study in studies if not isinstance(study, Volume)]
        with self._analyzing:
            return self._analyst.explain(messages, images, volumes, **options)

    def final(self, row: Row) -> str:
        """Return the whole text of an answered row."""
        return self.scheduler.decoder.text(row).final(row.token_ids)

    def chances(self, sample: Sample, options: Sequence[str], visual: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the probability of each of several answers; the call blocks.

        Args:
            visual: from `visual`, shapes (n, ...).

        Raises:
            MedMVLError: for options that are no choice.
        """
        with self._analyzing:
            return self._analyst.weigh_encoded(sample, options, visual)
