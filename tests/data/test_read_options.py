"""Reading options of records, data sets and the command line reach the readers."""

from __future__ import annotations

import json
import pickle

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from imaging.dicom_writing import random_hu, write_series
from medmvl.cli.main import app
from medmvl.data.check import check_records
from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import write_records
from medmvl.data.read_options import MediaPath, ReadOptions, reading_of
from medmvl.data.read_spelling import remedies, spell_flags, spell_protocol, spell_recipe
from medmvl.data.record import parse_record, to_record
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError
from medmvl.imaging import read_volume


@pytest.fixture
def mr(tmp_path):
    """A NIfTI file whose units nobody can know, and a record about it."""
    values = np.random.default_rng(0).integers(0, 900, (16, 16, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 2, 1])), tmp_path / "mr.nii.gz")
    turns = [{"from": "human", "value": "<image3d>\nq?"}, {"from": "gpt", "value": "a"}]
    return {"id": "1", "conversations": turns, "image3d": ["mr.nii.gz"]}


def test_record_says_how_its_files_are_read(tmp_path, mr):
    write_records(tmp_path / "plain.jsonl", [mr])
    write_records(tmp_path / "told.jsonl", [mr | {"read": {"units": "arbitrary"}}])
    assert "units='arbitrary'" in check_records(tmp_path / "plain.jsonl", read_media=True)[0].message
    assert check_records(tmp_path / "told.jsonl", read_media=True) == []
    roots = MediaRoots(reading=ReadOptions(units="arbitrary"))
    assert check_records(tmp_path / "plain.jsonl", roots, read_media=True) == []


def test_check_takes_flags_and_names_them(tmp_path, mr):
    write_records(tmp_path / "t.jsonl", [mr])
    refused = CliRunner().invoke(app, ["data", "check", str(tmp_path / "t.jsonl")])
    assert refused.exit_code == 2
    assert "--units arbitrary" in refused.output
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path / "t.jsonl"), "--units", "arbitrary"]).exit_code == 0


def test_record_wins_over_data_set_and_comes_back(tmp_path, mr):
    row = mr | {"read": {"units": "HU", "spacing": "2,1,1"}}
    write_records(tmp_path / "t.jsonl", [row])
    roots = MediaRoots(reading=ReadOptions(units="arbitrary", gaps="fill"))
    sample = SampleDataset(tmp_path / "t.jsonl", roots)[0]
    assert sample.reading.given() == {"units": "HU", "gaps": "fill", "spacing": (2.0, 1.0, 1.0)}
    assert reading_of(sample.volumes[0]) == sample.reading
    assert to_record(parse_record(row, "f"))["read"] == {"units": "HU", "spacing": [2.0, 1.0, 1.0]}
    assert "read" not in parse_record(row, "f").extra


def test_paths_with_other_options_differ():
    plain, thin = "a", MediaPath("a", ReadOptions(series="thinnest"))
    assert thin != plain
    assert len({plain, thin, MediaPath("a", ReadOptions(series="thinnest"))}) == 2
    assert pickle.loads(pickle.dumps(thin)) == thin
    assert f"{thin}" == "a"


@pytest.mark.parametrize(
    ("read", "words"),
    [
        ({"serie": "x"}, "Did you mean 'series'?"),
        ({"units": "hounsfield"}, "HU, arbitrary"),
        ({"frame": -1}, "whole number"),
        ({"spacing": [1, 2]}, "three numbers"),
        ({"spacing": [1, 2, 0]}, "above 0"),
        ({"slope": True}, "a number"),
        ("thinnest", "must be an object"),
    ],
)
def test_wrong_reading_options_are_named(mr, read, words):
    with pytest.raises(DataError, match="line 1") as caught:
        parse_record(mr | {"read": read}, "line 1")
    assert words in str(caught.value)


def test_messages_are_spelled_for_their_command():
    message = "Say units='HU', or give spacing=(z, y, x) or already_rescaled=False."
    assert spell_flags(message) == "Say --units HU, or give --spacing Z,Y,X or --no-already-rescaled."
    assert "`read: {units: HU}`" in spell_recipe(message)


