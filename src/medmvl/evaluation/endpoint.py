"""Answers of a served model: the records of a benchmark sent to an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import local_records
from medmvl.data.record import to_record
from medmvl.data.roots import MediaRoots
from medmvl.data.sample import IMAGE_PLACEHOLDER, Sample
from medmvl.errors import EvaluationError
from medmvl.files import BAD_JSON, PathLike, json_fault, parse_json, sha256
from medmvl.imaging import read_image
from medmvl.inference.row_job import RowJob
from medmvl.processing.read_ahead import media_fetcher

#: Environment variable with the key of the endpoint, if it needs one.
KEY_VARIABLE = "MEDMVL_ENDPOINT_KEY"
_RETRIES = 3
#: Largest answer in bytes; one of 4,096 tokens has some ten thousand.
_MOST_BYTES = 2**24
_WAIT = 1.0  # seconds before the first retry; doubled for each further one


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""
        return


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind an OpenAI-compatible API.

    Attributes:
        url: base URL of the API, such as http://127.0.0.1:8000/v1.
        model: name under which the server serves the model.
        concurrency: requests at a time.
        max_new_tokens: longest answer; answers are greedy (temperature 0).
        timeout: seconds to wait for an answer.
    """

    url: str
    model: str
    concurrency: int = 4
    max_new_tokens: int = 256
    timeout: float = 300.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise EvaluationError(f"--endpoint must be a URL that begins with http:// or https://, not {self.url!r}.")
        if self.concurrency < 1:
            raise EvaluationError(f"At least one request at a time is needed, got {self.concurrency}.")

    def ask(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the answer to a conversation.

        Raises:
            EvaluationError: if the endpoint cannot be reached or refuses the request.
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0,
        }
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **_authorization()},
        )
        answer = self._send(request)
        try:
            content = parse_json(answer.decode())["choices"][0]["message"]["content"]
        except BAD_JSON as error:
            raise EvaluationError(f"{self.url} answered with what is not JSON: {json_fault(error)}.") from error
        except (KeyError, IndexError, TypeError) as error:
            raise EvaluationError(f"{self.url} answered without choices[0].message.content.") from error
        if not isinstance(content, str | None):
            raise EvaluationError(f"{self.url} answered with choices[0].message.content that is no text.")
        return content or ""

    def _send(self, request: urllib.request.Request) -> bytes:
        """Send a request and return the body of the answer; connection faults and server errors are tried again, refusals are not."""
        opener = urllib.request.build_opener(_NoRedirects)
        for attempt in range(_RETRIES):
            try:
                with opener.open(request, timeout=self.timeout) as reply:
                    return self._read(reply)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code} ({error.reason})"
                if error.code < 500:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error))
            if attempt + 1 < _RETRIES:
                time.sleep(_WAIT * 2**attempt)
        raise EvaluationError(
            f"{self.url} did not answer: {reason}. Check the URL and the served model {self.model!r}; "
            "the same command resumes where it stopped."
        )

    def _read(self, reply: Any) -> bytes:
        """Return the body of an answer, whose size and time are limited in all, not only between two of its bytes."""
        end, data = time.monotonic() + self.timeout, bytearray()
        while block := reply.read1(2**16):
            data += block
            if len(data) > _MOST_BYTES:
                raise OSError(f"its answer has more than {_MOST_BYTES:,} bytes")
            if time.monotonic() > end:
                raise OSError(f"its answer was not complete within {self.timeout:g} seconds")
        return bytes(data)


def _authorization() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def chat_messages(sample: Sample) -> list[dict[str, Any]]:
    """Return a question as OpenAI chat messages; images stand where their placeholders stand, as PNG data URIs.

    Raises:
        EvaluationError: for a record with volumes, which the API has no part for.
        DataError: if an image cannot be read.
    """
    if sample.volumes:
        raise EvaluationError(f"Record {sample.id!r} has a volume. An OpenAI-compatible endpoint takes 2D images only.")
    images = iter(sample.images)
    messages: list[dict[str, Any]] = []
    for turn in sample.messages:
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if number:
                parts.append({"type": "image_url", "image_url": {"url": _data_uri(next(images))}})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": turn.role, "content": parts[0]["text"] if plain else parts})
    return messages


def _data_uri(path: str) -> str:
    buffer = io.BytesIO()
    read_image(path).to_pil().convert("RGB").save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def predict_endpoint(
    endpoint: Endpoint,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Answer every record of a file through an endpoint; return how many rows were written now.

    Rows go to `out` (JSON Lines) in the order of the file: the record plus `prediction`. A rerun answers only what is missing;
    another model, data file or setting is refused. At most `endpoint.concurrency` requests run at a time.

    Args:
        endpoint: the served model.
        data: the records.
        out: the predictions file.
        roots: folders of the images; the data file's own by default.
        on_row: called with (rows done, rows in all).

    Raises:
        DataError: naming the record, if one is not valid.
        EvaluationError: if the endpoint does not answer; rows that were written stay.
    """
    dataset = SampleDataset(data, roots)
    facts = {
        "endpoint_model": endpoint.model,
        "data": sha256(local_records(data)),
        "max_new_tokens": endpoint.max_new_tokens,
    }
    job = RowJob(Path(out), dataset, facts, on_row)

    def one(index: int) -> dict[str, Any]:
        with dataset.naming(index):
            sample = dataset[index].as_question()
            messages = chat_messages(sample)
        written = to_record(dataset.sample(index)) | ({} if sample.answer is None else {"answer": sample.answer})
        return {**written, "prediction": endpoint.ask(messages)}

    def answer(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(endpoint.concurrency) as pool:
            yield from pool.map(one, indices)

    fetch = media_fetcher(None)
    return job.run(answer, endpoint.concurrency, fetch=lambda index: fetch(dataset[index]))
