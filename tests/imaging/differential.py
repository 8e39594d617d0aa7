"""Random legal files, read by medmvl and by an independent reader, and compared value by value.

    PYTHONPATH=src:tests python tests/imaging/differential.py [--files N] [--seed N] [--jobs N] [--families NAME,...] [--out FILE.md]

Each case is drawn from a separate seed. Three answers are compared: what was written, what medmvl reads, and what the
independent reader (SimpleITK with GDCM, nibabel, tifffile) reads. A case is *equal* if all agree, *refused* if medmvl
gives a reason, *reader differs* if medmvl agrees with what was written and the independent reader does not, and
*silent difference* otherwise. The exit status is 1 if there is a silent difference.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from medmvl.errors import ImagingError
from medmvl.imaging import read_image, read_volume

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
#: encoders of GDCM by transfer syntax
GDCM = {"1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1", "1.2.840.10008.1.2.4.80": "JPEGLSLossless"}
LOSSLESS = (RLELossless, JPEG2000Lossless, *GDCM)


@dataclass
class Case:
    """One drawn case: what was written, and how an independent reader reads it.

    Attributes:
        family: kind of file, for the table.
        read: reads it with medmvl and returns comparable arrays.
        independent: reads it with the other reader and returns arrays comparable with those of `read`.
        truth: the arrays that were written, or None if only the readers are compared.
        files: number of files.
        tolerance: largest accepted difference, for lossy files.
        traits: what was drawn, to explain differences.
    """

    family: str
    read: Callable[[], dict[str, np.ndarray]]
    independent: Callable[[], dict[str, np.ndarray]] | None
    truth: dict[str, np.ndarray]
    files: int = 1
    tolerance: float = 0.0
    traits: dict[str, Any] = field(default_factory=dict)


# --- DICOM


def stored_values(rng: np.random.Generator, shape: tuple[int, ...], stored: int, signed: bool) -> np.ndarray:
    """Random values that fit into `stored` bits, the ends of the range among them."""
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    values = rng.integers(low, high + 1, shape)
    values.flat[:2] = low, high
    return values


def words_of(values: np.ndarray, allocated: int, stored: int, high: int, noise: np.ndarray | None) -> np.ndarray:
    """Stored words with the value bits at their position and `noise` in the unused ones."""
    mask = (1 << stored) - 1
    shift = high + 1 - stored
    words = (values & mask) << shift
    if noise is not None:
        words |= noise & ~(mask << shift) & ((1 << allocated) - 1)
    return words.astype(f"<u{allocated // 8}")


def slice_of(words: np.ndarray, syntax: str, **attributes: Any) -> FileDataset:
    """A gray data set of little-endian words (H, W) in one of the native transfer syntaxes."""
    meta = FileMetaDataset()
    sop = attributes.pop("SOPClassUID", CTImageStorage)
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, sop
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(
        None, {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )  # fmt: skip
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = words.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelSpacing, dataset.SliceThickness = [1.0, 1.0], 1.0
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = words.astype(words.dtype.newbyteorder(">")).tobytes() if syntax == ExplicitVRBigEndian else (
        words.tobytes()
    )  # fmt: skip
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OB" if words.dtype.itemsize == 1 and syntax != ImplicitVRLittleEndian else "OW"
    return dataset


def save(dataset: FileDataset, path: Path, syntax: str, words: np.ndarray) -> None:
    """Write a data set, compressed if the transfer syntax requires it."""
    if syntax == RLELossless:
        encoded = get_encoder(RLELossless).encode(
            words.tobytes(), rows=words.shape[0], columns=words.shape[1], samples_per_pixel=1, number_of_frames=1,
            bits_allocated=words.dtype.itemsize * 8, bits_stored=words.dtype.itemsize * 8, pixel_representation=0,
            photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
        )  # fmt: skip
        dataset.PixelData = encapsulate([encoded])
        dataset["PixelData"].VR = "OB"
    elif syntax == JPEG2000Lossless:
        stream = io.BytesIO()
        PIL.Image.fromarray(words).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].VR = "OB"
    elif syntax in GDCM:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
        _compress_by_gdcm(path, GDCM[syntax])
        return
    if syntax == ImplicitVRLittleEndian or syntax in NATIVE or syntax in LOSSLESS:
        dataset.save_as(path, enforce_file_format=True)


def _compress_by_gdcm(path: Path, name: str) -> None:
    """Compress a file in place by GDCM; the file stays uncompressed if GDCM refuses it or aborts."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        import gdcm

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        if change.Change():
            writer = gdcm.ImageWriter()
            writer.SetFileName(f"{path}.new")
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            if writer.Write():
                Path(f"{path}.new").replace(path)
    finally:
        os._exit(0)


