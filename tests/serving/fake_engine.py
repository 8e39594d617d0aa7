"""A stand-in for vLLM's completions with embedded prompts: a causal LLM of transformers behind vLLM's routes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import AutoModelForCausalLM

from serving.live import in_thread


class FakeEngine:
    """Greedy answers of an exported LLM.

    Attributes:
        bodies: requests so far.
        status: answered instead of a stream, if it is not 200.
        breaks_after: tokens after which a stream ends without its end mark; None: never.
        waits_after: tokens after which a stream goes no further until its client leaves; None: never.
        open: streams that have not ended.
        streamed: tokens of the latest stream.
        logprob: sent with every token instead of its own; None: its own.
    """

    def __init__(self, folder: Path, context: int) -> None:
        self._llm, self._context = AutoModelForCausalLM.from_pretrained(folder).eval(), context
        self.logprob: float | None = None
        self.bodies: list[dict[str, Any]] = []
        self.status, self.open, self.streamed = 200, 0, 0
        self.breaks_after: int | None = None
        self.waits_after: int | None = None
        self.app = FastAPI()
        self.app.add_api_route("/v1/models", self.models, methods=["GET"])
        self.app.add_api_route("/v1/completions", self.completions, methods=["POST"])

    async def models(self) -> Any:
        return {"data": [{"id": "llm", "max_model_len": self._context}]}

    async def completions(self, request: Request) -> Any:
        body = await request.json()
        self.bodies.append(body)
        if self.status != 200:
            return JSONResponse({"error": {"message": "no"}}, self.status)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        stored = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        embeddings, table = stored[None], self._llm.get_input_embeddings()
        self.open, self.streamed = self.open + 1, 0
        try:
            for number in range(body["max_tokens"]):
                if number == self.breaks_after:
                    return
                while number == self.waits_after:
                    await asyncio.sleep(0.01)
                with torch.no_grad():
                    logs = torch.log_softmax(self._llm(inputs_embeds=embeddings).logits[0, -1].float(), dim=-1)
                values, ids = logs.topk(max(body["logprobs"], 1))
                top = {f"token_id:{token}": value for token, value in zip(ids.tolist(), values.tolist(), strict=True)}
                token = int(ids[0])
                logged = {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [self.logprob or float(logs[token])],
                    "top_logprobs": [top],
                }
                self.streamed = number + 1
                yield f"data: {json.dumps({'choices': [{'index': 0, 'logprobs': logged}]})}\n\n"
                await asyncio.sleep(0)
                if token in body["stop_token_ids"]:
                    break
                embeddings = torch.cat([embeddings, table(ids[:1])[None]], dim=1)
            yield "data: [DONE]\n\n"
        finally:
            self.open -= 1


@contextmanager
def fake_engine(folder: Path, context: int = 512) -> Iterator[tuple[FakeEngine, str]]:
    """Serve an exported LLM on the loopback interface; gives it and the URL of its API."""
    engine = FakeEngine(folder, context)
    with in_thread(uvicorn.Server(uvicorn.Config(engine.app, port=0, log_level="warning"))) as port:
        yield engine, f"http://127.0.0.1:{port}/v1"
