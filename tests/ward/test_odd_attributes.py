"""Attributes as archives have them: missing, empty, too long, of several values, not ASCII, or not allowed at all."""

from __future__ import annotations

import pydicom
import pytest

from dicom_validity import dicom_errors, needs_dciodvfy
from medmvl.errors import MedMVLError
from medmvl.ward.process import process_study
from waiting import wait_for
from ward.network import FakePacs, send
from ward.stub import StubAnswerer, change, make_protocol, write_ct
from ward.test_node import protocol_for, running

KINDS = ["sr", "capture", "pdf", "key-objects"]

#: attribute -> (VR to write it with, value); the VR is not always the right one, as pydicom then checks nothing
ODD = {
    "empty name": {"PatientName": ("PN", "")},
    "no name": {"PatientName": None},
    "no identity at all": {"PatientName": None, "PatientID": None, "PatientBirthDate": None, "PatientSex": None},
    "long name": {"PatientName": ("PN", "VERY^LONG" * 40)},
    "name of several values": {"PatientName": ("PN", ["FIRST^A", "SECOND^B"])},
    "name with controls": {"PatientName": ("LO", "A^B\x1b\x00\x7fC")},
    "long number": {"PatientID": ("LO", "9" * 200)},
    "number of several values": {"PatientID": ("LO", ["1", "2"])},
    "birth date in words": {"PatientBirthDate": ("LO", "about 1943")},
    "sex in words": {"PatientSex": ("LO", "female")},
    "age in words": {"PatientAge": ("LO", "eighty")},
    "study date in words": {"StudyDate": ("LO", "yesterday"), "StudyTime": ("LO", "noon")},
    "no study date": {"StudyDate": None, "StudyTime": None, "StudyID": None, "AccessionNumber": None},
    "long description": {"StudyDescription": ("LO", "chest " * 60), "SeriesDescription": ("LO", "thorax " * 60)},
    "descriptions of several values": {
        "SeriesDescription": ("LO", ["a", "b"]),
        "ConvolutionKernel": ("SH", ["a", "b"]),
    },
    "body part in words": {"BodyPartExamined": ("LO", "the whole chest, with contrast")},
    "series number in words": {"SeriesNumber": ("LO", "three")},
    "no series number": {"SeriesNumber": None, "InstanceNumber": None},
    "weight in words": {"PatientWeight": ("LO", "heavy")},
    "referring physician of several values": {"ReferringPhysicianName": ("PN", ["A^B", "C^D"])},
    "time zone in words": {"TimezoneOffsetFromUTC": ("LO", "CET")},
    "thickness empty": {"SliceThickness": ("DS", "")},
    "modality of several values": {"Modality": ("CS", ["CT", "OT"])},
}
#: encodings with a name that only they, or UTF-8, can write
NAMES = {
    "GB18030": "Wang^XiaoDong=王^小东",
    "ISO_IR 192": "Ğüneş^Øyvind=山田^太郎=やまだ^たろう",
    "ISO_IR 100": "Müller^Jürgen",
    "ISO_IR 144": "Дятлова^Елена",
    "ISO_IR 13": "ﾔﾏﾀﾞ^ﾀﾛｳ",
}


def write_odd(folder, attributes):
    """Write a CT with attributes that pydicom would not write if it checked them."""
    write_ct(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        for file in folder.glob("*.dcm"):
            data = pydicom.dcmread(file)
            for keyword, given in attributes.items():
                if keyword in data:
                    del data[keyword]
                if given is not None:
                    data.add_new(keyword, *given)
            data.save_as(file)
    return folder


def processed(folder, kinds=KINDS):
    result = process_study(folder, make_protocol(**{"results.send": kinds}), StubAnswerer())
    return result.write(folder.parent / "out")


@pytest.mark.parametrize("odd", ODD)
def test_odd_attributes_stop_no_result(tmp_path, odd):
    folder = write_odd(tmp_path / "s", ODD[odd])
    if odd.startswith("modality"):
        result = process_study(folder, make_protocol(), StubAnswerer())
        assert result.outcome == "no-series"
        assert "unknown modality" in result.notes[0]
        return
    paths = processed(folder)
    assert len(paths) == len(KINDS)
    source = pydicom.dcmread(next(folder.glob("*.dcm")))
    for path in paths:
        data = pydicom.dcmread(path)
        data.decode()
        assert data.StudyInstanceUID == source.StudyInstanceUID
        assert {"PatientName", "PatientID", "PatientBirthDate", "StudyDate"} <= set(data.dir())


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize(
    "odd", [name for name in ODD if not name.startswith(("modality", "long n", "name of", "number"))]
)
def test_results_of_odd_attributes_have_no_dicom_errors(tmp_path, odd):
    paths = processed(write_odd(tmp_path / "s", ODD[odd]), ["sr", "capture"])
    assert {path.name: found for path in paths if (found := dicom_errors(path))} == {}


@pytest.mark.parametrize("encoding", NAMES)
def test_names_of_all_encodings_survive(tmp_path, encoding):
    folder = write_ct(tmp_path / "s")
    for file in folder.glob("*.dcm"):
        change(file, SpecificCharacterSet=encoding, PatientName=NAMES[encoding])
    for path in processed(folder):
        assert str(pydicom.dcmread(path).PatientName) == NAMES[encoding]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("given", [None, ("UI", ""), ("UI", ["1.2", "1.3"]), ("LO", "abc"), ("LO", "1." * 40 + "1")])
def test_invalid_uid_is_one_sentence(tmp_path, keyword, given):
    folder = write_odd(tmp_path / "s", {keyword: given})
    with pytest.raises(MedMVLError, match=f"slice0001.dcm lacks a valid {keyword}: at most 64 digits and dots"):
        processed(folder)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImagePositionPatient": ("LO", ["a", "b", "c"])},
        {"ImageOrientationPatient": ("LO", "axial")},
        {"ImageOrientationPatient": ("DS", ["1", "0", "0"])},
        {"PixelSpacing": ("LO", "wide")},
        {"SliceThickness": ("LO", "thin")},
        {"RescaleSlope": ("LO", "steep")},
        {"Rows": ("LO", "many")},
        {"NumberOfFrames": ("LO", "several")},
        {"InstanceNumber": ("LO", "first")},
        {"BitsStored": ("US", 99)},
    ],
    ids=str,
)
def test_wrong_geometry_is_an_answer_or_one_sentence(tmp_path, attributes):
    folder = write_odd(tmp_path / "s", attributes)
    message = ""
    try:
        processed(folder, ["sr"])
    except MedMVLError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


def test_node_answers_the_next_study_after_odd_ones(tmp_path):
    pacs = FakePacs().start()
    protocol = protocol_for(tmp_path, pacs, max_attempts=1)
    protocol = protocol.model_copy(update={"results": protocol.results.model_copy(update={"send": ["sr"]})})
    odd = [{"StudyInstanceUID": None}, ODD["long number"], {"Rows": ("LO", "many")}, {"PixelSpacing": ("LO", "wide")}]
    with running(protocol, StubAnswerer()) as node:
        for number, attributes in enumerate(odd):
            send(write_odd(tmp_path / str(number), attributes), protocol.node.port)
        send(write_ct(tmp_path / "good", 5), protocol.node.port)
        uid = pydicom.dcmread(tmp_path / "good" / "slice0001.dcm").StudyInstanceUID
        wait_for(lambda: uid in {data.StudyInstanceUID for data in list(pacs.stored.values())}, 120)
        node.wait(0.01)
    pacs.stop()