def draw_format(rng: np.random.Generator, syntax: str) -> tuple[int, int, int, bool]:
    """BitsAllocated, BitsStored, HighBit and sign that are legal for a syntax."""
    allocated = int(rng.choice([8, 16, 16, 16, 32])) if syntax in NATIVE else int(rng.choice([8, 16, 16]))
    stored = allocated if rng.random() < 0.4 else int(rng.integers(max(allocated // 2, 4), allocated + 1))
    high = stored - 1
    if syntax in NATIVE and rng.random() < 0.15:
        high = int(rng.integers(stored - 1, allocated))
    return allocated, stored, high, bool(rng.random() < 0.5)


def draw_rescale(rng: np.random.Generator) -> tuple[float | None, float | None]:
    """Slope and intercept, or neither."""
    choice = rng.random()
    if choice < 0.2:
        return None, None
    if choice < 0.7:
        return 1, int(rng.choice([-1024, 0, -8192, 100]))
    return float(rng.choice([0.5, 2, 0.25, 1.5])), float(rng.choice([-1024, 0.5, 3]))


def dicom_image(rng: np.random.Generator, folder: Path) -> Case:
    """One gray frame in a random pixel format and transfer syntax."""
    import SimpleITK

    syntax = str(rng.choice([*NATIVE, *LOSSLESS]))
    allocated, stored, high, signed = draw_format(rng, syntax)
    shape = (int(rng.integers(9, 20)), int(rng.integers(9, 20)))
    values = stored_values(rng, shape, stored, signed)
    noisy = bool(rng.random() < 0.3) and (syntax in NATIVE or syntax == RLELossless)
    noise = rng.integers(0, 2**allocated, shape) if noisy and allocated > stored else None
    words = words_of(values, allocated, stored, high, noise)
    if noise is None and signed and high == stored - 1 and syntax != JPEG2000Lossless:
        words = values.astype(f"<i{allocated // 8}").view(words.dtype)  # sign-extended, as most writers do
    slope, intercept = draw_rescale(rng)
    photometric = str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))
    dataset = slice_of(
        words, syntax, Modality="MR", SOPClassUID=MRImageStorage, BitsAllocated=allocated, BitsStored=stored,
        HighBit=high, PixelRepresentation=int(signed), PhotometricInterpretation=photometric, RescaleSlope=slope,
        RescaleIntercept=intercept, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
    )  # fmt: skip
    path = folder / "image.dcm"
    save(dataset, path, syntax, words)
    expected = values * (1 if slope is None else slope) + (0 if intercept is None else intercept)

    def independent() -> dict[str, np.ndarray]:
        return {"values": SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0].astype(np.float64)}

    traits = {"syntax": syntax, "bits": (allocated, stored, high, signed), "noise": noise is not None, "slope": slope,
              "intercept": intercept, "photometric": photometric}  # fmt: skip
    return Case(
        "DICOM gray image",
        lambda: {"values": read_image(path).array.astype(np.float64)},
        None if photometric == "MONOCHROME1" else independent,  # ITK inverts these
        {"values": expected.astype(np.float64)},
        tolerance=float(np.abs(expected).max()) * 2e-7 if allocated == 32 else 0.0,  # medmvl keeps single precision
        traits=traits,
    )


