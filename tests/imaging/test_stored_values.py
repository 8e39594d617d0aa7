"""Stored DICOM values: unused bits, rescale, padding, signs and doubtful Hounsfield units."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from imaging.dicom_writing import random_hu, slice_dataset, write_series
from medmvl.errors import ImagingError
from medmvl.imaging import read_image, read_volume
from medmvl.imaging.units import UnitsError

BODY = (slice(2, 6), slice(2, 6))


def scan(dtype: type = np.uint16, air: int = 24, tissue: int = 1064) -> np.ndarray:
    """Stored values (8, 9) of a square body in air: -1000 and 40 HU with an intercept of -1024."""
    stored = np.full((8, 9), air, dtype=dtype)
    stored[BODY] = tissue
    return stored


def write(folder: Path, stored: np.ndarray, count: int = 4, **changes: Any) -> Path:
    """Write `count` equal slices."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        slice_of(folder, index, stored, **changes)
    return folder


def slice_of(folder: Path, index: int, stored: np.ndarray, **changes: Any) -> Path:
    """Write one slice at 2 mm * index."""
    path = folder / f"{index}.dcm"
    slice_dataset(stored, (0.0, 0.0, 2.0 * index), **changes).save_as(path, enforce_file_format=True)
    return path


def compressed(dataset: FileDataset, stream: bytes, syntax: str) -> FileDataset:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return dataset


def jpeg2000(stored: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(stored).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


# --- unused bits


@pytest.mark.parametrize("as_jpeg2000", [False, True])
def test_bits_above_the_stored_ones_are_ignored(as_jpeg2000: bool, tmp_path: Path) -> None:
    stored = scan()
    stored[0] |= 0x1000  # an overlay plane in bit 12
    for index in range(4):
        dataset = slice_dataset(stored, (0.0, 0.0, 2.0 * index), BitsStored=12, HighBit=11)
        if as_jpeg2000:
            compressed(dataset, jpeg2000(stored), JPEG2000Lossless)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume, image = read_volume(tmp_path), read_image(tmp_path / "0.dcm")
    assert np.unique(volume.array).tolist() == np.unique(image.array).tolist() == [-1000, 40]
    assert any("bits beyond BitsStored ignored in 4 slices" in step for step in volume.history)


def test_signed_values_are_extended_from_the_high_bit(tmp_path: Path) -> None:
    hu = scan(np.int16, -1000, 40)
    words = (hu.astype(np.int32) & 0xFFF).astype(np.uint16)  # 12-bit two's complement without sign extension
    write(tmp_path, words, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0)
    assert np.unique(read_volume(tmp_path).array).tolist() == [-1000, 40]
    assert np.unique(read_image(tmp_path / "0.dcm").array).tolist() == [-1000, 40]


def test_high_bit_shifts_the_value(tmp_path: Path) -> None:
    write(tmp_path, scan() << 4, BitsStored=12, HighBit=15)
    assert np.unique(read_volume(tmp_path).array).tolist() == [-1000, 40]
    assert np.unique(read_image(tmp_path / "0.dcm").array).tolist() == [-1000, 40]


@pytest.mark.parametrize("changes", [{"BitsStored": 17}, {"HighBit": 16}, {"HighBit": 5}, {"PixelRepresentation": 2}])
def test_contradictory_pixel_format_is_refused(changes: dict[str, int], tmp_path: Path) -> None:
    write(tmp_path, scan(), **changes)
    with pytest.raises(ImagingError, match=r"0\.dcm cannot be used"):
        read_volume(tmp_path)
    with pytest.raises(ImagingError, match=r"0\.dcm"):
        read_image(tmp_path / "0.dcm")


# --- rescale


@pytest.mark.parametrize("odd", [0, 2, 3])
@pytest.mark.parametrize(
    ("keyword", "raw", "words"),
    [
        ("RescaleIntercept", b"-1024,0 ", "RescaleIntercept is not a number"),
        ("RescaleSlope", b"1\\2 ", "RescaleSlope has 2 values"),
        ("RescaleSlope", None, "RescaleIntercept without RescaleSlope"),
        ("RescaleIntercept", None, "RescaleSlope without RescaleIntercept"),
    ],
)
def test_malformed_rescale_of_any_slice_is_refused(
    keyword: str, raw: bytes | None, words: str, odd: int, tmp_path: Path
) -> None:
    write(tmp_path, scan())
    dataset = slice_dataset(scan(), (0.0, 0.0, 2.0 * odd))
    del dataset[keyword]
    if raw is not None:
        dataset.add(RawDataElement(Tag(keyword), "DS", len(raw), raw, 0, False, True))
    path = tmp_path / f"{odd}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(ImagingError, match=rf"{odd}\.dcm cannot be used: .*{words}"):
        read_volume(tmp_path)
    with pytest.raises(ImagingError, match=words):
        read_image(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "whether a rescale is stated"),
        ({"Modality": "MR"}, "modality"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "photometric interpretation"),
        ({"RescaleType": "US"}, "rescale type"),
    ],
)
def test_slice_that_differs_from_its_series_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path, scan())
    slice_of(tmp_path, 3, scan(), **changes)
    with pytest.raises(ImagingError, match=rf"3\.dcm differs from the other slices of its series in: .*{words}"):
        read_volume(tmp_path)


