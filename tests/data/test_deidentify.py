"""De-identified copies: the profile's table, equal pixels, valid objects, consistent UIDs, and warnings of burned-in text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import DataElement, Dataset, Sequence
from pydicom.datadict import dictionary_VR, keyword_for_tag
from typer.testing import CliRunner

from dicom_validity import dicom_errors, needs_dciodvfy
from medmvl.cli.main import app
from medmvl.data.pseudonyms import Pseudonyms
from medmvl.imaging import read_image, read_volume
from medmvl.phantoms import split_patients
from medmvl.phantoms.dicom import write_dicom_radiograph, write_dicom_series

fields = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
NAME, NUMBER = "Zwetschgenhuber^Annegret", "QX1947110815"
PHANTOM = split_patients(0, {"train": 1}, (8, 32, 32), 64)["train"][0]
#: A number long enough that the random digits of a new UID do not hold it by chance.
PLANTED = "1947110815"
#: VR -> a value that no action may keep.
SECRETS = {
    **dict.fromkeys(("AE", "CS", "LO", "SH"), f"SECRET{PLANTED}"),
    **dict.fromkeys(("LT", "ST", "UC", "UT", "PN"), f"Secret of {PLANTED}"),
    "AS": "047Y",
    "DA": "19521231",
    "DT": "19521231114711",
    "TM": "114711",
    "UR": f"http://secret.example/{PLANTED}",
    "DS": "47.11",
    "IS": PLANTED,
    "UI": f"1.2.3.{PLANTED}",
    **dict.fromkeys(("OB", "UN"), b"SECRET" + PLANTED.encode()),
    **dict.fromkeys(("FD", "FL"), 4711.0),
    **dict.fromkeys(("SL", "SS", "UL", "US"), 4711),
}


def deidentify(source: Path, out: Path, status: int = 0) -> str:
    result = CliRunner().invoke(
        app, ["data", "deidentify", str(source), "--out", str(out), "--key-file", str(out) + ".key"]
    )
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


def change(file: Path, **attributes: object) -> Path:
    data = pydicom.dcmread(file)
    data.update(attributes)
    data.save_as(file)
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A CT series and a radiograph of one patient, with identifiers in headers and names."""
    root = tmp_path / "source" / f"{NAME} {NUMBER}"
    write_dicom_series(root / "series", PHANTOM)
    write_dicom_radiograph(root / f"{NUMBER}.dcm", PHANTOM)
    for file in root.rglob("*.dcm"):
        change(file, PatientName=NAME, PatientID=NUMBER, PatientBirthDate="19521231")
    return root.parent


def copies(out: Path) -> list[Path]:
    return sorted(out.rglob("*.dcm"))


def secret(tag: tuple[int, int]) -> DataElement:
    vr = dictionary_VR(tag).split(" or ")[0]
    if vr != "SQ":
        return DataElement(tag, vr, SECRETS[vr])
    inner = Dataset()
    inner.PatientComments, inner.PatientName = f"Secret of {PLANTED}", f"Secret of {PLANTED}"
    inner.InstitutionName, inner.DateOfSecondaryCapture = f"SECRET{PLANTED}", "19521231"
    return DataElement(tag, "SQ", Sequence([inner]))


CATEGORIES = (
    "D_TAGS",
    "Z_TAGS",
    "X_TAGS",
    "U_TAGS",
    "Z_D_TAGS",
    "X_Z_TAGS",
    "X_D_TAGS",
    "X_Z_D_TAGS",
    "X_Z_U_STAR_TAGS",
)


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_no_attribute_of_the_table_keeps_its_value(source: Path, tmp_path: Path, nested: bool) -> None:
    tags = {tag for name in CATEGORIES for tag in getattr(fields, name) if len(tag) == 2 and tag[0] not in (0, 2, 4)}
    tags = {tag for tag in tags if keyword_for_tag(tag)}
    assert len(tags) > 500
    file = source / f"{NAME} {NUMBER}" / f"{NUMBER}.dcm"
    data = pydicom.dcmread(file)
    item = Dataset() if nested else data
    for tag in tags:
        if nested or tag not in ((0x0008, 0x0018), (0x0020, 0x000D), (0x0020, 0x000E)):
            item[tag] = secret(tag)
    if nested:
        middle = Dataset()
        middle.PurposeOfReferenceCodeSequence = Sequence([item])
        data.AnatomicRegionSequence = Sequence([middle])
    data.save_as(file)
    deidentify(file, tmp_path / "out")
    (copy,) = copies(tmp_path / "out")
    after = pydicom.dcmread(copy)
    kept = [
        (element.tag, element.value)
        for element in after.iterall()
        if (element.tag.group, element.tag.element) in tags
        and element.VR != "SQ"
        and element.value == SECRETS.get(element.VR)
    ]
    assert not kept
    content = copy.read_bytes()
    for value in (b"SECRET", b"Secret", PLANTED.encode(), b"19521231", NAME.encode()):
        assert value not in content, value