def dicom_color(rng: np.random.Generator, folder: Path) -> Case:
    """An RGB frame, uncompressed by pixel or by plane, or as JPEG with or without marker segments."""
    import SimpleITK

    height, width = (8 * int(n) for n in rng.integers(2, 4, 2))
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (height // 8, width // 8, 3)), 8, 0), 8, 1).astype(np.uint8)
    kind = str(rng.choice(["plane", "pixel", "jpeg"]))
    common = {"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "BitsAllocated": 8, "BitsStored": 8,
              "HighBit": 7, "PixelRepresentation": 0}  # fmt: skip
    path, tolerance = folder / "color.dcm", 0.0
    if kind == "jpeg":
        subsampling, quality = int(rng.choice([0, 1, 2])), int(rng.integers(85, 100))
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=subsampling)
        content = stream.getvalue()
        decoded = np.asarray(PIL.Image.open(io.BytesIO(content)))
        if rng.random() < 0.5:  # without APP0
            at = content.find(b"\xff\xe0")
            content = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]
        label = str(rng.choice(["RGB", "YBR_FULL_422", "YBR_FULL"]))
        dataset = slice_of(pixels[..., 0], ExplicitVRLittleEndian, **common)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
        dataset.PixelData = encapsulate([content])
        dataset["PixelData"].VR = "OB"
        dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, label
        truth, tolerance = decoded, 6.0  # the color conversion is rounded differently
    else:
        dataset = slice_of(pixels[..., 0], ExplicitVRLittleEndian, **common)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
        dataset.PlanarConfiguration = int(kind == "plane")
        dataset.PixelData = (pixels.transpose(2, 0, 1) if kind == "plane" else pixels).tobytes()
        label, truth = "RGB", pixels
    dataset.save_as(path, enforce_file_format=True)

    def independent() -> dict[str, np.ndarray]:
        array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        return {"values": array.reshape(height, width, 3).astype(np.float64)}

    return Case(
        "DICOM color image",
        lambda: {"values": read_image(path).array.astype(np.float64)},
        independent,
        {"values": truth.astype(np.float64)},
        tolerance=tolerance,
        traits={"kind": kind, "label": label},
    )


def random_axes(rng: np.random.Generator) -> np.ndarray:
    """Random right-handed directions (3, 3) of rows, columns and stack, one per column: oblique in half of the cases."""
    matrix = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    if rng.random() < 0.5:
        x, y, z = rng.uniform(-0.2, 0.2, 3)
        turn = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]])
        matrix = np.linalg.qr(turn)[0] @ matrix
        matrix *= np.sign((matrix * (turn @ matrix)).sum(axis=0))
    if np.linalg.det(matrix) < 0:
        matrix[:, 2] *= -1
    return matrix


def sorted_volume(array: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """A volume (D, H, W) with its RAS affine, brought to RAS order so that two readers' answers can be compared."""
    image = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float64), affine))
    return {"values": np.asarray(image.dataobj, dtype=np.float64), "affine": image.affine}


