"""Patients in the paths of own tables: which paths hold an identifier or what may be a name, and paths without them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from medmvl.data.converters.own_identity import Identity
from medmvl.data.converters.own_tree import media_suffix
from medmvl.data.name_spelling import fold
from medmvl.data.pseudonyms import spellings

#: Most words of an identifier in a path, and most words of a name whose orders are all looked for.
_LONGEST, _ORDERED = 6, 4
#: Least letters of an identifier that is looked for among the words of a path, and least of one within words.
_LEAST, _WITHIN = 4, 6
#: Where the blocks of East Asian scripts begin in Unicode.
_FIRST_OF_EAST_ASIA = "\u3040"
#: What takes the place of a part of a path that holds an identifier.
HIDDEN = "…"
#: Words of a path with a digit that are hexadecimal, as of hashes, are no names.
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,}")
_WORDS, _LETTERS = re.compile(r"[^\W_]+"), re.compile(r"[^\W\d_]+")
_SEPARATOR = re.compile(r"[\\/]")


class PathScreen:
    """Whether paths hold identifiers.

    Words of a path are compared with all identifiers, in any case, with any separators, and with umlauts and accents in any
    spelling; the words of a name in any order. The identifiers of a path's own row are also found within words.
    """

    def __init__(self, identities: Iterable[Identity]) -> None:
        self._words: set[str] = set()
        self._short: set[str] = set()
        for identity in identities:
            names = [text for name in identity.names for text in _forms_of_name(name)]
            for text in (*identity.known, *names):
                for spelled in spellings(text):
                    (self._words if len(spelled) >= _LEAST else self._short).add(fold(spelled))

    def holds(self, path: str, identity: Identity) -> bool:
        """Return whether a path holds an identifier of any patient, `identity` being that of its row."""
        lowered = path.lower()
        words = _WORDS.findall(_composed(lowered))
        for first in range(len(words)):
            joined = ""
            for word in words[first : first + _LONGEST]:
                joined += word
                if fold(joined) in self._words:
                    return True
        parts = [fold(part) for part in _SEPARATOR.split(lowered)]
        if self._short.intersection(parts, (part.partition(".")[0] for part in parts)):
            return True
        packed = fold("".join(words))
        known = [text for one in identity.known for text in spellings(one)]
        return any(len(text) >= _WITHIN and fold(text) in packed for text in known)

    def shown(self, path: str, identity: Identity) -> str:
        """Return a path in which each part that holds an identifier is "…"; "" if what is left still tells the patient."""
        if not self.holds(path, identity):
            return path
        parts = [HIDDEN if self.holds(part, identity) else part for part in _SEPARATOR.split(path)]
        hidden = "/".join(parts)
        return "" if self.holds(hidden, identity) else hidden


def _forms_of_name(name: str) -> list[str]:
    """Return the words of a name that are long enough to be looked for alone, and its words joined in other orders."""
    words = _LETTERS.findall(_composed(name))
    orders = permutations(words) if len(words) <= _ORDERED else [words[::-1]]
    return [word for word in words if len(word) >= _LEAST] + ["".join(order) for order in orders]


def _composed(text: str) -> str:
    """Return a text with accents as parts of their letters: a separate accent would end a word."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Exposure:
    """How the paths of a table tell patients.

    Attributes:
        identified: a path, or the folder of the data, holds the identifier of a patient.
        unclear: number of paths with a word that stands with one patient (or row) only and may be a name.
        known: whether any row names its patient.
    """

    identified: bool
    unclear: int
    known: bool

    @property
    def is_likely(self) -> bool:
        """Whether paths tell patients, as far as that can be known."""
        return self.identified or (self.known and self.unclear > 0)


def exposure(place: Path, paths: list[tuple[str, Identity]], screen: PathScreen) -> Exposure:
    """Return how paths tell patients.

    Args:
        place: the folder of the data, which stands in the report.
        paths: each path of the table with the identity of its row.
        screen: of the identities.
    """
    whole = str(place.resolve())
    distinct = dict.fromkeys(paths)  # many rows ask about one scan
    identified = any(screen.holds(path, identity) for path, identity in distinct) or any(
        screen.holds(whole, identity) for identity in dict.fromkeys(identity for _, identity in distinct)
    )
    owned = [(path, identity.patient or number) for number, (path, identity) in enumerate(paths)]
    known = any(identity.patient for _, identity in paths)
    alone = len({owner for _, owner in owned}) < 2 and not known  # of a single row every word is its own
    words = set() if alone else own_words(dict.fromkeys(owned))
    telling = {path for path, _ in distinct if not words.isdisjoint(letter_words(path))}
    unclear = sum(1 for path, _ in paths if path in telling)
    return Exposure(identified, unclear, known)


def own_words(paths: Iterable[tuple[str, Hashable]]) -> set[str]:
    """Return the words of letters in paths that stand with one owner only, and may be the name of a person.

    A word such as "images" stands in the paths of all patients, a name in those of one.

    Args:
        paths: each path with its owner, such as the patient.
    """
    owners: dict[str, set[Hashable]] = {}
    for path, owner in paths:
        for word in letter_words(path):
            owners.setdefault(word, set()).add(owner)
    return {word for word, found in owners.items() if len(found) == 1}


def letter_words(path: str) -> set[str]:
    """Return the words of at least four letters in a path, folded, without the suffix of the file and without hashes."""
    tokens = _WORDS.findall(_composed(path[: len(path) - len(media_suffix(path))]))
    plain = [token for token in tokens if not _HASH.fullmatch(token.lower())]
    return {fold(word) for token in plain for word in _LETTERS.findall(token) if _may_be_name(word)}


def _may_be_name(word: str) -> bool:
    """Return whether a word is as long as a name: four letters, two of a script that needs few for a name."""
    return len(word) >= (_LEAST if word[0] < _FIRST_OF_EAST_ASIA else 2)
