"""SA-Med2D, M3D, AMOS-MM, Merlin and one's own tables, in their published layouts."""

from __future__ import annotations

import numpy as np
import openpyxl
import pytest
from PIL import Image

from medmvl.data.converters.m3d import caption_text
from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv, write_json

# --- SA-Med2D -------------------------------------------------------------------------------------------------


def mask(path, size=(20, 10), box=(4, 2, 6, 3), value=1) -> None:
    """Write a mask of (width, height) with foreground in the box (x, y, w, h)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def samed(tmp_path):
    root = tmp_path / "SAMed2Dv1"
    ct, heart = "ct_00--AbdomenCT1K--Case-00--011--x_0040", "mr_00--ACDC--p1--z_1"
    for name in (ct, heart, "fundus_photography--ichallenge_adam_task2--c--x"):
        picture(root / f"images/{name}.png", (20, 10))
    names = [f"{ct}--0000_001", f"{ct}--0001_001", f"{ct}--0001_002", f"{ct}--0002_001", f"{ct}--0009_001"]
    mask(root / f"masks/{names[0]}.png", value=255)
    mask(root / f"masks/{names[1]}.png")
    mask(root / f"masks/{names[2]}.png", box=(12, 2, 6, 6))
    mask(root / f"masks/{names[3]}.png", size=(40, 20))
    mask(root / f"masks/{heart}--0003_000.png")
    mask(root / f"masks/{heart}--0001_000.png", box=(0, 0, 20, 1))
    eye = "fundus_photography--ichallenge_adam_task2--c--x"
    mask(root / f"masks/{eye}--0000_000.png", box=(0, 0, 20, 8))  # inverted: the object is the lowest two rows
    index = {
        f"images/{eye}.png": [f"masks/{eye}--0000_000.png"],
        f"images/{ct}.png": [f"masks/{name}.png" for name in names],
        f"images/{heart}.png": [f"masks/{heart}--0003_000.png", f"masks/{heart}--0001_000.png"],
        "images/ct_00--Lost--c--x_1.png": [],
    }
    write_json(root / "SAMed2D_v1.json", index)
    classes = {
        "AbdomenCT1K": {"liver": "0000", "kidney": "0001", "spleen": 2},
        "ACDC": {"left_ventricle": 1, "union_all": 3},
        "ACDC_2": {"wrong": 1},
        "ichallenge_adam_task2": {"optic_disc": 0},
    }
    write_json(root / "SAMed2D_v1_class_mapping_id.json", classes)
    return tmp_path


def test_samed_masks_become_boxes_and_bad_masks_are_accounted_for(samed, tmp_path) -> None:
    records, result = run("sa-med2d-20m", samed, tmp_path / "out", test_share="1")
    by_object = {(r["object"], r["task"]): r for r in records["test"]}
    assert set(by_object) == {(o, t) for o in ("liver", "left ventricle", "optic disc") for t in ("refer", "identify")}
    liver = by_object["liver", "refer"]
    assert question(liver) == "<image>\ngive me the location of liver"
    assert liver["boxes"] == [[4, 2, 6, 3]]
    assert liver["image_size"] == [20, 10]
    assert liver["answer"] == "{<20><20><50><50>}"
    assert liver["patient"] == "AbdomenCT1K--Case-00--011"  # hyphens inside the case's name
    assert liver["modality"] == "ct_00"
    assert by_object["left ventricle", "identify"]["answer"] == "left ventricle"  # exact data set, not a substring
    assert by_object["optic disc", "refer"]["boxes"] == [[0, 8, 20, 2]]
    left_out = result.report.left_out
    assert left_out["object that occurs more than once in its image"] == 2
    assert left_out["mask of another size than its image"] == 1
    assert left_out["mask that unites or covers other classes"] == 1
    assert result.report.faults == {"class of a mask is not in the class table": 1, "image is missing": 1}


def test_samed_options(samed, tmp_path) -> None:
    every, _ = run("sa-med2d-20m", samed / "SAMed2Dv1", tmp_path / "a", instances="all", tasks="refer", test_share="0")
    assert len(every["train"]) == 5
    limited, result = run("sa-med2d-20m", samed, tmp_path / "b", min_pixels="19", test_share="0")
    assert {r["object"] for r in limited["train"]} == {"left ventricle", "kidney", "optic disc"}
    assert result.report.left_out["mask that is empty or smaller than asked for"] == 2


def test_unimeds_regions_keep_their_split(tmp_path) -> None:
    root = tmp_path / "src"
    for split in ("train", "test"):
        picture(root / f"images_small_{split}/ct/7.png", (100, 50))
        write_json(root / f"regions_small_{split}/ct/7.json", [{"liver": [10, 5, 50, 25]}, {"bad": [1, 1, 0, 0]}])
    records, result = run("sa-med2d-20m", root, tmp_path / "out")
    refer = next(r for r in records["test"] if r["task"] == "refer")
    assert refer["answer"] == "{<10><10><60><60>}"
    assert len(records["train"]) == 2
    assert result.report.faults == {"box is not [x, y, w, h] with a size": 2}


def test_the_demo_release_of_sam_med2d(tmp_path) -> None:
    root = tmp_path / "src"
    picture(root / "images/amos_0004_75.png", (20, 10))
    mask(root / "masks/amos_0004_75_liver_000.png")
    index = {"images/amos_0004_75.png": ["masks/amos_0004_75_liver_000.png"]}
    write_json(root / "image2label_train.json", index)
    records, _ = run("sa-med2d-20m", root, tmp_path / "out")
    assert {r["object"] for r in records["train"]} == {"liver"}
    assert {r["patient"] for r in records["train"]} == {"amos_0004"}


# --- M3D ------------------------------------------------------------------------------------------------------


def m3d_volume(root, case="000006", series="Axial_non_contrast") -> str:
    file = root / f"M3D_Cap_npy/ct_case/{case}/{series}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.random.default_rng(0).random((1, 8, 16, 16), dtype=np.float32))
    return f"M3D_Cap/ct_case/{case}/{series}.npy"


def test_m3d_captions_come_from_their_text_files(tmp_path) -> None:
    root = tmp_path / "src"
    image = m3d_volume(root)
    (root / "M3D_Cap_npy/ct_case/000006/text.txt").write_text("title: x\nstudy_findings: A cyst\nin the liver.\n")
    item = {"image": image, "text": "M3D_Cap_npy/ct_case/000006/text.txt"}
    lost = {"image": image, "text": "M3D_Cap_npy/ct_case/9/text.txt"}
    write_json(root / "M3D_Cap.json", {"train": [item], "validation": [item], "test": [item, lost], "test500": [item]})
    records, result = run("m3d-cap", root, tmp_path / "out")
    assert set(records) == {"train", "validation", "test", "test500"}
    assert records["test"][0]["answer"] == "A cyst in the liver."
    assert records["test"][0]["patient"] == "ct_case/000006"
    assert result.report.faults == {"caption file is missing": 1}
    assert any("arbitrary units" in note for note in result.report.notes)


def test_m3d_as_downloaded_is_stacked_in_the_order_of_its_numbers(tmp_path) -> None:
    case = tmp_path / "src/M3D_Cap/ct_case/00001"
    for number in (1, 2, 10):
        picture(case / f"Axial/{number}.jpeg", mode="L")
    Image.fromarray(np.full((12, 16), 200, dtype=np.uint8)).save(case / "Axial/10.jpeg")
    picture(case / "Axial/scout.png", size=(5, 5))
    (case / "text.txt").write_text("study_findings: A cyst.")
    (case.parent / "00002").mkdir()
    records, result = run("m3d-cap", tmp_path / "src", tmp_path / "out")
    (record,) = records["train"]
    volume = np.load(tmp_path / "out" / record["image3d"][0])
    assert volume.shape == (3, 12, 16)
    assert volume[2].min() > 190  # slice 10 is the last
    assert result.report.left_out["slice of another size than most of its series"] == 1
    assert result.report.faults == {"case without text.txt": 1}


def test_m3d_caption_text_falls_back_to_the_discussion() -> None:
    assert caption_text("a\ndiscussion: b c") == "b c"
    assert caption_text("only this") == "only this"
    assert caption_text("study_findings: .\ndiscussion: A cyst.") == "A cyst."


def test_m3d_cases_and_quizzes_of_one_number_are_two_patients(tmp_path) -> None:
    for folder in ("ct_case", "ct_quizze"):
        case = tmp_path / "src/M3D_Cap" / folder / "00001"
        picture(case / "Axial/1.jpeg", mode="L")
        (case / "text.txt").write_text(f"study_findings: Text of {folder}.")
    records, result = run("m3d-cap", tmp_path / "src", tmp_path / "out")
    assert [record["patient"] for record in records["train"]] == ["ct_case/00001", "ct_quizze/00001"]
    assert any("medmvl data audit" in note for note in result.report.notes)


def test_m3d_questions_open_and_closed(tmp_path) -> None:
    root = tmp_path / "src"
    image = m3d_volume(root)
    header = ["Image Path", "Text", "Question Type", "Question", "Choice A", "Choice B", "Choice C", "Choice D"]
    row = [image, "t", "1", "Which plane?", "Axial", "Coronal", "Sagittal", "Oblique", "Axial", "A"]
    write_csv(root / "M3D_VQA_test.csv", [[*header, "Answer", "Answer Choice"], row, [*row[:3], "", *row[4:]]])
    records, result = run("m3d-vqa", root, tmp_path / "out")
    closed, opened = records["test"]
    assert question(closed) == "<image3d>\nWhich plane? Choices: A. Axial B. Coronal C. Sagittal D. Oblique"
    assert closed["answer"] == "A. Axial"
    assert closed["question_type"] == "plane"
    assert opened["answer"] == "Axial"
    assert result.report.faults == {"empty question or answer": 1}


# --- AMOS-MM and Merlin ---------------------------------------------------------------------------------------


def nifti(path) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((8, 8, 6), -1000, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def test_amos_reports_and_questions(tmp_path) -> None:
    root = tmp_path / "src"
    for name in ("imagesTr/amos_0001", "imagesTr/amos_7008", "imagesVa/amos_7008"):
        nifti(root / f"{name}.nii.gz")
    findings = {"chest": "Clear.", "abdomen": "", "pelvis": "No mass."}
    report = {"labels": {"report": {"findings": findings}}}
    one = {"image": "./imagesTr/amos_0001.nii.gz", "meta": {}} | report
    both = {"image": "./imagesTr/amos_7008.nii.gz"} | report
    table = {"license": "CC BY-ND 4.0", "training": [one, both], "validation": [both]}
    write_json(root / "report_generation_train_val.json", table)
    answers = [
        {"question": "Which?", "options": {"A": "one", "B": "two"}, "answer": "B"},
        {"question": "Which?", "options": {"A": "one"}, "answer": "C"},
    ]
    write_json(root / "vqa_train_val.json", {"training": [one | {"labels": {"qa": answers}}], "validation": []})
    records, result = run("amos-mm", root, tmp_path / "out")
    reports = [r for r in records["train"] if r["task"] == "report"]
    assert [r["conversations"][1]["value"] for r in reports] == ["Chest: Clear. Pelvis: No mass."]
    choice = next(r for r in records["train"] if r["task"] == "choice")
    assert question(choice) == "<image3d>\nWhich? (a) one (b) two"
    assert choice["conversations"][1]["value"] == "(b) two"
    assert [r["patient"] for r in records["validation"]] == ["amos_7008"]
    assert sum(result.report.left_out.values()) == 1
    assert sum(result.report.faults.values()) == 1
    regions, _ = run("amos-mm", root, tmp_path / "regions", tasks="report", report="regions")
    assert [r["question_type"] for r in regions["train"]] == ["chest", "pelvis"]


def test_merlin_reports_from_the_workbook(tmp_path) -> None:
    root = tmp_path / "src"
    nifti(root / "merlin_data/AC1.nii.gz")
    book = openpyxl.Workbook()
    book.active.append(["study id", "Findings", "Split", "few_shot"])
    book.active.append(["AC1", "Liver normal.\nIMPRESSION: Normal.", "test", 0])
    book.active.append(["AC2", "Gone.", "train", 0])
    book.active.append(["AC1", None, "val", 0])
    book.save(root / "reports_final.xlsx")
    write_csv(root / "zero_shot_findings_disease_cls.csv", [["study id", "ascites", "cyst"], ["AC1", "1", "-1"]])
    records, result = run("merlin", root, tmp_path / "out")
    record = records["test"][0]
    assert record["answer"] == "Liver normal."
    assert record["labels"] == {"ascites": 1, "cyst": -1}
    assert result.report.faults == {"volume is missing": 1, "findings are empty": 1}
    kept, _ = run("merlin", root, tmp_path / "kept", impression="keep")
    assert kept["test"][0]["answer"].endswith("IMPRESSION: Normal.")


# --- own tables -----------------------------------------------------------------------------------------------


def test_own_workbook_with_reports_and_a_split_by_patient(tmp_path) -> None:
    root = tmp_path / "src"
    book = openpyxl.Workbook()
    book.active.append(["scan", "text", "mrn", "age"])
    for number in range(20):
        picture(root / f"{number}.png")
        book.active.append([f"{number}.png", f"Report {number}.", f"P{number // 2}", 40])
    book.save(root / "reports.xlsx")
    options = {"image": "scan", "answer": "text", "patient": "mrn", "prompt": "Describe it.", "task": "report"}
    records, _ = run("folder", root, tmp_path / "out", **options, test_share="0.4", keep="age")
    patients = {split: {r["patient"] for r in rows} for split, rows in records.items()}
    assert patients["train"]
    assert patients["test"]
    assert not patients["train"] & patients["test"]
    assert len(patients["train"] | patients["test"]) == 10
    assert "P1" not in (tmp_path / "out/train.jsonl").read_text()
    assert records["test"][0]["age"] == "40"
    assert question(records["train"][0]) == "<image>\nDescribe it."


def test_own_table_needs_a_question_and_stays_inside(tmp_path) -> None:
    write_csv(tmp_path / "src/t.csv", [["f", "answer"], ["../secret.png", "x"]])
    picture(tmp_path / "secret.png")
    with pytest.raises(DataError, match="--question COLUMN or --prompt"):
        run("folder", tmp_path / "src", tmp_path / "out", image="f")
    with pytest.raises(DataError, match="path in column 'f' leaves the folder of the data"):
        run("folder", tmp_path / "src", tmp_path / "out", image="f", prompt="What?")
    write_csv(tmp_path / "src/u.csv", [["f"]])
    with pytest.raises(DataError, match="must hold one table"):
        run("folder", tmp_path / "src", tmp_path / "out", image="f", prompt="What?")


def test_samed_frames_of_a_patient_stay_together() -> None:
    from medmvl.data.converters.sa_med2d import patient_of

    assert patient_of("patient001_frame01") == patient_of("patient001_frame12") == "patient001"
    assert patient_of("Case_00011") == "Case_00011"
    assert patient_of("frame01") == "frame01"
