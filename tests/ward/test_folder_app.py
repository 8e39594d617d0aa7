"""Folder in, folder out, as launchers of containers call it."""

from __future__ import annotations

import json
import sys

import pydicom
import pytest
import yaml

from medmvl.cli.main import main
from medmvl.errors import WardError
from medmvl.ward.folder_app import FOLDER_VARIABLES, find_folders, run_study
from ward.stub import EFFUSION, REPORT, StubAnswerer, write_ct

PROTOCOL = {"name": "chest", "series": {"modality": "CT"}, "questions": [EFFUSION, REPORT]}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in sum(FOLDER_VARIABLES, ()):
        monkeypatch.delenv(name, raising=False)


def answered(folder):
    return json.loads((folder / "result.json").read_text())


def task(folder, process):
    (folder / "task.json").write_text(json.dumps({"id": "1", "process": process}))


@pytest.mark.parametrize("variables", FOLDER_VARIABLES)
def test_launcher_names_the_folders(tmp_path, monkeypatch, variables):
    write_ct(tmp_path / "in")
    monkeypatch.setenv(variables[0], str(tmp_path / "in"))
    monkeypatch.setenv(variables[1], str(tmp_path / "out"))
    run_study(protocol=PROTOCOL, answerer=StubAnswerer())
    assert answered(tmp_path / "out")["outcome"] == "results"


def test_given_folder_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("MONAI_INPUTPATH", "/nowhere")
    assert str(find_folders("here", "there")[0]) == "here"
    with pytest.raises(WardError, match="--out, or set one of MERCURE_OUT_DIR"):
        find_folders(None, None)


def test_result_objects_are_named_by_series_and_instance(tmp_path):
    run_study(write_ct(tmp_path / "in"), tmp_path / "out", protocol=PROTOCOL, answerer=StubAnswerer())
    files = list((tmp_path / "out").glob("*.dcm"))
    assert len(files) == 2
    for file in files:
        data = pydicom.dcmread(file)
        assert file.name == f"{data.SeriesInstanceUID}#{data.SOPInstanceUID}.dcm"


@pytest.mark.parametrize("as_list", [False, True])
def test_task_settings_replace_protocol_values(tmp_path, as_list):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(PROTOCOL))
    process = {"settings": {"protocol": str(tmp_path / "p.yaml"), "results.send": ["pdf"]}}
    task(write_ct(tmp_path / "in"), [process] if as_list else process)
    result = run_study(tmp_path / "in", tmp_path / "out", answerer=StubAnswerer())
    assert [data.Modality for data in result.objects] == ["DOC"]


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"settings": {"results.langage": "en"}}, "Did you mean 'language'"),
        ({"settings": ["a"]}, "must hold keys and values"),
        ([{"settings": {}}, {"settings": {}}], "2 processing steps"),
    ],
)
def test_wrong_task_is_refused_and_written_down(tmp_path, process, message):
    task(write_ct(tmp_path / "in"), process)
    with pytest.raises(WardError, match=message):
        run_study(tmp_path / "in", tmp_path / "out", protocol=PROTOCOL, answerer=StubAnswerer())
    assert answered(tmp_path / "out")["outcome"] == "failed"
    assert answered(tmp_path / "out")["__mercure_notification"]["requested"]


@pytest.mark.parametrize(("probability", "requested"), [(0.9, True), (0.2, False)])
def test_positive_finding_asks_for_a_notification(tmp_path, probability, requested):
    run_study(write_ct(tmp_path / "in"), tmp_path / "out", protocol=PROTOCOL, answerer=StubAnswerer(probability))
    notification = answered(tmp_path / "out")["__mercure_notification"]
    assert notification["requested"] is requested
    assert "research use" in notification["text"]


def test_no_fitting_series_fails_with_reasons(tmp_path):
    protocol = {**PROTOCOL, "series": {"modality": "MR"}}
    with pytest.raises(WardError, match="No series of the study fits the protocol: CT axial, 8 slice"):
        run_study(write_ct(tmp_path / "in"), tmp_path / "out", protocol=protocol, answerer=StubAnswerer())
    assert "modality is not MR" in answered(tmp_path / "out")["error"]


@pytest.mark.parametrize(("modality", "status"), [("CT", 0), ("MR", 2)])
def test_command_with_a_real_model_tells_success_by_its_status(
    tmp_path, model_folder, monkeypatch, capsys, modality, status
):
    questions = [EFFUSION, {**REPORT, "max_new_tokens": 4}]
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump({**PROTOCOL, "series": {"modality": modality}, "questions": questions})
    )
    write_ct(tmp_path / "in")
    command = ["study", "--model", model_folder, "--protocol", tmp_path / "p.yaml", "--device", "cpu"]
    command += ["--in", tmp_path / "in", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["medmvl", *map(str, command)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    assert ("No series" in capsys.readouterr().err) is (status == 2)
    assert answered(tmp_path / "out")["outcome"] == ("results" if status == 0 else "failed")
