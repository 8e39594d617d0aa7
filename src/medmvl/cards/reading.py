"""How files of records were read where that differs from the readers' defaults, in words for a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from medmvl.data.read_options import WORDS, ReadOptions

#: Options whose value a card shows. Others may hold what identifies a study, such as the UID of a series.
_SHOWN = (*WORDS, "already_rescaled")
_MEANINGS = {
    ("gaps", "fill"): "missing slices are interpolated",
    ("gaps", "keep"): "slices with gaps are taken as regular",
}


def reading_text(counts: Mapping[ReadOptions, int | None]) -> str:
    """Return the options that are set, with the number of their records; "" if all files are read by default.

    Args:
        counts: records that are read with some options; None if their number is not known.
    """
    totals: Counter[str] = Counter()
    for options, records in counts.items():
        for name, value in options.given().items():
            totals[_option_text(name, value)] += records or 0
    return "; ".join(text + (f": {records} records" if records else "") for text, records in sorted(totals.items()))


def _option_text(name: str, value: object) -> str:
    if name not in _SHOWN:
        return f"`{name}` given"
    text = f"`{name}: {str(value).lower() if isinstance(value, bool) else value}`"
    meaning = _MEANINGS.get((name, str(value)))
    return f"{text} ({meaning})" if meaning else text
