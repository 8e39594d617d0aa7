"""Splits for data sets that have none: drawn by a hash of the patient, so that they are the same at every run."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable

_STEPS = 10_000


def draw_split(patient: str, test_share: float, validation_share: float = 0.0) -> str:
    """Return "test", "validation" or "train" for a patient.

    For sources that are read once. The shares hold on average; the split of a patient does not depend on the others.

    Args:
        patient: identifier of the patient, or of the smallest group that must stay in one split.
        test_share: share of the patients that become "test", from 0 to 1.
        validation_share: share of the patients that become "validation", from 0 to 1.

    >>> draw_split("patient 1", test_share=1.0)
    'test'
    """
    position = zlib.crc32(patient.encode()) % _STEPS
    if position < test_share * _STEPS:
        return "test"
    return "validation" if position < (test_share + validation_share) * _STEPS else "train"


def divide(patients: Iterable[str], test_share: float, validation_share: float = 0.0) -> dict[str, str]:
    """Return patient -> split with exact shares, rounded to whole patients.

    Patients are ordered by a hash; the first become "test", the next "validation", the others "train". A share above 0 gets
    at least one patient if there are enough.

    >>> list(divide(map(str, range(12)), 0.25).values()).count("test")
    3
    """
    ordered = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    tests = _count(len(ordered), test_share)
    validations = min(_count(len(ordered), validation_share), len(ordered) - tests)
    splits = ["test"] * tests + ["validation"] * validations
    return {name: splits[i] if i < len(splits) else "train" for i, name in enumerate(ordered)}


def _count(total: int, share: float) -> int:
    wanted = int(total * share + 0.5)
    return max(wanted, 1) if share > 0 and total > 1 else min(wanted, total)
