"""Own tables whose paths do not fit the files: what is missing, moved, unnamed, of the other kind, or names a patient."""

from __future__ import annotations

import json

import pytest
from tests.ward.stub import write_ct
from typer.testing import CliRunner

from medmvl.cards.data_facts import data_set
from medmvl.cli.main import app
from medmvl.data.name_spelling import fold
from medmvl.data.pseudonyms import mask, mask_words
from medmvl.errors import DataError
from medmvl.imaging import read_image

from .helpers import picture, run, write_csv

ASKED = {"prompt": "?", "patient": "MRN"}


@pytest.fixture(autouse=True)
def key_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMVL_PSEUDONYM_KEY", str(tmp_path / "keys/pseudonym.key"))


def export(folder, names, **header):
    """Write a CT and a row for each name, with numbers as patients."""
    rows = [["MRN", "CT", "answer"]]
    for number, name in enumerate(names):
        write_ct(folder / "dicom" / name / "ct", number, PatientID=f"900{number}", **header)
        rows.append([f"900{number}", f"dicom/{name}/ct", "clear"])
    write_csv(folder / "t.csv", rows)
    return folder


@pytest.mark.parametrize("there", ["Dicom", "archive/dicom"])
def test_moved_path_is_named_and_not_taken(tmp_path, there):
    source = export(tmp_path / "src", ["01", "02"])
    (source / there).parent.mkdir(exist_ok=True)
    (source / "dicom").rename(source / there)
    with pytest.raises(DataError, match="path in column 'CT' does not exist: dicom/01/ct") as caught:
        run("folder", source, tmp_path / "out", volume="CT", **ASKED)
    assert f"{there}/01/ct" in str(caught.value)
    assert f"below {source}" in str(caught.value)
    assert "Expected layout" not in str(caught.value)


def test_rows_of_missing_paths_are_shown_without_identifiers(tmp_path):
    source = export(tmp_path / "src", ["9000", "9001"])
    (source / "dicom/9001").rename(tmp_path / "gone")
    flags = ["--volume", "CT", "--prompt", "?", "--patient", "MRN", "--max-faults", "0.9"]
    done = CliRunner().invoke(app, ["data", "convert", "folder", str(source), "--out", str(tmp_path / "out"), *flags])
    assert done.exit_code == 0, done.output
    assert "1 × path in column 'CT' does not exist: dicom/…/ct (row 3)" in done.output
    assert "9001" not in (tmp_path / "out/report.json").read_text()


def test_series_of_no_row_is_counted_and_listed_if_it_tells_nobody(tmp_path):
    source = export(tmp_path / "src", ["01", "02"])
    write_ct(source / "dicom/03/ct", 3, PatientID="7777777")
    write_ct(source / "dicom/Schulze_Eva/ct", 4, PatientID="8888888")
    _, result = run("folder", source, tmp_path / "out", volume="CT", unnamed=str(tmp_path / "all.txt"), **ASKED)
    section = result.report.sections["named_by_no_row"]
    assert section == {"counts": {"DICOM folder": 2}, "paths": ["dicom/03/ct"]}
    assert (tmp_path / "all.txt").read_text().splitlines() == ["dicom/03/ct", "dicom/Schulze_Eva/ct"]
    assert any("2 DICOM folders in the source are named by no row" in note for note in result.report.notes)
    assert "Schulze" not in (tmp_path / "out/report.json").read_text()


def test_large_source_is_searched_only_if_asked_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("medmvl.data.converters.own_media.MOST_ENTRIES", 3)
    source = export(tmp_path / "src", ["01", "02"])
    write_ct(source / "dicom/03/ct", 3, PatientID="7777777")
    _, result = run("folder", source, tmp_path / "out", volume="CT", **ASKED)
    assert any("was not searched for images and series that no row names" in note for note in result.report.notes)
    _, result = run("folder", source, tmp_path / "all", volume="CT", unnamed=str(tmp_path / "all.txt"), **ASKED)
    assert (tmp_path / "all.txt").read_text().splitlines() == ["dicom/03/ct"]
    assert not any("was not searched" in note for note in result.report.notes)