# --- Hounsfield units


@pytest.mark.parametrize("bits", [12, 16])
def test_twos_complement_labeled_unsigned_is_not_believed(bits: int, tmp_path: Path) -> None:
    hu = scan(np.int16, -1000, 40)
    words = (hu.astype(np.int32) & ((1 << bits) - 1)).astype(np.uint16)
    write(tmp_path, words, BitsStored=bits, HighBit=bits - 1, RescaleIntercept=0)
    with pytest.raises(UnitsError, match="declared as Hounsfield units.*units='HU'"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, units="arbitrary").units == "arbitrary"
    image = read_image(tmp_path / "0.dcm")
    assert image.units == "arbitrary"
    assert image.warnings


def test_ct_without_air_is_read_with_a_warning(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, scan(air=1000)))
    assert volume.units == "HU"
    assert any("no air" in warning for warning in volume.warnings)


# --- padding


def test_padding_value_of_the_other_sign_is_understood(tmp_path: Path) -> None:
    stored = scan(np.int16)
    stored[0] = -2000
    for index in range(4):
        dataset = slice_dataset(stored, (0.0, 0.0, 2.0 * index))
        dataset.add_new(0x00280120, "US", 63536)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert np.unique(volume.array).tolist() == [-1024, -1000, 40]
    assert any("in 36 voxels" in step for step in volume.history)
    np.testing.assert_array_equal(read_image(tmp_path / "0.dcm").array, volume.array[0])


def test_padding_beyond_bits_stored_is_recognized(tmp_path: Path) -> None:
    stored = scan()
    stored[0] = 0xF830
    stored[7] = 0x0830  # a value that equals the padding's low 12 bits
    write(tmp_path, stored, BitsStored=12, HighBit=11, PixelPaddingValue=0xF830)
    volume = read_volume(tmp_path)
    assert np.unique(volume.array[:, 0]).tolist() == [-1024]
    assert np.unique(volume.array[:, 7]).tolist() == [0x0830 - 1024]


def test_history_reports_only_padding_that_occurs(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, scan(), PixelPaddingValue=3000))
    assert not any("padding" in step for step in volume.history)


@pytest.mark.parametrize(("photometric", "padding"), [("MONOCHROME1", 65535), ("MONOCHROME2", 0)])
def test_padding_takes_no_part_in_the_contrast(photometric: str, padding: int, tmp_path: Path) -> None:
    stored = np.full((32, 32), padding, np.uint16)
    stored[:, 20:] = np.random.default_rng(0).integers(1000, 2000, (32, 12))
    path = slice_of(
        tmp_path, 0, stored, Modality="MG", RescaleSlope=None, RescaleIntercept=None, PixelPaddingValue=padding,
        PhotometricInterpretation=photometric,
    )  # fmt: skip
    gray = read_image(path).to_uint8()
    assert (int(gray[:, 20:].min()), int(gray[:, 20:].max())) == (0, 255)
    assert gray[:, :20].max() == 0


