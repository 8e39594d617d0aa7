"""The phantoms: deterministic, balanced, visible, and left where they say left."""

from __future__ import annotations

import itertools
import json

import nibabel
import numpy as np
import pydicom
import pytest

from medmvl.data.check import check_records
from medmvl.errors import DataError
from medmvl.evaluation.metrics.labeler import label_ct_rate
from medmvl.imaging import read_image, read_volume
from medmvl.phantoms import (
    CT_RATE_LABELS,
    FINDINGS,
    Phantom,
    draw_patient,
    save_nifti,
    split_patients,
    write_dicom_radiograph,
    write_dicom_series,
    write_evidence,
)
from medmvl.phantoms.findings import SIDED, decide

METAL = 2000  # HU: only the pacemaker is denser


def phantom_with(*names: str, side: str | None = None, seed: int = 5, **size: object) -> Phantom:
    """Return the first patient that has all findings of these names, on that side if one is asked for."""
    for index in itertools.count():
        findings = decide(seed, index)
        if all(name in findings and (side is None or findings[name].side == side) for name in names):
            return draw_patient(seed, index, **size)  # type: ignore[arg-type]
    raise AssertionError


def test_the_same_patient_is_the_same_bytes_and_another_is_not() -> None:
    first, again, other = draw_patient(1, 4), draw_patient(1, 4), draw_patient(1, 6)
    assert np.array_equal(first.volume, again.volume)
    assert np.array_equal(first.radiograph, again.radiograph)
    assert first.report == again.report
    assert not np.array_equal(first.volume, other.volume)
    assert not np.array_equal(first.volume, draw_patient(2, 4).volume)


def test_what_is_asked_first_does_not_change_what_comes_out() -> None:
    radiograph_first, scan_first = draw_patient(0, 3), draw_patient(0, 3)
    radiograph, volume = radiograph_first.radiograph, scan_first.volume
    assert np.array_equal(radiograph_first.volume, volume)
    assert np.array_equal(scan_first.radiograph, radiograph)


def test_the_volume_is_a_ct_in_hounsfield_units() -> None:
    patient = draw_patient(0, 1, size=(24, 64, 64))
    assert patient.volume.shape == (24, 64, 64)
    assert patient.volume.dtype == np.int16
    assert patient.volume[:, :4, :4].mean() == pytest.approx(-1000, abs=10)  # air around the patient
    assert (np.abs(patient.volume.astype(int) - 45) < 60).mean() > 0.1  # muscle and organs


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_findings_are_balanced_over_pairs_of_patients(seed: int) -> None:
    patients = [decide(seed, index) for index in range(40)]
    for name in FINDINGS:
        assert sum(name in findings for findings in patients) == 20


def test_sides_are_balanced_and_findings_are_independent() -> None:
    patients = [decide(9, index) for index in range(2000)]
    present = np.array([[name in findings for name in FINDINGS] for findings in patients], dtype=float)
    correlation = np.corrcoef(present.T) - np.eye(len(FINDINGS))
    assert np.abs(correlation).max() < 0.12
    for name in SIDED:
        left = [findings[name].side == "left" for findings in patients if name in findings]
        assert 0.45 < np.mean(left) < 0.55
    both = [f for f in patients if "lung nodule" in f and "consolidation" in f]
    assert all(f["lung nodule"].place != f["consolidation"].place for f in both)


def test_splits_share_no_patient_and_no_pair_of_opposites() -> None:
    splits = split_patients(0, {"train": 5, "val": 2, "test": 3})
    pairs = {name: {phantom.index // 2 for phantom in phantoms} for name, phantoms in splits.items()}
    assert [len(phantoms) for phantoms in splits.values()] == [5, 2, 3]
    for one, other in itertools.combinations(pairs.values(), 2):
        assert not one & other


@pytest.mark.parametrize("side", ["left", "right"])
def test_left_is_left_in_the_array_and_on_the_radiograph(side: str) -> None:
    patient = phantom_with("pacemaker", side=side)
    columns = np.argwhere(patient.volume > METAL)[:, 2]
    middle = (patient.size[2] - 1) / 2
    assert (np.median(columns) > middle) == (side == "left")  # the axis grows to the patient's left
    x, _, width, _ = patient.boxes["pacemaker"]
    assert (x + width / 2 > patient.radiograph_size / 2) == (side == "left")  # his left is on the right of the picture


@pytest.mark.parametrize("side", ["left", "right"])
def test_left_is_left_in_dicom_nifti_and_through_our_own_readers(side: str, tmp_path) -> None:
    patient = phantom_with("pacemaker", side=side, size=(24, 64, 64))
    folder = write_dicom_series(tmp_path / "series", patient, shuffle=True)
    save_nifti(tmp_path / "scan.nii.gz", patient)

    # DICOM, by the standard: x of ImagePositionPatient grows to the left of the patient.
    metal_x = []
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        hounsfield = data.pixel_array * data.RescaleSlope + data.RescaleIntercept
        for _, column in np.argwhere(hounsfield > METAL):
            metal_x.append(data.ImagePositionPatient[0] + column * data.PixelSpacing[1])
    assert (np.median(metal_x) > 0) == (side == "left")

    # NIfTI, by an independent reader: its canonical first axis grows to the right of the patient.
    canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / "scan.nii.gz"))
    metal = np.argwhere(canonical.get_fdata() > METAL)
    world = nibabel.affines.apply_affine(canonical.affine, metal)
    assert (np.median(world[:, 0]) < 0) == (side == "left")
    assert (np.median(metal[:, 0]) < 31.5) == (side == "left")

    # Both through our readers give the drawing itself.
    for path in (folder, tmp_path / "scan.nii.gz"):
        volume = read_volume(path)
        assert volume.orientation == patient.orientation
        assert volume.units == "HU"
        assert np.allclose(volume.spacing, patient.spacing, atol=1e-3)
        assert np.array_equal(np.asarray(volume.array, dtype=int), patient.volume.astype(int))


