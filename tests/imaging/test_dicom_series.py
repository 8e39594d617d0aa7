"""Series folders: order, rescale, duplicates, gaps, several series, tilt and unused files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, generate_uid

from imaging.dicom_writing import SERIES, random_hu, slice_dataset, write_series
from medmvl.errors import ImagingError
from medmvl.imaging import list_series, read_volume


def test_slices_are_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    hu = random_hu()
    volume = read_volume(write_series(tmp_path, hu))
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.array.dtype == np.int16
    assert volume.units == "HU"
    assert volume.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert "Secret" not in repr(volume)
    assert str(tmp_path) not in repr(volume)


def test_unsigned_values_do_not_wrap(tmp_path: Path) -> None:
    """uint16 with a negative intercept wraps under numpy 2 unless it is widened first."""
    hu = np.full((3, 4, 5), -1024, dtype=np.int16)  # stored as 0
    assert read_volume(write_series(tmp_path, hu)).array.max() == -1024


def test_values_that_do_not_fit_int16_become_float(tmp_path: Path) -> None:
    for index in range(3):
        stored = np.full((4, 5), 65535, dtype=np.uint16)
        slice_dataset(stored, (0, 0, 2.0 * index)).save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path, units="HU")
    assert volume.array.dtype == np.float32
    assert volume.array.max() == 65535 - 1024


def test_slope_of_each_slice_is_its_own(tmp_path: Path) -> None:
    for index in range(3):
        stored = np.full((4, 5), 100, dtype=np.uint16)
        dataset = slice_dataset(stored, (0, 0, 2.0 * index), RescaleSlope=0.5 + index, RescaleIntercept=-20)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    assert read_volume(tmp_path).array[:, 0, 0].tolist() == [30.0, 130.0, 230.0]


def test_compressed_slices(tmp_path: Path) -> None:
    hu = random_hu()
    for path in write_series(tmp_path, hu).iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_padding_becomes_air(tmp_path: Path) -> None:
    hu = random_hu()
    hu[:, 0, 0] = 976  # stored as 2000
    volume = read_volume(write_series(tmp_path, hu, PixelPaddingValue=2000))
    assert (volume.array[:, 0, 0] == -1024).all()
    assert any("padding" in step for step in volume.history)


def test_missing_slices_are_refused_or_filled(tmp_path: Path) -> None:
    hu = np.arange(8, dtype=np.int16)[:, None, None] * 100 * np.ones((8, 4, 5), dtype=np.int16) - 1000
    write_series(tmp_path, hu, shuffle=False)
    (tmp_path / "0003.dcm").unlink()
    (tmp_path / "0004.dcm").unlink()
    between = r"between \S*/0002\.dcm \S*.*and \S*/0005\.dcm"
    with pytest.raises(ImagingError, match=rf"2 slices are missing.*6 mm {between}.*9\.00 -> 15\.00"):
        read_volume(tmp_path)
    filled = read_volume(tmp_path, gaps="fill")
    np.testing.assert_array_equal(filled.array, hu)  # linear values: interpolation restores them
    assert "between 0002.dcm" in filled.warnings[0]  # no whole path: warnings are stored
    kept = read_volume(tmp_path, gaps="keep")
    assert kept.shape == (6, 4, 5)
    with pytest.raises(ImagingError, match="gaps="):
        read_volume(tmp_path, gaps="ignore")  # type: ignore[arg-type]


def test_one_missing_slice_is_named_by_the_instances_around_it(tmp_path: Path) -> None:
    for index in (0, 1, 2, 4):
        stored = np.zeros((4, 5), dtype=np.uint16)
        dataset = slice_dataset(stored, (0, 0, 2.0 * index), InstanceNumber=9 - index)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="1 slice is missing") as caught:
        read_volume(tmp_path)
    assert f"4 mm between {tmp_path}/2.dcm (instance 7) and {tmp_path}/4.dcm (instance 5)" in str(caught.value)
    assert "(s)" not in str(caught.value)


def test_irregular_spacing_is_refused(tmp_path: Path) -> None:
    for index, z in enumerate((0.0, 2.0, 4.0, 5.3, 7.3, 9.3)):
        stored = np.zeros((4, 5), dtype=np.uint16)
        slice_dataset(stored, (0, 0, z)).save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="not evenly spaced"):
        read_volume(tmp_path)


def test_copy_is_dropped_but_second_scan_refused(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, shuffle=False)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "0002.dcm").read_bytes())
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("1 duplicate" in step for step in volume.history)
    other = slice_dataset(np.full((10, 12), 7, dtype=np.uint16), (-10.0, -20.0, 9.0))
    other.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="two different slices at position 9.00 mm"):
        read_volume(tmp_path)


def test_several_series_are_listed_and_chosen(tmp_path: Path) -> None:
    small, large = random_hu((3, 10, 12), 1), random_hu((6, 10, 12), 2)
    write_series(tmp_path / "a", small, SeriesInstanceUID=f"{SERIES}.1", SliceThickness=1.0)
    write_series(tmp_path / "b", large, SeriesInstanceUID=f"{SERIES}.2", SliceThickness=5.0)
    with pytest.raises(ImagingError, match=r"several series.*6 slices.*3 slices.*series='largest'|'largest'"):
        read_volume(tmp_path)
    for wanted, expected in (("largest", large), ("thinnest", small), (f"{SERIES}.1", small), ("498.1.2", large)):
        np.testing.assert_array_equal(read_volume(tmp_path, series=wanted).array, expected)
    with pytest.raises(ImagingError, match="0 series that match"):
        read_volume(tmp_path, series="9.9.9")
    assert [len(series.slices) for series in list_series(tmp_path)] == [6, 3]


def test_two_acquisitions_in_one_series_are_told_apart(tmp_path: Path) -> None:
    first, second = random_hu(seed=1), random_hu(seed=2)
    write_series(tmp_path / "a", first, AcquisitionNumber=1)
    write_series(tmp_path / "b", second, AcquisitionNumber=2)
    with pytest.raises(ImagingError, match="several series"):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, series="#2").array, second)


def test_mixed_orientations_need_a_choice(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path / "a", hu)
    for index in range(3):
        dataset = slice_dataset(
            np.zeros((10, 12), dtype=np.uint16), (0.0, 2.0 * index, 0.0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
        )
        dataset.save_as(tmp_path / f"coronal{index}.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="mixed orientations"):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, series="axial").array, hu)


def test_localizers_reports_and_foreign_files_are_counted(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    scout = slice_dataset(
        np.zeros((10, 12), dtype=np.uint16), (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    scout.save_as(tmp_path / "scout.dcm", enforce_file_format=True)
    report = slice_dataset(
        np.zeros((1, 1), dtype=np.uint16), (0, 0, 0), Modality="SR", Rows=None, Columns=None, PixelData=None
    )
    report.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
    (tmp_path / "notes.txt").write_text("hello")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert sum("left out: 1" in step for step in volume.history) == 3


def test_gantry_tilt_is_reported(tmp_path: Path) -> None:
    tilt = np.radians(15.0)
    cosines = [1, 0, 0, 0, float(np.cos(tilt)), float(np.sin(tilt))]
    for index in range(4):
        dataset = slice_dataset(np.zeros((4, 5), dtype=np.uint16), (0, 0, 2.0 * index), ImageOrientationPatient=cosines)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert any("gantry tilt of 15.0 degrees" in warning for warning in volume.warnings)


def test_bad_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(ImagingError, match="no DICOM slices"):
        read_volume(tmp_path)
    single = slice_dataset(np.zeros((4, 5), dtype=np.uint16), (0, 0, 0))
    single.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="single slice"):
        read_volume(tmp_path)
    write_series(tmp_path / "unplaced", random_hu(), ImagePositionPatient=None)
    with pytest.raises(ImagingError, match=r"without position or orientation.*one by one, as images"):
        read_volume(tmp_path / "unplaced", spacing=(2.0, 0.8, 0.7))


def test_truncated_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), shuffle=False)
    path = tmp_path / "0002.dcm"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ImagingError, match=r"0002\.dcm"):
        read_volume(tmp_path)


@pytest.mark.parametrize(("mm", "message"), [(0.0, "no usable PixelSpacing"), (500.0, "cannot be right")])
def test_absurd_spacing_is_refused(mm: float, message: str, tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), PixelSpacing=[mm, mm])
    with pytest.raises(ImagingError, match=message):
        read_volume(tmp_path)
    assert read_volume(tmp_path, spacing=(2.0, 1.0, 1.0)).spacing == pytest.approx((2.0, 1.0, 1.0))


@pytest.mark.parametrize("stated", [None, [], [0.8], ["a", "b"]])
def test_slices_without_pixel_spacing_take_a_declared_one(stated: list[float] | None, tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path / "a", hu)
    write_series(tmp_path / "b", hu, PixelSpacing=None if stated is None or "a" in stated else stated)
    if stated == ["a", "b"]:
        for file in (tmp_path / "b").iterdir():
            data = pydicom.dcmread(file)
            data["PixelSpacing"] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag("PixelSpacing"), "DS", 4, b"0,8\\0,7 ", 0, False, True
            )
            data.save_as(file)
    with pytest.raises(ImagingError, match=r"no usable PixelSpacing.*spacing=\(2, y, x\)"):
        read_volume(tmp_path / "b")
    told = read_volume(tmp_path / "b", spacing=(2.0, 0.8, 0.7))
    np.testing.assert_array_equal(told.array, hu)
    np.testing.assert_allclose(told.affine, read_volume(tmp_path / "a").affine)
    assert any("as declared" in step for step in told.history)


@pytest.mark.parametrize(
    ("cosines", "steps", "mm"),
    [((0, 1, 0, 0, 0, -1), (3, 0, 0), (0.8, 0.7, 3.0)), ((1, 0, 0, 0, 0, -1), (0, 3, 0), (0.8, 3.0, 0.7))],
)
def test_declared_spacing_of_other_planes_is_that_of_the_patient(cosines, steps, mm, tmp_path: Path) -> None:
    for index, stored in enumerate((random_hu() + 1024).astype(np.uint16)):
        for name, spacing in (("a", [0.8, 0.7]), ("b", None)):
            (tmp_path / name).mkdir(exist_ok=True)
            position = tuple(float(index * step) for step in steps)
            data = slice_dataset(stored, position, ImageOrientationPatient=list(cosines), PixelSpacing=spacing)
            data.save_as(tmp_path / name / f"{index}.dcm", enforce_file_format=True)
    stated, told = read_volume(tmp_path / "a"), read_volume(tmp_path / "b", spacing=mm)
    np.testing.assert_allclose(told.affine, stated.affine, atol=1e-9)
    np.testing.assert_array_equal(told.array, stated.array)


def test_one_slice_without_pixel_spacing_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), shuffle=False)
    file = tmp_path / "0003.dcm"
    data = pydicom.dcmread(file)
    del data.PixelSpacing
    data.save_as(file)
    for spacing in (None, (2.0, 0.8, 0.7)):
        with pytest.raises(ImagingError, match=r"0003\.dcm belongs to the series but has no usable PixelSpacing"):
            read_volume(tmp_path, spacing=spacing)


def test_other_modalities_are_arbitrary(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    volume = read_volume(tmp_path)
    assert volume.units == "arbitrary"
    assert volume.array.min() == 0


def test_size_limit_comes_before_the_pixels(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu())
    with pytest.raises(ImagingError, match="limit"):
        read_volume(tmp_path, max_bytes=100)


def test_uids_differ_but_nothing_else_does(tmp_path: Path) -> None:
    """New SOP instance UIDs, as written by an anonymizer, do not change the volume."""
    hu = random_hu()
    volume = read_volume(write_series(tmp_path, hu, StudyInstanceUID=generate_uid()))
    np.testing.assert_array_equal(volume.array, hu)


def test_a_slope_of_zero_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), RescaleSlope=0)
    with pytest.raises(ImagingError, match="rescale slope 0"):
        read_volume(tmp_path)


def test_stray_slice_of_the_series_is_reported(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    stray = slice_dataset(
        np.zeros((10, 12), dtype=np.uint16), (0.0, 9.0, 0.0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    stray.save_as(tmp_path / "stray.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("1 slice of the series with another orientation" in warning for warning in volume.warnings)


def test_spacing_with_more_digits_is_the_same(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, shuffle=False)
    last = slice_dataset(
        (hu[-1].astype(np.int32) + 1024).astype(np.uint16), (-10.0, -20.0, 15.0), PixelSpacing=["0.80001", "0.69999"]
    )
    last.save_as(tmp_path / "0005.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_slice_cut_at_any_byte_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu((3, 10, 12)), shuffle=False)
    path = tmp_path / "0002.dcm"
    content = path.read_bytes()
    for length in range(132, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ImagingError, match=r"0002\.dcm"):
            read_volume(tmp_path)


def test_truncated_file_of_another_series_is_harmless(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu)
    other = slice_dataset(np.zeros((4, 5), dtype=np.uint16), (0, 0, 0), SeriesInstanceUID=f"{SERIES}9.7")
    other.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    content = (tmp_path / "other.dcm").read_bytes()
    rows = content.index(b"\x28\x00\x10\x00US")
    (tmp_path / "other.dcm").write_bytes(content[:rows])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("that end before their pixels" in step for step in volume.history)


@pytest.mark.parametrize(
    "cosines", [[2, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 0.5, 0.866, 0]]
)
def test_directions_that_are_none_are_refused(cosines: list[float], tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), ImageOrientationPatient=cosines)
    with pytest.raises(ImagingError, match="without position or orientation"):
        read_volume(tmp_path)


def test_rounded_cosines_do_not_change_the_spacing(tmp_path: Path) -> None:
    write_series(tmp_path, random_hu(), ImageOrientationPatient=[0.998, 0.05, 0, -0.05, 0.998, 0])  # 2.9 degrees
    volume = read_volume(tmp_path)
    assert volume.spacing == pytest.approx((2.0, 0.8, 0.7), rel=1e-6)
    assert any("oblique by 2.9" in warning for warning in volume.warnings)


def test_deflated_file_is_read_but_bomb_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hu = random_hu()
    write_series(tmp_path / "a", hu)
    for path in (tmp_path / "a").iterdir():
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "a").array, hu)
    dataset.PixelData = b"\0" * 2**22
    dataset.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    assert (tmp_path / "bomb.dcm").stat().st_size < 2**14
    monkeypatch.setenv("MEDMVL_MAX_BYTES", str(2**21))
    with pytest.raises(ImagingError, match="MEDMVL_MAX_BYTES"):
        read_volume(tmp_path / "bomb.dcm")


def test_false_number_of_frames_is_refused(tmp_path: Path) -> None:
    dataset = slice_dataset(np.zeros((10, 12), dtype=np.uint16), (0, 0, 0), NumberOfFrames=2_000_000_000)
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match="without position"):
        read_volume(tmp_path)


def test_a_slice_that_is_moved_sideways_is_refused(tmp_path: Path) -> None:
    hu = random_hu()
    write_series(tmp_path, hu, shuffle=False)
    moved = slice_dataset((hu[2].astype(np.int32) + 1024).astype(np.uint16), (20.0, -20.0, 9.0))
    moved.save_as(tmp_path / "0002.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match=r"9\.00 mm is 30\.0 mm off sideways"):
        read_volume(tmp_path)
    assert any("off sideways" in warning for warning in read_volume(tmp_path, gaps="keep").warnings)


def test_uneven_steps_are_not_called_missing_slices(tmp_path: Path) -> None:
    for index, z in enumerate((0.0, 2.0, 4.0, 7.1, 9.0)):
        dataset = slice_dataset(np.full((4, 5), 1000 + index, dtype=np.uint16), (0.0, 0.0, z))
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    with pytest.raises(ImagingError, match=r"not evenly spaced.*4\.00 -> 7\.10"):
        read_volume(tmp_path)


def test_enhanced_file_with_undescribed_frames_is_refused(tmp_path: Path) -> None:
    path = Path(get_testdata_file("eCT_Supplemental.dcm"))
    dataset = dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:1]
    dataset.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(ImagingError, match=r"enhanced\.dcm describes 1 of its 2 frames"):
        read_volume(tmp_path)
