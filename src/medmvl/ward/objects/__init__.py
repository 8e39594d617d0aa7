"""The DICOM objects that carry results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydicom.dataset import Dataset

from medmvl.ward.key_images import KeyImage
from medmvl.ward.objects.capture import build_captures
from medmvl.ward.objects.content import ResultContent
from medmvl.ward.objects.key_objects import build_key_objects
from medmvl.ward.objects.pdf import build_pdf
from medmvl.ward.objects.report import build_report
from medmvl.ward.protocol import ResultKind

_BUILDERS: dict[ResultKind, Callable[[ResultContent, Sequence[KeyImage], int], list[Dataset]]] = {
    "sr": build_report,
    "capture": build_captures,
    "pdf": build_pdf,
    "key-objects": build_key_objects,
}


def build_objects(content: ResultContent, pictures: Sequence[KeyImage]) -> list[Dataset]:
    """Return the objects that the protocol asks for, each kind in a separate series."""
    kinds = list(dict.fromkeys(content.protocol.results.send))
    numbers = content.series_numbers(len(kinds))
    return [
        data for kind, number in zip(kinds, numbers, strict=True) for data in _BUILDERS[kind](content, pictures, number)
    ]