@pytest.mark.parametrize("inverted", [False, True])
def test_the_radiograph_survives_dicom(inverted: bool, tmp_path) -> None:
    patient = draw_patient(0, 2)
    shown = read_image(write_dicom_radiograph(tmp_path / "radiograph.dcm", patient, inverted=inverted)).to_uint8()
    truth = patient.radiograph.astype(float)
    assert np.corrcoef(np.asarray(shown).reshape(truth.shape).ravel(), truth.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["pleural effusion", "consolidation", "lung nodule", "pacemaker"])
def test_a_finding_changes_the_picture_where_its_box_says(name: str) -> None:
    patient = phantom_with(name)
    x, y, width, height = patient.boxes[name]
    assert 0 <= x < x + width <= patient.radiograph_size
    assert 0 <= y < y + height <= patient.radiograph_size
    healthy = next(p for p in (draw_patient(5, i) for i in itertools.count()) if name not in p.findings)
    if patient.findings[name].place:
        assert (x + width / 2 > patient.radiograph_size / 2) == (patient.findings[name].side == "left")
    assert name not in healthy.boxes


def test_findings_are_visible_at_low_resolution() -> None:
    """At 32 x 32 (radiograph) the mean picture of those who have a finding differs where they have it, and little elsewhere."""
    patients = [draw_patient(11, index, radiograph_size=64) for index in range(40)]
    radiographs = np.array([p.radiograph.reshape(32, 2, 32, 2).mean((1, 3)) for p in patients])
    for name in ("cardiomegaly", "emphysema"):
        has = np.array([name in p.findings for p in patients])
        spread = radiographs.std(0) + 5
        assert (np.abs(radiographs[has].mean(0) - radiographs[~has].mean(0)) / spread).max() > 1.0


def test_the_heart_of_cardiomegaly_spans_more_than_half_of_the_chest() -> None:
    for index in range(6):
        patient = draw_patient(3, index)
        left, right, heart = (patient.boxes[name] for name in ("left lung", "right lung", "heart"))
        chest = left[0] + left[2] - right[0]
        assert (heart[2] / chest > 0.5) == ("cardiomegaly" in patient.findings)


def test_reports_state_exactly_the_labels() -> None:
    for index in range(40):
        patient = draw_patient(2, index)
        assert tuple(patient.labels) == CT_RATE_LABELS
        assert label_ct_rate(patient.report.text) == patient.labels


@pytest.mark.parametrize(("seed", "index", "size"), [(-1, 0, (24, 64, 64)), (0, -2, (24, 64, 64)), (0, 0, (4, 64, 64))])
def test_nonsense_is_refused(seed: int, index: int, size: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="phantom needs"):
        draw_patient(seed, index, size)


@pytest.mark.parametrize("name", ["pleural effusion", "consolidation", "pacemaker", "coronary artery calcification"])
def test_erasing_a_finding_changes_its_place_alone(name: str) -> None:
    patient = phantom_with(name, size=(24, 64, 64))
    erased = patient.without(name)
    assert set(patient.findings) - set(erased.findings) == {name}
    changed = np.argwhere(patient.volume != erased.volume)
    low, high = (np.array(corner) for corner in patient.scan_boxes[name])
    if name != "pacemaker":  # its lead runs to the heart, outside of the box of its generator
        assert (changed >= low - 2).all()
        assert (changed < high + 2).all()
    middle = (patient.scan_boxes[name][0], patient.scan_boxes[name][1])
    inside = tuple(slice(a, b) for a, b in zip(*middle, strict=True))
    assert (patient.volume != erased.volume)[inside].mean() > 0.02
    assert name not in erased.scan_boxes
    if name in patient.boxes:
        x, y, width, height = patient.boxes[name]
        difference = patient.radiograph != erased.radiograph
        assert difference[y : y + height, x : x + width].mean() > max(0.25, 1.5 * difference.mean())


@pytest.mark.parametrize("name", ["cardiomegaly", "emphysema"])
def test_erasing_a_finding_of_the_anatomy_draws_it_normal(name: str) -> None:
    patient = phantom_with(name, size=(24, 64, 64))
    erased = patient.without(name)
    assert name not in erased.findings
    heart = [p.boxes["heart"][2] for p in (patient, erased)]
    assert heart[0] > heart[1] * 1.1 if name == "cardiomegaly" else heart[0] == pytest.approx(heart[1], rel=0.1)
    with pytest.raises(DataError, match=f"has no '{name}' to erase"):
        erased.without(name)


def test_evidence_records_hold_boxes_and_pictures_without_the_finding(tmp_path) -> None:
    patients = split_patients(0, {"test": 2}, (24, 64, 64), 96)["test"]
    rows = [json.loads(line) for line in write_evidence(tmp_path, patients).read_text().splitlines()]
    assert {row["modality"] for row in rows} == {"X-Ray", "CT"}
    for row in rows:
        path = row.get("image", row.get("image3d"))[0]
        shape = read_volume(tmp_path / path).shape if "image3d" in row else read_image(tmp_path / path).shape
        assert (tmp_path / row["evidence"]["erased"]).is_file()
        if row["finding"] != "emphysema":
            low, high = row["evidence"]["box"]
            assert all(0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True))
    assert check_records(tmp_path / "evidence.jsonl", read_media=True) == []
