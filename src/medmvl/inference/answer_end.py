"""The end of an answer: a token of the tokenizer, or a text that a chat template closes its turns with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

#: Extra tokens that are decoded to find an end text, because a token may also hold the answer's last letters.
_MARGIN = 4


class AnswerEnd(StoppingCriteria):
    """Stops rows at an end text, and cuts and decodes their answers.

    Args:
        tokenizer: of the model.
        stops: token ids that end an answer.
        text: text that ends an answer, for a template whose end is not a token of this tokenizer; None without one.
        begin: where answers begin in the rows that are checked; a prompt before it may hold the end text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], text: str | None = None, begin: int = 0
    ) -> None:
        self.tokenizer, self._stops, self.text, self._begin = tokenizer, set(stops), text, begin
        self._tail = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + _MARGIN if text else 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return (B,) bool, whether each row of `input_ids` (B, T) ends with the end text."""
        tails = self.tokenizer.batch_decode(input_ids[:, self._begin :][:, -self._tail :])
        return torch.tensor([self.text is not None and self.text in tail for tail in tails], device=input_ids.device)

    def cut(self, ids: list[int]) -> list[int]:
        """Return the ids up to and including the first end; what follows is padding."""
        return next((ids[:length] for length in range(1, len(ids)) if self.ends(ids[:length])), ids)

    def ends(self, ids: list[int]) -> bool:
        """Whether the last of `ids` ends the answer."""
        return ids[-1] in self._stops or bool(self.text and self.text in self.tokenizer.decode(ids[-self._tail :]))

    def decode(self, ids: list[int]) -> str:
        """Return the text of an answer that `cut` returned, without its end and stripped."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.split(self.text, 1)[0] if self.text else text).strip()
