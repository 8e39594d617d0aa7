"""The contrastive stage: exact over micro-batches, processes and interruptions; it teaches an encoder to find reports."""

from __future__ import annotations

import copy
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from medmvl.checkpoints import inspect_folder
from medmvl.data.formats import read_records, write_records
from medmvl.errors import DataError, RecipeError, TrainingError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.contrastive import DualEncoder
from medmvl.processing.pairs import PairProcessor
from medmvl.training.engine.callbacks import Callback
from medmvl.training.objectives import ContrastiveObjective
from medmvl.training.recipe_io import dump_recipe, load_recipe
from medmvl.training.run import TrainingInterruptedError, train
from medmvl.training.run_folder import read_log
from processes import BeforeStep, TrainingProcess, in_two_processes, killed_before_step

from .conftest import MODEL, turns
from .test_resume import run_with_kills

TEXT = {
    "config": {
        "model_type": "bert",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
}
WORDS = ["nodule", "effusion", "normal", "emphysema", "pacemaker"]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Images and volumes with reports, some of them equal."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for kind, key, placeholder in (("image", "image", "<image>"), ("volume", "image3d", "<image3d>")):
        rows = []
        for i in range(14):
            if kind == "image":
                PILImage.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / f"{i}.png")
            else:
                np.save(folder / f"{i}.npy", rng.integers(-900, 900, (6, 20, 20)).astype(np.int16))
            text = f"{WORDS[i % 5]} " * (1 + i % 3) + f"number {i if i % 4 else 0}"
            row = {"id": f"r{i}", "conversations": turns(f"{placeholder}\nReport?", text), "task": "report"}
            rows.append(row | {key: [f"{i}.{'png' if kind == 'image' else 'npy'}"]})
        rows.append(rows[0] | {"id": "q", "conversations": turns(f"{placeholder}\nNodule?", "yes"), "task": "vqa"})
        write_records(folder / f"{kind}.jsonl", rows)
    return folder


def stage_of(modality, **changes):
    contrastive = {"text": TEXT, "dim": 8} | changes.pop("contrastive", {})
    defaults = {"objective": "contrastive", "train": {f"{modality}_encoder": "full"}, "contrastive": contrastive}
    return defaults | {"data": [modality], "lr": 1e-3, "batch_size": 8, "max_steps": 3} | changes


@pytest.fixture
def contrastive(recipe, pairs):
    """Return a function that makes a recipe of the given stages on the pairs."""

    def make(*stages, **changes):
        data = {m: {"path": f"{m}.jsonl", "tasks": ["report"]} for m in ("image", "volume")}
        return recipe(*stages, **{"data_root": str(pairs), "data": data} | changes)

    return make


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_course(one, other, tolerance=1e-5):
    first, second = read_log(one / "log.jsonl"), read_log(other / "log.jsonl")
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance)
        assert [a[key] for key in ("step", "tokens", "supervised")] == [b[k] for k in ("step", "tokens", "supervised")]


# --- exact, however it is shared out ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_eight_at_once_equal_threes_and_two_processes(contrastive, tmp_path, loss):
    def settings(**changes):
        return contrastive(stage_of("image", contrastive={"loss": loss, "pooling": "attention"}, **changes))

    train(settings(), tmp_path / "once")
    train(settings(micro_batch_size=3), tmp_path / "threes")
    in_two_processes(train, settings(), tmp_path / "two")
    # The strategy spreads LLMs; a dual encoder is held whole whatever it says.
    spread = settings(micro_batch_size=2) | {"run": {"progress": False, "device": "cpu", "strategy": "fsdp"}}
    in_two_processes(train, spread, tmp_path / "two-twos")
    for other in ("threes", "two", "two-twos"):
        assert_same_course(tmp_path / "once", tmp_path / other)
        for folder in ("model", "s0/encoder"):
            weights, others = (load_file(tmp_path / run / folder / "model.safetensors") for run in ("once", other))
            for key in weights:
                torch.testing.assert_close(weights[key], others[key], rtol=1e-3, atol=2e-4)


