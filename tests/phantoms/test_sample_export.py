"""`medmvl data sample` writes an export that the converters, the readers and the audit take as it is."""

from __future__ import annotations

import csv

import numpy as np
import openpyxl
import pytest
from PIL import Image
from typer.testing import CliRunner

from dicom_validity import dicom_errors, needs_dciodvfy
from medmvl.cli.main import app
from medmvl.data.dataset import SampleDataset
from medmvl.data.synthetic import LICENSE
from medmvl.errors import MedMVLError
from medmvl.files import read_json
from medmvl.imaging import read_image, read_volume
from medmvl.phantoms import draw_patient
from medmvl.phantoms.sample_export import CT_SIZE, FILM_SIZE, write_sample_export


def run(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


def test_the_export_becomes_records_split_by_patient(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMVL_PSEUDONYM_KEY", str(tmp_path / "key"))
    run("data", "sample", tmp_path / "export", "--patients", 4)
    columns = ["--volume", "CT", "--patient", "MRN", "--val-share", "0.25", "--test-share", "0.25"]
    asked = ["--table", "questions.csv", "--question", "Question", "--answer", "Answer"]
    run("data", "convert", "folder", tmp_path / "export", "--out", tmp_path / "questions", *columns, *asked)
    splits = {name: SampleDataset(tmp_path / f"questions/{name}.jsonl") for name in ("train", "validation", "test")}
    patients = {name: {data[i].extra["patient"] for i in range(len(data))} for name, data in splits.items()}
    assert [len(found) for found in patients.values()] == [2, 1, 1]
    assert len(set.union(*patients.values())) == 4
    assert all(data[i].extra["synthetic"] for data in splits.values() for i in range(len(data)))
    report = read_json(tmp_path / "questions/report.json")
    assert (report["synthetic"], report["license"]) == (True, LICENSE)
    assert report["title"] == "Synthetic phantoms in the layout of a hospital's export"
    run("data", "check", tmp_path / "questions/train.jsonl")
    run("data", "audit", *(tmp_path / f"questions/{name}.jsonl" for name in splits))


def test_files_and_tables_agree_with_the_patients(tmp_path):
    run("data", "sample", tmp_path / "export", "--patients", 2, "--seed", 5)
    phantom = draw_patient(5, 1, CT_SIZE, FILM_SIZE)
    rows = list(openpyxl.load_workbook(tmp_path / "export/studies.xlsx").active.values)
    row = dict(zip(rows[0], rows[2], strict=True))
    assert (row["MRN"], row["Report"]) == (phantom.patient, phantom.report.text)
    volume = read_volume(tmp_path / "export" / row["CT"])
    assert np.array_equal(volume.to_orientation("SPL").array, phantom.volume)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "export" / row["Film"])), phantom.radiograph)
    assert read_image(tmp_path / f"export/dicom/{phantom.patient}/cr/film.dcm").array.shape[:2] == (
        FILM_SIZE,
        FILM_SIZE,
    )
    with (tmp_path / "export/questions.csv").open(encoding="utf-8") as file:
        questions = [row for row in csv.DictReader(file) if row["MRN"] == phantom.patient]
    effusion = [row["Answer"] for row in questions if "effusion" in row["Question"] and row["Answer"] in ("Yes", "No")]
    assert effusion
    assert set(effusion) == {"Yes" if phantom.labels["Pleural effusion"] else "No"}


@needs_dciodvfy
def test_its_dicom_is_valid(tmp_path):
    run("data", "sample", tmp_path / "export", "--patients", 1)
    files = [next((tmp_path / "export").rglob("ct/*.dcm")), next((tmp_path / "export").rglob("cr/*.dcm"))]
    assert not any(dicom_errors(file) for file in files)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MedMVLError, match="not empty"):
        write_sample_export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
