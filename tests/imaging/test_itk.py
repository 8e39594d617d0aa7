"""NRRD and MetaImage, where SimpleITK is installed; a message naming the extra, where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imaging.dicom_writing import random_hu
from medmvl.errors import ImagingError, MissingExtraError
from medmvl.imaging import read_volume


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
