"""CT-RATE's metadata csv."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from imaging.dicom_writing import random_hu
from medmvl.errors import ImagingError
from medmvl.imaging import read_volume
from medmvl.imaging.metadata import RescaleTable

HEAD = "VolumeName,Manufacturer,XYSpacing,RescaleIntercept,RescaleSlope,ZSpacing\n"


def table(folder: Path, rows: str, head: str = HEAD) -> RescaleTable:
    (folder / "train_metadata.csv").write_text(head + rows)
    return RescaleTable(folder / "train_metadata.csv")


def test_raw_file_becomes_hounsfield_units(tmp_path: Path) -> None:
    hu = random_hu()
    stored = (hu.astype(np.int32) + 1024).astype(np.int16)
    nib.save(nib.Nifti1Image(stored.T, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "train_1_a_1.nii.gz")
    options = table(tmp_path, 'train_1_a_1.nii.gz,X,"[0.7, 0.8]",-1024,1,1.5\n').options(
        tmp_path / "train_1_a_1.nii.gz"
    )
    assert options == {"slope": 1.0, "intercept": -1024.0, "spacing": (1.5, 0.8, 0.7)}
    volume = read_volume(tmp_path / "train_1_a_1.nii.gz", **options)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.spacing == pytest.approx((1.5, 0.8, 0.7))


def test_what_the_table_lacks(tmp_path: Path) -> None:
    known = table(tmp_path, 'a.nii.gz,X,"[0.7, 0.8]",-1024,1,\nb.nii.gz,X,none,-1024,1,1\n')
    assert len(known) == 2
    assert "spacing" not in known.options("a.nii.gz")  # ZSpacing is NaN for some; the header's is kept
    with pytest.raises(ImagingError, match=r"no row for c\.nii\.gz"):
        known.options("c.nii.gz")
    with pytest.raises(ImagingError, match="not numbers"):
        known.options("b.nii.gz")
    with pytest.raises(ImagingError, match="RescaleSlope"):
        table(tmp_path, "", head="VolumeName,ZSpacing\n")
