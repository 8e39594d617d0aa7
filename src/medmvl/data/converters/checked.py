"""Checks of single items of a source: an odd item is counted as a fault and does not end the conversion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

from medmvl.data.converters.converter import Job


def iter_objects(job: Job, items: Iterable[Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the items that are JSON objects; others are faults, named by `where` and their number."""
    for number, item in enumerate(items, start=1):
        if isinstance(item, dict):
            yield item
        else:
            job.report.fault("item is not an object with keys", f"{where}, item {number}")


def finite_numbers(row: Mapping[str, Any], columns: Iterable[str]) -> list[float] | None:
    """Return the cells of some columns as numbers, or None if one of them is not a finite number.

    >>> finite_numbers({"x": "3", "y": 0.5}, "xy")
    [3.0, 0.5]
    """
    try:
        values = [float(row[column]) for column in columns]
    except (TypeError, ValueError):
        return None
    return values if all(map(isfinite, values)) else None
