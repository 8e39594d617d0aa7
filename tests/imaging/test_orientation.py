"""Patient sides through every permutation and flip, against nibabel and a marker."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from imaging.dicom_writing import random_hu, slice_dataset, write_series
from medmvl.errors import ImagingError
from medmvl.imaging import Volume, read_volume
from medmvl.imaging.orientation import affine_of, code_of

CODES = ["".join(c) for letters in product("RL", "AP", "SI") for c in permutations(letters)]


def marked() -> np.ndarray:
    """An axial view SPL with a bright voxel in the patient's left, front, upper corner."""
    hu = np.full((5, 7, 9), -1000, dtype=np.int16)
    hu[-1, 0, -1] = 1000
    return hu


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
def test_marker_stays_left_front_up_through_nifti(code: str, tmp_path: Path) -> None:
    stored = Volume.from_array(marked(), units="HU", spacing=(3.0, 2.0, 1.0), orientation="SPL").to_orientation(code)
    # the file's own axes are those of the array, first axis first
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored.array), stored.affine), tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    assert volume.orientation == "SPL"
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.0))
    np.testing.assert_array_equal(volume.array, marked())

    canonical = nib.as_closest_canonical(nib.load(tmp_path / "v.nii"))  # (x, y, z) in RAS
    np.testing.assert_array_equal(volume.to_orientation("RAS").array, np.asanyarray(canonical.dataobj))
    np.testing.assert_allclose(volume.to_orientation("RAS").affine, canonical.affine)


@pytest.mark.parametrize("code", CODES)
def test_reorienting_there_and_back_changes_nothing(code: str) -> None:
    volume = Volume.from_array(random_hu(), units="HU", spacing=(3.0, 2.0, 1.0), orientation="SPL")
    there = volume.to_orientation(code)
    assert there.orientation == code
    assert np.shares_memory(there.array, volume.array)
    back = there.to_orientation("SPL")
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine)


@pytest.mark.parametrize(
    ("cosines", "axes"),
    [
        ((1, 0, 0, 0, 1, 0), "SPL"),
        ((-1, 0, 0, 0, -1, 0), "SAR"),  # prone or turned by the software: columns to the right, rows to the front
        ((0, 1, 0, 0, 0, -1), "RIP"),  # sagittal; the normal of these cosines points to the right
        ((1, 0, 0, 0, 0, -1), "PIL"),  # coronal
    ],
)
def test_dicom_sides_come_from_the_cosines(cosines: tuple[int, ...], axes: str, tmp_path: Path) -> None:
    stored = Volume.from_array(marked(), units="HU", spacing=(2.0, 2.0, 2.0), orientation="SPL").to_orientation(axes)
    normal = np.cross(cosines[:3], cosines[3:])
    for index, plane in enumerate(np.asarray(stored.array)):
        dataset = slice_dataset(
            (plane.astype(np.int32) + 1024).astype(np.uint16),
            tuple(float(v) for v in normal * 2.0 * index),
            ImageOrientationPatient=list(cosines),
            PixelSpacing=[2.0, 2.0],
        )
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert volume.orientation == "SPL"
    np.testing.assert_array_equal(volume.array, marked())


def test_dicom_and_nifti_of_the_same_scan_agree(tmp_path: Path) -> None:
    hu = random_hu()
    series = read_volume(write_series(tmp_path / "dicom", hu))
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-0.7, -0.8, 2.0, 1.0])), tmp_path / "v.nii.gz")
    nifti = read_volume(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(series.array, nifti.array)
    assert series.spacing == pytest.approx(nifti.spacing, rel=1e-6)
    assert series.orientation == nifti.orientation == "SPL"


def test_codes_are_checked() -> None:
    for wrong in ("", "SP", "SSP", "XYZ", "SPI"):
        with pytest.raises(ImagingError, match="three letters"):
            affine_of(wrong, (1, 1, 1), (2, 2, 2))
    with pytest.raises(ImagingError, match="degenerate"):
        code_of(np.diag([1.0, 0.0, 1.0, 1.0]))


def test_unknown_sides_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", random_hu())
    volume = read_volume(tmp_path / "v.npy")
    assert volume.orientation == "SPL"
    assert not volume.sides_known
    assert "not stated" in repr(volume)
    assert read_volume(tmp_path / "v.npy", orientation="SAR").orientation == "SAR"
    image = nib.Nifti1Image(random_hu().transpose(2, 1, 0), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "v.nii")
    assert not read_volume(tmp_path / "v.nii").sides_known
