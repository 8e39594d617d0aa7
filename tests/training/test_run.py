"""Recipes run: stages follow each other, freeze what they say, and leave whole checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from medmvl.data.formats import write_records
from medmvl.errors import DataError, RecipeError, TrainingError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import MedMVLProcessor
from medmvl.processing.stored_prompts import read_prompts
from medmvl.training.engine import callbacks
from medmvl.training.engine.callbacks import Callback
from medmvl.training.engine.dataset import TrainingDataset
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.loop import TrainingLoop
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import BeforeStep, PoisonLoss, killed_before_step

from .conftest import CONNECTORS, EVERYTHING, RESNET, turns


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_three_kinds_of_stage_run_and_train_only_what_they_say(recipe, tmp_path):
    stages = [
        {"train": CONNECTORS},
        {"train": EVERYTHING},
        {"train": {"llm": {"mode": "lora", "lora": {"r": 2}}, "image_encoder": {"only": ["layers"]}}},
    ]
    out = train(recipe(*stages), tmp_path / "run")
    assert out == tmp_path / "run" / "model"
    before = weights(tmp_path / "run" / "init")
    changed = []
    for name in ("s0", "s1", "s2"):
        after = weights(tmp_path / "run" / name)
        assert set(after) == set(before)  # LoRA is merged: the same plain model every time
        changed.append({key for key in after if not torch.equal(after[key], before[key])})
        before = after
    assert changed[0]
    assert all("connector" in key for key in changed[0])
    assert changed[1] == set(before)
    assert changed[2]
    assert all("_proj" in key or "image.encoder" in key for key in changed[2])
    assert not any("embeddings" in key or "lm_head" in key for key in changed[2])


def test_a_finished_stage_is_self_contained(recipe, tmp_path):
    folder = train(recipe({}), tmp_path / "run")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "recipe.yaml"} <= names
    assert "use_cache" not in json.loads((folder / "config.json").read_text())
    model = MedMVLForConditionalGeneration.from_pretrained(folder)
    assert model.language_model.config._attn_implementation == "sdpa"
    assert MedMVLProcessor.from_pretrained(folder).image_tokens == 4
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["stage"] == "s0"
    assert environment["packages"]["torch"] == torch.__version__
    assert not list(folder.glob("*.bin"))  # no pickled training arguments


def test_the_log_has_a_line_per_step(recipe, tmp_path):
    train(recipe({"epochs": 1.5, "scheduler": "linear", "warmup": 1}, {"max_steps": 2}), tmp_path / "run")
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [("s0", i) for i in range(1, 6)] + [("s1", 1), ("s1", 2)]
    assert [row["lr"] for row in rows[:5]] == pytest.approx([0.005, 0.01, 0.0075, 0.005, 0.0025])
    assert all(row["loss"] > 0 and 0 < row["supervised"] < row["tokens"] == row["positions"] for row in rows)


def test_training_learns(recipe, tmp_path):
    train(recipe({"max_steps": 25, "warmup": 0, "batch_size": 18}), tmp_path / "run")
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[0] > 5
    assert losses[-1] < 2


def test_stages_can_be_run_one_by_one(recipe, tmp_path):
    two = recipe({"max_steps": 1}, {"max_steps": 1, "from": "s0"})
    with pytest.raises(RecipeError, match="starts from 's0', which is not finished"):
        train(two, tmp_path / "run", stage="s1")
    assert train(two, tmp_path / "run", stage="s0") == tmp_path / "run" / "s0"
    assert train(two, tmp_path / "run", stage="s1") == tmp_path / "run" / "model"
    together = train(two, tmp_path / "other")
    a, b = weights(tmp_path / "run" / "model"), weights(together)
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(RecipeError, match="no stage 's3'"):
        train(two, tmp_path / "run", stage="s3")


def test_a_checkpoint_can_start_another_recipe(recipe, tmp_path):
    first = train(recipe({"max_steps": 1}), tmp_path / "a")
    second = recipe({"max_steps": 1, "train": {"image_connector": "full"}}, model={"from": str(first)})
    folder = train(second, tmp_path / "b")
    before, after = weights(first), weights(folder)
    assert any(not torch.equal(after[key], before[key]) for key in after if "towers.image.connector" in key)
    assert all(torch.equal(after[key], before[key]) for key in after if "image.connector" not in key)
    with pytest.raises(RecipeError, match="finds no parameter; a name in this part is"):
        train(recipe({"train": {"volume_encoder": {"only": ["nothing"]}}}, model={"from": str(first)}), tmp_path / "c")


def test_checkpoint_stores_the_questions_of_its_last_stage(recipe, tmp_path):
    data = {}
    for name, question in (("captions", "Describe."), ("vqa", "Is it bright?"), ("rare", "")):
        PILImage.new("RGB", (20, 20)).save(tmp_path / "a.png")
        rows = [
            {"id": f"{n}", "image": ["a.png"], "conversations": turns(f"<image>\n{question or n}", "yes")}
            for n in range(6)
        ]
        write_records(tmp_path / f"{name}.jsonl", rows)
        data[name] = {"path": f"{name}.jsonl"}
    stages = [{"data": {name: 1.0}, "max_steps": 1} for name in data]
    train(recipe(*stages, data=data, data_root=str(tmp_path)), tmp_path / "run")
    stored = [read_prompts(tmp_path / "run" / f"s{n}") for n in range(3)]
    assert [prompt.text for one in stored for task in one.tasks for prompt in task.prompts] == [
        "Describe.",
        "Is it bright?",
        "Is it bright?",  # this stage has no question of three patients
    ]
    again = recipe({"data": {"captions": 1.0}, "max_steps": 1}, data=data, data_root=str(tmp_path))
    tuned = train({**again, "model": {"from": str(tmp_path / "run/s2")}}, tmp_path / "tuned")
    assert [task.task for task in read_prompts(tuned).tasks] == ["captions"]


def test_a_run_is_not_overwritten_nor_continued_with_other_settings(recipe, tmp_path):
    train(recipe({"max_steps": 1}), tmp_path / "run")
    with pytest.raises(RecipeError, match="holds a run already"):
        train(recipe({"max_steps": 1}), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"differs in stages\.s0\.max_steps"):
        train(recipe({"max_steps": 2}), tmp_path / "run", resume=True)
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    assert train(recipe({"max_steps": 1, "micro_batch_size": 2}), tmp_path / "run", resume=True).is_dir()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_a_run_that_never_took_a_step_is_begun_anew(recipe, tmp_path, monkeypatch):
    def no_data(self, number):
        raise DataError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingDataset, "__getitem__", no_data)
        with pytest.raises(DataError, match="gone"):
            train(recipe({"max_steps": 1}), tmp_path / "run")
    assert (tmp_path / "run" / "init").is_dir()
    train(recipe({"max_steps": 2}) | {"seed": 9}, tmp_path / "run")  # with other settings, too
    train(recipe({"max_steps": 2}) | {"seed": 9}, tmp_path / "other")
    found, expected = (weights(tmp_path / name / "model") for name in ("run", "other"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_running_statistics_train_and_resume(recipe, tmp_path):
    parts = {"image_encoder": "full", "image_connector": "full"}
    described = recipe({"train": parts, "max_steps": 4, "save_every": 2})
    described["model"]["image"]["encoder"] = RESNET
    train(described, tmp_path / "whole")
    with killed_before_step(3) as callbacks:
        train(described, tmp_path / "cut", callbacks=callbacks)
    train(described, tmp_path / "cut", resume=True)
    start, whole, cut = (weights(tmp_path / name) for name in ("whole/init", "whole/model", "cut/model"))
    means = [name for name in whole if name.endswith("running_mean")]
    assert means
    assert all(not torch.equal(whole[name], start[name]) for name in means)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_frozen_encoder_keeps_its_running_statistics(recipe, tmp_path):
    described = recipe({"train": {"image_connector": "full"}})
    described["model"]["image"]["encoder"] = RESNET
    train(described, tmp_path / "run")
    start, end = (weights(tmp_path / "run" / name) for name in ("init", "model"))
    assert all(torch.equal(start[name], end[name]) for name in start if "encoder" in name)


def test_a_bf16_step_on_the_cpu_attends_in_fp32_everywhere(recipe, tmp_path, monkeypatch):
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def look(query, *args, **kwargs):
        # torch's own function runs in what it is given, or in what autocast makes of it.
        lowered = torch.is_autocast_enabled("cpu") and query.dtype == torch.float32
        seen.append(torch.bfloat16 if lowered else query.dtype)
        return attend(query, *args, **kwargs)

    class StepsAlone(Callback):
        def on_step_begin(self, loop):
            seen.clear()  # before the stage both forms are measured

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
    train(recipe({"precision": "bf16", "max_steps": 1}), tmp_path / "run", callbacks=[StepsAlone()])
    assert len(seen) > 3
    assert set(seen) == {torch.float32}


def test_a_bad_record_is_named(recipe, tmp_path, data_folder):
    rows = (data_folder / "d.jsonl").read_text().splitlines()
    broken = json.loads(rows[0]) | {"id": "the-bad-one", "image": ["gone.png"]}
    (tmp_path / "d.jsonl").write_text("\n".join([*rows[1:4], json.dumps(broken)]))
    data = {"d": {"path": str(tmp_path / "d.jsonl"), "image_root": ".", "volume_root": "."}}
    for workers in (0, 1):
        run = {"progress": False, "device": "cpu", "workers": workers}
        with pytest.raises(DataError) as caught:
            train(recipe({"max_steps": 1, "batch_size": 4}, data=data, run=run), tmp_path / f"run{workers}")
        assert "line 4, record 'the-bad-one'" in str(caught.value)
        assert "Traceback" not in str(caught.value)


def test_steps_without_finite_gradient_are_skipped_logged_and_end_the_run(recipe, tmp_path):
    train(recipe({"max_steps": 4}), tmp_path / "a", callbacks=[PoisonLoss({1})])
    rows = read_log(tmp_path / "a" / "log.jsonl")
    assert [row.get("skipped", False) for row in rows] == [False, True, False, False]
    assert rows[1]["loss"] is None
    assert len(rows[1]["ids"]) == 6
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "a" / "model").values())
    with pytest.raises(TrainingError, match=r"3 steps in a row had no finite gradient.*records r"):
        train(recipe({"max_steps": 9, "stop_after_nans": 3}), tmp_path / "b", callbacks=[PoisonLoss({1, 2, 3})])


def test_loss_scale_overflows_do_not_end_run(recipe, tmp_path, monkeypatch):
    scales = iter([8.0, 4.0, 2.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(Engine, "loss_scale", lambda self: next(scales))
    with pytest.raises(TrainingError, match=r"2 steps in a row had no finite gradient; the last one, step 5"):
        train(recipe({"max_steps": 9, "stop_after_nans": 2}), tmp_path / "run", callbacks=[PoisonLoss()])
    assert all(row["skipped"] for row in read_log(tmp_path / "run" / "log.jsonl"))


def test_learning_rate_follows_step_after_skipped_step(recipe, tmp_path, monkeypatch):
    from accelerate import Accelerator

    train(recipe({"max_steps": 5}), tmp_path / "plain")
    skips = iter([False, True, True, False, False])
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: next(skips)))
    train(recipe({"max_steps": 5}), tmp_path / "skipping")
    plain, skipping = (read_log(tmp_path / name / "log.jsonl") for name in ("plain", "skipping"))
    assert [row["lr"] for row in skipping] == [row["lr"] for row in plain]


def test_fp16_is_refused_where_nothing_would_come_of_it(recipe, tmp_path):
    with pytest.raises(RecipeError, match="fp16 needs an accelerator"):
        train(recipe({"precision": "fp16"}), tmp_path / "run")
    with pytest.raises(RecipeError, match="fp16 does not go with run.strategy fsdp"):
        load_recipe(recipe({"precision": "fp16"}, run={"strategy": "fsdp"}))


def test_out_of_memory_and_a_full_disk_are_said_plainly(recipe, tmp_path, monkeypatch):
    def no_memory(loop):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def no_space(self, folder):
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(TrainingError, match="Lower micro_batch_size"):
        train(recipe({}), tmp_path / "a", callbacks=[BeforeStep(0, no_memory)])
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "write_shared", no_space)
        with pytest.raises(TrainingError, match="the disk is full"):
            train(recipe({"save_every": 1}), tmp_path / "b")
    assert not list((tmp_path / "b" / "s0" / "checkpoints").glob("*"))
    assert train(recipe({"save_every": 1}), tmp_path / "b", resume=True).is_dir()


def test_killed_loader_is_reported_and_costs_one_step(recipe, tmp_path, monkeypatch):
    import os
    import signal

    original, home = TrainingDataset.__getitem__, os.getpid()
    seen = []

    def dies(self, number):
        seen.append(number)
        if os.getpid() != home and len(seen) > 12:  # in the third step of the only loader process
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, number)

    run = {"progress": False, "device": "cpu", "workers": 1, "prefetch": 1}
    stage = {"max_steps": 4, "save_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDataset, "__getitem__", dies)
        with pytest.raises(TrainingError, match=r"process that loads data has died.*lower run.workers"):
            train(recipe(stage, run=run), tmp_path / "run")
    kept = len(read_log(tmp_path / "run" / "log.jsonl"))
    assert kept >= 1
    train(recipe(stage, run=run), tmp_path / "run", resume=True)
    train(recipe(stage, run=run), tmp_path / "whole")
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("run", "whole")]
    assert losses[0] == losses[1]


def test_eight_bit_adam_says_what_it_needs(recipe, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RecipeError, match="CUDA devices only"):
        train(recipe({"optimizer": "adamw_8bit"}), tmp_path / "run")


def test_a_device_that_is_not_there_is_refused(recipe, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(RecipeError, match="does not have"):
        train(recipe({}, run={"device": "cuda"}), tmp_path / "run")


def test_a_run_without_a_terminal_says_where_it_is(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_LINES", 0.0)
    train(recipe({"max_steps": 2}, run={"device": "cpu"}), tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("s0: step")]
    assert [line.partition("  ")[0] for line in lines] == ["s0: step 1 of 2", "s0: step 2 of 2"]
    assert "loss" in lines[0]


def test_tensorboard_files_hold_the_loss(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = {"progress": False, "device": "cpu", "trackers": ["tensorboard"]}
    folder = train(recipe({"max_steps": 2}, run=run), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "s0" / "tensorboard")).Reload()
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert not (folder / "tensorboard").exists()
