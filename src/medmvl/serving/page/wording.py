"""Words of the page in the visitor's language, for what the server writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources

from medmvl.serving.page.settings import LANGUAGES


@cache
def words(language: str) -> dict[str, str]:
    """Return the words of the page in a language, English if it is not known."""
    name = language if language in LANGUAGES else LANGUAGES[0]
    text = (resources.files("medmvl.serving.page") / "static" / "words" / f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def withheld(confidence: float, threshold: float, known: Mapping[str, str]) -> str:
    """Return what is written in place of an answer below the threshold."""
    shown = "< 0.1 %" if confidence < 0.001 else f"{math.floor(1000 * confidence) / 10:.1f} %"
    limit = f"{100 * threshold:.4g} %" if threshold <= 1 else "> 100 %"
    return known["withheld"].format(confidence=shown, threshold=limit)