def dicom_series(rng: np.random.Generator, folder: Path) -> Case:
    """A CT or MR series in a random orientation, with slopes per slice, padding, and shuffled names."""
    import SimpleITK

    modality = str(rng.choice(["CT", "MR"]))
    syntax = str(rng.choice([*NATIVE, *LOSSLESS]))
    stored = int(rng.choice([12, 16]))
    signed = bool(rng.random() < 0.5)
    depth, height, width = (int(n) for n in rng.integers(4, 8, 3) + np.array([0, 4, 5]))
    axes, spacing = random_axes(rng), rng.uniform(0.5, 3, 3).round(4)
    origin = rng.uniform(-100, 100, 3).round(3)
    values = rng.integers(-1000 if signed else 24, 1500, (depth, height, width))
    padding = (-2000 if signed else 4000) if rng.random() < 0.3 else None
    per_slice = padding is None and bool(rng.random() < 0.4)
    slopes = rng.choice([0.5, 1.5, 2], depth) if per_slice else np.full(depth, 1)
    intercept = 0 if signed else -1024
    if padding is not None:
        values[:, 0, :2] = padding
    expected = values * slopes[:, None, None] + intercept
    if padding is not None and modality == "CT":
        expected = np.where(values == padding, -1024, expected)
    names = rng.permutation(depth)
    for index in range(depth):
        words = words_of(values[index], 16, stored, stored - 1, None)
        if signed and syntax != JPEG2000Lossless:
            words = values[index].astype("<i2").view("<u2")
        position = origin + axes[:, 2] * spacing[0] * index
        dataset = slice_of(
            words, syntax, Modality=modality, SOPClassUID=CTImageStorage if modality == "CT" else MRImageStorage,
            BitsAllocated=16, BitsStored=stored, HighBit=stored - 1, PixelRepresentation=int(signed),
            RescaleSlope=float(slopes[index]), RescaleIntercept=intercept, PixelPaddingValue=padding, RescaleType="HU" if modality == "CT" else "US",
            PixelSpacing=[float(spacing[1]), float(spacing[2])], SliceThickness=float(spacing[0]),
            ImagePositionPatient=[f"{v:.9g}" for v in position],
            ImageOrientationPatient=[f"{v:.9g}" for v in (*axes[:, 0], *axes[:, 1])],
        )  # fmt: skip
        save(dataset, folder / f"{names[index]:03d}.dcm", syntax, words)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = axes[:, 2] * spacing[0], axes[:, 1] * spacing[1], axes[:, 0] * spacing[2]
    lps[:3, 3] = origin
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])

    def independent() -> dict[str, np.ndarray]:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
        # Its series reader rescales all slices by the first one's slope; read alone, each is rescaled by its own.
        array = np.concatenate([SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f)) for f in reader.GetFileNames()])
        if padding is not None and modality == "CT":  # it keeps the padding, which medmvl documents to replace
            array = np.where(array == padding + intercept, -1024, array)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        return sorted_volume(array, (to_ras @ affine)[:, [2, 1, 0, 3]])

    def ours() -> dict[str, np.ndarray]:
        volume = read_volume(folder)
        return sorted_volume(volume.array, volume.affine)

    traits = {"modality": modality, "syntax": syntax, "stored": stored, "signed": signed, "per slice": per_slice,
              "padding": padding is not None}  # fmt: skip
    return Case(
        "DICOM series",
        ours,
        independent,
        sorted_volume(expected, to_ras @ lps),
        files=depth,
        tolerance=1e-4,
        traits=traits,
    )


def enhanced(rng: np.random.Generator, folder: Path) -> Case:
    """An enhanced CT with positions and, in half of the cases, rescales per frame."""
    depth, height, width = (int(n) for n in rng.integers(3, 7, 3) + np.array([0, 4, 5]))
    values = rng.integers(0, 3000, (depth, height, width))
    per_frame = bool(rng.random() < 0.5)
    slopes = rng.choice([0.5, 1.0, 2.0], depth) if per_frame else np.ones(depth)
    spacing = rng.uniform(0.5, 3, 3).round(3)
    order = rng.permutation(depth)
    dataset = slice_of(
        values[order].astype("<u2"), ExplicitVRLittleEndian, Modality="CT", SOPClassUID=EnhancedCTImageStorage,
        BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0,
    )  # fmt: skip
    dataset.NumberOfFrames = depth
    del dataset.PixelSpacing, dataset.SliceThickness
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [float(spacing[1]), float(spacing[2])], float(spacing[0])
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    groups = []
    for index in order:
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, f"{spacing[0] * index:.6g}"]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = float(slopes[index]), -1024, "HU"
        group.PlanePositionSequence = [position]
        if per_frame:
            group.PixelValueTransformationSequence = [transform]
        else:
            shared.PixelValueTransformationSequence = [transform]
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], groups
    path = folder / "enhanced.dcm"
    dataset.save_as(path, enforce_file_format=True)

    def ours() -> dict[str, np.ndarray]:
        volume = read_volume(path)
        assert volume.spacing is not None
        return {"values": volume.array.astype(np.float64), "spacing": np.asarray(volume.spacing)}

    expected = values * slopes[:, None, None] - 1024
    # GDCM keeps the order of the frames and one rescale, so what was written is the only reference here.
    return Case("DICOM enhanced CT", ours, None, {"values": expected, "spacing": spacing}, tolerance=1e-4)