def test_the_gradient_is_that_of_the_loss_written_plainly(contrastive, tmp_path, monkeypatch):
    seen = {}

    class NoteGradients(Callback):
        def on_gradients(self, loop):
            trainable = loop.objective.trainable.trainable()
            seen["gradients"] = {name: p.grad.clone() for name, p in trainable.items()}

    batches = []
    collate = ContrastiveObjective.collate
    monkeypatch.setattr(
        ContrastiveObjective, "collate", lambda *a: batches.append((batch := collate(*a)).inputs) or batch
    )
    stage = stage_of("volume", max_steps=1, batch_size=6, micro_batch_size=2, max_grad_norm=0)
    train(contrastive(stage), tmp_path / "run", callbacks=[NoteGradients()])
    dual = DualEncoder.from_pretrained(tmp_path / "run" / "s0" / "checkpoints" / "start").train()
    visual = torch.cat([dual.encode_visual(batch["pixels"]) for batch in batches])
    texts = torch.cat([dual.encode_texts(batch["input_ids"], batch["attention_mask"]) for batch in batches])
    keys = torch.cat([batch["text_key"] for batch in batches])
    same = keys[:, None] == keys[None, :]
    target = same / same.sum(1, keepdim=True)
    logits = visual @ texts.T * dual.head.log_scale.exp()
    assert float(dual.head.log_scale.detach().exp()) == pytest.approx(1 / 0.07)
    cross = torch.nn.functional.cross_entropy
    loss = (cross(logits, target) + cross(logits.T, target)) / 2
    loss.backward()
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    expected = {name: p.grad for name, p in dual.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in expected.values())
    learned = set(seen["gradients"])
    assert learned == set(expected)
    assert any(name.startswith("towers.volume.encoder") for name in learned)
    for name in learned:
        assert float((seen["gradients"][name] - expected[name]).abs().max()) <= 1e-5 * scale, name
        assert name == "text_encoder.embeddings.token_type_embeddings.weight" or expected[name].any()


def test_dropout_is_the_same_in_both_runs_of_a_micro_batch(contrastive, tmp_path, monkeypatch):
    text = copy.deepcopy(TEXT)
    text["config"] |= {"hidden_dropout_prob": 0.5}
    seen = []
    encode = DualEncoder.encode_texts
    monkeypatch.setattr(DualEncoder, "encode_texts", lambda *a: seen.append(encode(*a)) or seen[-1])
    steps = []

    class NoteSteps(Callback):
        def on_step_begin(self, loop):
            steps.append(len(seen))

    stage = stage_of("image", micro_batch_size=4, max_steps=2, contrastive={"text": text})
    train(contrastive(stage), tmp_path / "run", callbacks=[NoteSteps()])
    assert steps == [0, 4]
    assert torch.equal(seen[0], seen[2].detach())
    assert torch.equal(seen[1], seen[3].detach())
    assert not torch.equal(seen[0], seen[1])


# --- kept, resumed, handed on -------------------------------------------------------------------------------------


def test_a_stage_that_never_took_a_step_is_begun_anew(contrastive, tmp_path):
    stage = stage_of("volume", max_steps=1)
    with killed_before_step(0) as callbacks:
        train(contrastive(stage), tmp_path / "run", callbacks=callbacks)
    train(contrastive(stage) | {"seed": 9}, tmp_path / "run")
    train(contrastive(stage) | {"seed": 9}, tmp_path / "other")
    runs = [load_file(tmp_path / name / "s0" / "encoder" / "model.safetensors") for name in ("run", "other")]
    assert all(torch.equal(runs[0][key], value) for key, value in runs[1].items())


