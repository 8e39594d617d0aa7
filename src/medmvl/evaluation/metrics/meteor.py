"""METEOR with exact and stem matches, without synonyms, Java or a download.

Published numbers come from METEOR 1.5 in Java (with paraphrase tables) or from NLTK with WordNet; a package index carries
neither data set. This is NLTK's definition (Banerjee and Lavie 2005; alpha 0.9, beta 3, gamma 0.5) without its WordNet stage,
and its name states that. The alignment takes time proportional to the sum of the texts' lengths; NLTK's takes
their product.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from medmvl.errors import require
from medmvl.evaluation.metrics.metric import cached, text_metric

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # NLTK's defaults
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Words = list[tuple[int, str]]
"""Positions and forms of the words that are not aligned yet."""


@cache
def _stemmer_and_tokenizer() -> tuple[Any, Any]:
    """Return NLTK's Porter stemmer and word tokenizer (rules only, no data)."""
    stemmers = require("nltk.stem.porter", "eval")
    tokenize = require("nltk.tokenize.destructive", "eval")
    return stemmers.PorterStemmer(), tokenize.NLTKWordTokenizer()


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return the Porter stem of a word."""
    stemmer, _ = _stemmer_and_tokenizer()
    return str(stemmer.stem(word))


@cached
def word_tokens(text: str) -> list[str]:
    """Return lower-cased NLTK word tokens; sentences are split at ". ", "! " and "? " instead of by the punkt model."""
    _, tokenizer = _stemmer_and_tokenizer()
    return [token for sentence in _SENTENCE_END.split(text.lower()) for token in tokenizer.tokenize(sentence)]


def meteor(answer: str, target: str) -> float:
    """Return METEOR (exact and stem matches) of an answer; 0 for an empty one."""
    hypothesis, reference = word_tokens(answer), word_tokens(target)
    matches = align(hypothesis, reference)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(hypothesis), len(matches) / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    fragmentation = count_chunks(matches) / len(matches)
    return mean * (1 - GAMMA * fragmentation**BETA)


def align(hypothesis: Sequence[str], reference: Sequence[str]) -> list[tuple[int, int]]:
    """Return the aligned positions (hypothesis, reference), sorted: equal words first, then equal Porter stems."""
    exact, ours, theirs = _match(list(enumerate(hypothesis)), list(enumerate(reference)))
    stems, _, _ = _match(_stemmed(ours), _stemmed(theirs))
    return sorted([*exact, *stems])


def _stemmed(words: Iterable[tuple[int, str]]) -> Words:
    return [(position, stem(word)) for position, word in words]


def _match(ours: Words, theirs: Words) -> tuple[list[tuple[int, int]], Words, Words]:
    """Align equal words from the end of both lists, as NLTK does; return the matches and what is left on both sides."""
    open_positions: dict[str, list[int]] = {}
    for position, word in theirs:
        open_positions.setdefault(word, []).append(position)
    matches = []
    for position, word in reversed(ours):
        if open_positions.get(word):
            matches.append((position, open_positions[word].pop()))
    taken = [set(side) for side in zip(*matches, strict=True)] or [set(), set()]
    left = [[pair for pair in words if pair[0] not in done] for words, done in zip((ours, theirs), taken, strict=True)]
    return matches, left[0], left[1]


def count_chunks(matches: Sequence[tuple[int, int]]) -> int:
    """Return the number of runs of matches that are adjacent in both texts."""
    return 1 + sum(second != (first[0] + 1, first[1] + 1) for first, second in pairwise(matches))


METEOR = text_metric(
    "meteor-exact-stem",
    "Mean over items of NLTK's METEOR (alpha 0.9, beta 3, gamma 0.5) with exact and Porter-stem matches and without the "
    "WordNet stage; not the Java METEOR 1.5 of pycocoevalcap.",
    meteor,
)
