"""Which files of a folder belong to the series: by SOP class and content; every unused file is named."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from imaging.dicom_writing import SERIES, random_hu, slice_dataset, write_series
from medmvl.errors import ImagingError
from medmvl.imaging import list_series, read_image, read_volume

SEGMENTATION, PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.30"


def add(folder: Path, name: str, position: tuple[float, float, float], **changes: Any) -> Path:
    """Write one more slice of 10x12 stored values into a folder."""
    path = folder / name
    sop = changes.pop("SOPClassUID", None)
    dataset = slice_dataset(np.full((10, 12), 24, dtype=np.uint16), position, **changes)
    if sop:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "page"])
@pytest.mark.parametrize("name", ["0005.dcm", "IM0005"])
def test_damaged_end_slice_is_refused_by_name(damage: str, name: str, tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), shuffle=False)
    if name == "IM0005":
        for index, path in enumerate(sorted(tmp_path.iterdir())):
            path.rename(tmp_path / f"IM{index:04d}")
    path = tmp_path / name
    size = path.stat().st_size
    content = {"empty": b"", "cut": b"\0" * 100, "zeros": b"\0" * size, "page": b"<html>404</html>"}[damage]
    path.write_bytes(content)
    with pytest.raises(ImagingError, match=rf"{path.name} .*may belong to the series"):
        read_volume(tmp_path)


def test_other_files_beside_the_slices_do_no_harm(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    for name in ("notes.txt", "LICENSE", "report.pdf", "empty.log", "._0001.dcm"):
        (tmp_path / name).write_text("" if "empty" in name else "hello")
    directory = get_testdata_file("DICOMDIR")
    (tmp_path / "DICOMDIR").write_bytes(Path(str(directory)).read_bytes())
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    said = " ".join(volume.history)
    for name in ("notes.txt", "LICENSE", "report.pdf", "empty.log", "DICOMDIR"):
        assert name in said, name


@pytest.mark.parametrize(
    ("sop", "modality", "what"), [(SEGMENTATION, "SEG", "segmentations"), (PARAMETRIC_MAP, "MR", "parametric maps")]
)
def test_derived_objects_are_no_scans(sop: str, modality: str, what: str, tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    for index in range(9):
        add(
            tmp_path,
            f"seg{index}.dcm",
            (0, 0, 3.0 * index),
            SOPClassUID=sop,
            Modality=modality,
            SeriesInstanceUID="1.2.9",
        )
    for series in (None, "largest", "axial"):
        np.testing.assert_array_equal(read_volume(tmp_path, series=series).array, hu)
    assert len(list_series(tmp_path)) == 1
    assert any(what in step and "seg0.dcm" in step for step in read_volume(tmp_path).history)


def test_end_slice_with_another_uid_is_refused(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, shuffle=False)
    path = add(tmp_path, "sent-again.dcm", (-10.0, -20.0, 17.0), SeriesInstanceUID="1.2.77")
    with pytest.raises(ImagingError, match=r"continues the volume.*sent-again\.dcm.*series="):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, series=SERIES)
    np.testing.assert_array_equal(volume.array, hu)
    assert any(path.name in warning for warning in volume.warnings)


def test_single_slice_elsewhere_is_left_out_by_name(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    add(tmp_path, "tracker.dcm", (-10.0, -20.0, 9.0), SeriesInstanceUID="1.2.77")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("tracker.dcm" in warning for warning in volume.warnings)


def test_slice_of_the_series_without_position_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu())
    add(tmp_path, "lost.dcm", (0, 0, 0), ImagePositionPatient=None)
    with pytest.raises(ImagingError, match=r"lost\.dcm belongs to the series but has no position"):
        read_volume(tmp_path)


def test_pipes_and_broken_links_are_named(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.dcm").symlink_to(tmp_path / "loop.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    said = " ".join(volume.history)
    assert all(name in said for name in ("pipe.dcm", "gone.dcm", "loop.dcm"))


@pytest.mark.parametrize("kind", ["pipe", "loop", "broken", "long", "nul", "device"])
def test_non_files_are_refused_unopened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "broken":
        path.symlink_to(tmp_path / "nowhere")
    path = {"long": tmp_path / ("x" * 300), "nul": Path("a\0b"), "device": Path("/dev/zero")}.get(kind, path)
    for read in (read_image, read_volume):
        with pytest.raises(ImagingError):
            read(path)


def test_constant_slices_are_reported(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), shuffle=False)
    dataset = slice_dataset(np.zeros((10, 12), dtype=np.uint16), (-10.0, -20.0, 15.0))
    dataset.save_as(tmp_path / "0005.dcm", enforce_file_format=True)
    assert any("0005.dcm" in warning and "single value" in warning for warning in read_volume(tmp_path).warnings)


def test_slices_of_several_frames_of_reference_give_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), FrameOfReferenceUID="1.2.3")
    assert not any("frames of reference" in warning for warning in read_volume(tmp_path).warnings)
    file = next(tmp_path.iterdir())
    data = pydicom.dcmread(file)
    data.FrameOfReferenceUID = "1.2.4"
    data.save_as(file)
    assert any("2 frames of reference" in warning for warning in read_volume(tmp_path).warnings)


def test_slice_with_empty_pixels_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), shuffle=False)
    data = pydicom.dcmread(tmp_path / "0002.dcm")
    data.PixelData = b""
    data.save_as(tmp_path / "0002.dcm")
    with pytest.raises(ImagingError, match=r"0002\.dcm is a DICOM file without pixels"):
        read_volume(tmp_path)


@pytest.mark.parametrize("kind", ["class", "screen save", "multi-frame class"])
@pytest.mark.parametrize("uid", [SERIES, "1.2.77"])
def test_secondary_capture_with_geometry_is_no_slice(kind: str, uid: str, tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    sop = {"class": SecondaryCaptureImageStorage, "multi-frame class": "1.2.840.10008.5.1.4.1.1.7.3"}.get(kind)
    types = ["DERIVED", "SECONDARY", "SCREEN SAVE"] if sop is None else ["ORIGINAL", "PRIMARY", "AXIAL"]
    for z in (3.0, 17.0):
        add(tmp_path, f"at{z}.dcm", (-10.0, -20.0, z), SOPClassUID=sop, ImageType=types, SeriesInstanceUID=uid)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("at17.0.dcm" in line for line in (*volume.history, *volume.warnings))


def test_series_of_captures_alone_is_read_with_a_warning(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, SOPClassUID=SecondaryCaptureImageStorage)
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        dataset.save_as(file)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("secondary captures" in warning for warning in volume.warnings)


def test_class_in_the_data_set_counts_as_well_as_in_the_meta_group(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    mask = slice_dataset(np.ones((10, 12), np.uint16), (-10.0, -20.0, 17.0), SOPClassUID=SEGMENTATION)
    mask.save_as(tmp_path / "mask.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


@pytest.mark.parametrize("name", ["0005.dcm.part", "0005.DCM.gz", "0005.dcm.crdownload"])
def test_download_that_did_not_finish_is_refused_by_name(name: str, tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, shuffle=False)
    (tmp_path / "0004.dcm.tmp").write_bytes(b"")  # beside the whole file: harmless
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)
    content = (tmp_path / "0005.dcm").read_bytes()
    (tmp_path / "0005.dcm").unlink()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content[:100])
    with pytest.raises(ImagingError, match=rf"{name} .*may belong to the series"):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["{0}.scan", "IM_{0}"])
def test_empty_file_named_like_the_slices_is_refused(name: str, tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), shuffle=False)
    for letter, path in zip("abcdef", sorted(tmp_path.iterdir()), strict=True):
        path.rename(tmp_path / name.format(letter))
    (tmp_path / name.format("f")).write_bytes(b"")
    with pytest.raises(ImagingError, match=r"f(\.scan)? is empty, and it may belong"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"PixelSpacing": [0.9, 0.7]}, {"Rows": 5}, {"Rows": 0, "SOPClassUID": CTImageStorage}]
)
def test_end_slice_with_another_matrix_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    add(tmp_path, "odd.dcm", (-10.0, -20.0, 17.0), **changes)
    with pytest.raises(ImagingError, match=r"odd\.dcm (continues the volume|cannot be used: it has no Rows)"):
        read_volume(tmp_path)
    if changes.get("Rows") != 0:
        volume = read_volume(tmp_path, series="largest")  # as the message advises
        np.testing.assert_array_equal(volume.array, hu)
        assert any("odd.dcm" in warning for warning in volume.warnings)
