"""The decoder: rows that are prefilled and then decoded together, one token per step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from medmvl.inference.answer_end import AnswerEnd
from medmvl.inference.decoding.answer_text import AnswerText
from medmvl.inference.decoding.choose import TokenChooser
from medmvl.inference.decoding.prefixes import PREFIX_BYTES, WORTH, Prefill, Prefixes, common_length, content_of
from medmvl.inference.decoding.row import Row
from medmvl.inference.decoding.slots import RowCache, Slots, joined_cache, rows_of
from medmvl.inference.visual_cache import VisualCache
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.compatibility import CACHE
from medmvl.models.visual_inputs import FEATURE_KEYS, VISUAL_INPUTS
from medmvl.processing import MedMVLProcessor

#: Tokens of one prefill: on a CPU a longer one is no faster per token and delays the rows that decode.
_PREFILL_TOKENS = {"cpu": 512}
_PREFILL_TOKENS_ON_ACCELERATORS = 8192


#: Tokens for which a row waits for another's prefill.
_SPARED = 16
#: Positions of prefixes that one prefill copies at most.
_COPIED_TOKENS = 16384


@dataclass(eq=False)
class _Waiting:
    """A row before its prefill: embeddings (T, H) of the prompt, its content (T,), and what is known of it."""

    row: Row
    embeddings: Tensor
    content: np.ndarray
    prefix: Prefill | None = None
    length: int = 0

    @property
    def rest(self) -> int:
        """Number of tokens that must be run."""
        return len(self.content) - self.length


class Decoder:
    """Decodes rows together. A row joins at any step, and a prompt's prefix that was run before is not run again.

    An LLM whose cache does not keep every position (a sliding window) decodes its rows one by one and shares no prefix.

    Args:
        model: in evaluation mode.
        processor: the one saved with the model.
        visual_cache: features of images and volumes, by content.
        prefixes: kept prefixes of earlier prompts; default: none yet.
        calibration: temperature of the confidences.

    Raises:
        CheckpointError: if the generation config has rules that are not followed here.
    """

    def __init__(
        self,
        model: MedMVLForConditionalGeneration,
        processor: MedMVLProcessor,
        visual_cache: VisualCache | None = None,
        prefixes: Prefixes | None = None,
        calibration: float = 1.0,
    ) -> None:
        self.model, self.processor = model, processor
        self.visual_cache = visual_cache or VisualCache()
        self.end = AnswerEnd(
            processor.tokenizer, processor.end_token_ids(model.generation_config), processor.turn_end_text
        )
        layers = DynamicCache(config=model.config.text_config).layers
        self.merges = all(type(layer) is DynamicLayer for layer in layers)
        self.prefixes = prefixes if prefixes is not None and self.merges else Prefixes(PREFIX_BYTES * self.merges)
        self.rows: list[Row] = []
        self._choose = TokenChooser(model.generation_config, calibration)
        self._slots = Slots()
        self._alone: dict[int, DynamicCache] = {}  # caches of rows that cannot be merged
        self._contents: dict[int, np.ndarray] = {}
        self._texts: dict[int, AnswerText] = {}
        self._budget = _PREFILL_TOKENS.get(model.device.type, _PREFILL_TOKENS_ON_ACCELERATORS)

    def text(self, row: Row) -> AnswerText:
        """Return a new decoder of the row's text, for one reader."""
        return AnswerText(self.end, row.options.stops)

    @torch.no_grad()
    def add(self, rows: Sequence[Row]) -> None:
        """Prefill rows and choose the first token of each; those that are not finished then are in `rows`."""
        waiting = [self._prepare(row) for row in rows]
        while waiting:
            group = self._next_group(waiting)
            waiting = [other for other in waiting if other not in group]
            self._prefill(group)

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Decode one token of every row; returns the rows, of which the finished have left `rows`."""
        rows = list(self.rows)
        if not rows:
            return rows
        last = torch.tensor([[row.token_ids[-1]] for row in rows], device=self.model.device)
        embeddings = self.model.get_input_embeddings()(last)
        if self.merges:
            mask, positions = self._slots.begin_step(self.model.device)
            logits = self._forward(embeddings, mask, positions, self._slots.cache)[0]
            self._slots.end_step()
        else:
            logits = torch.cat([self._step_alone(row, embeddings[i : i + 1]) for i, row in enumerate(rows)])
        self._advance(rows, logits)
        for row in rows:
            if row.finish is not None:
                self._leave(row)
        return rows

    def stream(self, row: Row) -> Generator[str, None, None]:
        """Decode one row and yield its text piece by piece; closing the iterator cancels the row."""
        try:
            self.add([row])
            text = self.text(row)
            while True:
                if piece := text.piece(row.token_ids, row.finish is not None):
                    yield piece
                if row.finish is not None:
                    return
                self.step()
        finally:
            self.cancel(row)

    def cancel(self, row: Row) -> None:
        """Remove a row that is not wanted any more."""
        if row.finish is None:
            row.finish = "cancelled"
            self._leave(row)

    def reset(self) -> None:
        """Drop all rows, after an error that may have left some of them half done."""
        self.rows.clear()
        self._slots, self._alone, self._contents, self._texts = Slots(), {}, {}, {}

    def embed(self, row: Row) -> Tensor:
        """Return the embeddings (T, H) of a row's prompt."""
        return self._prepare(row).embeddings

    def _prepare(self, row: Row) -> _Waiting:
        keys = row.keys if row.keys is not None else self.visual_cache.keys(row.encoded)
        encoded = self.visual_cache.encode(self.model, row.encoded, keys)
        config, device = self.model.config, self.model.device
        visual = {key: encoded[key].to(device) for key in VISUAL_INPUTS if key in encoded}
        embeddings = self.model.embed(encoded["input_ids"][None].to(device), **visual)[0]
        placeholders = {config.placeholder_id(modality): keys.get(modality, ()) for modality in FEATURE_KEYS}
        return _Waiting(row, embeddings, content_of(encoded["input_ids"], placeholders))

    def _next_group(self, waiting: Sequence[_Waiting]) -> list[_Waiting]:
        """Return rows to prefill together: all with a known prefix, or all without."""
        if not self.merges:
            return [waiting[0]]
        for one in waiting:
            one.prefix, one.length = self.prefixes.longest(one.content) or (None, 0)
        group = [waiting[0]]
        for other in waiting[1:]:
            rows = [*group, other]
            run = len(rows) * max(row.rest for row in rows)
            copied = len(rows) * max(row.length for row in rows)
            if (
                (other.prefix is None) == (group[0].prefix is None)
                and run <= self._budget
                and copied <= _COPIED_TOKENS
                and not any(_waits_for(other, one) for one in group)
            ):
                group = rows
        return group

    def _prefill(self, group: Sequence[_Waiting]) -> None:
        rests = [waiting.embeddings[waiting.length :] for waiting in group]
        longest, lengths = max(map(len, rests)), [waiting.length for waiting in group]
        paddings = [longest - len(rest) for rest in rests]
        embeddings = torch.stack(
            [torch.nn.functional.pad(rest, (0, 0, padding, 0)) for rest, padding in zip(rests, paddings, strict=True)]
        )
        device = embeddings.device
        before, places = torch.arange(max(lengths), device=device), torch.arange(longest, device=device)
        padded, known = (torch.tensor(numbers, device=device)[:, None] for numbers in (paddings, lengths))
        mask = torch.cat([before >= max(lengths) - known, places >= padded], dim=1).long()
        positions = known + (places - padded).clamp(min=0)
        cache = DynamicCache(config=self.model.config.text_config)
        prefixes = [(waiting.prefix.row, waiting.length) for waiting in group if waiting.prefix is not None]
        if prefixes:
            cache = joined_cache(prefixes)
        logits, cache = self._forward(embeddings, mask, positions, cache)
        rows = [waiting.row for waiting in group]
        for waiting in group:
            waiting.row.reused = waiting.length
            self.prefixes.count(len(waiting.content), waiting.length)
            self._texts[id(waiting.row)] = self.text(waiting.row)
        self._advance(rows, logits)
        if not self.merges:
            self._join_alone(rows[0], cache)
            return
        for waiting, row_cache in zip(group, rows_of(cache, lengths, paddings), strict=True):
            self.prefixes.keep(waiting.content, row_cache, waiting.length)
            self._join(waiting, row_cache)

    def _forward(
        self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None
    ) -> tuple[Tensor, DynamicCache]:
        """Run the LLM on embeddings (B, T, H); returns the last logits (B, V) and the cache."""
        out = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )
        return out.logits[:, -1], getattr(out, CACHE)

    def _step_alone(self, row: Row, embedding: Tensor) -> Tensor:
        cache = self._alone[id(row)]
        length = len(row.encoded["input_ids"]) + len(row.token_ids) - 1
        position = torch.full((1, 1), length, device=embedding.device)
        mask = torch.ones(1, length + 1, dtype=torch.long, device=embedding.device)
        return self._forward(embedding, mask, position, cache)[0]

    def _advance(self, rows: Sequence[Row], logits: Tensor) -> None:
        for row, token in zip(rows, self._choose(rows, logits), strict=True):
            complete = row.constraint is not None and row.constraint.accept(token)
            if row.constraint is not None and row.constraint.failure:
                continue
            if complete or self._texts[id(row)].finished(row.token_ids):
                row.finish = "stop"
            elif len(row.token_ids) >= row.options.max_new_tokens:
                row.finish = "length"

    def _join(self, waiting: _Waiting, row_cache: RowCache) -> None:
        row = waiting.row
        if row.finish is not None:
            self._texts.pop(id(row), None)
            return
        self.rows.append(row)
        self._slots.add(row_cache)
        if row.options.keep:
            self._contents[id(row)] = waiting.content

    def _join_alone(self, row: Row, cache: DynamicCache) -> None:
        if row.finish is not None:
            self._texts.pop(id(row), None)
            return
        self.rows.append(row)
        self._alone[id(row)] = cache

    def _leave(self, row: Row) -> None:
        if row not in self.rows:
            self._texts.pop(id(row), None)
            return
        slot = self.rows.index(row)
        content = self._contents.pop(id(row), None)
        if self.merges:
            if content is not None and row.finish != "cancelled":
                # The last token was chosen, but its keys and values were never computed.
                whole = np.concatenate([content, np.array(row.token_ids[:-1], dtype=np.int64)])
                self.prefixes.keep(whole, self._slots.row(slot), 0, force=True)
            self._slots.remove(slot)
            self.rows[slot] = self.rows[-1]
            self.rows.pop()
        else:
            del self._alone[id(row)]
            self.rows.pop(slot)
        self._texts.pop(id(row), None)


def _waits_for(row: _Waiting, other: _Waiting) -> bool:
    """Whether a row's prefill is clearly shorter after another's, whose prompt is then kept."""
    return other.rest >= WORTH and common_length(row.content, other.content) - row.length >= _SPARED