# --- colors of JPEG streams


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("marker", [True, False])
@pytest.mark.parametrize("label", ["RGB", "YBR_FULL_422"])
def test_jpeg_color_follows_the_stream(label: str, marker: bool, subsampling: int, tmp_path: Path) -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, :32], rgb[:, 32:] = (200, 30, 30), (30, 30, 200)
    stream = io.BytesIO()
    PIL.Image.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling=subsampling)
    content = stream.getvalue()
    if not marker:
        at = content.find(b"\xff\xe0")
        content = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]
    dataset = slice_dataset(
        np.zeros((64, 64), np.uint8), (0, 0, 0), Modality="US", SamplesPerPixel=3, PlanarConfiguration=0,
        PhotometricInterpretation=label, BitsAllocated=8, BitsStored=8, HighBit=7, RescaleSlope=None,
        RescaleIntercept=None,
    )  # fmt: skip
    compressed(dataset, content, JPEGBaseline8Bit).save_as(tmp_path / "j.dcm", enforce_file_format=True)
    seen = read_image(tmp_path / "j.dcm").to_uint8().astype(int)
    expected = np.asarray(PIL.Image.open(io.BytesIO(stream.getvalue()))).astype(int)
    assert np.abs(seen - expected)[:, :28].max() < 8


@pytest.mark.parametrize(
    ("kind", "units"), [("OD", "arbitrary"), ("Z_EFF", "arbitrary"), ("HU_MOD", "HU"), ("US", "HU")]
)
def test_stated_rescale_type_decides_the_units_of_a_volume(tmp_path: Path, kind: str, units: str) -> None:
    volume = read_volume(write(tmp_path / "s", scan(), RescaleType=kind))
    assert volume.units == units
    assert volume.array.min() == -1000


def test_one_slice_of_another_rescale_type_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", scan(), RescaleType="US")
    slice_of(tmp_path / "s", 2, scan(), RescaleType="OD")
    with pytest.raises(ImagingError, match="rescale type"):
        read_volume(tmp_path / "s")


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"])
def test_colors_of_jpeg_pixels_are_refused_for_uncompressed_ones(tmp_path: Path, photometric: str) -> None:
    data = slice_dataset(
        np.zeros((8, 8), np.uint8), (0, 0, 0), SamplesPerPixel=3, PhotometricInterpretation=photometric,
        PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7, Modality="US", RescaleSlope=None,
        RescaleIntercept=None, PixelData=bytes([200, 30, 60]) * 64,
    )  # fmt: skip
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="JPEG pixels only"):
        read_image(tmp_path / "a.dcm")
    data.PhotometricInterpretation = "YBR_FULL"
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    red = 200 + 1.402 * (60 - 128)  # PS3.3 C.7.6.3.1.2
    assert abs(int(read_image(tmp_path / "b.dcm").array[0, 0, 0]) - red) <= 1


@pytest.mark.parametrize("where", ["all", "one"])
def test_modality_table_is_refused_for_volumes_and_applied_to_images(tmp_path: Path, where: str) -> None:
    plain = {"RescaleSlope": None, "RescaleIntercept": None}
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [2048, 0, 16], "US"
    table.LUTData = (np.arange(2048) * 2).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    write(tmp_path / "s", scan(), **(plain | {"ModalityLUTSequence": [table]} if where == "all" else {}))
    path = slice_of(tmp_path / "s", 1, scan(), **plain, ModalityLUTSequence=[table])
    with pytest.raises(
        ImagingError, match="modality lookup table" if where == "all" else "differs from the other slices"
    ):
        read_volume(tmp_path / "s")
    assert np.array_equal(read_image(path).array, scan().astype(np.int64) * 2)


