"""Answers that follow a JSON schema, a regular expression or a list of choices, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medmvl.errors import DataError, require

#: Longer grammars are refused before they are compiled.
_LONGEST = 2**16
#: Work on the grammar before an answer and per token, in llguidance's units: about 30 ms. Its own limits took 2 s and 200 MB.
_FUEL = {"initial_lexer_fuel": 500_000, "step_lexer_fuel": 50_000}


class GrammarConstraint:
    """Restricts one answer to the tokens that a grammar allows.

    Args:
        matcher: an `llguidance.LLMatcher` at its beginning.
        vocabulary: number of tokens that it knows.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, (vocabulary + 31) // 32), dtype=np.int32)
        self._numpy = require("llguidance.numpy", "serve")

    def allowed(self, size: int) -> Tensor:
        """Return (V,) bool, the tokens that may come next."""
        self._numpy.fill_next_token_bitmask(self._matcher, self._bits)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[:size]
        return torch.from_numpy(bits.astype(bool))

    def accept(self, token: int) -> bool:
        """Take the chosen token; returns whether the answer is complete."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def failure(self) -> str | None:
        """Why the grammar cannot be followed further, as when it is too large; None if it can be."""
        # What follows the first line is the text of the answer.
        return self._matcher.get_error().partition("\n")[0][:200] if self._matcher.is_error() else None


class Grammars:
    """Compiles constraints for one tokenizer.

    Args:
        tokenizer: of the model; a fast one.
        size: V, the number of logits.
        ends: token ids that end an answer.

    Raises:
        MissingExtraError: if llguidance is not installed.
        DataError: if the tokenizer is not one of the library `tokenizers`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int]) -> None:
        self._llguidance = require("llguidance", "serve")
        try:
            adapter = require("llguidance.hf", "serve")
            self._vocabulary = max(size, len(tokenizer))
            self._tokenizer = adapter.from_tokenizer(tokenizer, n_vocab=self._vocabulary, eos_token=list(ends) or None)
        except ValueError as error:
            raise DataError(f"Constrained answers are not possible with this tokenizer: {error}") from error

    def json_schema(self, schema: dict[str, Any]) -> GrammarConstraint:
        """Return the constraint to JSON that follows a schema, without white space between its parts."""
        compact = {"whitespace_flexible": False}
        try:
            grammar = self._llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=compact)
        except ValueError as error:
            raise DataError(f"The JSON schema cannot be used: {str(error)[:300]}") from None
        return self._compile(grammar, "JSON schema")

    def regex(self, pattern: str) -> GrammarConstraint:
        """Return the constraint to text that matches a regular expression as a whole."""
        return self._compile(self._llguidance.LLMatcher.grammar_from_regex(pattern), "regular expression")

    def choice(self, options: Sequence[str]) -> GrammarConstraint:
        """Return the constraint to one of several texts."""
        if not options or any(not option for option in options):
            raise DataError("A choice needs at least one option, and none of them empty.")
        rule = " | ".join(json.dumps(option, ensure_ascii=False) for option in options)
        return self._compile(self._llguidance.LLMatcher.grammar_from_lark(f"start: {rule}"), "choice")

    def _compile(self, grammar: str, what: str) -> GrammarConstraint:
        if len(grammar) > _LONGEST:
            raise DataError(
                f"The {what} is {len(grammar)} characters long as a grammar; at most {_LONGEST} are allowed."
            )
        limits = self._llguidance.LLParserLimits(**_FUEL)
        matcher = self._llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise DataError(f"The {what} cannot be used: {matcher.get_error()[:300]}")
        return GrammarConstraint(matcher, self._vocabulary)
