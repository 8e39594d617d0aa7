"""From a checked request to the rows that the decoder answers."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medmvl.data.sample import Sample
from medmvl.errors import MedMVLError
from medmvl.inference import Predictor
from medmvl.inference.batch import model_digest
from medmvl.inference.constraints import Grammars
from medmvl.inference.decoding import Row, RowOptions
from medmvl.inference.decoding.row import Constraint
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.serving.server.content import Question, Source, Sources
from medmvl.serving.server.failures import RequestError
from medmvl.serving.server.fetch import fetch
from medmvl.serving.server.schemas import ChatRequest, TokenizeRequest
from medmvl.serving.server.settings import Limits, ServerSettings
from medmvl.serving.server.studies import StudyStore

#: Longest answer of a request that names none.
_DEFAULT_TOKENS = 256


@dataclass(frozen=True)
class Facts:
    """What names the model in answers and audit lines: hashes of its weights and config, and of its volume geometry."""

    model: str
    geometry: str | None

    @classmethod
    def of(cls, predictor: Predictor) -> Facts:
        """Return the facts of a predictor."""
        volumes = predictor.processor.volume_processor
        return cls(model_digest(predictor.model), volumes.geometry.hash if volumes is not None else None)

    @property
    def fingerprint(self) -> str:
        """Short hash of both."""
        return "fp_" + hashlib.sha256(f"{self.model} {self.geometry}".encode()).hexdigest()[:16]


class Asking:
    """Builds rows.

    Args:
        predictor: model and processor.
        settings, limits: what requests may name and how large they may be.
        studies: prepared images and volumes.
        longest: prompt and answer together that the engine takes, in tokens; None: what the model takes.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: ServerSettings,
        limits: Limits,
        studies: StudyStore,
        longest: int | None = None,
    ) -> None:
        self._longest = longest
        self.predictor, self._settings, self._limits, self._studies = predictor, settings, limits, studies
        self._sources = Sources(settings.media_root, settings.url_hosts, limits.visual_inputs)
        self._grammars: Grammars | None = None

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""
        config = self.predictor.model.config.text_config
        known = (self._longest, self.predictor.processor.max_length, getattr(config, "max_position_embeddings", None))
        return min((length for length in known if length), default=2**20)

    async def rows(self, request: ChatRequest, client: str) -> list[Row]:
        """Return one row per answer that a request wants.

        Raises:
            RequestError: if it cannot be answered.
        """
        self.check_model(request.model)
        request.check_unsupported()
        self.threshold(request)
        if request.n > self._limits.answers:
            raise RequestError(400, f"n must be at most {self._limits.answers} here, got {request.n}.")
        question = await asyncio.to_thread(self._sources.question, request.messages)
        ids = await asyncio.to_thread(self._prompt, question)
        options = self._options(request, len(ids))
        constraints = await asyncio.to_thread(self._constraints, request)
        visual, keys = await self._visual(question, client)
        encoded = {"input_ids": torch.tensor(ids), **visual}
        return [
            Row(encoded, replace(options, key=str(number)), constraint, keys=keys)
            for number, constraint in enumerate(constraints)
        ]

    def threshold(self, request: ChatRequest) -> float:
        """Return the confidence below which a request is not answered: the server's, or the request's if that is higher.

        Raises:
            RequestError: if the request wants the stored threshold and the checkpoint has none.
        """
        calibration = self.predictor.calibration
        own = calibration.resolve(self._settings.abstain_below)
        try:
            return max(own, calibration.resolve(request.abstain_below))
        except MedMVLError as error:
            raise RequestError(400, str(error)) from None

    def tokens(self, request: TokenizeRequest) -> list[int]:
        """Return the token ids of a finished prompt or of messages, visual tokens included; nothing is read."""
        self.check_model(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise RequestError(400, "Give either prompt or messages.")
        if request.prompt is not None:
            return list(self.predictor.processor.tokenizer(request.prompt, add_special_tokens=False)["input_ids"])
        assert request.messages is not None
        return self._prompt(self._sources.question(request.messages))

    def check_model(self, name: str | None) -> None:
        """Raise if a request names another model.

        Raises:
            RequestError: 404.
        """
        if name not in (None, "", self._settings.name):
            raise RequestError(404, f"This server has the model {self._settings.name!r} only.", code="model_not_found")

    def _prompt(self, question: Question) -> list[int]:
        sample = Sample("(request)", question.messages)
        counts = {"images": len(question.images), "volumes": len(question.volumes)}
        try:
            ids, _ = self.predictor.processor.encode_text(sample, train=False, **counts)
        except MedMVLError as error:
            raise RequestError(400, str(error).removeprefix("Sample (request): ")) from None
        return ids

    def _options(self, request: ChatRequest, prompt: int) -> RowOptions:
        room = self.context - prompt
        wanted = request.wanted_tokens or min(_DEFAULT_TOKENS, self._limits.new_tokens, room)
        if wanted > self._limits.new_tokens:
            raise RequestError(400, f"max_tokens must be at most {self._limits.new_tokens} here, got {wanted}.")
        if room < 1 or wanted > room:
            raise RequestError(
                400,
                f"The prompt has {prompt} tokens and the answer may have {max(wanted, 1)}; together at most {self.context} fit.",
                code="context_length_exceeded",
            )
        temperature = request.temperature or 0.0
        try:
            return RowOptions(
                max_new_tokens=wanted,
                temperature=0.0 if temperature < 1e-3 else temperature,
                top_p=request.top_p or 1.0,
                seed=request.seed if request.seed is not None else secrets.randbits(63),
                stops=request.stops,
                top_logprobs=(request.top_logprobs or 0) if request.logprobs else 0,
            )
        except MedMVLError as error:
            raise RequestError(400, str(error)) from None

    def _constraints(self, request: ChatRequest) -> list[Constraint | None]:
        """Return one constraint per answer; each has a state of its own."""
        form, structured = request.response_format, request.structured_outputs
        if structured is None and (form is None or form.type == "text"):
            return [None] * request.n
        if self._grammars is None:
            model, processor = self.predictor.model, self.predictor.processor
            ends = processor.end_token_ids(model.generation_config)
            self._grammars = Grammars(processor.tokenizer, model.config.text_config.vocab_size, ends)
        grammars = self._grammars
        try:
            return [_constraint(grammars, request) for _ in range(request.n)]
        except MedMVLError as error:
            raise RequestError(400, str(error)) from None

    async def _visual(self, question: Question, client: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        tensors: dict[str, Tensor] = {}
        keys: dict[str, list[str]] = {}
        for modality, sources in (("image", question.images), ("volume", question.volumes)):
            if sources:
                found = [await self._studies.get(await self._fetched(source), client) for source in sources]
                tensors[PIXEL_KEYS[modality]] = torch.stack([study.tensor for study in found])
                keys[modality] = [study.digest for study in found]
        return tensors, keys

    async def _fetched(self, source: Source) -> Source:
        if source.url is None:
            return source
        limit, seconds = self._limits.body_mib * 2**20, self._limits.upload_seconds
        data = await asyncio.to_thread(fetch, source.url, self._settings.url_hosts, limit, seconds)
        return replace(source, data=data, url=None)


def _constraint(grammars: Grammars, request: ChatRequest) -> Constraint:
    structured, form = request.structured_outputs, request.response_format
    if structured is not None:
        if structured.choice is not None:
            return grammars.choice(structured.choice)
        if structured.regex is not None:
            return grammars.regex(structured.regex)
        return grammars.json_schema(structured.json_ or {})
    if form is not None and form.json_schema is not None and form.type == "json_schema":
        return grammars.json_schema(form.json_schema.schema_)
    if form is not None and form.type == "json_object":
        return grammars.json_schema({"type": "object"})
    raise RequestError(400, "response_format of the type json_schema needs its json_schema.")


def parameters(request: ChatRequest, rows: list[Row]) -> dict[str, Any]:
    """Return the parameters of a request for an audit line: numbers and kinds, no texts of the client."""
    options = rows[0].options
    form = request.response_format.type if request.response_format else "text"
    kind = None
    if request.structured_outputs is not None:
        kind = next(iter(request.structured_outputs.model_dump(exclude_none=True)))
    return {
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed if options.temperature else None,
        "n": request.n,
        "stops": len(options.stops),
        "response_format": form,
        "structured_outputs": kind,
        "stream": bool(request.stream),
    }