@pytest.mark.parametrize("surplus", [b"", b"\0\0", b"\0" * 14])
def test_few_bytes_after_the_pixels_are_padding(tmp_path, surplus):
    stored = scan()
    folder = write(tmp_path / "s", stored, PixelData=stored.tobytes() + surplus)
    image, volume = read_image(folder / "0.dcm"), read_volume(folder)
    np.testing.assert_array_equal(image.array, stored.astype(np.int16) - 1024)
    np.testing.assert_array_equal(volume.array[0], image.array)
    for warnings in (image.warnings, volume.warnings):
        assert any("bytes after the pixels ignored" in warning for warning in warnings) == (len(surplus) > 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelData": scan().tobytes() * 2},
        {"Rows": 7, "PixelData": scan().tobytes()},
        {"Columns": 8, "PixelData": scan().tobytes()},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": scan().tobytes()},
        {"NumberOfFrames": 2, "PixelData": scan().tobytes() * 3},
    ],
)
def test_more_pixels_than_the_header_states_are_refused(tmp_path, changes):
    folder = write(tmp_path / "s", scan(), **changes)
    with pytest.raises(ImagingError, match="but Rows, Columns, SamplesPerPixel, BitsAllocated and NumberOfFrames make"):
        read_image(folder / "0.dcm", frame=0)
    if "NumberOfFrames" not in changes:
        with pytest.raises(ImagingError, match="NumberOfFrames make"):
            read_volume(folder)


def test_more_compressed_images_than_frames_are_refused(tmp_path):
    stored = scan()
    dataset = compressed(slice_dataset(stored, (0, 0, 0)), jpeg2000(stored), JPEG2000Lossless)
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert read_image(tmp_path / "one.dcm").array.shape == (8, 9)
    dataset.PixelData = encapsulate([jpeg2000(stored), jpeg2000(stored)])
    dataset.save_as(tmp_path / "two.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="hold 2 compressed images, but NumberOfFrames states 1"):
        read_image(tmp_path / "two.dcm")
    dataset.PixelData = encapsulate([jpeg2000(stored)], fragments_per_frame=2)
    dataset.save_as(tmp_path / "parts.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "parts.dcm").array, read_image(tmp_path / "one.dcm").array)


def test_negative_slope_is_read_with_a_warning(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, RescaleSlope=-1, RescaleIntercept=1000)
    for read in (read_volume(tmp_path), read_image(tmp_path / "0000.dcm")):
        assert any("slope is negative" in warning for warning in read.warnings)
    np.testing.assert_array_equal(read_volume(tmp_path).array, 1000 - (hu.astype(np.int32) + 1024))


def test_image_of_a_ct_without_rescale_or_air_has_a_warning(tmp_path: Path) -> None:
    stored = np.full((10, 12), 60, np.uint16)
    slice_dataset(stored, (0, 0, 0), RescaleSlope=None, RescaleIntercept=None).save_as(
        tmp_path / "a.dcm", enforce_file_format=True
    )
    slice_dataset(stored, (0, 0, 0), RescaleIntercept=0).save_as(tmp_path / "b.dcm", enforce_file_format=True)
    for name, words in (("a.dcm", "without a rescale"), ("b.dcm", "no air")):
        assert any(words in warning for warning in read_image(tmp_path / name).warnings)


def test_inverted_values_of_a_volume_have_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), Modality="MR", PhotometricInterpretation="MONOCHROME1")
    assert any("MONOCHROME1" in warning for warning in read_volume(tmp_path).warnings)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless, RLELossless])
def test_history_reports_only_bits_that_were_ignored(syntax: str, tmp_path: Path) -> None:
    """Signed values of 12 bits may leave the upper four bits zero (PS3.5 8.1.1)."""
    hu = np.clip(random_hu((4, 10, 12)), -1024, 1023)
    for index, plane in enumerate(hu):
        words = plane & 0xFFF
        stated = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": 0}
        dataset = slice_dataset(words, (0, 0, 2.0 * index), **stated)
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume, image = read_volume(tmp_path), read_image(tmp_path / "2.dcm")
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_array_equal(image.array, hu[2])
    assert not any("BitsStored" in line for line in (*volume.history, *image.history))


def test_ct_whose_slices_state_different_rescales_has_a_warning(tmp_path: Path) -> None:
    write(tmp_path, scan())
    slice_of(tmp_path, 3, scan(), RescaleIntercept=0)
    assert any("different rescales" in warning for warning in read_volume(tmp_path).warnings)
