"""Lookup tables of DICOM images: bytes and words, byte orders, signs, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from imaging.dicom_writing import slice_dataset
from medmvl.errors import ImagingError
from medmvl.imaging import read_image


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("bits", "packed"), [(8, True), (8, False), (12, False)])
def test_lookup_table_of_bytes_and_words_in_both_byte_orders(
    keyword: str, big_endian: bool, bits: int, packed: bool, tmp_path: Path
) -> None:
    entries = np.linspace(2**bits - 1, 0, 120).astype(np.uint8 if packed else np.uint16)
    words = entries.view("<u2") if packed else entries
    order = ">u2" if big_endian else "<u2"
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [120, 0, bits])
    table.add_new("LUTData", "OW", words.astype(order).tobytes())
    stored = np.arange(120, dtype=np.uint16).reshape(10, 12)
    changes: dict[str, Any] = {"Modality": "DX", "RescaleSlope": None, "RescaleIntercept": None}
    dataset = slice_dataset(stored, (0, 0, 0), **changes, **{keyword: [table]})
    dataset["PixelData"].VR = "OW"
    dataset.PixelData = stored.astype(order).tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big_endian else ExplicitVRLittleEndian
    path = tmp_path / "image.dcm"
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=not big_endian, enforce_file_format=True)
    image = read_image(path)
    if keyword == "VOILUTSequence":
        np.testing.assert_array_equal(image.to_uint8().ravel(), np.rint(entries / np.float32(2**bits - 1) * 255))
    else:
        np.testing.assert_array_equal(image.array.ravel(), entries)


def test_negative_first_value_of_a_table_in_implicit_vr(tmp_path: Path) -> None:
    """The sign of the first value is that of the values after the rescale, which the file cannot state."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [120, 2**16 - 1024, 8])
    table.add_new("LUTData", "OW", np.arange(120, dtype="<u2").tobytes())
    stored = np.arange(120, dtype=np.uint16).reshape(10, 12)
    dataset = slice_dataset(stored, (0, 0, 0), VOILUTSequence=[table])
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "image.dcm", implicit_vr=True, little_endian=True, enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "image.dcm").to_uint8().ravel(), np.arange(120))


def test_lookup_table_with_too_few_entries(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [120, 0, 12])
    table.add_new("LUTData", "OW", bytes(90))
    changes: dict[str, Any] = {"Modality": "DX", "RescaleSlope": None, "RescaleIntercept": None}
    stored = np.arange(120, dtype=np.uint16).reshape(10, 12)
    slice_dataset(stored, (0, 0, 0), **changes, ModalityLUTSequence=[table]).save_as(
        tmp_path / "m.dcm", enforce_file_format=True
    )
    with pytest.raises(ImagingError, match="fewer entries"):
        read_image(tmp_path / "m.dcm")
    slice_dataset(stored, (0, 0, 0), **changes, VOILUTSequence=[table]).save_as(
        tmp_path / "v.dcm", enforce_file_format=True
    )
    assert any("VOI table of the file left out" in line for line in read_image(tmp_path / "v.dcm").history)