def test_place_of_a_remedy_is_said_once():
    message = "Read it with gaps='fill' (interpolate) or gaps='keep' (as if regular)."
    recipe, protocol = spell_recipe(message), spell_protocol(message)
    assert recipe.startswith(
        "Read it with `read: {gaps: fill}` (interpolate) or `read: {gaps: keep}` (as if regular). `read` is"
    )
    assert protocol.count("section of the protocol") == recipe.count("a data set in the recipe") == 1
    assert spell_recipe("It is empty.") == "It is empty."


def test_report_json_names_the_media_root(tmp_path, mr):
    (tmp_path / "records").mkdir()
    write_records(tmp_path / "records/train.jsonl", [mr])
    (tmp_path / "records/report.json").write_text(json.dumps({"dataset": "folder", "media_root": ".."}))
    assert SampleDataset(tmp_path / "records/train.jsonl")[0].volumes == (str(tmp_path / "mr.nii.gz"),)
    assert check_records(tmp_path / "records/train.jsonl") == []
    with pytest.raises(DataError, match="volume root"):
        check_records(tmp_path / "records/train.jsonl", MediaRoots(volume=tmp_path / "none"))


def test_warnings_of_a_reader_are_shown_once(tmp_path, mr):
    image = nibabel.load(tmp_path / "mr.nii.gz")
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    image.header.set_sform(affine, code=1)
    image.header["pixdim"][3] = 2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "mr.nii.gz")
    write_records(tmp_path / "t.jsonl", [mr, mr | {"id": "2"}])
    warnings = []
    roots = MediaRoots(reading=ReadOptions(units="arbitrary"))
    assert check_records(tmp_path / "t.jsonl", roots, read_media=True, on_warning=warnings.append) == []
    assert len(warnings) == len({str(w) for w in warnings})


def test_series_without_pixel_spacing_takes_one_at_every_door(tmp_path):
    folder = write_series(tmp_path / "ct", random_hu(), PixelSpacing=None)
    turns = [{"from": "human", "value": "<image3d>\nq?"}, {"from": "gpt", "value": "a"}]
    record = {"id": "1", "conversations": turns, "image3d": ["ct"]}
    write_records(tmp_path / "plain.jsonl", [record])
    write_records(tmp_path / "told.jsonl", [record | {"read": {"spacing": [2, 0.8, 0.7]}}])
    assert "spacing=(2, y, x)" in check_records(tmp_path / "plain.jsonl", read_media=True)[0].message
    assert [w.message for w in check_records(tmp_path / "told.jsonl", read_media=True)] == []
    run = CliRunner()
    refused = run.invoke(app, ["data", "check", str(tmp_path / "plain.jsonl")])
    assert refused.exit_code == 2
    assert "--spacing 2,Y,X" in " ".join(refused.output.split())
    taken = run.invoke(app, ["data", "check", str(tmp_path / "plain.jsonl"), "--spacing", "2,0.8,0.7"])
    assert taken.exit_code == 0, taken.output
    out = str(tmp_path / "out.html")
    shown = run.invoke(app, ["data", "show", str(tmp_path / "told.jsonl"), "--geometry", "medm-vl-ct", "--out", out])
    assert shown.exit_code == 0, shown.output
    assert read_volume(folder, spacing=(2, 0.8, 0.7)).spacing == pytest.approx((2, 0.8, 0.7))
    advice = str(check_records(tmp_path / "plain.jsonl", read_media=True)[0].message)
    assert "[2, y, x]" in spell_recipe(advice)
    assert remedies(advice) == []  # a spacing must be typed
    assert remedies("Get it, or read it with gaps='fill' (...) or gaps='keep'.") == [
        {"option": "gaps", "value": "fill"},
        {"option": "gaps", "value": "keep"},
    ]
    listed = remedies("Choose with series=<UID or its end>, 'largest', 'thinnest' or 'axial'; or put it elsewhere.")
    assert [remedy["value"] for remedy in listed] == ["largest", "thinnest", "axial"]
    assert "series.spacing: [2, y, x]" in spell_protocol(advice)
