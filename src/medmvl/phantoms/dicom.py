"""Phantoms as DICOM: a CT series with true positions, and a single radiograph; `dciodvfy` finds no error in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from medmvl.files import PathLike, atomic
from medmvl.phantoms.phantom import Phantom

INTERCEPT = -1024


def write_dicom_series(folder: PathLike, phantom: Phantom, *, shuffle: bool = False) -> Path:
    """Write the CT as one file per slice (CT Image Storage) and return the folder.

    Stored values are HU + 1024, positions are in DICOM's patient space (LPS). With `shuffle` the file names and the
    instance numbers do not follow the positions, as happens in real archives.
    """
    folder = Path(folder)
    depth, row, column = phantom.spacing
    slices, rows, columns = phantom.size
    order = phantom.rng(11).permutation(slices) if shuffle else np.arange(slices)
    series, study = _uid(phantom, "ct series"), _uid(phantom, "study")
    for number, index in enumerate(order.tolist(), start=1):
        stored = (phantom.volume[index].astype(np.int32) - INTERCEPT).astype(np.uint16)
        data = _dataset(phantom, stored, CTImageStorage, "CT", series, study, number)
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.KVP, data.AcquisitionNumber = None, 1  # no tube drew it
        data.ImagePositionPatient = _decimals(
            -(columns - 1) / 2 * column, -(rows - 1) / 2 * row, (index - (slices - 1) / 2) * depth
        )
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.FrameOfReferenceUID, data.PositionReferenceIndicator = _uid(phantom, "frame"), ""
        data.PixelSpacing = _decimals(row, column)
        data.SliceThickness = _decimals(depth)[0]
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, INTERCEPT, "HU"
        data.WindowCenter, data.WindowWidth = -600, 1500
        _save(folder / f"slice{number:04d}.dcm", data)
    return folder


def write_dicom_radiograph(path: PathLike, phantom: Phantom, *, inverted: bool = False) -> Path:
    """Write the radiograph as Computed Radiography; `inverted` stores MONOCHROME1, where high values are dark."""
    stored = phantom.radiograph.astype(np.uint16) * 16  # 12 bits stored
    if inverted:
        stored = np.uint16(4095) - stored
    uids = _uid(phantom, "film series"), _uid(phantom, "study")
    data = _dataset(phantom, stored, ComputedRadiographyImageStorage, "CR", *uids, 1)
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.BitsStored, data.HighBit = 12, 11
    data.PixelSpacing = _decimals(*phantom.projection.spacing)
    data.ViewPosition = "PA"
    data.PatientOrientation = ["L", "F"]  # columns grow to the patient's left, rows to the feet
    _save(Path(path), data)
    return Path(path)


def _uid(phantom: Phantom, what: str) -> UID:
    return generate_uid(entropy_srcs=[phantom.patient, str(phantom.size), what])


def _dataset(
    phantom: Phantom, stored: NDArray[np.uint16], storage: Any, modality: str, series: UID, study: UID, number: int
) -> FileDataset:
    """Return the attributes that every image of a phantom has, pixels included."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = _uid(phantom, f"{series}.{number}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.PatientName, data.PatientID = "Phantom^Synthetic", phantom.patient
    data.PatientSex, data.PatientAge, data.PatientBirthDate = phantom.sex, f"{phantom.age:03d}Y", ""
    data.Modality, data.Manufacturer = modality, "MedM-VL phantom"
    data.SeriesDescription, data.ImageComments = "Synthetic chest", "Synthetic phantom, not a patient"
    data.StudyDate, data.StudyTime, data.StudyID = "20000101", "120000", "1"  # equal seeds give equal bytes
    data.AccessionNumber = data.ReferringPhysicianName = ""
    data.BodyPartExamined = "CHEST"  # not a paired part, so Laterality is not required
    data.SeriesNumber, data.InstanceNumber = 1, number
    data.PatientPosition = "HFS"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.ascontiguousarray(stored, dtype="<u2").tobytes()
    return data


def _decimals(*values: float) -> MultiValue[DSfloat]:
    """Return decimal strings (VR DS) of at most 16 characters."""
    return MultiValue(lambda value: DSfloat(value, auto_format=True), values)


def _save(path: Path, data: FileDataset) -> None:
    with atomic(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)
