"""Probability of the generated tokens, recorded during generation."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from transformers import LogitsProcessor

#: Most words of an answer whose confidence is shown to people: as many as a choice like "(b) It is not present" has.
_FEW_WORDS = 5
#: A word, or two Chinese characters.
_WORD = re.compile(r"[\u4e00-\u9fff]{1,2}|[^\W\u4e00-\u9fff]+")
#: A coordinate of a box.
_COORDINATE = re.compile(r"<\d{1,3}>")


class ChosenTokens(LogitsProcessor):
    """Records the log-probability of every chosen token; changes no scores.

    A processor sees the logits of a step, and the token that was chosen from them only one step later, so one (B, V)
    tensor is kept, whatever the length of the answers. It does not work for beam search, which reorders rows.

    Args:
        temperature: logits are divided by it for the probabilities, see `medmvl.inference.calibration`.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self._temperature = temperature
        self._steps: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the token at the end of `input_ids` (B, T) and keep the distribution of the next; return `scores`."""
        self._note(input_ids)
        self._last = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        return scores

    def _note(self, sequences: Tensor) -> None:
        if self._last is not None:
            self._steps.append(self._last.gather(1, sequences[:, -1:]).squeeze(1))

    def probabilities(self, sequences: Tensor, lengths: list[int]) -> list[float]:
        """Return the probability of each row's answer.

        Args:
            sequences: (B, T) what `generate` returned.
            lengths: number of tokens of each answer; what follows in a row is padding.
        """
        self._note(sequences)
        self._last = None
        logs = torch.stack(self._steps, dim=1).tolist()
        return [math.exp(math.fsum(row[:length])) for row, length in zip(logs, lengths, strict=True)]


def beam_probabilities(scores: Tensor, lengths: list[int], length_penalty: float | None) -> list[float]:
    """Return the probability of each answer of a beam search.

    Args:
        scores: (B,) `sequences_scores`: the summed log-probability over length ** penalty.
        lengths: number of tokens of each answer, the end token included.
        length_penalty: of the generation config; None is transformers' default 1.
    """
    penalty = 1.0 if length_penalty is None else length_penalty
    pairs = zip(scores.tolist(), lengths, strict=True)
    return [math.exp(min(0.0, score * length**penalty)) for score, length in pairs]


def is_telling(answer: str) -> bool:
    """Whether the confidence of an answer tells people how sure the model is: of a few words without a box.

    It is the probability of exactly these words. A report can be worded in many ways that mean the same, and a box has
    neighbors that are as right: they share the probability, so that it is tiny however right the answer is.
    """
    return len(_WORD.findall(answer)) <= _FEW_WORDS and _COORDINATE.search(answer) is None


def percent(probability: float) -> str:
    """Return a probability as text; rounding must not make it impossible or certain."""
    if probability < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"


def rounded(confidence: float) -> float:
    """Return a confidence as files and printed JSON hold it.

    It has four significant digits: the sixth depends on the size of the batch, which a resumed run may change.
    """
    return float(f"{confidence:.4g}")
