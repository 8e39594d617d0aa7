"""Conversations to token ids and labels.

1. The template renders the messages to text and marks, by its generation blocks, the characters to learn.
2. The text is cut at the placeholders and behind a leading bos token; each piece of text is tokenized on its own, each
   placeholder becomes one token per visual embedding.
3. A token is supervised if it holds a marked character. Placeholders never are.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from jinja2 import Environment
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from medmvl.data.sample import Message
from medmvl.errors import RecipeError
from medmvl.models.labels import IGNORE_INDEX
from medmvl.processing.templates import template_name
from medmvl.processing.time_limit import TimeLimitError, memory_limit, time_limit

#: Time a chat template may take; a rendering takes about a millisecond.
TEMPLATE_SECONDS = 20.0

#: transformers marks the characters to learn in an object that all renderings of a template share: two at once would raise, or mark each
#: other's characters.
_one_at_a_time = threading.Lock()


def _unlock_in_child() -> None:
    """Give a forked process a lock of its own: a thread that held it is not there."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_unlock_in_child)

#: Sentencepiece's sign for the beginning of a word.
WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: the prompt, placeholders not yet expanded.
        spans: [start, end) character ranges to learn, in order.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Placeholder of one image or volume: a token id, repeated once per visual embedding."""

    token_id: int
    tokens: int


def render(
    messages: Sequence[Message], template: str, tokenizer: PreTrainedTokenizerBase, *, ask: bool = False
) -> Rendered:
    """Render messages with a Jinja template.

    Args:
        ask: end with the opening of an assistant turn, for generation.

    Raises:
        RecipeError: if the template cannot render these messages.
    """
    chat = [{"role": message.role, "content": message.text} for message in messages]
    specials = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": "", **tokenizer.special_tokens_map}
    try:
        with _one_at_a_time, nullcontext() if template_name(template) else _limits(template):
            texts, spans = render_jinja_template(
                [chat], chat_template=template, return_assistant_tokens_mask=True, add_generation_prompt=ask, **specials
            )
    except RecipeError:
        raise
    except TimeLimitError as error:
        raise RecipeError(
            f"The chat template did not end within {TEMPLATE_SECONDS} seconds. Use another one (--template)."
        ) from error
    except MemoryError as error:
        raise RecipeError("The chat template takes too much memory. Use another one (--template).") from error
    except Exception as error:  # a template is a user's program: whatever it raises is a mistake in it
        raise RecipeError(f"The chat template cannot render this conversation: {str(error)[:300]}") from error
    return Rendered(texts[0], tuple((int(start), int(end)) for start, end in spans[0]))


@contextmanager
def _limits(template: str) -> Iterator[None]:
    """Keep the template of a stranger from taking hours or all memory."""
    _refuse_large_steps(template)
    with time_limit(TEMPLATE_SECONDS), memory_limit():
        yield


@lru_cache(maxsize=64)
def _refuse_large_steps(template: str) -> None:
    """Raise if a template raises numbers to powers or holds huge numbers.

    A power can take hours, and a text repeated 10^10 times all memory, in one step that no limit interrupts.
    """
    before = ""
    for line, kind, value in Environment().lex(template):
        if value == "**" and kind == "operator" and before not in ("(", ","):  # after these it unpacks arguments
            raise RecipeError(f"The chat template computes a power (line {line}), which is not allowed.")
        if kind in ("integer", "float") and len(value) > 6:
            raise RecipeError(
                f"The chat template holds the number {value[:40]} (line {line}); it may have at most 6 digits."
            )
        before = before if kind == "whitespace" else value


def tokenize(
    rendered: Rendered,
    tokenizer: PreTrainedTokenizerBase,
    placeholders: Mapping[str, Placeholder],
    *,
    slow_spaces: bool = False,
) -> tuple[list[int], list[int]]:
    """Return token ids and labels, both of the length of the expanded prompt.

    Args:
        placeholders: placeholder text -> what it expands to.
        slow_spaces: tokenize a piece that begins with a space as the slow sentencepiece tokenizers did, see `_encode`.
    """
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for piece in _pieces(rendered.text, tokenizer.bos_token or "", placeholders):
        if piece in placeholders:
            placeholder = placeholders[piece]
            ids += [placeholder.token_id] * placeholder.tokens
            labels += [IGNORE_INDEX] * placeholder.tokens
        elif piece:
            starts = [start - position for start, _ in rendered.spans]
            piece_ids, offsets = _encode_apart(piece, starts, tokenizer, slow_spaces)
            ids += piece_ids
            inside = _overlaps(rendered.spans, [(position + start, position + end) for start, end in offsets])
            labels += [
                token if supervised else IGNORE_INDEX for token, supervised in zip(piece_ids, inside, strict=True)
            ]
        position += len(piece)
    return ids, labels


def _pieces(text: str, bos: str, placeholders: Mapping[str, Placeholder]) -> list[str]:
    """Cut a prompt at its placeholders and behind a leading bos token.

    A sentencepiece tokenizer marks the first word of what it is given; with the bos token in the same piece it would not.
    """
    pieces = []
    if bos and text.startswith(bos):
        pieces, text = [bos], text[len(bos) :]
    pattern = "|".join(re.escape(name) for name in sorted(placeholders, key=len, reverse=True))
    return pieces + (re.split(f"({pattern})", text) if pattern else [text])


def _encode_apart(
    text: str, starts: Sequence[int], tokenizer: PreTrainedTokenizerBase, slow_spaces: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a piece so that no token holds both the end of a question and the beginning of an answer.

    Where an answer begins with white space, a token may reach across (two newlines are one token of Qwen's), and the prompt
    would not be the one that is asked. The piece is split there and only there.

    Args:
        text: the piece.
        starts: characters of `text` where an answer begins; those outside of it do not matter.
    """
    ids, offsets = _encode(text, tokenizer, slow_spaces)
    cuts = [cut for cut in starts if any(start < cut < end for start, end in offsets)]
    if not cuts:
        return ids, offsets
    ids, offsets = [], []
    for begin, end in pairwise([0, *cuts, len(text)]):
        part_ids, part_offsets = _encode(text[begin:end], tokenizer, slow_spaces)
        ids += part_ids
        offsets += [(begin + first, begin + last) for first, last in part_offsets]
    return ids, offsets


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, slow_spaces: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize without special tokens being added; offsets are [start, end) characters of `text`.

    The slow sentencepiece tokenizers put a word mark in front of every piece; the fast ones do not where the piece
    already begins with a space. Written out, the mark stays with both.
    """
    marked = slow_spaces and text.startswith(" ")
    given = f"{WORD_MARK}{text}" if marked else text
    encoding = tokenizer(given, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = [(max(start - marked, 0), end - marked) for start, end in encoding["offset_mapping"]]
    return list(encoding["input_ids"]), offsets


def _overlaps(spans: Sequence[tuple[int, int]], tokens: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it shares a character with a span; both are in the order of the text."""
    found, current = [], 0
    for start, end in tokens:
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        found.append(current < len(spans) and spans[current][0] < end)
    return found
