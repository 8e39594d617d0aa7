"""MIMIC-CXR: studies, views, sections, the report archive, and R2Gen's annotation."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from medmvl.data.converters.reports import report_text, split_sections
from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv, write_json

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.  There is no
 pleural effusion.

 CONCLUSION:

 No acute process.
"""
ADDENDUM = REPORT + " ____________________________________________________________\n ADDENDUM:  Seen by ___.\n"


def test_sections_are_found_and_renamed() -> None:
    sections = split_sections(REPORT)
    assert sections["findings"] == "The lungs are clear. There is no pleural effusion."
    assert sections["impression"] == "No acute process."
    assert sections["indication"].startswith("___ year old")
    assert report_text(sections, "both") == (
        "Findings: The lungs are clear. There is no pleural effusion. Impression: No acute process."
    )
    assert split_sections(ADDENDUM)["impression"] == "No acute process."


def test_the_last_section_of_a_name_wins_unless_it_is_empty() -> None:
    twice = " FINDINGS: Old.\n FINDINGS: New.\n IMPRESSION:\n"
    assert split_sections(twice) == {"findings": "New."}


def test_a_report_without_headings_gives_its_last_paragraph() -> None:
    plain = " WET READ: ___\n\n Clear lungs, no change.\n"
    assert report_text(split_sections(plain), "both") == "Clear lungs, no change."
    assert report_text(split_sections(plain), "findings") == ""


STUDIES = (  # dicom, study, subject, split, view
    ("aa-1", "50000001", "10000001", "train", "LATERAL"),
    ("aa-2", "50000001", "10000001", "train", "PA"),
    ("bb-1", "50000002", "10000002", "validate", "AP"),
    ("cc-1", "50000003", "11000003", "test", "LL"),
    ("dd-1", "50000004", "11000004", "test", "AP"),
)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "src"
    split = [["dicom_id", "study_id", "subject_id", "split"], *[[d, s, p, k] for d, s, p, k, _ in STUDIES]]
    views = [["dicom_id", "ViewPosition"], *[[d, v] for d, _, _, _, v in STUDIES]]
    for name, rows in (("split", split), ("metadata", views)):
        plain = write_csv(root / f"mimic-cxr-2.0.0-{name}.csv", rows)
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    labels = [["subject_id", "study_id", "Edema", "Pneumonia"], ["10000001", "50000001", "1.0", ""]]
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv", labels)
    for dicom, study, subject, _, _ in STUDIES:
        folder = root / f"files/p{subject[:2]}/p{subject}"
        picture(folder / f"s{study}/{dicom}.jpg", mode="L")
        if study != "50000004":
            (folder / f"s{study}.txt").write_text(REPORT)
    return root


def test_studies_become_reports_of_their_frontal_image(source, tmp_path) -> None:
    records, result = run("mimic-cxr", source, tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 1, "validation": 1}
    record = records["train"][0]
    assert record["image"] == ["files/p10/p10000001/s50000001/aa-2.jpg"]
    assert record["patient"] == "p10000001"
    assert record["study"] == "s50000001"
    assert record["labels"] == {"Edema": 1}
    assert question(record) == "<image>\nDescribe the given chest x-ray image in detail."
    assert records["validation"][0]["answer"].startswith("Findings: The lungs are clear.")
    assert result.report.left_out["study without a frontal image"] == 1
    assert result.report.faults == {"report is missing": 1}


def test_all_views_sections_and_word_limits(source, tmp_path) -> None:
    records, result = run(
        "mimic-cxr", source, tmp_path / "out", views="all", per_study="all", target="findings", max_words="4"
    )
    record = records["train"][0]
    assert record["views"] == ["PA", "LATERAL"]  # frontal first
    assert question(record).count("<image>") == 2
    assert record["conversations"][1]["value"] == "The lungs are clear."
    assert len(records["test"]) == 1
    assert any("cut after 4 words" in note for note in result.report.notes)


def test_reports_are_read_from_the_archive_and_from_the_sectioned_table(source, tmp_path) -> None:
    with zipfile.ZipFile(source / "mimic-cxr-reports.zip", "w") as archive:
        for file in list(source.rglob("s5*.txt")):
            archive.write(file, file.relative_to(source))
            file.unlink()
    zipped, _ = run("mimic-cxr", source, tmp_path / "zip")
    header = ["study", "impression", "findings", "last_paragraph", "comparison"]
    write_csv(source / "mimic_cxr_sectioned.csv", [header, ["s50000001", "Fine.", "", "", ""]])
    table, _ = run("mimic-cxr", source, tmp_path / "table")
    assert len(zipped["train"]) == len(zipped["validation"]) == 1
    assert table["train"][0]["conversations"][1]["value"] == "Impression: Fine."


