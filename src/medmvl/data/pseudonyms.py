"""Keyed pseudonyms of patients: without the key file nobody can test which person a pseudonym belongs to."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from medmvl.data.name_spelling import any_spelling
from medmvl.errors import DataError
from medmvl.files import PathLike, private_folder

_KEY_BYTES = 32
#: Identifiers shorter than this are not searched for in texts and paths: "12" or "CT" is in many of them by chance.
_LEAST_LETTERS = 4
#: Identifiers with a digit that are at least this long are found within words as well.
_WITHIN_WORDS = 6
_DATE = re.compile(
    r"(?P<y>\d{4})[-./ ]?(?P<m>\d\d?)[-./ ]?(?P<d>\d\d?)|(?P<d2>\d\d?)[-./ ](?P<m2>\d\d?)[-./ ](?P<y2>\d{4})"
)
_MONTHS = (
    "jan(uary|uar)?|jän(ner)?",
    "feb(ruary|ruar)?",
    "mar(ch)?|märz",
    "apr(il)?",
    "may|mai",
    "june?|juni",
    "july?|juli",
    "aug(ust)?",
    "sept?(ember)?",
    "oct(ober)?|okt(ober)?",
    "nov(ember)?",
    "dec(ember)?|dez(ember)?",
)


def default_key_file() -> Path:
    """Return the key file: `$MEDMVL_PSEUDONYM_KEY`, or one below the user's data folder."""
    named = os.environ.get("MEDMVL_PSEUDONYM_KEY")
    base = os.environ.get("XDG_DATA_HOME")
    return Path(named) if named else Path(base if base else Path.home() / ".local/share") / "medmvl/pseudonym.key"


class Pseudonyms:
    """Pseudonyms by HMAC-SHA256 with a secret key, which stays with the data owner.

    The same name gets the same pseudonym as long as the key file is the same.

    Args:
        key_file: 64 hex digits; written with mode 0600 if it is not there.

    Raises:
        DataError: if the file is no key, or cannot be written.
    """

    def __init__(self, key_file: PathLike | None = None) -> None:
        self.key_file = Path(key_file) if key_file is not None else default_key_file()
        self._key = _read_key(self.key_file)

    def of(self, name: str) -> str:
        """Return the pseudonym of a patient's name or number: "p" and 16 hex digits."""
        return f"p{self._digest(name.strip())[:16]}"

    def token(self, text: str) -> str:
        """Return 20 hex digits for a text such as a path, for the name of a file."""
        return self._digest(f"token {text}")[:20]

    def number(self, name: str) -> int:
        """Return a number below 2**122 instead of a name, for identifiers that must be numbers."""
        return int(self._digest(name), 16) >> 134

    def _digest(self, name: str) -> str:
        return hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()


def _read_key(file: Path) -> bytes:
    try:
        if not file.exists():
            private_folder(file.parent)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as new:
                new.write(secrets.token_hex(_KEY_BYTES) + "\n")
        key = bytes.fromhex(file.read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not 64 hex digits"
        raise DataError(
            f"The key file {file} of the pseudonyms cannot be used: {reason}. Name another with --key-file, or remove it to "
            "have a new one made (pseudonyms then change)."
        ) from error
    if len(key) != _KEY_BYTES:
        raise DataError(f"The key file {file} must hold 64 hex digits, not {2 * len(key)}.")
    return key


def mask(text: str, identifiers: Iterable[str], replacement: str) -> str:
    """Return `text` with every identifier replaced, in any case and with any separators between its parts.

    "MUELLER^ANNA" is also found as "Müller, Anna" and "muller_anna", a date in other notations. Identifiers of fewer than
    four letters or digits are not replaced.
    """
    for name in identifiers:
        for pattern in _patterns(name):
            text = pattern.sub(replacement, text)
    return text


def mask_words(text: str, name: str, replacement: str) -> str:
    """Return `text` with each capitalized word of a person's name replaced, as in "Mrs. Mueller"."""
    for word in re.findall(r"[^\W\d_]+", name):
        if len(word) >= _LEAST_LETTERS:
            text = _capitalized(word).sub(replacement, text)
    return text


@lru_cache(maxsize=4096)
def _capitalized(word: str) -> re.Pattern[str]:
    """Return the pattern of a word in all spellings, with a capital letter in front or throughout, or as it stands."""
    capital = any_spelling(word[0], str.upper) + any_spelling(word[1:])
    spelled = [capital, any_spelling(word, str.upper), *([re.escape(word)] if word != word.lower() else [])]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(spelled)})(?![^\W_])")


def holds(text: str, identifiers: Iterable[str]) -> bool:
    """Return whether a text holds one of the identifiers; see `mask`."""
    return mask(text, identifiers, "\0") != text


def spellings(identifier: str) -> list[str]:
    """Return an identifier in lower case without separators; a date in each order of its parts."""
    found = [re.sub(r"[\W_]+", "", identifier).lower()]
    for year, month, day in _dates(identifier):
        found += [f"{year}{month:02}{day:02}", f"{day:02}{month:02}{year}", f"{month:02}{day:02}{year}"]
    return [text for text in dict.fromkeys(found) if text]


@lru_cache(maxsize=4096)
def _patterns(identifier: str) -> tuple[re.Pattern[str], ...]:
    """Return the patterns of an identifier in texts; none if it is too short."""
    parts = re.findall(r"[^\W_]+", identifier)
    letters = sum(map(len, parts))
    if letters < _LEAST_LETTERS:
        return ()
    core = r"[\W_]{0,3}".join(any_spelling(part) if part.isalpha() else re.escape(part) for part in parts)
    inside = letters >= _WITHIN_WORDS and any(char.isdigit() for char in identifier)
    patterns = [core if inside else rf"(?<![^\W_]){core}(?![^\W_])"]
    for year, month, day in _dates(identifier):
        numbers = (
            rf"{year}[-./ ]?0?{month}[-./ ]?0?{day}",
            rf"0?{day}[-./ ]0?{month}[-./ ]{year}",
            rf"0?{month}[-./ ]0?{day}[-./ ]{year}",
        )
        named = _MONTHS[month - 1]
        words = (
            rf"0?{day}(?:st|nd|rd|th)?\.?[ -](?:{named})\.?,?[ -]{year}",
            rf"(?:{named})\.?[ -]0?{day}(?:st|nd|rd|th)?,?[ -]{year}",
        )
        patterns += [rf"(?<!\w)(?:{form})(?!\d)" for form in (*numbers, *words)]
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


def _dates(identifier: str) -> list[tuple[int, int, int]]:
    """Return (year, month, day) if an identifier is a date; two if day and month can be exchanged."""
    found = _DATE.fullmatch(identifier.strip())
    if not found:
        return []
    year = int(found["y"] or found["y2"])
    first, second = int(found["m"] or found["m2"]), int(found["d"] or found["d2"])
    orders = [(first, second)] if found["y"] else [(first, second), (second, first)]
    return [(year, m, d) for m, d in dict.fromkeys(orders) if 1850 <= year <= 2100 and 1 <= m <= 12 and 1 <= d <= 31]