@pytest.mark.parametrize("folder", ["Mueller_Joerg", "JÖRG-MÜLLER", "muller_jorg"])
def test_names_of_headers_are_found_in_paths_in_any_spelling(tmp_path, folder):
    source = export(tmp_path / "src", [folder], SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Jörg")
    records, _ = run("folder", source, tmp_path / "out", volume="CT", **ASKED)
    assert records["train"][0]["image3d"][0].startswith("media/")


def test_words_of_one_patient_may_be_names(tmp_path):
    rows = [["MRN", "file", "answer"]]
    for number, name in enumerate(("Mueller_Joerg", "Schulze_Eva")):
        picture(tmp_path / f"src/images/{name}/a.png")
        rows.append([f"900{number}", f"images/{name}/a.png", "clear"])
    write_csv(tmp_path / "src/t.csv", rows)
    records, _ = run("folder", tmp_path / "src", tmp_path / "out", image="file", **ASKED)
    assert all(record["image"][0].startswith("media/") for record in records["train"])
    kept, result = run("folder", tmp_path / "src", tmp_path / "keep", image="file", paths="keep", **ASKED)
    assert kept["train"][0]["image"] == ["images/Mueller_Joerg/a.png"]
    assert any("--paths neutral" in note for note in result.report.notes)
    unknown, result = run("folder", tmp_path / "src", tmp_path / "no", image="file", prompt="?", identifiers="none")
    assert unknown["train"][0]["image"] == ["images/Mueller_Joerg/a.png"]
    assert any("may be names" in note for note in result.report.notes)


def test_texts_lose_names_in_any_spelling():
    assert fold("Müller") == fold("MUELLER") == fold("Muller")
    assert mask("Herr Müller, Jörg", ["Mueller^Joerg"], "p1") == "Herr p1"
    assert mask_words("Frau Mueller und die mueller", "Müller", "p1") == "Frau p1 und die mueller"
    assert mask("A55091827", ["AE55091827"], "p1") == "A55091827"


def test_column_of_the_other_kind_is_named_with_its_flag(tmp_path):
    source = export(tmp_path / "src", ["01", "02"])
    with pytest.raises(DataError, match="is a folder, but --image takes files.*--volume CT"):
        run("folder", source, tmp_path / "out", image="CT", **ASKED)
    picture(source / "a.png")
    write_csv(source / "t.csv", [["MRN", "film", "answer"], ["1", "a.png", "x"]])
    with pytest.raises(DataError, match="is a picture, but --volume takes volumes.*--image film"):
        run("folder", source, tmp_path / "out", volume="film", **ASKED)
    with pytest.raises(DataError, match="--volume"):
        read_image(source / "dicom/01/ct")


def test_forgotten_columns_of_files_are_named(tmp_path):
    source = export(tmp_path / "src", ["01", "02"])
    with pytest.raises(DataError, match="name files that exist: --volume CT"):
        run("folder", source, tmp_path / "out", **ASKED)
    records, _ = run("folder", source, tmp_path / "out", text_only=True, **ASKED)
    assert "image3d" not in records["train"][0]


def test_unknown_table_and_share_are_answered_in_words(tmp_path):
    source = export(tmp_path / "src", ["01"])
    with pytest.raises(DataError, match=r"no table 'u.csv'.*Known: t.csv"):
        run("folder", source, tmp_path / "out", table="u.csv", volume="CT", **ASKED)
    with pytest.raises(DataError, match="--test-share must be a number from 0 to 1, not 5"):
        run("folder", source, tmp_path / "out", volume="CT", test_share=5, **ASKED)


def test_title_names_the_table_and_both_keys_hold_the_license(tmp_path):
    source = export(tmp_path / "src", ["01", "02"])
    run("folder", source, tmp_path / "out", volume="CT", **ASKED)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["title"] == "Your own data: the table t.csv and its images or volumes"
    assert report["licence"] == report["license"]  # scripts of users read the old key
    old = {"dataset": "folder", "licence": "CC0", "media_root": "."}
    (tmp_path / "out/report.json").write_text(json.dumps(old))
    recipe = {"data_root": str(tmp_path / "out"), "data": {"own": {"path": "train.jsonl"}}}
    assert data_set("own", recipe, ("s",)).license == "CC0"
