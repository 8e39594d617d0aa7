"""Result objects: valid DICOM, readable by others, marked as AI-generated."""

from __future__ import annotations

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest

from dicom_validity import dicom_errors, needs_dciodvfy
from medmvl.ward.key_images import key_images
from medmvl.ward.objects.content import ResultContent
from medmvl.ward.objects.page import draw_pages
from medmvl.ward.process import process_study
from medmvl.ward.selection import choose_series
from medmvl.ward.study import read_study
from ward.stub import EFFUSION, REPORT, StubAnswerer, change, make_protocol, write_ct, write_radiograph

KINDS = ["sr", "capture", "pdf", "key-objects"]
SIDE = {"id": "side", "ask": "Which side?", "kind": "choice", "options": ["left", "right"]}
BOX = {"id": "box", "ask": "Where is the heart?", "kind": "box"}


def results(folder, answerer=None, **changes):
    """Return the written result objects by kind of SOP class."""
    protocol = make_protocol(**{"results.send": KINDS, **changes})
    result = process_study(folder, protocol, answerer or StubAnswerer())
    paths = result.write(folder.parent / "out")
    return {pydicom.dcmread(path).SOPClassUID.name: path for path in paths}


@pytest.fixture
def written(tmp_path):
    return results(write_ct(tmp_path / "s"), questions=[EFFUSION, REPORT, SIDE])


