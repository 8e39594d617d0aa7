"""Choice of the next token of each row: rules of the generation config, constraints, sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from medmvl.errors import CheckpointError
from medmvl.inference.decoding.row import Row

#: Setting of a generation config -> the rule that it adds.
_RULES: dict[str, Callable[[Any, GenerationConfig], LogitsProcessor]] = {
    "repetition_penalty": lambda value, _: RepetitionPenaltyLogitsProcessor(float(value)),
    "no_repeat_ngram_size": lambda value, _: NoRepeatNGramLogitsProcessor(int(value)),
    "bad_words_ids": lambda value, config: NoBadWordsLogitsProcessor(value, config.eos_token_id),
    "suppress_tokens": lambda value, _: SuppressTokensLogitsProcessor(value),
}
#: Settings that change answers and have no rule here, with the value that does nothing.
_UNKNOWN = (
    "begin_suppress_tokens",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "sequence_bias",
    "watermarking_config",
)


def unsupported_rules(config: GenerationConfig) -> list[str]:
    """Return the settings of a generation config that this module does not follow."""
    return [name for name in _UNKNOWN if getattr(config, name, None) not in (None, 0, 1.0)]


def rules_of(config: GenerationConfig) -> list[str]:
    """Return the settings of a generation config that are rules about tokens, followed here or not."""
    return [name for name in (*_RULES, *_UNKNOWN) if getattr(config, name, None) not in (None, 0, 1.0, [])]


class TokenChooser:
    """Chooses tokens from logits.

    Args:
        config: its rules about repetition and suppressed tokens apply to the answer alone.
        calibration: temperature of the confidences, see `medmvl.inference.calibration`.

    Raises:
        CheckpointError: if the config has rules that are not followed here.
    """

    def __init__(self, config: GenerationConfig, calibration: float = 1.0) -> None:
        self._calibration = calibration
        if unknown := unsupported_rules(config):
            raise CheckpointError(
                f"The model's generation config sets {', '.join(unknown)}, which continuous batching does not follow. Remove it "
                "from generation_config.json."
            )
        given = {name: getattr(config, name, None) for name in _RULES}
        self._rules = [_RULES[name](value, config) for name, value in given.items() if value not in (None, 0, 1.0, [])]

    def __call__(self, rows: Sequence[Row], logits: Tensor) -> list[int]:
        """Choose and record the next token of each row from its logits (B, V); returns the tokens."""
        scores = logits.float()
        logs = torch.log_softmax(scores, dim=-1)
        special = [
            place for place, row in enumerate(rows) if self._rules or row.constraint is not None or row.generator
        ]
        chosen = scores.argmax(dim=-1)
        for place in special:
            chosen[place] = self._choose(rows[place], scores[place])
        picked = logs.gather(1, chosen[:, None]).squeeze(1).tolist()
        sure = picked if self._calibration == 1 else _calibrated(scores, chosen, self._calibration)
        tokens: list[int] = chosen.tolist()
        for place, (row, token, log) in enumerate(zip(rows, tokens, picked, strict=True)):
            row.record(token, log, _most_likely(logs[place], row.options.top_logprobs), sure[place])
        return tokens

    def _choose(self, row: Row, scores: Tensor) -> Tensor:
        """Return the next token, a scalar, for scores (V,)."""
        ids = torch.tensor([row.token_ids], dtype=torch.long, device=scores.device)
        for rule in self._rules:
            scores = rule(ids, scores[None].clone())[0]
        if row.constraint is not None:
            allowed = row.constraint.allowed(len(scores)).to(scores.device)
            scores = scores.masked_fill(~allowed, -torch.inf)
        if row.generator is not None:
            scores = scores / row.options.temperature
            scores = _nucleus(scores, row.options.top_p)
            # The Gumbel-max trick with noise drawn on the CPU, see `RowSampler`.
            noise = torch.empty(scores.shape, dtype=torch.float32).exponential_(generator=row.generator)
            scores = scores - noise.log_().to(scores.device)
        return scores.argmax()


def _calibrated(scores: Tensor, chosen: Tensor, temperature: float) -> list[float]:
    """Return the log-probabilities of chosen tokens (B,) at a temperature, for scores (B, V)."""
    logs = torch.log_softmax(scores / temperature, dim=-1)
    found: list[float] = logs.gather(1, chosen[:, None]).squeeze(1).tolist()
    return found


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Return scores (V,) with -inf outside of the most likely tokens that reach the probability `top_p`."""
    if top_p >= 1:
        return scores
    ordered, order = scores.sort(descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    return scores.index_fill(0, order[before >= top_p], -torch.inf)


def _most_likely(logs: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the `count` most likely tokens of log-probabilities (V,)."""
    if not count:
        return []
    values, tokens = logs.topk(min(count, len(logs)))
    return list(zip(tokens.tolist(), values.tolist(), strict=True))
