"""Which series of a study is read."""

from __future__ import annotations

import re

import pytest

from medmvl.errors import WardError
from medmvl.ward.selection import choose_series
from medmvl.ward.study import read_study
from ward.stub import change, make_protocol, write_ct, write_radiograph


def chosen(folder, **rule):
    protocol = make_protocol(series={"modality": "CT", **rule})
    return choose_series(read_study(folder), protocol.series)


@pytest.fixture
def study(tmp_path):
    """A study with a soft thick CT, a sharp thin CT and a radiograph; series UIDs end with their position here."""
    write_ct(
        tmp_path / "a", SeriesInstanceUID="1.2.1", SliceThickness=5, ConvolutionKernel="B30f", SeriesDescription="Soft"
    )
    write_ct(
        tmp_path / "b", SeriesInstanceUID="1.2.2", SliceThickness=1, ConvolutionKernel="B70f", SeriesDescription="Lung"
    )
    for path in (tmp_path / "b").glob("*.dcm"):
        change(path, SOPInstanceUID=f"1.3.{int(path.stem[5:])}")
    for path in (tmp_path / "a").glob("*.dcm"):
        change(path, StudyInstanceUID="1.9")
    for path in (tmp_path / "b").glob("*.dcm"):
        change(path, StudyInstanceUID="1.9")
    write_radiograph(tmp_path / "c.dcm", SeriesInstanceUID="1.2.3", StudyInstanceUID="1.9", Laterality="L")
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "uid"),
    [
        ({}, "1.2.2"),
        ({"prefer": ["thickest"]}, "1.2.1"),
        ({"kernel": ["B30*", "B70*"]}, "1.2.1"),
        ({"kernel": ["b7*"]}, "1.2.2"),
        ({"slice_thickness": {"min": 2}}, "1.2.1"),
        ({"description": ["*lung*"]}, "1.2.2"),
        ({"exclude_description": ["lung*"]}, "1.2.1"),
        ({"modality": ["CR", "DX"]}, "1.2.3"),
        ({"orientation": "axial", "body_part": "chest", "min_slices": 8}, "1.2.2"),
    ],
)
def test_rule_chooses_series(study, rule, uid):
    assert chosen(study, **rule).series.uid == uid


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"modality": "MR"}, "modality is not MR"),
        ({"orientation": "coronal"}, "its slices are not coronal"),
        ({"min_slices": 9}, r"it has 8 slices, fewer than 9"),
        ({"body_part": "HEAD"}, "body part is not stated as HEAD"),
        ({"kernel": ["X*"]}, "kernel matches none"),
        ({"slice_thickness": {"max": 0.5}}, "thickness is not within"),
    ],
)
def test_misfit_has_a_reason_without_patient_data(study, rule, reason):
    choice = chosen(study, **rule)
    assert choice.series is None
    assert any(re.search(reason, sentence) for sentence in choice.reasons)
    assert not any("phantom" in sentence.lower() or "1.2." in sentence for sentence in choice.reasons)


def test_localizer_and_own_results_are_no_input(study):
    for path in (study / "a").glob("*.dcm"):
        change(path, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for path in (study / "b").glob("*.dcm"):
        change(path, Manufacturer="MedM-VL")
    found = read_study(study)
    assert [series.uid for series in found.series] == ["1.2.3"]
    assert found.other == 16


def test_slices_are_ordered_by_position(tmp_path):
    positions = [i.header.ImagePositionPatient[2] for i in read_study(write_ct(tmp_path / "s")).series[0].instances]
    assert positions == sorted(positions)


def test_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(WardError, match="holds no DICOM file"):
        read_study(tmp_path)


def test_two_studies_are_refused(tmp_path):
    write_ct(tmp_path / "a", 1)
    write_ct(tmp_path / "b", 2)
    with pytest.raises(WardError, match="2 studies"):
        read_study(tmp_path)


@pytest.mark.parametrize("cut", [140, 400])
def test_damaged_file_is_refused_by_name(tmp_path, cut):
    folder = write_ct(tmp_path / "a")
    broken = folder / "slice0003.dcm"
    broken.write_bytes(broken.read_bytes()[:cut])
    with pytest.raises(WardError, match="slice0003.dcm"):
        read_study(folder)