@needs_dciodvfy
@pytest.mark.parametrize(
    ("attributes", "film"),
    [
        ({}, False),
        ({"BodyPartExamined": None}, False),
        ({"BodyPartExamined": "HAND", "Laterality": "L"}, True),
        (
            {"PatientName": "王^小东", "SpecificCharacterSet": "GB18030", "StudyDate": "", "AccessionNumber": "A1"},
            False,
        ),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_objects_have_no_dicom_errors(tmp_path, attributes, film, language):
    if film:
        write_radiograph(tmp_path / "s" / "film.dcm", **attributes)
    else:
        write_ct(tmp_path / "s", **attributes)
    kinds = KINDS if language == "en" else ["sr", "pdf", "key-objects"]
    changes = {"series": {"modality": ["CT", "CR"]}, "results": {"send": kinds, "language": language}}
    written = results(
        tmp_path / "s", StubAnswerer(text="肺部清晰。 " * 60), questions=[EFFUSION, REPORT, SIDE, BOX], **changes
    )
    assert len(written) == len(kinds)
    assert {name: found for name, path in written.items() if (found := dicom_errors(path))} == {}


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump is not installed (Debian: apt-get install dcmtk)")
def test_other_toolkit_reads_the_report(written):
    dump = subprocess.run(
        ["dsrdump", "+Pl", str(written["Comprehensive 3D SR Storage"])], capture_output=True, text=True
    )
    assert dump.returncode == 0
    for line in (
        "Verification Flag   : UNVERIFIED",
        '(60046008,SCT,"Pleural effusion")',
        '(,,"Probability of Yes")="90.0" (%,UCUM,"Percent")',
        '(373066001,SCT,"Yes")',
        '"The lungs are clear."',
        "AI-GENERATED. RESEARCH USE ONLY",
        "Which side?",
        "SHA-256 " + StubAnswerer.fingerprint,
    ):
        assert line in dump.stdout, line


def test_report_references_the_key_slices(written, tmp_path):
    report = hd.sr.srread(written["Comprehensive 3D SR Storage"])
    groups = report.content.get_image_measurement_groups()
    assert [group.finding_type.meaning for group in groups] == [
        "Pleural effusion",
        "Describe the findings.",
        "Which side?",
    ]
    assert groups[0].finding_sites[0].value.meaning == "Pleura"
    assert groups[0].get_measurements()[0].value == 90
    images = {str(pydicom.dcmread(path).SOPInstanceUID) for path in (tmp_path / "s").glob("*.dcm")}
    referenced = [image.referenced_sop_instance_uid for image in groups[0].source_images]
    assert len(referenced) == 3
    assert set(referenced) <= images


def test_results_are_new_series_of_the_same_study(written, tmp_path):
    source = pydicom.dcmread(next((tmp_path / "s").glob("*.dcm")))
    objects = [pydicom.dcmread(path) for path in written.values()]
    assert {data.StudyInstanceUID for data in objects} == {source.StudyInstanceUID}
    assert {data.PatientID for data in objects} == {source.PatientID}
    assert len({data.SeriesInstanceUID for data in objects} | {source.SeriesInstanceUID}) == 5
    assert sorted(data.SeriesNumber for data in objects) == [9100, 9101, 9102, 9103]
    assert all(data.SeriesDescription.startswith("AI research use: chest") for data in objects)


def test_used_series_numbers_are_passed_over(tmp_path):
    written = results(write_ct(tmp_path / "s", SeriesNumber=9102))
    assert sorted(pydicom.dcmread(path).SeriesNumber for path in written.values()) == [9200, 9201, 9202, 9203]


def test_chinese_patient_name_survives(tmp_path):
    folder = write_ct(tmp_path / "s", PatientName="Wang^XiaoDong=王^小东", SpecificCharacterSet="GB18030")
    for path in results(folder).values():
        assert str(pydicom.dcmread(path).PatientName) == "Wang^XiaoDong=王^小东"


def test_pdf_holds_the_answers(written, tmp_path):
    data = pydicom.dcmread(written["Encapsulated PDF Storage"])
    assert data.EncapsulatedDocument.startswith(b"%PDF")
    assert len(data.EncapsulatedDocument) % 2 == 0
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (Debian: apt-get install poppler-utils)")
    (tmp_path / "a.pdf").write_bytes(data.EncapsulatedDocument)
    text = subprocess.run(["pdftotext", str(tmp_path / "a.pdf"), "-"], capture_output=True, text=True).stdout
    assert "AI-GENERATED. RESEARCH USE ONLY" in text
    assert "The lungs are clear." in text
    assert "90 %" in text


def worded(folder, protocol):
    """Return the result of a study whose yes has a probability of 0.4076, and its content."""
    result, study = process_study(folder, protocol, StubAnswerer(0.4076)), read_study(folder)
    series = choose_series(study, protocol.series).series
    return result, ResultContent(study, series, protocol, "stub", "ab" * 32, result.identity, result.findings)


@pytest.mark.parametrize(
    ("language", "line", "heading"),
    [
        ("en", "pleural effusion: No (probability of Yes: 41 %)", "Probability of Yes"),
        ("zh", "pleural effusion: No（“Yes”的概率：41 %）", "“Yes”的概率"),
    ],
)
def test_no_states_the_probability_of_yes(tmp_path, language, line, heading):
    protocol = make_protocol(results={"send": ["sr", "pdf"], "language": language})
    result, content = worded(write_ct(tmp_path / "s"), protocol)
    assert content.lines() == [line, "Describe the findings.: The lungs are clear."]
    assert content.table()[0][2] == heading
    assert content.table()[1] == ("pleural effusion", "No", "41 %")
    assert result.summary()["findings"][0]["probability_of_yes"] == 0.4076
    report = next(data for data in result.objects if data.Modality == "SR")
    measured = hd.sr.Comprehensive3DSR.from_dataset(report).content.get_image_measurement_groups()[0]
    assert [(item.name.meaning, item.value) for item in measured.get_measurements()] == [("Probability of Yes", 40.76)]


def test_probabilities_of_several_options_are_named(tmp_path):
    result, content = worded(write_ct(tmp_path / "s"), make_protocol(questions=[EFFUSION, SIDE]))
    assert [row[2] for row in content.table()] == ["Probability", "Yes: 41 %", "right: 59 %"]
    assert content.lines()[1] == "Which side?: right (probability of right: 59 %)"
    assert result.summary()["findings"][1]["probability_of_answer"] == pytest.approx(0.5924)


def test_markup_in_an_answer_is_text(tmp_path):
    written = results(write_ct(tmp_path / "s"), StubAnswerer(text="<b>a</b> & <image> </para>"))
    assert "Encapsulated PDF Storage" in written


def test_box_is_drawn_into_the_picture(tmp_path):
    write_radiograph(tmp_path / "s" / "film.dcm")
    rule = {"series": {"modality": ["CR"]}, "questions": [BOX]}
    plain = results(tmp_path / "s", StubAnswerer(text="nowhere"), **rule)["Secondary Capture Image Storage"]
    before = pydicom.dcmread(plain).pixel_array
    drawn = results(tmp_path / "s", StubAnswerer(text="{<10><20><60><70>}"), **rule)["Secondary Capture Image Storage"]
    yellow = (pydicom.dcmread(drawn).pixel_array[90:480] == (255, 220, 0)).all(-1)
    assert yellow.sum() > 100
    assert not (before[90:480] == (255, 220, 0)).all(-1).any()


ROW = {"L": [1, 0, 0, 0, 1, 0], "R": [-1, 0, 0, 0, 1, 0], "oblique": [0.7, 0.7141, 0, 0, 0, -1]}


@pytest.mark.parametrize(("row", "sides"), [("L", ("R", "L")), ("R", ("L", "R")), ("oblique", ("", ""))])
def test_slices_name_their_number_and_the_patients_sides(tmp_path, row, sides):
    folder = write_ct(tmp_path / "s")
    for file in folder.glob("*.dcm"):
        change(file, ImageOrientationPatient=ROW[row])
    keys = key_images(read_study(folder).series[0], 3, None, boxes=())
    assert [key.sides for key in keys] == [sides] * 3
    assert [key.label for key in keys] == [f"Im {key.instance.header.InstanceNumber}" for key in keys]


@pytest.mark.parametrize(
    ("stated", "sides"), [(["L", "F"], ("R", "L")), (["R", "F"], ("L", "R")), (["A", "F"], ("", "")), (None, ("", ""))]
)
def test_radiograph_names_the_sides_it_states(tmp_path, stated, sides):
    write_radiograph(tmp_path / "s" / "film.dcm")
    change(tmp_path / "s" / "film.dcm", PatientOrientation=stated or "")
    assert key_images(read_study(tmp_path / "s").series[0], 1, None, boxes=())[0].sides == sides


def test_sides_are_drawn_at_the_edges(tmp_path):
    stated, silent = write_ct(tmp_path / "a"), write_ct(tmp_path / "b")
    for file in silent.glob("*.dcm"):
        change(file, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    keys = [key_images(read_study(folder).series[0], 1, None, boxes=()) for folder in (stated, silent)]
    _, content = worded(stated, make_protocol())
    with_sides, without = (np.asarray(draw_pages(content, key)[0]).astype(int) for key in keys)
    changed = np.argwhere((with_sides != without).any(-1))
    middle = changed[(changed[:, 0] > 200) & (changed[:, 0] < 400)]
    assert len(middle) > 50


def test_long_answer_fills_several_pages(tmp_path):
    protocol = make_protocol(**{"results.send": ["capture"]})
    result = process_study(write_ct(tmp_path / "s"), protocol, StubAnswerer(text="Finding. " * 400))
    assert len(result.objects) > 1
    assert [data.InstanceNumber for data in result.objects] == list(range(1, len(result.objects) + 1))
    assert len({data.SeriesInstanceUID for data in result.objects}) == 1


def test_enhanced_multiframe_is_read_and_referenced_by_frame(tmp_path):
    pytest.importorskip("highdicom")
    source = [pydicom.dcmread(path) for path in sorted(write_ct(tmp_path / "single").glob("*.dcm"))]
    folder = tmp_path / "s"
    folder.mkdir()
    hd.legacy.LegacyConvertedEnhancedCTImage(
        source, series_instance_uid="1.2.3", series_number=2, sop_instance_uid="1.2.3.4", instance_number=1
    ).save_as(folder / "enhanced.dcm")
    answerer = StubAnswerer()
    written = results(folder, answerer)
    assert answerer.asked[0][1].volumes[0].shape == (8, 32, 32)
    group = hd.sr.srread(written["Comprehensive 3D SR Storage"]).content.get_image_measurement_groups()[0]
    assert [image.referenced_frame_numbers for image in group.source_images] == [[2], [5], [7]]


def test_object_is_changed_only_in_its_own_study(tmp_path):
    folder = write_ct(tmp_path / "s")
    for file in folder.glob("*.dcm"):
        change(file, StudyInstanceUID="1.2.3.4.5")
    assert {pydicom.dcmread(path).StudyInstanceUID for path in results(folder).values()} == {"1.2.3.4.5"}
