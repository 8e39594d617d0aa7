"""MIMIC-CXR: studies, views, sections, the report archive, and R2Gen's annotation."""

from __future__ import annotations

import gzip
import zipfile

import pytest

from medmvl.data.prepare.reports import report_text, split_sections

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
    assert result.ledger.left_out["study without a frontal image"] == 1
    assert result.ledger.faults == {"report is missing": 1}


def test_all_views_sections_and_word_limits(source, tmp_path) -> None:
    records, result = run(
        "mimic-cxr", source, tmp_path / "out", views="all", per_study="all", target="findings", max_words="4"
    )
    record = records["train"][0]
    assert record["views"] == ["PA", "LATERAL"]  # frontal first
    assert question(record).count("<image>") == 2
    assert record["conversations"][1]["value"] == "The lungs are clear."
    assert len(records["test"]) == 1
    assert any("cut after 4 words" in note for note in result.ledger.notes)


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
    assert result.ledger.faults == {"empty report or no image": 1}
