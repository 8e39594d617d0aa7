"""Requests as OpenAI's clients and vLLM's send them, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medmvl.serving.server.failures import RequestError
from medmvl.validation import allowed

#: Fields that change nothing here and are taken without an effect.
_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
#: Fields of OpenAI's that are not supported, with the values that mean the same as their absence.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "modalities": (None, ["text"]),
    "top_k": (None, -1, 0),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
    "ignore_eos": (None, False),
    "use_beam_search": (None, False),
}
_Schema = TypeVar("_Schema", bound=BaseModel)
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamOptions(_Checked):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class JsonSchema(BaseModel):
    """OpenAI's wrapper of a JSON schema."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = "answer"
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Checked):
    """OpenAI's form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Checked):
    """vLLM's constraints; exactly one of them."""

    choice: list[Stop] | None = Field(None, min_length=1, max_length=100)
    regex: str | None = Field(None, min_length=1, max_length=2000)
    json_: dict[str, Any] | None = Field(None, alias="json")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if sum(value is not None for value in (self.choice, self.regex, self.json_)) != 1:
            raise ValueError("structured_outputs needs exactly one of choice, regex and json")
        return self


class ChatRequest(BaseModel):
    """A request of `/v1/chat/completions`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool = False
    abstain_below: Annotated[float, Field(ge=0, le=1)] | Literal["stored"] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer that the client asks for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check_unsupported(self) -> None:
        """Raise if the request holds a field that would change the answer and is not supported.

        Raises:
            RequestError: with its name.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _WITHOUT_EFFECT:
                continue
            if name not in _NEUTRAL or value not in _NEUTRAL[name]:
                raise RequestError(400, f"The field {name[:60]!r} is not supported. Leave it out.")


class TokenizeRequest(BaseModel):
    """A request of `/tokenize`: a finished prompt, or messages."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1, max_length=200)


def parse(schema: type[_Schema], body: bytes) -> _Schema:
    """Return a checked request.

    Raises:
        RequestError: naming the field and what is wrong with it, never its value.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise RequestError(400, f"{where}: {allowed(first)}.") from None
