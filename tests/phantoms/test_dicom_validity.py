"""The phantoms' DICOM files follow the standard as an independent checker reads it."""

from __future__ import annotations

import pytest

from dicom_validity import dicom_errors, needs_dciodvfy
from medmvl.phantoms import draw_patient, write_dicom_radiograph, write_dicom_series


@needs_dciodvfy
@pytest.mark.parametrize("index", [0, 3])
def test_ct_series_has_no_dicom_errors(tmp_path, index):
    folder = write_dicom_series(tmp_path / "series", draw_patient(0, index, (8, 48, 56)), shuffle=True)
    errors = {file.name: found for file in folder.iterdir() if (found := dicom_errors(file))}
    assert not errors


@needs_dciodvfy
@pytest.mark.parametrize("inverted", [False, True])
def test_radiograph_has_no_dicom_errors(tmp_path, inverted):
    assert not dicom_errors(write_dicom_radiograph(tmp_path / "cr.dcm", draw_patient(0, 3), inverted=inverted))
