"""Words of scripts other than Latin: folding of their punctuation, and characters as words where no spaces are written.

English is scored exactly as the published scorers do it. For another script the same word metrics would see one word per
sentence (Chinese, Japanese, Thai, Lao, Khmer, Burmese are written without spaces) or marks glued to words ("है।").
`spaced_words` prepares such a text so that white space separates its words; it leaves the metrics themselves unchanged.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

#: Scripts written without spaces between words: each character, with its combining marks, counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_CHARACTER = regex.compile(rf"([{_UNSPACED}]\p{{M}}*)")
_HAN, _KANA = regex.compile(r"\p{Han}"), regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_LATIN, _LETTER = regex.compile(r"\p{Latin}"), regex.compile(r"\p{L}")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_MARK = regex.compile(r"([,.;:?!])")
#: Punctuation of other scripts -> the ASCII mark with the same meaning.
_PUNCTUATION = str.maketrans({
    **dict.fromkeys("。।॥።\u06d4", "."),  # Chinese, Devanagari, Ethiopic, Urdu full stops
    **dict.fromkeys("、،፣", ","),  # Chinese, Arabic, Ethiopic commas
    "؛": ";",
    "؟": "?",
    "·": ";",  # the Greek ano teleia, after NFKC
})  # fmt: skip


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character and no Japanese kana."""
    return _HAN.search(text) is not None and _KANA.search(text) is None


@lru_cache(maxsize=1 << 16)
def is_mostly_latin(text: str) -> bool:
    """Whether at least half of the letters of a text are Latin; True for a text without letters."""
    if text.isascii():
        return True
    letters = _LETTER.findall(text)
    return 2 * len(_LATIN.findall(text)) >= len(letters)


@lru_cache(maxsize=1 << 16)
def spaced_words(text: str) -> str:
    """Return a text with white space between its words, for word metrics.

    Compatibility forms are folded (NFKC: full-width marks become ASCII), punctuation of other scripts becomes ASCII,
    punctuation is set apart, and each character of an unspaced script becomes a word. Latin words and numbers stay whole.

    >>> spaced_words("左肺，CT")
    '左 肺 , CT'
    """
    folded = unicodedata.normalize("NFKC", text).translate(_PUNCTUATION)
    spaced = _CHARACTER.sub(r" \1 ", folded)
    if spaced != folded or folded != text:
        spaced = _MARK.sub(r" \1 ", spaced)
    return " ".join(spaced.split())


def letter_words(text: str) -> list[str]:
    """Return the lower-cased runs of letters, combining marks and digits of any script.

    For ASCII text these are the tokens of the package rouge-score.
    """
    return _WORD.findall(text.lower())
