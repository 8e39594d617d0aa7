"""Normalization and tokenizers of the published scorers, each under its own name.

Scores are comparable only if their words were cut in the same way, so every tokenizer here names its source. Other scripts
are prepared by `scripts.spaced_words` before they come here.
"""

from __future__ import annotations

import html
import re
from functools import cache, lru_cache
from typing import Protocol

from medmvl.errors import require

# --------------------------------------------------------------------------------------------------------------
# VQA-v2 normalization, used by Uni-Med, LLaVA-Med and MultiMedEval

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
    """Return `text` normalized as the VQA-v2 evaluation does it, the rule of the `unimed` and `llava-med` profiles.

    A punctuation mark is deleted if the text has it next to a space anywhere, or has a comma between two digits; otherwise
    it becomes a space. Full stops not followed by a digit, case and articles are removed. Number words become digits. Lost
    apostrophes of contractions are restored. Colons and apostrophes stay.

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
# Markup around an answer

_THOUGHT = re.compile(r"^.*</think>|<think>.*", re.DOTALL)  # begun in the prompt, or cut off
_SPECIAL = re.compile(r"</?[A-Za-z|][^<>]{0,30}>")  # <answer>, </s>, <|im_end|>
_LATEX = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_MATH = re.compile(r"\\[\[\]()]")
_EMPHASIS = re.compile(r"[*`~#$]+|(?<![^\W_])_+|_+(?![^\W_])")
_QUOTES = str.maketrans(dict.fromkeys('"\u201c\u201d\u201e\u2018\u00ab\u00bb', " "))
#: Full-width ASCII, and Chinese punctuation, as ASCII.
_NARROW = str.maketrans(
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | {"\u2026": "...", "\u3001": ",", "\u3002": ".", "\u3010": "[", "\u3011": "]"}
)


def strip_markup(text: str) -> str:
    r"""Return an answer without the markup that chat models put around words: Markdown emphasis, LaTeX boxes, tags, quotes.

    Text up to </think>, or after a <think> that is not closed, is removed; full-width letters and punctuation become ASCII,
    HTML's "&quot;" a quote.

    >>> strip_markup("The answer is **\\boxed{B}**.")
    'The answer is B.'
    """
    said = html.unescape(_THOUGHT.sub("", text)).translate(_NARROW)
    plain = _MATH.sub(" ", _LATEX.sub(r"\1", _LATEX.sub(r"\1", said)))
    return _EMPHASIS.sub("", _SPECIAL.sub(" ", plain)).translate(_QUOTES).strip()


# --------------------------------------------------------------------------------------------------------------
# Tokenizers


class Tokenizer(Protocol):
    """Text to tokens."""

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of `text`."""


def whitespace_tokens(text: str) -> list[str]:
    """Split on white space, case kept, punctuation glued to words: CT-CHAT's public scorer."""
    return text.split()


def space_tokens(text: str) -> list[str]:
    """Split at every single space, so that two spaces give an empty token: pycocoevalcap's ROUGE."""
    return text.split(" ")


def ct_chat_answer(text: str) -> str:
    """Return an answer as CT-CHAT's scorer cleans it: special tokens and line breaks are deleted, without a space."""
    for mark in ("<s>", "</s>", "<|eot_id|>", "\n"):
        text = text.replace(mark, "")
    return text


def normalized_tokens(text: str) -> list[str]:
    """Split the normalized text (`normalize_word`): the `unimed` and `llava-med` profiles."""
    return normalize_word(text).split()


@cache
def _tokenizer_13a() -> Tokenizer:
    module = require("sacrebleu.tokenizers.tokenizer_13a", "eval")
    tokenizer = module.Tokenizer13a()
    return lambda text: tokenizer(text).split()


def tokens_13a(text: str) -> list[str]:
    """Split as mteval-v13a does (sacrebleu's `13a`), case kept: the tokenizer of Hugging Face's BLEU."""
    return _tokenizer_13a()(text)