@pytest.mark.parametrize("size", [None, 3])
def test_a_killed_stage_resumes_exactly(contrastive, tmp_path, size):
    text = copy.deepcopy(TEXT)
    text["config"] |= {"hidden_dropout_prob": 0.2}  # draws random numbers in every step
    first = stage_of("volume", max_steps=6, save_every=2, micro_batch_size=size, ema=0.5, contrastive={"text": text})
    settings = contrastive(first, {"max_steps": 2, "data": ["volume"], "train": {"volume_connector": "full"}})
    train(settings, tmp_path / "whole")
    with killed_before_step(5, "s0") as callbacks:
        train(settings, tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run" / "s0" / "encoder").exists()
    train(settings, tmp_path / "run", resume=True)
    whole, resumed = ([row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "run"))
    assert whole == resumed
    for folder in ("s0", "s0/encoder", "model"):
        weights, others = (load_file(tmp_path / run / folder / "model.safetensors") for run in ("whole", "run"))
        assert all(torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.slow
def test_real_kills_at_random_moments_change_nothing(contrastive, tmp_path):
    text = copy.deepcopy(TEXT)
    text["config"] |= {"hidden_dropout_prob": 0.2}
    stage = stage_of("volume", max_steps=40, save_every=1, micro_batch_size=3, contrastive={"text": text})
    settings = contrastive(stage)
    train(settings, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe(settings)))
    dice = random.Random(0)
    delays = [dice.uniform(0, 0.2) for _ in range(10)]
    assert run_with_kills(TrainingProcess, tmp_path / "recipe.yaml", tmp_path / "run", delays) >= 8
    whole, resumed = ([row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "run"))
    assert whole == resumed
    for folder in ("s0", "s0/encoder"):
        weights, others = (load_file(tmp_path / run / folder / "model.safetensors") for run in ("whole", "run"))
        assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_the_trained_encoder_goes_on_in_later_stages(contrastive, tmp_path):
    language = {"train": {"volume_connector": "full"}, "data": ["volume"], "max_steps": 1}
    train(contrastive(stage_of("volume"), language), tmp_path / "run")
    init, contrast, last = (load_file(tmp_path / "run" / f / "model.safetensors") for f in ("init", "s0", "model"))
    dual = load_file(tmp_path / "run" / "s0" / "encoder" / "model.safetensors")
    encoder = [key for key in init if key.startswith("towers.volume.encoder.")]
    assert encoder == sorted(key for key in dual if key.startswith("towers."))
    for key in init:
        assert torch.equal(init[key], contrast[key]) == (key not in encoder), key
    assert all(torch.equal(contrast[key], last[key]) and torch.equal(contrast[key], dual[key]) for key in encoder)
    assert set(MedMVLForConditionalGeneration.from_pretrained(tmp_path / "run" / "s0").towers) == {"image", "volume"}


def encoder_only(contrastive, *stages, modality="volume", **changes):
    model = {modality: {"encoder": MODEL[modality]["encoder"]}}
    return contrastive(*stages, **{"model": model} | changes)


def test_an_encoder_alone_becomes_a_folder_that_another_recipe_starts_from(contrastive, tmp_path):
    alone = encoder_only(contrastive, stage_of("volume"), stage_of("volume", contrastive={"text": None}))
    folder = train(alone, tmp_path / "alone")
    weights = load_file(folder / "model.safetensors")
    assert not any(key.startswith("language_model") for key in weights)
    # The second stage went on where the first one ended, with its text encoder and temperature.
    first = load_file(tmp_path / "alone" / "s0" / "model.safetensors")
    start = load_file(tmp_path / "alone" / "s1" / "checkpoints" / "start" / "model.safetensors")
    assert all(torch.equal(first[key], start[key]) for key in first)
    assert any(not torch.equal(first[key], weights[key]) for key in first)
    both = contrastive(stage_of("volume"))
    train(both, tmp_path / "both")
    language = {"train": {"volume_connector": "full"}, "data": ["volume"], "max_steps": 1}
    for source in (folder, tmp_path / "both" / "s0", tmp_path / "both" / "s0" / "encoder"):
        settings = contrastive(language)
        settings["model"]["volume"] = MODEL["volume"] | {"encoder": {"name": "vit3d", "init_from": str(source)}}
        taken = load_file(train(settings, tmp_path / f"from-{source.name}") / "model.safetensors")
        theirs = load_file(source / "model.safetensors")
        keys = [key for key in taken if key.startswith("towers.volume.encoder.")]
        assert keys
        assert all(torch.equal(taken[key], theirs[key]) for key in keys)


def test_an_image_encoder_folder_brings_its_image_processor(contrastive, tmp_path):
    folder = train(encoder_only(contrastive, stage_of("image"), modality="image"), tmp_path / "alone")
    settings = contrastive({"train": {"image_connector": "full"}, "data": ["image"], "max_steps": 1})
    settings["model"]["image"] = {"encoder": {"name": "siglip", "init_from": str(folder)}}
    model = train(settings, tmp_path / "run")
    assert json.loads((model / "processor_config.json").read_text())["image"]["size"] == {"height": 16, "width": 16}


def test_a_stage_stopped_by_the_queue_goes_on(contrastive, tmp_path):
    settings = contrastive(stage_of("image", max_steps=4))
    train(settings, tmp_path / "whole")
    ask = BeforeStep(1, lambda loop: setattr(loop, "stop_requested", True))
    with pytest.raises(TrainingInterruptedError, match="of 4"):
        train(settings, tmp_path / "run", callbacks=[ask])
    train(settings, tmp_path / "run", resume=True)
    weights, others = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_adapters_and_frozen_texts(contrastive, tmp_path):
    text = TEXT | {"train": "frozen"}
    stage = stage_of("volume", contrastive={"text": text}, precision="bf16")
    stage["train"] = {"volume_encoder": {"mode": "lora", "lora": {"r": 2}}}
    folder = train(encoder_only(contrastive, stage), tmp_path / "run")
    start = load_file(tmp_path / "run" / "s0" / "checkpoints" / "start" / "model.safetensors")
    end = load_file(folder / "model.safetensors")
    assert set(start) == set(end)
    assert all(torch.equal(start[key], end[key]) for key in start if key.startswith("text_encoder."))
    assert any(not torch.equal(start[key], end[key]) for key in start if key.startswith("towers."))


def test_a_text_encoder_with_a_head_that_is_not_used(contrastive, tmp_path):
    config = {"model_type": "siglip_text_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "max_position_embeddings": 12}
    for pooling, length in (("mean", None), ("own", 12)):
        stage = stage_of(
            "image", max_steps=1, contrastive={"text": {"config": config, "pooling": pooling}, "loss": "siglip"}
        )
        out = tmp_path / pooling
        in_two_processes(train, encoder_only(contrastive, stage, modality="image"), out)
        row = read_log(out / "log.jsonl")[0]
        assert row["positions"] == (8 * length if length else row["positions"]) >= row["tokens"]


# --- watched ------------------------------------------------------------------------------------------------------


def test_held_out_retrieval_is_logged_and_changes_nothing(contrastive, tmp_path, pairs):
    write_records(pairs / "held.jsonl", list(read_records(pairs / "image.jsonl"))[:9])
    write_records(pairs / "one.jsonl", list(read_records(pairs / "image.jsonl"))[9:10])  # less than there are processes
    data = {name: {"path": f"{name}.jsonl", "tasks": ["report"]} for name in ("image", "held", "one")}
    evaluate = {"data": ["held", "one"], "every": 2, "samples": 9, "generate": 2}
    plain, seen = stage_of("image"), stage_of("image", evaluate=evaluate)
    train(contrastive(plain, data=data), tmp_path / "plain")
    train(contrastive(seen, data=data), tmp_path / "run")
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("plain", "run")]
    assert losses[0] == losses[1]
    looks = rows(tmp_path / "run" / "evaluation.jsonl")
    assert [(row["step"], row["data"]) for row in looks] == [(s, d) for s in (2, 3) for d in ("held", "one", "all")]
    assert {f"{way}_r_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} <= set(looks[0])
    assert [look["pairs"] for look in looks[:3]] == [9, 1, 10]
    assert looks[1]["text_to_image_r_at_1"] == 1.0
    assert looks[0]["image_to_text_r_at_10"] == 1.0
    shown = rows(tmp_path / "run" / "samples.jsonl")
    assert [row["id"] for row in shown] == ["r0", "r1", "r9"] * 2
    assert all(1 <= row["rank"] <= 9 and row["prediction"] and row["answer"] for row in shown)
    in_two_processes(train, contrastive(seen, data=data), tmp_path / "two")
    for one, two in zip(looks, rows(tmp_path / "two" / "evaluation.jsonl"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_best_recall_decides_and_augmentation_varies(contrastive, tmp_path, pairs, monkeypatch):
    looks = []
    evaluate = ContrastiveObjective.evaluate

    def note(*arguments):
        found = evaluate(*arguments)
        looks.append(found.metrics["recall"])
        return found

    monkeypatch.setattr(ContrastiveObjective, "evaluate", note)
    write_records(pairs / "held.jsonl", list(read_records(pairs / "volume.jsonl"))[:9])
    data = {name: {"path": f"{name}.jsonl", "tasks": ["report"]} for name in ("volume", "held")}
    watch = {"data": ["held"], "every": 1, "samples": 9, "metric": "recall"}
    plain, changed = stage_of("volume", evaluate=watch), stage_of("volume", augment={"volume": {"noise": 0.1}})
    train(contrastive(plain, data=data), tmp_path / "plain")
    last = rows(tmp_path / "plain" / "evaluation.jsonl")[-1]
    recalls = [value for key, value in last.items() if "_r_at_" in key]
    assert looks[-1] == pytest.approx(sum(recalls) / 6)
    train(contrastive(changed), tmp_path / "changed")
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("plain", "changed")]
    assert all(a != b for a, b in zip(*losses, strict=True))


def test_muon_moves_the_encoders_matrices(contrastive, tmp_path):
    train(contrastive(stage_of("image", optimizer="muon", save_every=2)), tmp_path / "run")
    state = load_file(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-2" / "optimizer.safetensors")
    assert any("q_proj.weight" in key and "momentum_buffer" in key for key in state)
    assert not any("embedding" in key and "momentum_buffer" in key for key in state)


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"image_encoder": "full", "volume_encoder": "full"}}, "trains one encoder"),
        ({"train": {"image_connector": "full"}}, "trains one encoder"),
        ({"batch_size": 1}, "at least 2"),
        ({"feature_cache": True}, "no meaning.*`feature_cache`"),
        ({"template": "pretrain"}, "no meaning.*`template`"),
        ({"packing": False, "cross_entropy": "full"}, "`packing`, `cross_entropy`"),
        ({"lr": None, "train": {"image_encoder": {"lr": 1e-3}}}, "stage's `lr`"),
        ({"objective": "language"}, "is for stages with"),
        ({"contrastive": {"text": {"config": {"hidden_size": 8}}}}, "model_type"),
        ({"contrastive": {"text": {}}}, "either `init_from`"),
        ({"contrastive": {"losss": "clip"}}, "Did you mean 'loss'"),
        ({"evaluate": {"data": ["volume"], "metric": "f1"}}, "is one of loss, recall"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(contrastive, changes, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(contrastive(stage_of("image") | changes))


def test_a_recipe_without_an_llm_has_contrastive_stages_only(contrastive):
    with pytest.raises(RecipeError, match="needs a language model"):
        load_recipe(encoder_only(contrastive, stage_of("volume"), {"train": {"volume_encoder": "full"}}))
    with pytest.raises(RecipeError, match="no part 'image_encoder'"):
        load_recipe(encoder_only(contrastive, stage_of("image")))


def test_misfits_are_reported_before_weights_are_made(contrastive, tmp_path):
    text = {"text": None}
    with pytest.raises(RecipeError, match="names no text encoder"):
        train(contrastive(stage_of("image", contrastive=text)), tmp_path / "a")
    other = encoder_only(contrastive, stage_of("volume"), stage_of("volume", contrastive={"text": None, "dim": 4}))
    with pytest.raises(RecipeError, match="dim is 8, not 4"):
        train(other, tmp_path / "b")
    long = {"text": TEXT | {"max_length": 65}}
    with pytest.raises(RecipeError, match="max_length is 65, the text encoder takes 64"):
        train(contrastive(stage_of("image", contrastive=long)), tmp_path / "c")
    small = {"text": {"config": TEXT["config"] | {"vocab_size": 10}}}
    with pytest.raises(RecipeError, match="the text encoder 10"):
        train(contrastive(stage_of("image", contrastive=small)), tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": []}, r"record 'r3': it has 0 images"),
        ({"image": ["1.png", "2.png"]}, r"record 'r3': it has 2 images"),
        ({"image3d": ["1.npy"]}, r"1 image and 1 volume"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "no text to pair"),
    ],
)
def test_a_record_that_is_no_pair_is_named(contrastive, tmp_path, pairs, change, words):
    records = list(read_records(pairs / "image.jsonl"))
    images = change.get("image", ["1.png"])
    human = "<image>" * len(images) + "<image3d>" * len(change.get("image3d", []))
    records[3] |= {"conversations": turns(human + "Report?", "a")} | change
    folder = tmp_path / "data"
    shutil.copytree(pairs, folder)
    write_records(folder / "image.jsonl", records)
    settings = contrastive(stage_of("image", max_steps=2), data_root=str(folder))
    with pytest.raises(DataError, match=words):
        train(settings, tmp_path / "run")


def test_tasks_choose_records(contrastive, pairs):
    from medmvl.data.dataset import SampleDataset

    assert len(SampleDataset(pairs / "image.jsonl")) == 15
    chosen = SampleDataset(pairs / "image.jsonl", tasks=["vqa"])
    assert [sample.id for sample in chosen] == ["q"]
    assert chosen.where(0) == "image.jsonl, line 15"
    with pytest.raises(DataError, match=r"no record of the task caption; it has report, vqa"):
        SampleDataset(pairs / "image.jsonl", tasks=["caption"])


# --- pairs --------------------------------------------------------------------------------------------------------


def test_a_processor_survives_its_folder_and_cuts_long_texts(contrastive, tmp_path, pairs):
    from medmvl.data.dataset import SampleDataset

    text = TEXT | {"max_length": 3}
    folder = train(
        encoder_only(contrastive, stage_of("volume", max_steps=1, contrastive={"text": text})), tmp_path / "run"
    )
    processor = PairProcessor.from_pretrained(folder)
    found = inspect_folder(folder)
    assert found.layout == "dual encoder of a contrastive stage"
    assert found.facts["volume encoder"].startswith("vit3d at 4x16x16 -> 2x2x2")
    data = SampleDataset(pairs / "volume.jsonl")
    ids, cut = processor.tokenize(data[2])
    assert (len(ids), cut) == (3, True)
    assert processor.tokenize(data[14])[1] is False
    first, equal, other = (processor.encode(data[i]) for i in (0, 0, 1))
    assert first["visual_key"] == equal["visual_key"] != other["visual_key"]
    assert first["volume_values"].shape == (1, 1, 4, 16, 16)


def differences(folder):
    return json.loads((folder / "environment.json").read_text())["differences"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finished_encoder_is_compared(contrastive, tmp_path, capsys, dtype):
    stage = stage_of("image", precision="bf16", save_dtype=dtype, max_steps=1)
    train(contrastive(stage), tmp_path / "run")
    said = capsys.readouterr().err
    assert "Stage s0: the written checkpoint gives the embeddings of the trained model" in said
    assert "Stage s0: the written checkpoint gives the encoder features of the trained model" in said
    found = differences(tmp_path / "run" / "s0" / "encoder")
    rounded = {"rounded to bfloat16"} if dtype == "bfloat16" else set()
    assert found.keys() == {"bf16 to fp32", "merged", "written"} | rounded
    assert found["written"] < 1e-6
    assert all(value < 0.05 for value in found.values())
    assert differences(tmp_path / "run" / "model")["written"] < 1e-6


def test_encoder_that_changes_as_it_is_written_is_not_published(contrastive, tmp_path, monkeypatch):
    save = DualEncoder.save_pretrained

    def change_and_save(self, *arguments, **options):
        if arguments[0].name != ".start.writing":
            with torch.no_grad():
                next(self.encoder.parameters()).mul_(2)
        save(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoder, "save_pretrained", change_and_save)
        with pytest.raises(TrainingError, match=r"embeddings differ from the trained model's .* \(written\)"):
            train(contrastive(stage_of("image", max_steps=1)), tmp_path / "run")
    assert not (tmp_path / "run" / "s0" / "config.json").exists()
    assert not (tmp_path / "run" / "model").exists()
