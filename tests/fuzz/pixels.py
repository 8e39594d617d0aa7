"""Targets: files of images and volumes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from imaging.dicom_writing import slice_dataset
from medmvl.imaging import Image, Volume, read_image, read_volume

from .mutators import BINARY, TEXT
from .target import MARKER, Change, Target

#: encoders of GDCM: name in the table -> name of the transfer syntax
_GDCM = {"JPEG lossless": "JPEGLosslessProcess14_1", "JPEG-LS": "JPEGLSLossless", "JPEG 2000 lossy": "JPEG2000"}


@dataclass(frozen=True)
class Pixels:
    """Summary of an image or a volume: shape, number type, digest and range of its values, units, geometry, notes."""

    shape: tuple[int, ...]
    dtype: str
    digest: str
    low: float
    high: float
    finite: bool
    units: str
    notes: str


def _summary(found: Image | Volume) -> Pixels:
    array = np.ascontiguousarray(found.array)
    low, high = float(array.min()), float(array.max())
    finite = bool(np.isfinite([low, high]).all())
    notes = " ".join([*found.history, *found.warnings])
    return Pixels(
        array.shape, array.dtype.str, hashlib.sha256(array).hexdigest(), low, high, finite, found.units, notes
    )


def image(path: Path) -> Pixels:
    """Read an image."""
    return _summary(read_image(path))


def shown_image(path: Path) -> Pixels:
    """Read an image and draw it as the model sees it."""
    found = read_image(path)
    drawn = found.to_uint8()
    assert drawn.dtype == np.uint8
    assert drawn.shape[:2] == found.shape[:2]
    return _summary(found)


def volume(path: Path) -> Pixels:
    """Read a volume, whose units need not be stated."""
    return _summary(read_volume(path, units="HU"))


def series(path: Path) -> Pixels:
    """Read the series in the folder of a slice."""
    return _summary(read_volume(path.parent))


def plausible(good: Pixels, found: Pixels, change: Change) -> str:
    """Refuse results that the bytes cannot hold; a cut file must give all of its pixels or none."""
    if not found.finite:
        return "values are not finite"
    if MARKER in found.notes:
        return "the history shows a patient's name"
    if change.is_cut and found.digest != good.digest:
        return "the file was cut and its pixels changed"
    return ""


def unpacked(good: Pixels, found: Pixels, change: Change) -> str:
    """As `plausible`; and there cannot be more bytes of pixels than bytes in an uncompressed file."""
    if wrong := plausible(good, found, change):
        return wrong
    size = int(np.prod(found.shape)) * np.dtype(found.dtype).itemsize
    # Two values may be unpacked from one byte or widened from one to four bytes.
    return "there are more pixels than bytes" if size > 8 * len(change.after) else ""


def checksummed(good: Pixels, found: Pixels, change: Change) -> str:
    """As `plausible`; and the format has checksums, so pixels that differ are damaged ones."""
    if wrong := plausible(good, found, change):
        return wrong
    return "pixels differ although the format has checksums" if found.digest != good.digest else ""


def whole_series(good: Pixels, found: Pixels, change: Change) -> str:
    """As `unpacked`; and a slice that is not used is mentioned."""
    if wrong := plausible(good, found, change):
        return wrong
    missing = found.shape[0] < good.shape[0]
    said = any(word in found.notes for word in ("left out", "not used", "ignored", "skipped"))
    return f"{found.shape[0]} slices of {good.shape[0]}, without a word" if missing and not said else ""


def _stored(seed: int = 0, shape: tuple[int, int] = (24, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.uint16)


def _dataset(plane: np.ndarray, index: int = 0, **changes: Any) -> pydicom.FileDataset:
    values: dict[str, Any] = {
        "PatientName": f"{MARKER}^NAME", "PatientID": f"{MARKER}ID", "InstanceNumber": index + 1, "StudyInstanceUID": "1.2.3",
        "WindowCenter": 40, "WindowWidth": 400, "AcquisitionNumber": 1, **changes,
    }  # fmt: skip
    return slice_dataset(plane, (0.0, 0.0, 2.0 * index), **values)


def _save(dataset: pydicom.FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _encapsulated(plane: np.ndarray, syntax: str, index: int = 0) -> pydicom.FileDataset:
    """Return a slice as RLE, JPEG 2000 or (8 bits) JPEG."""
    if syntax == RLELossless:
        dataset = _dataset(plane, index)
        dataset.compress(RLELossless, plane, generate_instance_uid=False)
        return dataset
    stream = io.BytesIO()
    if syntax == JPEG2000Lossless:
        dataset = _dataset(plane, index)
        PIL.Image.fromarray(plane).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    else:
        plane = (plane // 8).astype(np.uint8)
        dataset = _dataset(plane, index, BitsAllocated=8, BitsStored=8, HighBit=7, Modality="CR")
        PIL.Image.fromarray(plane).save(stream, "JPEG")
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    return dataset


def by_gdcm(path: Path, name: str) -> Path:
    """Compress a DICOM file in place with GDCM, in a child process because GDCM may abort."""
    child = os.fork()
    if not child:
        try:
            _compress_by_gdcm(path, name)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    return path


def _compress_by_gdcm(path: Path, name: str) -> None:
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(f"{path}.new")
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()
    Path(f"{path}.new").replace(path)


def _plain(folder: Path) -> list[Path]:
    signed = (_stored(1).astype(np.int16) - 1000).astype(np.int16)
    color = np.random.default_rng(2).integers(0, 255, (16, 18, 3)).astype(np.uint8)
    cases = {
        "ct": _dataset(_stored()),
        "signed": _dataset(signed, RescaleIntercept=0),
        "twelve": _dataset(_stored(3), BitsStored=12, HighBit=11),
        "cr": _dataset((_stored(4) // 8).astype(np.uint8), Modality="CR", BitsAllocated=8, BitsStored=8, HighBit=7,
                       RescaleSlope=None, RescaleIntercept=None, PhotometricInterpretation="MONOCHROME1"),
        "color": _dataset(color, Modality="US", SamplesPerPixel=3, PhotometricInterpretation="RGB", BitsAllocated=8,
                          BitsStored=8, HighBit=7, PlanarConfiguration=0, RescaleSlope=None, RescaleIntercept=None),
    }  # fmt: skip
    files = [_save(dataset, folder / f"{name}.dcm") for name, dataset in cases.items()]
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("deflated", DeflatedExplicitVRLittleEndian)):
        dataset = _dataset(_stored(5))
        dataset.file_meta.TransferSyntaxUID = syntax
        files.append(_save(dataset, folder / f"{name}.dcm"))
    big = _dataset(_stored(6))
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    big.PixelData = _stored(6).astype(">u2").tobytes()
    big["PixelData"].VR = "OW"
    pydicom.dcmwrite(folder / "big.dcm", big, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return [*files, folder / "big.dcm"]


def _compressed(syntax: str) -> Callable[[Path], list[Path]]:
    def prepare(folder: Path) -> list[Path]:
        return [_save(_encapsulated(_stored(seed), syntax), folder / f"{seed}.dcm") for seed in range(2)]

    return prepare


def _compressed_by_gdcm(name: str) -> Callable[[Path], list[Path]]:
    def prepare(folder: Path) -> list[Path]:
        return [by_gdcm(_save(_dataset(_stored(seed)), folder / f"{seed}.dcm"), name) for seed in range(2)]

    return prepare


def _series(compressed: bool) -> Callable[[Path], list[Path]]:
    def prepare(folder: Path) -> list[Path]:
        planes = [_stored(index, (12, 10)) for index in range(4)]
        make = (lambda p, i: _encapsulated(p, JPEG2000Lossless, i)) if compressed else _dataset
        return [_save(make(plane, index), folder / f"{index}.dcm") for index, plane in enumerate(planes)]

    return prepare


def _enhanced(folder: Path) -> list[Path]:
    frames = np.stack([_stored(index, (12, 10)) for index in range(3)])
    dataset = _dataset(frames[0], SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=3, PixelData=frames.tobytes())
    dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for keyword in ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope",
                    "RescaleIntercept", "WindowCenter", "WindowWidth"):  # fmt: skip
        del dataset[keyword]
    shared = pydicom.Dataset()
    for name, values in (
        ("PixelMeasuresSequence", {"PixelSpacing": [0.7, 0.7], "SliceThickness": 2.0}),
        ("PlaneOrientationSequence", {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
        ("PixelValueTransformationSequence", {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}),
    ):
        setattr(shared, name, [_item(values)])
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in range(3):
        group = pydicom.Dataset()
        group.PlanePositionSequence = [_item({"ImagePositionPatient": [0.0, 0.0, 2.0 * index]})]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return [_save(dataset, folder / "enhanced.dcm")]


def _item(values: dict[str, Any]) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _hu(dtype: str = "i2") -> np.ndarray:
    return np.random.default_rng(7).integers(-1000, 1000, (4, 9, 8)).astype(dtype)


def _nifti(suffix: str) -> Callable[[Path], list[Path]]:
    def prepare(folder: Path) -> list[Path]:
        files = []
        for name, dtype in (("short", "i2"), ("float", "f4")):
            file = folder / f"{name}{suffix}"
            nib.save(nib.Nifti1Image(_hu(dtype).T, np.diag([-0.7, -0.7, 2.0, 1.0])), file)
            files.append(file)
        if suffix == ".nii":
            nib.save(nib.Nifti2Image(_hu().T, np.diag([-0.7, -0.7, 2.0, 1.0])), folder / "two.nii")
            files.append(folder / "two.nii")
        return files

    return prepare


def _itk(folder: Path) -> list[Path]:
    import SimpleITK as sitk  # noqa: N813 - its usual name

    picture = sitk.GetImageFromArray(_hu())
    files = []
    for name, packed in (("a.nrrd", True), ("b.nrrd", False), ("c.mha", True), ("d.mha", False)):
        sitk.WriteImage(picture, str(folder / name), useCompression=packed)
        files.append(folder / name)
    return files


def _npy(folder: Path) -> list[Path]:
    for name, dtype in (("short", "i2"), ("float", "f4")):
        np.save(folder / f"{name}.npy", _hu(dtype))
    return sorted(folder.iterdir())


def _npz(folder: Path) -> list[Path]:
    np.savez(folder / "plain.npz", _hu())
    np.savez_compressed(folder / "packed.npz", _hu())
    return sorted(folder.iterdir())


def _pictures(kind: str) -> Callable[[Path], list[Path]]:
    gray = (_stored(8) // 8).astype(np.uint8)
    color = np.random.default_rng(9).integers(0, 255, (21, 17, 3)).astype(np.uint8)

    def prepare(folder: Path) -> list[Path]:
        modes: dict[str, PIL.Image.Image] = {"gray": PIL.Image.fromarray(gray), "color": PIL.Image.fromarray(color)}
        if kind in ("png", "tiff"):
            modes["deep"] = PIL.Image.fromarray(_stored(10))
            modes["palette"] = modes["color"].quantize(16)
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        for name, picture in modes.items():
            picture.save(folder / f"{name}.{kind}", **options)
        if kind == "tiff":
            for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
                modes["gray"].save(folder / f"{compression}.tiff", compression=compression)
        if kind == "jpeg":
            modes["color"].save(folder / "progressive.jpeg", progressive=True)
        return sorted(folder.iterdir())

    return prepare


def _gzipped_png_name(folder: Path) -> list[Path]:
    """Return files whose suffix is not that of their content."""
    nib.save(nib.Nifti1Image(_hu().T, np.diag([-0.7, -0.7, 2.0, 1.0])), folder / "a.nii")
    (folder / "b.png").write_bytes((folder / "a.nii").read_bytes())
    (folder / "c.dcm").write_bytes(gzip.compress((folder / "a.nii").read_bytes(), mtime=0))
    (folder / "a.nii").unlink()
    return sorted(folder.iterdir())


def targets() -> list[Target]:
    """Return the targets of this module."""
    dicom = [
        Target("DICOM, uncompressed", _plain, shown_image, plausible, weight=40),
        Target("DICOM, RLE", _compressed(RLELossless), shown_image, plausible, weight=20),
        Target("DICOM, JPEG 2000", _compressed(JPEG2000Lossless), shown_image, plausible, weight=20),
        Target("DICOM, JPEG", _compressed(JPEGBaseline8Bit), shown_image, plausible, weight=15),
        *(
            Target(f"DICOM, {name}", _compressed_by_gdcm(gdcm), shown_image, plausible, weight=12)
            for name, gdcm in _GDCM.items()
        ),
        Target("DICOM series, a slice damaged", _series(False), series, whole_series, weight=20, names_file=False),
        Target("DICOM series, JPEG 2000", _series(True), series, whole_series, weight=10, names_file=False),
        Target("DICOM, enhanced multi-frame", _enhanced, volume, plausible, weight=20),
    ]
    volumes = [
        Target("NIfTI", _nifti(".nii"), volume, unpacked, weight=30),
        Target("NIfTI, gzip", _nifti(".nii.gz"), volume, checksummed, weight=25),
        Target("NRRD and MetaImage", _itk, volume, plausible, (*BINARY, *TEXT), weight=30),
        Target("npy", _npy, volume, unpacked, (*BINARY, *TEXT), weight=20),
        Target("npz", _npz, volume, checksummed, weight=20),
        Target("wrong suffix", _gzipped_png_name, volume, plausible, weight=5),
    ]
    pictures = [
        Target("PNG", _pictures("png"), shown_image, checksummed, weight=25),
        *(Target(kind.upper(), _pictures(kind), shown_image, plausible, weight=weight)
          for kind, weight in (("jpeg", 25), ("tiff", 30), ("bmp", 8), ("gif", 8), ("webp", 8))),
    ]  # fmt: skip
    return [*dicom, *volumes, *(replace(target) for target in pictures)]
