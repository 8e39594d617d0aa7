"""Small DICOM series and files for the tests of this folder, written slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL_COSINES = (1, 0, 0, 0, 1, 0)
SERIES = "1.2.826.0.1.3680043.8.498.1"


def slice_dataset(stored: np.ndarray, position: tuple[float, float, float], **changes: Any) -> FileDataset:
    """One uncompressed CT slice of stored values (H, W) uint16 or int16; `changes` set or (with None) remove."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": "Secret^Patient",
        "PatientID": "ID-12345",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelSpacing": [0.8, 0.7],
        "SliceThickness": 2.0,
        "ImageOrientationPatient": list(AXIAL_COSINES),
        "ImagePositionPatient": list(position),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": stored.tobytes(),
    }
    for keyword, value in {**values, **changes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def write_series(folder: Path, hu: np.ndarray, *, step: float = 2.0, shuffle: bool = True, **changes: Any) -> Path:
    """Write (D, H, W) HU as a series with the first slice at the feet; the order of the file names is random."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(0).permutation(len(hu)) if shuffle else np.arange(len(hu))
    for index, plane in enumerate(hu):
        stored = (plane.astype(np.int32) + 1024).astype(np.uint16)
        dataset = slice_dataset(stored, (-10.0, -20.0, 5.0 + step * index), **changes)
        dataset.save_as(folder / f"{names[index]:04d}.dcm", enforce_file_format=True)
    return folder


def random_hu(shape: tuple[int, int, int] = (6, 10, 12), seed: int = 0) -> np.ndarray:
    """Random int16 HU with air in it."""
    hu = np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)
    hu[0, 0, 0] = -1024
    return hu