# --- NIfTI


def nifti(rng: np.random.Generator, folder: Path) -> Case:
    """A NIfTI-1 or -2 file of any real type, byte order, slope and affine."""
    dtype = np.dtype(str(rng.choice(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])))
    shape = tuple(int(n) for n in rng.integers(3, 9, 3))
    if dtype.kind == "f":
        stored = rng.uniform(-1000, 2000, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        stored = rng.integers(max(limits.min, -(2**20)), min(limits.max, 2**20), shape).astype(dtype)
    affine = np.eye(4)
    affine[:3, :3] = random_axes(rng) * rng.uniform(0.5, 3, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    image = (nib.Nifti2Image if rng.random() < 0.3 else nib.Nifti1Image)(stored, affine, dtype=dtype)
    header = image.header.as_byteswapped(">") if rng.random() < 0.3 else image.header
    slope, inter = draw_rescale(rng)
    header.set_slope_inter(slope, inter)
    forms = str(rng.choice(["both", "sform", "qform"]))
    header.set_sform(affine, code=0 if forms == "qform" else int(rng.integers(1, 5)))
    header.set_qform(affine, code=0 if forms == "sform" else int(rng.integers(1, 5)))
    header["vox_offset"] = header.sizeof_hdr + 4 if header.sizeof_hdr == 348 else 544
    header["magic"] = b"n+1" if header.sizeof_hdr == 348 else b"n+2"
    content = header.binaryblock + b"\0" * 4 + stored.astype(dtype.newbyteorder(header.endianness)).tobytes(order="F")
    path = folder / ("v.nii.gz" if rng.random() < 0.5 else "v.nii")
    if path.suffix == ".gz":
        import gzip

        content = gzip.compress(content, 1)
    path.write_bytes(content)

    def ours() -> dict[str, np.ndarray]:
        volume = read_volume(path, units="arbitrary")
        return sorted_volume(volume.array, volume.affine)

    def independent() -> dict[str, np.ndarray]:
        loaded = nib.load(path)
        return sorted_volume(np.asarray(loaded.get_fdata(dtype=np.float64)), loaded.affine)

    expected = stored.astype(np.float64) * (1 if slope is None else slope) + (0 if inter is None else inter)
    size = float(np.abs(expected).max())
    return Case(
        "NIfTI", ours, independent, sorted_volume(expected, affine), tolerance=max(size * 2e-7, 1e-3),
        traits={"dtype": str(dtype), "slope": slope, "inter": inter, "forms": forms},
    )  # fmt: skip


# --- pictures


def tiff(rng: np.random.Generator, folder: Path) -> Case:
    """A gray or color TIFF of any depth and photometric interpretation, read by tifffile."""
    import tifffile

    dtype = np.dtype(str(rng.choice(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])))
    color = bool(dtype == np.uint8 and rng.random() < 0.3)
    shape = (int(rng.integers(3, 20)), int(rng.integers(3, 20)), *((3,) if color else ()))
    if dtype.kind == "f":
        values = rng.uniform(-1000, 1000, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    photometric = "rgb" if color else str(rng.choice(["minisblack", "miniswhite"]))
    path = folder / "p.tiff"
    compression = str(rng.choice(["none", "zlib"]))
    orientation = int(rng.integers(1, 9)) if rng.random() < 0.3 else 1
    tifffile.imwrite(
        path, values, photometric=photometric, byteorder=str(rng.choice(["<", ">"])), predictor=False,
        compression=None if compression == "none" else compression,
        extratags=[(274, "H", 1, orientation, True)] if orientation > 1 else [],
    )  # fmt: skip

    def shown() -> dict[str, np.ndarray]:
        image = read_image(path)
        array = image.array.astype(np.float64)
        return {"values": 255 - array if photometric == "miniswhite" and not image.inverted else array}

    return Case(
        "TIFF", shown, lambda: {"values": tifffile.imread(path).astype(np.float64)}, {"values": values.astype(np.float64)},
        tolerance=1e-4 if dtype == np.float64 else 0.0,
        traits={"dtype": str(dtype), "photometric": photometric, "compression": compression, "orientation": orientation},
    )  # fmt: skip


def one_channel(array: np.ndarray, mode: str) -> np.ndarray:
    """The gray values (H, W) of a picture that SimpleITK reads with three equal channels."""
    gray = array[..., 0] if mode == "L" and array.ndim == 3 and (array == array[..., :1]).all() else array
    return gray.astype(np.float64)


def picture(rng: np.random.Generator, folder: Path) -> Case:
    """A PNG, JPEG or BMP of 8 or 16 bits, read by SimpleITK."""
    import SimpleITK

    kind = str(rng.choice(["png", "png", "jpg", "bmp"]))
    mode = str(rng.choice(["L", "RGB"] + (["I;16"] if kind == "png" else [])))
    height, width = (int(n) for n in rng.integers(8, 24, 2))
    if mode == "I;16":
        values = rng.integers(0, 65536, (height, width)).astype(np.uint16)
        drawn = PIL.Image.fromarray(values)
    else:
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        values = rng.integers(0, 256, shape).astype(np.uint8)
        if kind == "jpg":
            values = np.full(shape, values.reshape(-1, shape[-1] if mode == "RGB" else 1)[0]).astype(np.uint8)
        drawn = PIL.Image.fromarray(values)
    path = folder / f"p.{kind}"
    drawn.save(path)
    tolerance = 6.0 if kind == "jpg" else 0.0
    return Case(
        "PNG, JPEG, BMP",
        lambda: {"values": read_image(path).array.astype(np.float64)},
        lambda: {"values": one_channel(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), mode)},
        {"values": values.astype(np.float64)},
        tolerance=tolerance,
        traits={"kind": kind, "mode": mode},
    )


FAMILIES: dict[Callable[[np.random.Generator, Path], Case], float] = {
    dicom_image: 0.3, dicom_color: 0.07, dicom_series: 0.22, enhanced: 0.05, nifti: 0.16, tiff: 0.13, picture: 0.07,
}  # fmt: skip


# --- comparison


def _counters() -> dict[str, Counter[str]]:
    return defaultdict(Counter)


@dataclass
class Outcome:
    """Counts of all cases.

    Attributes:
        counts: (family, result) -> number of cases.
        reasons: refusals by family and reason, without numbers.
        reader: differences of the independent reader by family and traits.
        silent: seed and traits of each silent difference.
        files: number of files.
        last: the last seed.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    reader: dict[str, Counter[str]] = field(default_factory=_counters)
    silent: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    files: int = 0
    last: int = 0


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float) -> bool:
    """Whether two answers agree in shape and, up to the tolerance, in every number."""
    return all(
        one[name].shape == other[name].shape and float(np.abs(one[name] - other[name]).max()) <= tolerance
        for name in one
    )


def isolated(read: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Answer of `read` in a forked process, because GDCM aborts on some legal files.

    Raises:
        EOFError: if it raises or ends the process.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(sender, "wb") as pipe:
                np.savez(pipe, **read())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    if not content:
        raise EOFError
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def run_case(seed: int, outcome: Outcome) -> None:
    """Draw the case of a seed, read it twice and count the result."""
    rng = np.random.default_rng(seed)
    draws, weights = list(FAMILIES), np.array(list(FAMILIES.values()))
    draw = draws[int(rng.choice(len(draws), p=weights / weights.sum()))]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = draw(rng, Path(folder))
        outcome.files += case.files
        try:
            ours = case.read()
        except ImagingError as error:
            reason = re.sub(r"[-\d.,]*\d[\d.,]*", "N", str(error).replace(folder, "").split(": ", 1)[-1])[:110]
            outcome.counts[case.family, "refused"] += 1
            outcome.reasons[case.family, reason] += 1
            return
        try:
            theirs = isolated(case.independent) if case.independent is not None else None
        except (EOFError, ValueError, OSError):  # the independent reader does not read every legal file
            outcome.counts[case.family, "reader refused"] += 1
            theirs = None
    if not same(case.truth, ours, case.tolerance):
        outcome.counts[case.family, "silent difference"] += 1
        outcome.silent.append((seed, case.family, case.traits))
    elif theirs is None or same(theirs, ours, case.tolerance):
        outcome.counts[case.family, "equal"] += 1
    else:
        outcome.counts[case.family, "reader differs"] += 1
        outcome.reader[case.family][str(case.traits)] += 1


def run(files: int, seed: int, step: int = 1) -> Outcome:
    """Draw cases from seeds `seed`, `seed + step` ... until enough files were read."""
    outcome = Outcome()
    while outcome.files < files:
        run_case(seed, outcome)
        outcome.last = seed
        seed += step
    return outcome


def run_parallel(files: int, seed: int, jobs: int) -> Outcome:
    """Divide the work among processes and add up their counts."""
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        parts = pool.starmap(run, [(files // jobs + 1, seed + job, jobs) for job in range(jobs)])
    total = Outcome()
    for part in parts:
        total.counts += part.counts
        total.reasons += part.reasons
        for family, kinds in part.reader.items():
            total.reader[family] += kinds
        total.silent += part.silent
        total.files += part.files
        total.last = max(total.last, part.last)
    return total


def table(outcome: Outcome, first_seed: int, seconds: float) -> str:
    """The result as Markdown."""
    results = ("equal", "refused", "reader refused", "reader differs", "silent difference")
    families = sorted({family for family, _ in outcome.counts})
    cases = sum(n for (_, result), n in outcome.counts.items() if result != "reader refused")
    lines = [
        f"# Differential reading, {date.today()}", "",
        f"`PYTHONPATH=src:tests python tests/imaging/differential.py --files N --seed {first_seed}`: "
        f"{outcome.files} files in {cases} cases, seeds {first_seed} to {outcome.last}, {seconds:.0f} s. "
        f"Python {platform.python_version()}, {versions()}.", "",
        "*Equal* counts cases in which medmvl reads what was written, and so does the independent reader unless it refuses "
        "the file (*reader refused*, counted among the equal ones). *Reader differs*: medmvl reads what was written, the "
        "independent reader does not.", "",
        "| family | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|",
    ]  # fmt: skip
    for family in families:
        lines.append(f"| {family} | " + " | ".join(str(outcome.counts[family, result]) for result in results) + " |")
    lines += ["", "Refusals:", "", "| family | reason | cases |", "|---|---|---|"]
    lines += [f"| {family} | {why} | {n} |" for (family, why), n in outcome.reasons.most_common()]
    lines += ["", "Where the independent reader differs from what was written (first ten kinds per family):", ""]
    for family, kinds in outcome.reader.items():
        lines += [f"- {family}: {kind} ({n})" for kind, n in kinds.most_common(10)]
    return "\n".join(lines) + "\n"


def versions() -> str:
    """Versions of the readers."""
    import pydicom
    import SimpleITK
    import tifffile

    return (
        f"numpy {np.__version__}, pydicom {pydicom.__version__}, SimpleITK {SimpleITK.Version_VersionString()}, nibabel "
        f"{nib.__version__}, tifffile {tifffile.__version__}, Pillow {PIL.__version__}"
    )


def main() -> int:
    """Run and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--families", help="comma-separated names of drawing functions, such as tiff,picture; default: all"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.families:
        wanted = arguments.families.split(",")
        for draw in [draw for draw in FAMILIES if draw.__name__ not in wanted]:
            del FAMILIES[draw]
    start = time.perf_counter()
    outcome = run_parallel(arguments.files, arguments.seed, arguments.jobs)
    text = table(outcome, arguments.seed, time.perf_counter() - start)
    sys.stdout.write(text)
    for found in outcome.silent:
        sys.stdout.write(f"SILENT {found}\n")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return 1 if outcome.silent else 0


if __name__ == "__main__":
    raise SystemExit(main())
