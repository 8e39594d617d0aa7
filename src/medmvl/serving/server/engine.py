"""Client of a vLLM server that runs the LLM: embedded prompts go there, tokens come back."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medmvl.errors import RecipeError, require
from medmvl.inference.decoding.row import RowOptions
from medmvl.inference.sampling import row_seed
from medmvl.serving.server.failures import RequestError

#: Seconds in which the engine must accept a connection.
_CONNECT = 10.0


@dataclass(frozen=True)
class Token:
    """A token of an answer, its log-probability, and the most likely tokens in its place with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Engine:
    """A vLLM server that was started with `--enable-prompt-embeds` on the exported LLM.

    Args:
        url: base URL of its API, such as http://127.0.0.1:8001/v1.
        key: its API key; None: none.

    Raises:
        RecipeError: if it does not answer, or the URL is none.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise RecipeError(f"--backend must be a URL that begins with http:// or https://, not {url!r}.")
        self._httpx = require("httpx", "serve")
        self._url, self._headers = url.rstrip("/"), {"Authorization": f"Bearer {key}"} if key else {}
        self._client: Any = None
        try:
            with self._httpx.Client(trust_env=False, timeout=_CONNECT, headers=self._headers) as client:
                found = client.get(f"{self._url}/models").raise_for_status().json()["data"][0]
            self.name, self.context = str(found["id"]), int(found["max_model_len"])
        except (self._httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise RecipeError(
                f"No vLLM server answers at {url}/models ({type(error).__name__}). Start it first."
            ) from None

    def body(self, embeddings: Tensor, options: RowOptions, ends: list[int]) -> dict[str, Any]:
        """Return a request.

        Args:
            embeddings: (T, H) of the prompt.
            options: how it is answered.
            ends: token ids that end the answer.
        """
        stream = io.BytesIO()
        torch.save(embeddings.detach().cpu().contiguous().clone(), stream)
        sampling: dict[str, Any] = {"temperature": options.temperature, "top_p": options.top_p}
        if options.temperature > 0:
            sampling["seed"] = row_seed(options.seed, options.key)
        # What the engine would take from its generation_config.json otherwise is set here.
        plain = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1}
        return {
            "model": self.name,
            "prompt_embeds": base64.b64encode(stream.getvalue()).decode(),
            "max_tokens": options.max_new_tokens,
            "stop_token_ids": ends,
            "stream": True,
            "logprobs": options.top_logprobs,
            "return_tokens_as_token_ids": True,
            **sampling,
            **plain,
        }

    async def disconnect(self) -> None:
        """Close the connections; the next request, which may come from another event loop, opens new ones."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def tokens(self, body: dict[str, Any]) -> AsyncIterator[Token]:
        """Yield the tokens of an answer as they come; closing the iterator ends it in the engine as well.

        Raises:
            RequestError: if the engine cannot be reached, refuses the request, or breaks off.
        """
        if self._client is None:
            timeout = self._httpx.Timeout(_CONNECT, read=None)
            self._client = self._httpx.AsyncClient(trust_env=False, timeout=timeout, headers=self._headers)
        try:
            async with self._client.stream("POST", f"{self._url}/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise _refused(answer.status_code)
                async for line in answer.aiter_lines():
                    if line.startswith("data: [DONE]"):
                        return
                    if line.startswith("data:"):
                        for token in _parsed(line.removeprefix("data:")):
                            yield token
        except self._httpx.HTTPError:
            raise RequestError(
                503, "The engine cannot be reached or broke off.", "server_error", "engine", retry_after=5
            ) from None
        raise RequestError(503, "The engine broke off.", "server_error", "engine", retry_after=5)


def check_embeddings(embeddings: Tensor, length: int, width: int) -> None:
    """Raise if an embedded prompt is not what the engine expects.

    vLLM 0.32 answers NaN with an empty text, and on a CPU it may answer a later request wrongly, which takes over NaN's place
    in the cache.

    Args:
        embeddings: (T, H).
        length: number of tokens of the prompt.
        width: of the LLM.

    Raises:
        RequestError: 500, since the model made it.
    """
    if tuple(embeddings.shape) != (length, width):
        raise RequestError(500, f"The embedded prompt has the shape {tuple(embeddings.shape)}, not {(length, width)}.")
    if not bool(torch.isfinite(embeddings).all()):
        raise RequestError(500, "The model's embeddings of this prompt are not finite; it is not sent.", "server_error")


def _refused(status: int) -> RequestError:
    if status in (429, 503):
        return RequestError(503, "The engine is full. Try again later.", "server_error", "overloaded", retry_after=2)
    return RequestError(502, f"The engine refuses the request (status {status}).", "server_error", "engine")


def _parsed(text: str) -> list[Token]:
    """Return the tokens of one event.

    Raises:
        RequestError: if it holds none of vLLM's fields.
    """
    try:
        event = json.loads(text)
        found = []
        for choice in event["choices"]:
            logs = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
            tops = logs["top_logprobs"] or [{}] * len(logs["tokens"])
            for token, logprob, top in zip(logs["tokens"], logs["token_logprobs"], tops, strict=True):
                if logprob is not None and math.isnan(logprob):  # vLLM's answer to keys and values that are not numbers
                    raise ValueError("not a probability")
                others = sorted(((_id(name), float(value)) for name, value in (top or {}).items()), key=_second)
                found.append(Token(_id(token), -math.inf if logprob is None else float(logprob), others[::-1]))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise RequestError(502, "The engine answers in another form than vLLM's.", "server_error", "engine") from None
    return found


def _id(name: str) -> int:
    """Return the id in a text such as "token_id:17"."""
    return int(name.removeprefix("token_id:"))


def _second(pair: tuple[int, float]) -> float:
    return pair[1]
