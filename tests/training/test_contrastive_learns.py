"""A short contrastive training on phantoms finds the reports of patients it has never seen, through the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.data.formats import write_records
from medmvl.phantoms import draw_patient
from medmvl.training.recipe_io import dump_recipe, load_recipe

TRAIN, TEST = 72, 24
SHAPE = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
ENCODERS = {
    "image": {
        "name": "siglip",
        "vision_config": SHAPE | {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 8},
    },
    "volume": {"name": "vit3d", "size": [8, 48, 48], "patch": [4, 8, 8], "width": 64, "heads": 4, "layers": 2},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Radiographs and CTs of the same patients with the impressions of their reports; nobody is in both splits."""
    folder = tmp_path_factory.mktemp("phantoms")
    rows = {"image": [], "volume": []}
    for index in range(TRAIN + TEST):
        patient = draw_patient(0, index, (16, 64, 64), 64)
        PILImage.fromarray(patient.radiograph).save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", patient.volume)
        for kind, media in (("image", {"image": f"{index}.png"}), ("volume", {"image3d": [f"{index}.npy"]})):
            turns = [
                {"from": "human", "value": f"<{'image' if kind == 'image' else 'image3d'}>\nImpression?"},
                {"from": "gpt", "value": patient.report.impression},
            ]
            facts = {"patient": patient.patient, "task": "report", "synthetic": True}
            rows[kind].append({"id": patient.patient, "conversations": turns} | facts | media)
    for kind, found in rows.items():
        write_records(folder / f"{kind}-train.jsonl", found[:TRAIN])
        write_records(folder / f"{kind}-test.jsonl", found[TRAIN:])
    return folder


def medmvl(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_reports_of_unseen_patients_are_found(phantoms, tmp_path, kind):
    text = {"config": SHAPE | {"model_type": "bert", "hidden_dropout_prob": 0.0}, "tokenizer": {"vocab_size": 600}}
    stage = {
        "name": "contrast",
        "objective": "contrastive",
        "train": {f"{kind}_encoder": "full"},
        "data": ["train"],
        "contrastive": {"dim": 64, "text": text},
        "lr": 3e-3,
        "batch_size": 24,
        "max_steps": 36,
        "warmup": 0.1,
        "evaluate": {"data": ["test"], "every": 36, "samples": TEST},
    }
    recipe = load_recipe(
        {
            "name": "contrast",
            "data_root": str(phantoms),
            "model": {kind: {"encoder": ENCODERS[kind]}},
            "data": {split: {"path": f"{kind}-{split}.jsonl"} for split in ("train", "test")},
            "stages": [stage],
            "run": {"progress": False, "device": "cpu", "cache_megabytes": 256},
        }
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    medmvl("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--stage", "contrast")
    assert "36" in medmvl("train", tmp_path / "recipe.yaml", "--dry-run")
    arguments = ["evaluate", "--model", tmp_path / "run" / "contrast", "--benchmark", "retrieval", "--device", "cpu"]
    arguments += ["--data-root", phantoms / f"{kind}-test.jsonl", "--out", tmp_path / "scores", "--control", "shuffled"]
    medmvl(*arguments)
    entry = json.loads((tmp_path / "scores" / "results.json").read_text())["benchmarks"]["retrieval"]
    model, controls = entry["model"], entry["controls"]
    assert set(controls) == {"shuffled", "chance"}
    assert entry["synthetic"]
    for way in ("image_to_text", "text_to_image"):
        assert [model[f"{way}_r_at_{k}"]["n"] for k in (1, 5, 10)] == [TEST] * 3
        found, guessed = model[f"{way}_r_at_5"], controls["chance"][f"{way}_r_at_5"]
        assert guessed["value"] == pytest.approx(5 / TEST, abs=0.1)  # a little more where reports are equal
        assert found["ci95"][0] > guessed["value"]
        assert found["value"] > controls["shuffled"][f"{way}_r_at_5"]["value"]
    # The look during training and the score afterwards are the same numbers.
    last = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()][-1]
    logged = {key: score for key, score in model.items() if key in last}
    assert set(logged) == {f"{way}_r_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert {key: last[key] for key in logged} == {key: pytest.approx(score["value"]) for key, score in logged.items()}
    assert "chance" in (tmp_path / "scores" / "table.md").read_text()
    report = (tmp_path / "scores" / "report.html").read_text()
    assert "image → report, R@5" in report
