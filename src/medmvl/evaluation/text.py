"""Words: the normalisations and tokenisers that the published scorers use, each under its own name.

A score is comparable only if its words were cut the same way, so every tokeniser here says whose it is. English is
scored as the published scorers do it; Chinese is scored by character (`split_characters`), whatever the metric.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import Protocol

from medmvl.errors import require

# --------------------------------------------------------------------------------------------------------------
# VQA-v2 normalisation, used by Uni-Med, LLaVA-Med and MultiMedEval

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_STOP_NOT_BEFORE_DIGIT = re.compile(r"\.(?!\d)")
# The VQA-v2 code passes re.UNICODE (32) where `re.sub` takes the count, so a 33rd full stop stays. Kept for parity.
_STOPS_DELETED = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
# The contractions whose apostrophe VQA-v2 restores. A key of the table is the right form with one apostrophe lost;
# forms that would collide with a word (well, shed, were) are not in VQA-v2's table and not here.
_CONTRACTIONS_RIGHT = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {}
    for right in _CONTRACTIONS_RIGHT.split():
        for place in (match.start() for match in re.finditer("'", right)):
            table[right[:place] + right[place + 1 :]] = right
    return table


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)  # every metric of a benchmark asks for the same few texts
def normalize_word(text: str) -> str:
    """Return `text` normalised as the VQA-v2 evaluation does it, the rule of the `unimed` and `llava-med` profiles.

    A punctuation mark is deleted if, anywhere in the text, it stands beside a space, or if the text has a comma
    between digits; otherwise it becomes a space. Full stops not followed by a digit go, case goes, number words become
    digits, articles go, lost apostrophes come back. Colons and apostrophes stay.

    >>> normalize_word("T1-weighted MRI (axial)")
    't1 weighted mri axial'
    """
    result = text
    thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or thousands else " ")
    result = _STOP_NOT_BEFORE_DIGIT.sub("", result, count=_STOPS_DELETED)
    words = (_NUMBERS.get(word, word) for word in result.lower().split())
    repaired = (_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
    return " ".join(repaired).replace(",", "")


# --------------------------------------------------------------------------------------------------------------
# Chinese

_CJK = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def has_chinese(text: str) -> bool:
    """Return whether `text` holds at least one Chinese character."""
    return _CJK.search(text) is not None


def split_characters(text: str) -> str:
    """Return `text` with every Chinese character a word of its own and full-width marks made half-width (NFKC).

    Latin words and numbers inside stay whole, so the word-level metrics below score Chinese by character.

    >>> split_characters("左肺，CT")
    '左 肺 , CT'
    """
    folded = unicodedata.normalize("NFKC", text).replace("。", ".").replace("、", ",")
    spaced = _CJK.sub(r" \1 ", folded)
    if spaced != folded:
        spaced = re.sub(r"([,.;:?!])", r" \1 ", spaced)
    return " ".join(spaced.split())


# --------------------------------------------------------------------------------------------------------------
# Tokenisers


class Tokenizer(Protocol):
    """Text to tokens."""

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of `text`."""


def whitespace_tokens(text: str) -> list[str]:
    """Split on white space, case kept, punctuation glued to words: CT-CHAT's public scorer."""
    return text.split()


def normalized_tokens(text: str) -> list[str]:
    """Split the normalised text (`normalize_word`): the `unimed` and `llava-med` profiles."""
    return normalize_word(text).split()


@cache
def _tokenizer_13a() -> Tokenizer:
    module = require("sacrebleu.tokenizers.tokenizer_13a", "eval")
    tokenizer = module.Tokenizer13a()
    return lambda text: tokenizer(text).split()


def tokens_13a(text: str) -> list[str]:
    """Split as mteval-v13a does (sacrebleu's `13a`), case kept: the tokeniser of Hugging Face's BLEU."""
    return _tokenizer_13a()(text)