def test_r2gen_annotation(tmp_path) -> None:
    root = tmp_path / "src"
    picture(root / "images/p10/a.jpg", mode="L")
    item = {"id": "x1", "study_id": 1, "subject_id": 2, "report": "clear  lungs .", "image_path": ["p10/a.jpg"]}
    write_json(root / "annotation.json", {"train": [item], "val": [], "test": [item | {"id": "x2", "report": ""}]})
    records, result = run("mimic-cxr", root, tmp_path / "out")
    assert records["train"][0]["conversations"][1]["value"] == "clear lungs ."
    assert records["train"][0]["patient"] == "p2"
    assert result.report.faults == {"empty report or no image": 1}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("FINAL REPORT\n PORTABLE CHEST:  Clear lungs.\n", {"findings": "Clear lungs."}),
        ("\n FRONTAL AND LATERAL VIEWS OF THE CHEST:  Clear.\n \n IMPRESSON:  No change.\n", {"findings": "Clear.", "impression": "No change."}),
        ("\n FINDINGS AND IMPRESSION:  All clear.\n", {"impression": "All clear."}),
        ("\n COMPARISON:  None.\n \n The lungs are clear.\n \n No effusion.\n", {"comparison": "None.", "last_paragraph": "The lungs are clear. No effusion."}),
        ("\n CHEST, PA LATERAL:\n \n INDICATION:  Cough.\n \n FINDINGS:  Clear.\n", {"indication": "Cough.", "findings": "Clear."}),
        ("\n FINDINGS:  NOTE: this line is text.\n More.\n", {"findings": "NOTE: this line is text. More."}),
    ],
)  # fmt: skip
def test_sections_are_cut_as_by_the_official_tool(report, expected) -> None:
    sections = split_sections(report)
    assert {name: text for name, text in sections.items() if name != "preamble"} == expected


def test_hand_set_sections_of_single_studies() -> None:
    report = "x" * 59 + " The lungs are clear. " + "y" * 400
    assert split_sections(report, "s56579911")["last_paragraph"].startswith("The lungs are clear.")
    assert split_sections(report, "s58235663") == {}


def test_the_tree_that_wget_leaves(source, tmp_path) -> None:
    top = tmp_path / "physionet.org/files"
    images, texts = top / "mimic-cxr-jpg/2.0.0", top / "mimic-cxr/2.0.0"
    texts.mkdir(parents=True)
    images.parent.mkdir(parents=True)
    with zipfile.ZipFile(texts / "mimic-cxr-reports.zip", "w") as archive:
        for file in sorted(source.rglob("s*.txt")):
            archive.write(file, file.relative_to(source))
            file.unlink()
    source.rename(images)
    for place in (top, top.parent):
        records, _ = run("mimic-cxr", place, tmp_path / f"out-{place.name}")
        assert {split: len(rows) for split, rows in records.items()} == {"train": 1, "validation": 1}
    records, _ = run("mimic-cxr", images, tmp_path / "named", reports=str(texts / "mimic-cxr-reports.zip"))
    assert records["train"][0]["label_convention"] == "chexbert"


def test_iu_xray_is_converted_under_its_own_name(tmp_path) -> None:
    item = {"id": "CXR1_IM-0001", "report": "Clear.", "image_path": ["CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png"]}
    write_json(tmp_path / "src/annotation.json", {"train": [item], "val": [], "test": []})
    for view in (0, 1):
        picture(tmp_path / f"src/images/CXR1_IM-0001/{view}.png")
    told, _ = run("iu-xray", tmp_path / "src", tmp_path / "iu")
    records, result = run("mimic-cxr", tmp_path / "src", tmp_path / "out")
    assert records == told
    assert len(records["train"][0]["image"]) == 2
    assert any("IU X-Ray" in note and "not MIMIC-CXR" in note for note in result.report.notes)
    report, expected = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "iu"))
    for key in ("dataset", "title", "license", "options", "media_root"):
        assert report[key] == expected[key]
    assert report["dataset"] == "iu-xray"
    assert report["licence"] == report["license"]
    with pytest.raises(DataError, match=r"no max_words.*medmvl data convert iu-xray"):
        run("mimic-cxr", tmp_path / "src", tmp_path / "cut", max_words=50)
    mixed = {"train": [item | {"id": "02aa804e"}, item], "val": [], "test": []}
    write_json(tmp_path / "src/annotation.json", mixed)
    with pytest.raises(DataError, match="mixes items"):
        run("mimic-cxr", tmp_path / "src", tmp_path / "mixed")
