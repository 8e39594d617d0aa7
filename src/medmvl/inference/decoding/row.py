"""One answer that is being decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from medmvl.errors import RecipeError
from medmvl.inference.sampling import row_seed

FinishReason = Literal["stop", "length", "cancelled"]


class Constraint(Protocol):
    """Restricts the tokens of one answer."""

    def allowed(self, size: int) -> Tensor:
        """Return (V,) bool, the tokens that may come next."""

    def accept(self, token: int) -> bool:
        """Take the chosen token; returns whether the answer is complete."""

    @property
    def failure(self) -> str | None:
        """Why it cannot be followed further; None if it can be. Such a row gets no `finish`; its caller cancels it."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How one answer is generated.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0 for the most likely tokens, above 0 for sampling.
        top_p: sample from the most likely tokens that together have this probability.
        seed, key: sampling draws from both, see `medmvl.inference.sampling`.
        stops: texts that end the answer.
        top_logprobs: how many of the most likely tokens are recorded per step.
        keep: whether keys and values of prompt and answer are kept for a next turn.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    key: str = "0"
    stops: tuple[str, ...] = ()
    top_logprobs: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p must be above 0 and at most 1, got {self.top_p}.")


@dataclass(eq=False)
class Row:
    """One answer: prompt, options and what was generated so far.

    Attributes:
        encoded: `input_ids` (T,) and visual inputs (n, ...), from `MedMVLProcessor.encode`.
        options: how it is generated.
        constraint: restricts its tokens; None: none does.
        keys: digests of the visual inputs, see `VisualCache.keys`; None: they are computed.
        token_ids: generated tokens, the end included.
        logprobs: log-probability of each token, before temperature, rules and constraints.
        calibrated: the same at the temperature of the checkpoint's calibration.
        top: per token the most likely tokens with their log-probabilities.
        finish: why it ended; None while it grows.
        reused: prompt tokens that were not prefilled again.
    """

    encoded: dict[str, Tensor]
    options: RowOptions = field(default_factory=RowOptions)
    constraint: Constraint | None = None
    keys: dict[str, list[str]] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    calibrated: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: FinishReason | None = None
    reused: int = 0

    def __post_init__(self) -> None:
        self.generator: torch.Generator | None = None
        if self.options.temperature > 0:
            self.generator = torch.Generator().manual_seed(row_seed(self.options.seed, self.options.key))

    @property
    def confidence(self) -> float:
        """Probability that the model gave to exactly these tokens, calibrated."""
        return math.exp(math.fsum(self.calibrated))

    def record(
        self, token: int, logprob: float, top: Sequence[tuple[int, float]], calibrated: float | None = None
    ) -> None:
        """Add a token; without a `calibrated` log-probability, as from another server, the model's own stands for it."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.calibrated.append(logprob if calibrated is None else calibrated)
        if self.options.top_logprobs:
            self.top.append(list(top))
