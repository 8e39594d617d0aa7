"""METEOR without Java and without a download: exact and stem matches, no synonyms.

The published numbers come from METEOR 1.5 in Java (paraphrase tables) or from NLTK with WordNet. Both need files that a
package index does not carry, so this is NLTK's implementation (Banerjee and Lavie 2005; alpha 0.9, beta 3, gamma 0.5)
with its WordNet stage switched off, and it is named so. It is at most a little lower than with synonyms.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from medmvl.errors import require
from medmvl.evaluation.metrics.base import cached, text_metric

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class _NoSynonyms:
    """Stands where NLTK expects WordNet."""

    def synsets(self, word: str) -> list[Any]:
        """Return no synonyms."""
        return []


@cache
def _parts() -> tuple[Any, Any, Any]:
    """Return NLTK's single_meteor_score, a Porter stemmer and the word tokenizer (rules only, no data)."""
    meteor = require("nltk.translate.meteor_score", "eval")
    stem = require("nltk.stem.porter", "eval")
    tokenize = require("nltk.tokenize.destructive", "eval")
    return meteor.single_meteor_score, stem.PorterStemmer(), tokenize.NLTKWordTokenizer()


@cached
def word_tokens(text: str) -> list[str]:
    """Return NLTK word tokens, lower-cased; sentences are cut at ". " by rule instead of the punkt model."""
    tokenizer = _parts()[2]
    return [token for sentence in _SENTENCE_END.split(text.lower()) for token in tokenizer.tokenize(sentence)]


def meteor(answer: str, target: str) -> float:
    """Return METEOR (exact and stem) of an answer; 0 for an empty one."""
    score, stemmer, _ = _parts()
    hypothesis, reference = word_tokens(answer), word_tokens(target)
    if not hypothesis or not reference:
        return 0.0
    return float(score(reference, hypothesis, stemmer=stemmer, wordnet=_NoSynonyms()))


METEOR = text_metric(
    "meteor-exact-stem",
    "Mean over items of NLTK's METEOR (alpha 0.9, beta 3, gamma 0.5) with exact and Porter-stem matches and without the "
    "WordNet stage; not the Java METEOR 1.5 of pycocoevalcap.",
    meteor,
)
