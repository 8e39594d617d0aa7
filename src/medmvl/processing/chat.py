"""Conversations become token ids and labels: the only author of labels in the project.

1. The template renders the messages to text and marks, by its generation blocks, the characters to learn.
2. The text is cut at the placeholders and behind a leading bos token; each piece of text is tokenised on its own, each
   placeholder becomes one token per visual embedding.
3. A token is supervised if it holds a marked character. Placeholders never are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from medmvl.data.sample import Message
from medmvl.errors import RecipeError

#: Label of a position without loss (the convention of torch's cross-entropy and of transformers).
IGNORE = -100

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
    """What stands for one image or volume: a token id, repeated once per visual embedding."""

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
        texts, spans = render_jinja_template(
            [chat], chat_template=template, return_assistant_tokens_mask=True, add_generation_prompt=ask, **specials
        )
    except Exception as error:  # a template is a user's program: whatever it raises is a mistake in it
        raise RecipeError(f"The chat template cannot render this conversation: {error}") from error
    return Rendered(texts[0], tuple((int(start), int(end)) for start, end in spans[0]))


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
        slow_spaces: tokenise a piece that begins with a space as the slow sentencepiece tokenizers did, see `_encode`.
    """
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for piece in _pieces(rendered.text, tokenizer.bos_token or "", placeholders):
        if piece in placeholders:
            placeholder = placeholders[piece]
            ids += [placeholder.token_id] * placeholder.tokens
            labels += [IGNORE] * placeholder.tokens
        elif piece:
            piece_ids, offsets = _encode(piece, tokenizer, slow_spaces)
            ids += piece_ids
            inside = _overlaps(rendered.spans, [(position + start, position + end) for start, end in offsets])
            labels += [token if supervised else IGNORE for token, supervised in zip(piece_ids, inside, strict=True)]
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


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, slow_spaces: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise without special tokens being added; offsets are [start, end) characters of `text`.

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
