"""NRRD and MetaImage through SimpleITK, and the error that names the extra if it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from imaging.dicom_writing import random_hu
from medmvl.errors import ImagingError, MissingExtraError
from medmvl.imaging import read_volume
from medmvl.imaging.decoder import DECODER


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_sides_spacing_and_values(suffix: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    hu = random_hu()
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu[:, :, ::-1]))  # columns to the right
    image.SetSpacing((0.7, 0.8, 2.0))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"v.{suffix}"), useCompression=True)
    volume = read_volume(tmp_path / f"v.{suffix}")
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert (volume.orientation, volume.units) == ("SPL", "HU")
    whole = (tmp_path / f"v.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImagingError, match=rf"cut\.{suffix}"):
        read_volume(tmp_path / f"cut.{suffix}")
    with pytest.raises(ImagingError, match="limit"):
        read_volume(tmp_path / f"v.{suffix}", max_bytes=10)


def test_without_simpleitk_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    (tmp_path / "v.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(MissingExtraError, match=r"medmvl\[itk\]"):
        read_volume(tmp_path / "v.nrrd")


def test_crash_of_simpleitk_is_an_error_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged NRRD header can crash SimpleITK; the child process takes the crash."""
    path = tmp_path / "v.nrrd"
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), -500, np.int16)), str(path))
    assert read_volume(path).shape == (3, 4, 5)
    child = DECODER._child
    assert child is not None
    monkeypatch.setattr(DECODER, "_write", lambda data, deadline: (os.kill(child.pid, 11), child.wait()))
    with pytest.raises(ImagingError, match=r"v\.nrrd cannot be read by SimpleITK: the decoder crashed"):
        read_volume(path)
    monkeypatch.undo()
    assert read_volume(path).shape == (3, 4, 5)


def test_volume_without_slices_names_its_file(tmp_path: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 0 9 4\nElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "empty.mha").write_bytes(header.encode())
    with pytest.raises(ImagingError, match=r"empty\.mha"):
        read_volume(tmp_path / "empty.mha")