def test_copies_read_to_equal_values(source: Path, tmp_path: Path) -> None:
    deidentify(source, tmp_path / "out")
    before = read_volume(source / f"{NAME} {NUMBER}" / "series")
    (series,) = {file.parent for file in copies(tmp_path / "out") if len(list(file.parent.iterdir())) == 8}
    after = read_volume(series)
    assert np.array_equal(before.array, after.array)
    assert before.spacing == after.spacing
    (film,) = [file for file in copies(tmp_path / "out") if file.parent != series]
    assert np.array_equal(
        np.asarray(read_image(source / f"{NAME} {NUMBER}" / f"{NUMBER}.dcm").array), np.asarray(read_image(film).array)
    )


@needs_dciodvfy
def test_copies_are_valid_dicom(source: Path, tmp_path: Path) -> None:
    deidentify(source, tmp_path / "out")
    series = copies(tmp_path / "out")
    assert len(series) == 9
    for file in {file.parent: file for file in series}.values():
        assert not dicom_errors(file)


def test_patients_and_uids_are_replaced_consistently(source: Path, tmp_path: Path) -> None:
    originals = [pydicom.dcmread(file) for file in source.rglob("*.dcm")]
    deidentify(source, tmp_path / "out")
    (tmp_path / "again.key").write_text((tmp_path / "out.key").read_text())
    deidentify(source, tmp_path / "again")
    names = [[str(file.relative_to(root)) for file in copies(root)] for root in (tmp_path / "out", tmp_path / "again")]
    assert names[0] == names[1]
    found = [pydicom.dcmread(file) for file in copies(tmp_path / "out")]
    pseudonym = Pseudonyms(tmp_path / "out.key").of(NUMBER)
    assert {data.PatientID for data in found} == {pseudonym}
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        new, old = ({data[keyword].value for data in group} for group in (found, originals))
        assert len(new) == len(old)
        assert not new & old
    assert all(data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID for data in found)
    assert {data.SOPClassUID for data in found} == {data.SOPClassUID for data in originals}


def test_names_and_private_attributes_are_in_no_copy(source: Path, tmp_path: Path) -> None:
    for file in source.rglob("*.dcm"):
        data = pydicom.dcmread(file)
        data.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", NAME)
        data.WindowCenterWidthExplanation = f"for {NUMBER}"  # free text outside of the table
        data.preamble = NAME.encode().ljust(128)
        data.save_as(file)
    (source / f"{NAME}.txt").write_text(NAME)
    output = deidentify(source, tmp_path / "out")
    assert "left out: 1 × not a DICOM file" in output
    for path in (tmp_path / "out").rglob("*"):
        assert not any(word in path.name for word in ("Zwetschgen", PLANTED))
        assert path.stat().st_mode & 0o077 == 0
        if path.is_file():
            assert not any(word in path.read_bytes() for word in (b"Zwetschgen", PLANTED.encode(), b"VENDOR"))
    assert "Zwetschgen" not in output


def test_burned_in_text_is_warned_of(source: Path, tmp_path: Path) -> None:
    assert "warning" not in deidentify(source, tmp_path / "plain")
    film = source / f"{NAME} {NUMBER}" / f"{NUMBER}.dcm"
    for name, attributes in {"declared": {"BurnedInAnnotation": "YES"}, "ultrasound": {"Modality": "US"}}.items():
        change(film, **attributes)
        output = deidentify(source, tmp_path / name)
        assert output.count("warning: p") == 1
        assert "may show names in its pixels" in output
    change(film, BurnedInAnnotation="NO")
    assert "warning" not in deidentify(source, tmp_path / "clean")


def test_damaged_file_is_a_fault_without_its_name(source: Path, tmp_path: Path) -> None:
    whole = next(source.rglob("*.dcm")).read_bytes()
    (source / f"{NAME}.dcm").write_bytes(whole[:400])
    output = deidentify(source, tmp_path / "out", status=2)
    assert "fault: file" in output
    assert "Zwetschgen" not in output
    assert len(copies(tmp_path / "out")) == 9


def test_wrong_folders_are_refused(source: Path, tmp_path: Path) -> None:
    for given, out, message in (
        (source, source / "out", "outside"),
        (tmp_path / "gone", tmp_path / "out", "does not exist"),
    ):
        result = CliRunner().invoke(
            app, ["data", "deidentify", str(given), "--out", str(out), "--key-file", str(tmp_path / "k")]
        )
        assert message in str(result.exception)
