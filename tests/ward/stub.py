"""A stand-in for the model, and studies written by code, for tests of everything around the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom

from medmvl.phantoms import draw_patient, write_dicom_radiograph, write_dicom_series
from medmvl.ward import Protocol, load_protocol
from medmvl.ward.answering import Reply, Visuals

EFFUSION = {"id": "effusion", "ask": "Is there a pleural effusion?", "kind": "yes-no", "finding": "pleural effusion"}
REPORT = {"id": "report", "ask": "Describe the findings."}


class StubAnswerer:
    """Gives the first option a fixed probability and every other question a fixed text; notes what it was asked."""

    name, fingerprint = "stub", "ab" * 32

    def __init__(self, probability: float = 0.9, text: str = "The lungs are clear.") -> None:
        self.probability, self.text = probability, text
        self.asked: list[tuple[str, Visuals]] = []

    def answer(self, ask: str, visuals: Visuals, options: Sequence[str] | None, max_new_tokens: int) -> Reply:
        self.asked.append((ask, visuals))
        if options is None:
            return Reply(self.text)
        rest = (1 - self.probability) / (len(options) - 1)
        shares = dict(zip(options, [self.probability, *[rest] * (len(options) - 1)], strict=True))
        return Reply(max(shares, key=lambda option: shares[option]), shares)


def make_protocol(**changes: Any) -> Protocol:
    """Return a protocol for CT with a yes-no and a text question; `changes` replace sections or dotted keys."""
    base = {"name": "chest", "series": {"modality": "CT"}, "questions": [EFFUSION, REPORT]}
    return load_protocol(base, changes)


def write_ct(folder: Path, index: int = 3, **attributes: Any) -> Path:
    """Write a small phantom CT with some attributes changed in every slice."""
    write_dicom_series(folder, draw_patient(0, index, (8, 32, 32)))
    for path in folder.glob("*.dcm") if attributes else ():
        change(path, **attributes)
    return folder


def write_radiograph(path: Path, index: int = 3, **attributes: Any) -> Path:
    """Write a small phantom radiograph with some attributes changed."""
    write_dicom_radiograph(path, draw_patient(0, index, (8, 32, 32), 64))
    return change(path, **attributes)


def change(path: Path, **attributes: Any) -> Path:
    """Set attributes of a DICOM file; None removes one."""
    data = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    if "SOPInstanceUID" in attributes:
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path
