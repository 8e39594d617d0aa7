"""The command line as a user meets it: help, answers, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imaging.dicom_writing import random_hu, slice_dataset, write_series
from medmvl import Predictor
from medmvl.cli import main as command_line
from medmvl.cli.ask import _print_stream
from medmvl.files import write_json
from medmvl.inference import GenerationOptions
from medmvl.inference.calibration import ABSTENTION
from medmvl.inference.engine import Answer
from medmvl.inference.questions import question
from medmvl.processing.stored_prompts import Prompt, StoredPrompts, TaskPrompts


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Run `medmvl ARGUMENTS` in this process; return status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["medmvl", *map(str, arguments)])
    try:
        command_line.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def medmvl(capsys, monkeypatch):
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


@pytest.fixture
def data(tmp_path) -> Path:
    records = [
        {
            "id": f"q{number}",
            "conversations": [
                {"from": "human", "value": "<image3d>\nIs there a nodule?"},
                {"from": "gpt", "value": "Yes."},
            ],
            "image3d": [f"{name}.npy"],
        }
        for number, name in enumerate("ab")
    ]
    path = tmp_path / "data.json"
    write_json(path, records)
    return path


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['medmvl', '--help']\n"
        "from medmvl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'starlette', 'pydicom', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    commands = (
        "quickstart",
        "train",
        "predict",
        "score",
        "ask",
        "explain",
        "evaluate",
        "demo",
        "list",
        "data",
        "checkpoint",
    )
    assert all(name in text for name in commands)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["predict"],
        ["evaluate"],
        ["ask"],
        ["explain"],
        ["demo"],
        ["data", "convert"],
        ["data", "check"],
        ["checkpoint", "convert"],
    ],
)
def test_every_command_explains_itself(medmvl, arguments):
    status, out, _ = medmvl(*arguments, "--help")
    assert status == 0
    assert "Usage" in out


@pytest.mark.parametrize(
    "kind", ["encoders", "connectors", "llms", "templates", "geometries", "benchmarks", "datasets", "recipes"]
)
def test_list_names_what_there_is(medmvl, kind):
    status, out, _ = medmvl("list", kind)
    assert status == 0
    assert len(out.splitlines()) > 1


def test_listed_names_are_the_registered_ones():
    from medmvl.cli.list_parts import NAMES, _entries
    from medmvl.data.converters import DATASETS
    from medmvl.evaluation import BENCHMARKS
    from medmvl.imaging import geometry_names
    from medmvl.models.connectors import POOLINGS, PROJECTORS
    from medmvl.models.encoders import ENCODERS
    from medmvl.models.llms import LLM_FAMILIES

    connectors = [f"pooling: {name}" for name in POOLINGS] + [f"projector: {name}" for name in PROJECTORS]
    registered = {
        "encoders": ENCODERS.names(),
        "connectors": connectors,
        "llms": list(LLM_FAMILIES),
        "geometries": geometry_names(),
        "benchmarks": BENCHMARKS.names(),
    }
    assert _entries("datasets") == sorted(DATASETS.names())
    assert {kind: sorted(names) for kind, names in NAMES.items()} == {
        kind: sorted(names) for kind, names in registered.items()
    }, "Write the registered names into NAMES of medmvl/cli/list_parts.py."


def test_list_imports_nothing_heavy(medmvl):
    code = (
        "import sys; sys.argv = ['medmvl', 'list']\n"
        "from medmvl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydicom', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"siglip", "chatml", "ct-rate-long"} <= set(text.split())


def test_version_and_short_help(medmvl):
    import medmvl as package

    assert medmvl("--version")[:2] == (0, f"medmvl {package.__version__}\n")
    for arguments in (["-h"], ["data", "-h"], ["checkpoint", "inspect", "-h"]):
        status, out, _ = medmvl(*arguments)
        assert status == 0
        assert "Usage" in out


def test_shipped_recipe_is_found_by_its_name(medmvl):
    _, _, err = medmvl("train", "tiny", "--dry-run", "--set", "stages.nowhere.lr=1")
    assert "there is no item 'nowhere'. Known: adapt, align" in err
    status, _, err = medmvl("train", "tinny", "--dry-run")
    assert status == 2
    assert "Did you mean 'tiny'" in err


def test_several_questions_are_answered_in_order(medmvl, model_folder, media, tmp_path):
    asked = ["ask", "--model", model_folder, "--image", media / "a.png", "--max-new-tokens", 3, "One?", "Two?"]
    status, out, err = medmvl(*asked, "--json", "--out", tmp_path / "answers.json")
    assert status == 0, err
    printed = json.loads(out)
    assert [row["question"] for row in printed["answers"]] == ["One?", "Two?"]
    assert json.loads((tmp_path / "answers.json").read_text()) == printed
    status, out, err = medmvl(*asked)
    lines = [line for row in printed["answers"] for line in (row["question"], f"  {row['answer']}")]
    assert "".join(out.split()) == "".join("".join(lines).split())


def test_predict_then_score(medmvl, model_folder, data, media, tmp_path):
    out, scores = tmp_path / "out.jsonl", tmp_path / "scores.jsonl"
    common = ["--model", model_folder, "--data", data, "--volume-root", media]
    status, _, err = medmvl("predict", *common, "--out", out, "--max-new-tokens", "4", "--save-token-ids")
    assert status == 0, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["q0", "q1"]
    assert all(len(row["token_ids"]) <= 4 for row in rows)
    status, _, err = medmvl("score", *common, "--out", scores)
    assert status == 0, err
    assert all(json.loads(line)["loss"] > 0 for line in scores.read_text().splitlines())


def test_explain_writes_heat_map_picture_and_numbers(medmvl, model_folder, media, tmp_path):
    given = ["explain", "--model", model_folder, "--answer", "A nodule. Yes.", "--levels", 1, "What is seen?"]
    status, out, _ = medmvl(*given, "--volume", media / "a.npy", "--units", "HU", "--out", tmp_path / "v")
    assert status == 0
    assert "log-probability" in out
    assert {"evidence.json", "evidence.png", "heat.nii.gz"} <= {path.name for path in (tmp_path / "v").iterdir()}
    warnings = json.loads((tmp_path / "v" / "evidence.json").read_text())["warnings"]
    assert "Probability of the sentence: " in out
    assert "; with a neutral picture: " in out
    assert warnings  # random weights hardly look at the picture
    assert all(f"Warning: {warning}" in out for warning in warnings)
    status, out, _ = medmvl(
        *given,
        "--image",
        media / "a.png",
        "--sentence",
        "Yes.",
        "--method",
        "attention-preview",
        "--out",
        tmp_path / "i",
    )
    assert status == 0
    assert "no evidence" in out
    assert json.loads((tmp_path / "i" / "evidence.json").read_text())["sentence"] == "Yes."
    assert not (tmp_path / "i" / "heat.nii.gz").exists()


def test_ask_prints_the_answer(medmvl, model_folder, media):
    question = ["ask", "--model", model_folder, "--image", media / "a.png", "What?", "--max-new-tokens", "4"]
    status, out, err = medmvl(*question)
    assert status == 0, err
    assert out.endswith("\n")
    assert "No picture" not in err
    assert re.search(r"^  \(confidence (< 0\.1|> 99\.9|\d+\.\d) %\)$", err, re.MULTILINE)


@pytest.mark.parametrize(("text", "printed"), [("Yes", True), ("{<1><2><3><4>}", False)])
def test_ask_prints_the_confidence_of_short_answers(capsys, text, printed):
    def stream():
        yield text
        return Answer(text, [1], 0.5)

    _print_stream(stream())
    out, err = capsys.readouterr()
    assert out == f"{text}\n"
    assert err == ("  (confidence 50.0 %)\n" if printed else "")


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_server_says_at_once_what_it_loads(medmvl, command):
    status, _, err = medmvl(command, "--model", "nowhere", "--port", "0")
    assert status == 2
    assert err.startswith("Loading nowhere …")


@pytest.mark.parametrize("way", [[], ["--num-beams", 2], ["--abstain-below", "1"]])
def test_ask_says_how_sure_the_model_is(medmvl, model_folder, media, way):
    status, out, err = medmvl("ask", "--model", model_folder, "--image", media / "a.png", "What?", "--json", *way)
    assert status == 0, err
    (row,) = json.loads(out)["answers"]
    predictor = Predictor.from_pretrained(model_folder)
    encoded = predictor.encode(question("What?", 1, 0), [str(media / "a.png")])
    beams = 2 if "--num-beams" in way else 1
    (expected,) = predictor.generate([encoded], GenerationOptions(256, num_beams=beams))
    assert row["confidence"] == pytest.approx(expected.confidence, rel=1e-3)
    assert row["answer"] == (ABSTENTION if "--abstain-below" in way else expected.text)


def test_questions_of_a_checkpoint_are_listed(medmvl, tmp_path):
    prompts = (Prompt("Is there \x1b[2Ja nodule?", ("No", "Yes")), Prompt("Write the report."))
    StoredPrompts((TaskPrompts("vqa", "image", prompts),)).save(tmp_path)
    status, out, _ = medmvl("checkpoint", "questions", tmp_path)
    assert status == 0
    first, closed, free = out.splitlines()
    assert first == "vqa (image)"
    assert closed.endswith("a nodule?  [No | Yes]")
    assert "\x1b" not in closed  # a foreign folder does not write to the terminal as it likes
    assert free == "  Write the report."
    (tmp_path / "prompts.json").unlink()
    status, _, err = medmvl("checkpoint", "questions", tmp_path)
    assert status != 0
    assert "stores no questions" in err


def test_a_question_without_a_picture_is_answered_with_a_warning(medmvl, model_folder):
    status, _, err = medmvl("ask", "--model", model_folder, "What is a lung?", "--max-new-tokens", "4")
    assert status == 0
    assert "without seeing anything" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "--model", "nowhere", "What?"], r"nowhere is not a checkpoint folder"),
        (["ask", "--model", "{model}", "--image", "missing.png", "What?"], r"image missing\.png does not exist"),
        (["ask", "--model", "{model}", " "], "question is empty"),
        (["explain", "--model", "{model}", "--out", "o", "What?"], "Give the picture"),
        (
            ["explain", "--model", "{model}", "--out", "o", "--method", "x", "What?"],
            "Unknown method 'x'.*occlusion",
        ),
        (["predict", "--model", "{model}", "--data", "no.json", "--out", "o.jsonl"], r"no\.json does not exist"),
        (["predict", "--model", "{model}", "--data", "x", "--out", "o", "--control", "blnk"], "Did you mean 'blank'"),
        (["predict", "--model", "{model}", "--data", "x", "--out", "o", "--dtype", "int3"], "Unknown dtype 'int3'"),
        (
            ["predict", "--model", "{model}", "--data", "x", "--out", "o", "--template", "chatlm"],
            "Did you mean 'chatml'",
        ),
        (["list", "encodrs"], "Did you mean 'encoders'"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_status_2(medmvl, model_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = medmvl(*(argument.format(model=model_folder) for argument in arguments))
    assert status == 2
    assert "Traceback" not in err
    assert pytest.importorskip("re").search(message, err), err


def test_debug_shows_where_it_went_wrong(medmvl):
    from medmvl.errors import CheckpointError

    with pytest.raises(CheckpointError):
        medmvl("ask", "--model", "nowhere", "What?", "--debug")


def test_file_without_answers_is_reported(medmvl, tmp_path):
    rows = [
        {"id": "a", "conversations": [{"from": "human", "value": "What?"}]},
        {"id": "b", "conversations": [{"from": "human", "value": "What?"}], "answer": "That."},
        {"id": "c", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
    ]
    write_json(tmp_path / "d.json", rows)
    status, out, _ = medmvl("data", "check", tmp_path / "d.json")
    assert status == 0
    assert "3 records, no fault" in out
    assert "1 of them hold no answer" in out


def test_missing_volume_is_reported_before_model_loads(medmvl, tmp_path):
    status, _, err = medmvl("ask", "--model", tmp_path / "no-model", "--volume", tmp_path / "gone.nii.gz", "What?")
    assert status == 2
    assert "gone.nii.gz does not exist" in err


def test_no_bars_are_written_into_a_log(model_folder):
    command = [sys.executable, "-m", "medmvl", "ask", "--model", model_folder, "--max-new-tokens", "1", "What?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    picture, confidence = done.stderr.splitlines()
    assert picture == "No picture was given (--image, --volume): the model answers without seeing anything."
    assert confidence.startswith("  (confidence ")


# --- notes of what a question shows -----------------------------------------------------------------------------------


@pytest.fixture
def patient_folder(tmp_path):
    """A folder named by a patient, with a CT series and a file without a position, as a radiograph is."""
    folder = write_series(tmp_path / "QUISENBERRY", random_hu((6, 40, 40)))
    lone = slice_dataset(np.zeros((4, 5), np.uint16), (0, 0, 0), SeriesInstanceUID="1.2.3", ImagePositionPatient=None)
    lone.save_as(folder / "film.dcm", enforce_file_format=True)
    return folder


def test_ask_names_the_series_it_takes_and_what_it_leaves_out(medmvl, model_folder, patient_folder):
    arguments = ["ask", "--model", model_folder, "--volume", patient_folder, "--max-new-tokens", "2", "What?"]
    status, _, err = medmvl(*arguments)
    assert status == 0, err
    note = next(line for line in err.splitlines() if line.startswith("note: "))
    assert "The volume is the series CT axial, 6 slices of 40x40" in note
    assert "1 file without position or orientation, as radiographs are" in note
    assert "QUISENBERRY" not in err
    (patient_folder / "film.dcm").unlink()
    assert "note: " not in medmvl(*arguments)[2]


@pytest.mark.parametrize(
    ("prompts", "note"),
    [
        (
            StoredPrompts((), 1, 1, together=1),
            "trained with either an image or a volume at a time; 1 image and 1 volume",
        ),
        (StoredPrompts((), 1, 1, together=2), ""),
        (StoredPrompts((), 1, 1), ""),  # a folder that does not say
    ],
)
def test_ask_says_that_a_model_never_saw_an_image_with_a_volume(medmvl, model_folder, media, tmp_path, prompts, note):
    shutil.copytree(model_folder, tmp_path / "model")
    prompts.save(tmp_path / "model")
    given = ["--image", media / "a.png", "--volume", media / "a.npy", "--units", "HU"]
    status, _, err = medmvl("ask", "--model", tmp_path / "model", *given, "--max-new-tokens", "2", "What?")
    assert status == 0, err
    assert note in err
    assert ("note: " in err) == bool(note)
