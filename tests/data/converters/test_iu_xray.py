"""IU X-Ray: R2Gen's annotation, NLM's XML files and the Kaggle tables."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv, write_json

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
<meta type="rr"/>
<uId id="CXR{number}"/>
<pmcId id="{number}"/>
<MedlineCitation Owner="Indiana University" Status="supplied by publisher"><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">Positive TB test</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">Normal   chest x-XXXX.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><major>normal</major><automatic>Edema</automatic></MeSH>
{images}
</eCitation>
"""
IMAGE = '<parentImage id="{0}"><figureId>F1</figureId><caption>Xray Chest PA and Lateral</caption></parentImage>'


def write_xml(folder, number: int, images: list[str], findings: str = "The lungs are clear.") -> None:
    """Write a report as NLM does."""
    folder.mkdir(parents=True, exist_ok=True)
    text = XML.format(number=number, findings=findings, images="".join(map(IMAGE.format, images)))
    (folder / f"{number}.xml").write_text(text, encoding="utf-8")


def test_annotation_keeps_both_views_and_its_split(tmp_path) -> None:
    source = tmp_path / "iu_xray"
    annotation: dict[str, list] = {"train": [], "val": [], "test": []}
    for number, split in enumerate(("train", "train", "val", "test")):
        name = f"CXR{2384 + number}_IM-0942"
        for view in (0, 1):
            picture(source / f"images/{name}/{view}.png", mode="L")
        paths = [f"{name}/0.png", f"{name}/1.png"]
        annotation[split].append({"id": name, "report": "No  effusion.", "image_path": paths, "split": split})
    annotation["test"].append({"id": "study-1", "report": "x", "image_path": ["a.png"]})
    annotation["val"].append({"id": "CXR9_IM-1", "report": "x", "image_path": ["missing.png"]})
    write_json(source / "annotation.json", annotation)
    records, result = run("iu-xray", source, tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 2, "validation": 1, "test": 1}
    (record,) = records["test"]
    assert record["image"] == ["images/CXR2387_IM-0942/0.png", "images/CXR2387_IM-0942/1.png"]
    assert question(record) == "<image>\n<image>\nDescribe the given chest x-ray image in detail."
    assert (record["answer"], record["patient"], record["task"]) == ("No effusion.", "CXR2387", "report")
    assert result.report.faults == {"id does not begin with CXR and a number": 1, "image is missing": 1}
    with pytest.raises(DataError, match="findings only"):
        run("iu-xray", source, tmp_path / "out2", target="impression")


def test_xml_files_become_one_record_per_examination(tmp_path) -> None:
    reports = tmp_path / "ecgen-radiology"
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"):
        picture(tmp_path / f"NLMCXR_png/{name}.png", mode="L")
    write_xml(reports, 1, ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"])
    write_xml(reports, 2, [])
    write_xml(reports, 3, ["CXR3_IM-1384-1001"])
    (reports / "4.xml").write_text("<eCitation>", encoding="utf-8")
    records, result = run("iu-xray", tmp_path, tmp_path / "out", test_share=1.0, validation_share=0.0)
    (record,) = records["test"]
    assert record["answer"] == "Findings: The lungs are clear. Impression: Normal chest x-XXXX."
    assert len(record["image"]) == 2
    assert record["mesh"] == ["Cardiomegaly/mild", "normal"]
    assert record["indication"] == "Positive TB test"
    assert "views" not in record
    assert result.report.left_out == {"examination without an image (of the view asked for)": 1}
    assert result.report.faults == {"image is missing": 1, "report is not readable XML": 1}
    assert any("no official split" in note for note in result.report.notes)


def test_dicom_files_are_found_by_the_same_names(tmp_path) -> None:
    from medmvl.phantoms import draw_patient, write_dicom_series

    write_xml(tmp_path / "ecgen-radiology", 1, ["CXR1_1_IM-0001-3001"], findings="None.")
    written = sorted(write_dicom_series(tmp_path / "series", draw_patient(0, 0)).glob("*"))
    target = tmp_path / "NLMCXR_dcm/1/1_IM-0001-3001.dcm"
    target.parent.mkdir(parents=True)
    target.write_bytes(written[0].read_bytes())
    records, _ = run("iu-xray", tmp_path, tmp_path / "out", test_share=0.0, validation_share=0.0)
    assert records["train"][0]["image"] == ["NLMCXR_dcm/1/1_IM-0001-3001.dcm"]
    assert records["train"][0]["conversations"][1]["value"] == "Impression: Normal chest x-XXXX."


@pytest.fixture
def kaggle(tmp_path):
    head = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    rows = [head]
    views = [["uid", "filename", "projection"]]
    for number in range(1, 31):
        rows.append(
            [number, "normal", "normal", "Xray Chest PA and Lateral", "Pain", "", "Clear.", "No acute disease."]
        )
        for suffix, view in (("3001", "Lateral"), ("1001", "Frontal")):
            name = f"{number}_IM-{number:04d}-{suffix}.dcm.png"
            views.append([number, name, view])
            picture(tmp_path / "images/images_normalized" / name, mode="L")
    rows.append([31, "", "", "", "", "", "", ""])
    views.append([31, "31_IM-0031-1001.dcm.png", "Frontal"])
    write_csv(tmp_path / "indiana_reports.csv", rows)
    write_csv(tmp_path / "indiana_projections.csv", views)
    return tmp_path


def test_kaggle_tables_name_the_views(kaggle, tmp_path) -> None:
    records, result = run("iu-xray", kaggle, tmp_path / "out", target="impression")
    every = [record for rows in records.values() for record in rows]
    assert len(every) == 30
    assert set(records) == {"train", "validation", "test"}
    assert len({record["patient"] for record in every}) == 30
    assert every[0]["views"] == ["Frontal", "Lateral"]
    assert {record.get("answer", "No acute disease.") for record in every} == {"No acute disease."}
    assert result.report.left_out == {"report without the sections asked for (impression)": 1}
    frontal, _ = run("iu-xray", kaggle, tmp_path / "out2", views="frontal")
    assert all(record["views"] == ["Frontal"] for rows in frontal.values() for record in rows)


def test_frontal_views_need_a_layout_that_names_them(tmp_path) -> None:
    write_xml(tmp_path / "ecgen-radiology", 1, ["CXR1_1_IM-0001-3001"])
    with pytest.raises(DataError, match="which view is frontal"):
        run("iu-xray", tmp_path, tmp_path / "out", views="frontal")
    with pytest.raises(DataError, match="no layout of IU X-Ray"):
        run("iu-xray", tmp_path, tmp_path / "out", source_kind="kaggle")
