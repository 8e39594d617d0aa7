"""The quickstart's pieces: its recipe is valid, its records are, and the whole way runs in small (slow circle, CI)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from medmvl.data.check import check_records
from medmvl.errors import RecipeError
from medmvl.experiments.quickstart import (
    PATIENTS,
    PRETRAINED_LLM,
    Quickstart,
    encoder_recipe,
    patient_counts,
    quickstart,
    recipe,
)
from medmvl.experiments.quickstart.run import note_settings
from medmvl.files import read_json
from medmvl.phantoms import ct_rate, draw_patient, slake
from medmvl.phantoms.warmup_texts import described_patient, write_closed, write_text_only_patients
from medmvl.training.engine.checkpoints import verify


def test_the_recipe_is_valid_and_follows_the_seed(tmp_path):
    settings = recipe(Quickstart(tmp_path), seed=7)
    assert settings.seed == 7
    assert [stage.name for stage in settings.stages] == ["align", "instruct"]


@pytest.mark.parametrize("modality", ["image", "volume"])
def test_the_model_takes_the_encoders_that_were_pretrained(tmp_path, modality):
    place = Quickstart(tmp_path)
    alone, whole = encoder_recipe(place, modality, 7).model, recipe(place, 7).model
    trained, taken = getattr(alone, modality).encoder, getattr(whole, modality).encoder
    assert taken["name"] == trained["name"]
    assert taken["init_from"] == str(place.encoder(modality) / "model")


def test_shipped_llm_answers_from_a_text():
    model = AutoModelForCausalLM.from_pretrained(PRETRAINED_LLM, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    asked = "Consolidation: no. Pacemaker: left. Lung nodule: right upper lobe. Emphysema: yes.\n{}"
    for question, answer in (("Is there a pacemaker?", "Yes"), ("Is there a consolidation?", "No")):
        turns = [{"role": "user", "content": asked.format(question)}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == answer


def test_the_scale_shortens_every_stage(tmp_path):
    whole, half = (recipe(Quickstart(tmp_path), 0, scale) for scale in (1.0, 0.5))
    assert [stage.epochs for stage in half.stages] == [stage.epochs / 2 for stage in whole.stages]


def test_counts_stay_even_so_that_pairs_of_patients_stay_together():
    assert patient_counts(1.0) == PATIENTS
    assert all(count % 2 == 0 for scale in (0.02, 0.1, 0.33) for count in patient_counts(scale).values())


def test_text_only_patients_are_valid_records_about_nobody_who_is_drawn(tmp_path):
    path = tmp_path / "text-only-patients.jsonl"
    write_text_only_patients(path, seed=0, count=4)
    assert check_records(path) == []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4
    assert all(int(row["id"].rpartition("-")[2]) >= 1_000_000 for row in rows)


@pytest.mark.parametrize("kind", ["radiograph", "ct", "sides", "choices", "boxes", "caption", "report", "long", None])
def test_described_patients_are_asked_with_one_description(kind):
    for number in range(20):
        row = described_patient(0, number, kind)
        assert kind is None or row["task"] == kind
        described, *asked = row["conversations"][0]["value"].split("\n")
        assert len(asked) == 1
        assert len(described) > 20
        assert all(turn["value"] for turn in row["conversations"])


def test_answers_about_described_patients_are_true():
    found = 0
    for number in range(60):
        turns = described_patient(0, number)["conversations"]
        truth = draw_patient(0, 1_000_000 + number).findings
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if question["value"].endswith("Is the heart enlarged?"):
                found += 1
                assert answer["value"] == ("Yes" if "cardiomegaly" in truth else "No")
    assert found > 3


def test_no_training_text_has_the_wordings_of_the_held_out():
    patients = [draw_patient(0, number) for number in range(60)]
    asked = {
        new: [
            question.text
            for patient in patients
            for question in (
                *slake.questions(patient, new_wordings=new),
                *ct_rate.questions(patient, new_wordings=new)["short_answer"],
            )
        ]
        for new in (False, True)
    }
    asked[False] += [turn["value"] for n in range(200) for turn in described_patient(2026, n)["conversations"][::2]]
    new = ("oes the patient have", "visible on this")
    assert not any(part in text for text in asked[False] for part in new)
    assert all(any(part in text for text in asked[True]) for part in new)


def test_each_language_has_as_many_yes_as_no():
    answers = Counter(
        q.answer for n in range(60) for q in slake.questions(draw_patient(0, n)) if q.finding and q.closed
    )
    assert answers["Yes"] == answers["No"]
    assert answers["是"] == answers["否"]
    assert 0.1 < answers["是"] / (answers["是"] + answers["Yes"]) < 0.3


@pytest.mark.parametrize(("seed", "scale"), [(1, 1.0), (0, 0.5)])
def test_a_folder_that_was_begun_with_other_settings_is_refused(tmp_path, seed, scale):
    place = Quickstart(tmp_path)
    assert not note_settings(place, 0, 1.0)
    assert note_settings(place, 0, 1.0)
    with pytest.raises(RecipeError, match="seed 0, scale 1.0, version"):
        note_settings(place, seed, scale)


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(RecipeError, match="an earlier version"):
        note_settings(Quickstart(tmp_path), 0, 1.0)


def test_closed_questions_keep_the_picture_in_front(tmp_path):
    turns = [
        ("<image>\nWhere is it?", "Left lung"),
        ("Is it there?", "Yes"),
        ("What plane?", "Axial"),
        ("Side?", "Left"),
    ]
    row = {
        "id": "a",
        "image": ["a.png"],
        "conversations": [
            {"from": speaker, "value": text}
            for turn in turns
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ],
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    write_closed(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    closed = json.loads((tmp_path / "out.jsonl").read_text())
    assert [turn["value"] for turn in closed["conversations"]] == ["<image>\nIs it there?", "Yes", "Side?", "Left"]


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_scale_that_makes_no_sense_is_refused(tmp_path, scale):
    with pytest.raises(RecipeError, match="scale"):
        quickstart(tmp_path, scale=scale)


@pytest.mark.slow
def test_the_whole_way_in_small(tmp_path: Path):
    results = quickstart(tmp_path / "run", seed=1, scale=0.02)
    for name in ("phantom-2d", "phantom-ct"):
        found = results["benchmarks"][name]
        assert {"value", "n", "ci95"} <= found["model"]["closed_accuracy"].keys()
        assert found["controls"].keys() >= {"blank", "shuffled"}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    model = tmp_path / "run" / "model"
    text = (model / "README.md").read_text()
    card = ModelCard(text)
    assert {one.dataset_type for one in card.data.eval_results} == {"phantom-2d", "phantom-ct"}
    assert all("synthetic data" in one.dataset_name for one in card.data.eval_results)
    assert "| ct-captions | Synthetic phantoms in the layout of CT-RATE | Apache-2.0" in text
    assert "llm: The quickstart's LLM, license of the base: apache-2.0 |" in text
    assert "not recorded | not recorded | align" not in text
    assert card.data.license == "apache-2.0"
    assert "**Not stated by the developer**: developer, contact.\n" in text
    verify(model)
    (tmp_path / "run" / "quickstart.json").unlink()  # as if it was killed before its end
    (model / "README.md").unlink()
    quickstart(tmp_path / "run", seed=1, scale=0.02)
    assert (model / "README.md").read_text() == text


@pytest.mark.slow
def test_killed_quickstart_leaves_nothing_behind_and_can_be_run_again(tmp_path: Path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "medmvl", "quickstart", "--out", str(folder), "--scale", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (folder / "volume-encoder" / "log.jsonl").is_file():
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    results = quickstart(folder, seed=0, scale=0.02)  # refused if an orphan still held the folder
    assert results["benchmarks"].keys() >= {"phantom-2d", "phantom-ct"}
    assert read_json(folder / "quickstart.json")["resumed"] is True
