"""Names of persons in their several spellings: umlauts written out, accents left away."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable

#: Letters that Unicode does not take apart into a plain letter and an accent.
_WHOLE = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i"}
)
#: "ae", "oe" and "ue" for umlauts, "aa" for å.
_WRITTEN_OUT = re.compile(r"([aou])e|(a)a")
_ACCENTS = re.compile("[\u0300-\u036f]")


def fold(text: str) -> str:
    """Return a text in the form that all spellings of a name share: lower case, without accents and written-out umlauts.

    >>> fold("Müller"), fold("MUELLER"), fold("Muller")
    ('muller', 'muller', 'muller')
    """
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).lower().translate(_WHOLE)
    return _WRITTEN_OUT.sub(lambda match: match[1] or match[2], plain)


def any_spelling(name: str, case: Callable[[str], str] = str) -> str:
    """Return a regular expression for all spellings of a word that `fold` makes equal.

    Args:
        name: the word.
        case: puts the letters in upper or lower case, for an expression that is not used without regard to case.
    """
    parts = re.split("(ss)", fold(name))
    return "".join(f"(?:{case('ss')}|ß)" if part == "ss" else "".join(_letter(c, case) for c in part) for part in parts)


def _letter(letter: str, case: Callable[[str], str]) -> str:
    """Return the expression of one letter of a folded name, with the letter that may follow where it is written out."""
    further = {"a": "ae", "o": "e", "u": "e"}.get(letter, "")
    second = f"(?:[{''.join(_variants(c, case) for c in further)}][\u0300-\u036f]?)?" if further else ""
    variants = _variants(letter, case)
    return (f"[{variants}][\u0300-\u036f]?" if letter.isalpha() else re.escape(letter)) + second


def _variants(letter: str, case: Callable[[str], str]) -> str:
    """Return a letter and those with accents that fold to it, as the content of a character class."""
    return "".join(dict.fromkeys(case(letter) + "".join(map(case, _ACCENTED.get(letter, "")))))


def _accented() -> dict[str, str]:
    """Return plain letter -> the Latin letters that fold to it."""
    found: defaultdict[str, str] = defaultdict(str)
    for char in map(chr, range(0xC0, 0x250)):
        if char.isalpha() and char.islower() and (plain := fold(char)) and plain != char:
            found[plain[0]] += char
    return dict(found)


_ACCENTED = _accented()
