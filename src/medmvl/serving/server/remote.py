"""Answers by an engine elsewhere: the visual part and the prompt stay here, the LLM runs there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from medmvl.errors import CheckpointError
from medmvl.inference import Predictor
from medmvl.inference.decoding import Row
from medmvl.inference.decoding.choose import rules_of
from medmvl.inference.questions import question
from medmvl.serving.server.engine import Engine, check_embeddings
from medmvl.serving.server.failures import RequestError, timed_out
from medmvl.serving.server.scheduler import Job

logger = logging.getLogger(__name__)

#: Largest difference of the first token's log-probability at the start; half precision differs by less.
_TOLERANCE = 0.1


class RemoteScheduler:
    """Does what `Scheduler` does, by an engine.

    Args:
        predictor: model and processor; of the LLM only the embedding table is kept.
        engine: runs the same LLM.
        batch: requests that are sent at once.

    Raises:
        CheckpointError: if the engine runs another model, or the generation config has rules that it does not follow.
    """

    def __init__(self, predictor: Predictor, engine: Engine, batch: int) -> None:
        if rules := rules_of(predictor.model.generation_config):
            raise CheckpointError(
                f"The model's generation config sets {', '.join(rules)}, which a backend does not follow. Remove it from "
                "generation_config.json, or serve without --backend."
            )
        self.decoder, self._predictor, self._engine = predictor.decoder(), predictor, engine
        self._ends = predictor.processor.end_token_ids(predictor.model.generation_config)
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="medmvl-embedding")
        self._places, self._tasks = asyncio.Semaphore(batch), dict[Job, asyncio.Task[None]]()
        self.running = self.waiting = 0
        self.alive = True
        asyncio.run(self._check_engine())
        release_llm(predictor)

    def submit(self, job: Job) -> None:
        """Take a job; called in its event loop."""
        task = job.loop.create_task(self._answer(job))
        self._tasks[job] = task
        task.add_done_callback(lambda _: self._tasks.pop(job, None))

    def cancel(self, job: Job) -> None:
        """Give a job up."""
        job.wanted = False
        if job in self._tasks:
            self._tasks[job].cancel()

    def close(self) -> None:
        """End the thread that embeds prompts."""
        self.alive = False
        self._embedding.shutdown(cancel_futures=True)

    async def _answer(self, job: Job) -> None:
        self.waiting += 1
        waits = True
        try:
            async with asyncio.timeout(job.deadline - time.monotonic()), self._places:
                self.waiting, self.running, waits = self.waiting - 1, self.running + 1, False
                job.times.started = time.monotonic()
                embeddings = await job.loop.run_in_executor(self._embedding, self._embed, job.rows[0])
                answers = (self._row(job, row, embeddings) for row in job.rows)
                _raise_first(await asyncio.gather(*answers, return_exceptions=True))
        except RequestError as error:
            job.failure = error
        except TimeoutError:
            job.failure = timed_out(job.seconds)
        except asyncio.CancelledError:
            job.failure = RequestError(499, "The client has left.")
        except Exception as error:  # its message may hold content
            logger.error("A request failed on its way to the engine: %s", type(error).__name__)
            job.failure = RequestError(500, "The model could not answer this request.", "server_error")
        finally:
            self.waiting, self.running = self.waiting - waits, self.running - (not waits)
            job.changed.set()

    async def _row(self, job: Job, row: Row, embeddings: Tensor) -> None:
        text = self.decoder.text(row)
        async for token in self._engine.tokens(self._engine.body(embeddings, row.options, self._ends)):
            row.record(token.id, token.logprob, token.top[: row.options.top_logprobs])
            if text.finished(row.token_ids):
                row.finish = "stop"
            elif len(row.token_ids) >= row.options.max_new_tokens:
                row.finish = "length"
            job.stamp(time.monotonic())
            job.changed.set()
            if row.finish is not None:
                return
        row.finish = "stop"

    @torch.no_grad()
    def _embed(self, row: Row) -> Tensor:
        """Return the embedded prompt (T, H) of a row, checked."""
        if row.constraint is not None:
            raise RequestError(400, "Constrained answers are not offered with a backend. Serve without --backend.")
        embeddings = self.decoder.embed(row)
        check_embeddings(
            embeddings, len(row.encoded["input_ids"]), self._predictor.model.config.text_config.hidden_size
        )
        return embeddings

    async def _check_engine(self) -> None:
        """Compare the first token of an answer with our own LLM's.

        Raises:
            CheckpointError: if its probability is another one.
        """
        predictor = self._predictor
        row = Row(predictor.encode(question("Is there a nodule?", 0, 0)))
        body = self._engine.body(self._embed(row), row.options, self._ends) | {"max_tokens": 1}
        with torch.no_grad():
            logits = predictor.model(input_ids=row.encoded["input_ids"][None].to(predictor.model.device)).logits[0, -1]
        try:
            found = [token async for token in self._engine.tokens(body)]
        except RequestError as error:
            raise CheckpointError(
                f"The backend does not answer an embedded prompt. {error} Start vLLM with --enable-prompt-embeds."
            ) from None
        own = float(torch.log_softmax(logits.float(), dim=-1)[found[0].id]) if found else -torch.inf
        if not found or abs(own - found[0].logprob) > _TOLERANCE:
            raise CheckpointError(
                "The backend gives a token another probability than this model's LLM. Serve there what "
                "`medmvl checkpoint export --format llm` has written from this checkpoint."
            )
        await self._engine.disconnect()


def release_llm(predictor: Predictor) -> None:
    """Free the memory of the LLM's weights except its embedding table."""
    table = predictor.model.get_input_embeddings()
    kept = {id(parameter) for parameter in table.parameters()}
    for parameter in predictor.model.language_model.parameters():
        if id(parameter) not in kept:
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def _raise_first(results: Sequence[BaseException | None]) -> None:
    for result in results:
        if result is not None:
            raise result
