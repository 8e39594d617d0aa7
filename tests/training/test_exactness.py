"""Shortcuts are used only where they give the plain result, and a finished stage is the model that was trained."""

from __future__ import annotations

import copy
import json
import logging
import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from medmvl.errors import ModelError, RecipeError, TrainingError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.encoders.vit3d import ViT3D
from medmvl.training.acceleration.attention import packed_attention
from medmvl.training.acceleration.compiled import repeated_layers
from medmvl.training.acceleration.exactness import why_no_fp32_attention
from medmvl.training.acceleration.packing import Packing, saves_attention
from medmvl.training.acceleration.packing_check import choose_packing, why_not_by_masks, why_not_packed
from medmvl.training.engine import trainable
from medmvl.training.engine.callbacks import Callback
from medmvl.training.engine.trainable import TrainableModel
from medmvl.training.objectives import language, language_batches
from medmvl.training.objectives.language import LanguageObjective
from medmvl.training.run import train
from medmvl.training.run_folder import read_log

from .conftest import CONNECTORS, MODEL

BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}
LORA = {"llm": {"mode": "lora", "lora": {"r": 2}}, **CONNECTORS}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}


def language_model(kind: str, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**BASE, **changes}))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", WINDOW),
        ("qwen3", {"head_dim": 8}),
        ("mistral", {"sliding_window": 4}),
        ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
        ("phi3", {"pad_token_id": 0}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
        ("olmo2", {}),
        ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.1, "sliding_window": 4}),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    ],
)
def test_families_that_pack(kind, changes):
    assert why_not_packed(language_model(kind, **changes)) is None


GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gptj", GPTJ),
        ("stablelm", {}),
        ("phimoe", {"sliding_window": 32, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_families_that_pack_by_masks_of_transformers(kind, changes):
    model = language_model(kind, **changes)
    before = model.config.to_dict()
    assert choose_packing(model) == (Packing.MASKS, None)
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("doge", {}, "does not support: attention_mask; .* chooses among the tokens of a row .keep_window_size"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of the kind conv$"),
        (
            "bloom",
            {"n_layer": 2, "n_head": 4},
            "cannot be chosen; with transformers' own masks its logits then differ by",
        ),
        (
            "jamba",
            {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
            "own masks it has layers of the kind linear_attention",
        ),
        (
            "llama4_text",
            {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size_mlp": 48},
            "chunked_attention",
        ),
    ],
)
def test_families_that_do_not_pack(kind, changes, reason):
    packing, found = choose_packing(language_model(kind, **changes))
    assert packing is None
    assert re.search(reason, found)


def test_masks_without_positions_are_found():
    model = language_model("gpt_oss", head_dim=8, num_local_experts=4)  # its masks are made without positions
    assert "logits then differ by" in why_not_by_masks(model)


def test_masks_pack_only_if_they_save_attention():
    assert saves_attention([100, 10, 10])
    assert not saves_attention([100, 90, 80])
    assert saves_attention([7])


def test_layers_that_ignore_segments_are_found_by_measuring():
    model = language_model("llama")
    forward = type(model.model.layers[0].self_attn).forward

    def without_segments(self, *arguments, segments=None, **kwargs):
        return forward(self, *arguments, **kwargs)

    for layer in model.model.layers:
        layer.self_attn.forward = without_segments.__get__(layer.self_attn)
    assert "0 of its 2 layers" in why_not_packed(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weak_mixing_of_neighbors_is_found(dtype):
    model = language_model("llama").to(dtype)
    before = copy.deepcopy(model.state_dict())
    assert why_not_packed(model) is None
    model.model.layers[0].input_layernorm.register_forward_hook(lambda _, __, out: out + out.roll(1, dims=1) / 50)
    assert "logits then differ by" in why_not_packed(model)
    after = model.state_dict()
    assert all(
        after[name].dtype == values.dtype and torch.equal(after[name], values) for name, values in before.items()
    )


def test_window_that_is_not_passed_to_attention_is_found():
    model = language_model("llama")
    model.config.sliding_window = 32  # longer than the measured texts
    assert "pass the sliding windows none to their attention, and its config says 32" in why_not_packed(model)
    assert why_not_packed(language_model("mistral", sliding_window=32)) is None


@pytest.mark.parametrize("argument", [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"is_causal": False}])
def test_kernel_refuses_arguments_it_would_ignore(argument):
    states = torch.randn(3, 1, 2, 5, 4)
    with pytest.raises(ModelError, match=next(iter(argument))):
        packed_attention(None, *states, None, segments=[3, 2], **argument)


def log_of(settings, folder, **changes):
    """Return the rows of the log of a run of one stage."""
    changed = copy.deepcopy(settings)
    changed["stages"][0] |= changes
    train(changed, folder)
    return read_log(folder / "log.jsonl")


def test_unpackable_llm_trains_on_padded_rows(recipe, tmp_path, caplog):
    settings = recipe({"lr": 1e-3, "max_steps": 2})
    settings["model"]["llm"]["config"] = {**MODEL["llm"]["config"], "model_type": "bloom", "n_layer": 2, "n_head": 4}
    with caplog.at_level(logging.WARNING):
        found = log_of(settings, tmp_path / "run")
    assert "trains without packing, since the model does not allow it" in caplog.text
    expected = log_of(settings, tmp_path / "padded", packing=False)
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]
    assert found[0]["positions"] > found[0]["tokens"]


@pytest.mark.parametrize(
    ("llm", "said"),
    [
        (
            {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.2},
            "medmvl's attention function",
        ),
        ({"model_type": "gptj", **GPTJ, "n_positions": 256}, "transformers' own masks, eager"),
    ],
)
def test_other_attention_packs_with_the_same_losses(recipe, tmp_path, capsys, monkeypatch, llm, said):
    settings = recipe({"lr": 1e-3, "max_steps": 3})
    settings["model"]["llm"]["config"] = {**MODEL["llm"]["config"], **llm}
    found = log_of(settings, tmp_path / "run")
    assert f"nothing is computed on padding; {said} keeps each from seeing the others." in capsys.readouterr().err
    monkeypatch.setattr(language_batches, "saves_attention", lambda lengths: True)
    packed = log_of(settings, tmp_path / "packed")
    expected = log_of(settings, tmp_path / "padded", packing=False)
    assert packed[0]["positions"] == packed[0]["tokens"] < expected[0]["positions"]
    for rows in (found, packed):
        for one, other in zip(rows, expected, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_adapter_on_a_tied_head_is_refused(recipe, tmp_path):
    stage = {"train": {"llm": {"mode": "lora", "lora": {"r": 2, "targets": ["lm_head"]}}, **CONNECTORS}}
    settings = recipe(stage)
    settings["model"]["llm"]["config"]["tie_word_embeddings"] = True
    with pytest.raises(RecipeError, match="'lm_head', whose weight is tied to 'model.embed_tokens'"):
        train(settings, tmp_path / "run")
    train(recipe(stage), tmp_path / "untied")  # its own weight


def test_stage_that_ends_as_another_model_is_not_published(recipe, tmp_path, monkeypatch):
    finish = TrainableModel.finish

    def broken(self):
        model = finish(self)
        with torch.no_grad():
            model.language_model.lm_head.weight[0] += 1
        return model

    with monkeypatch.context() as patch:
        patch.setattr(TrainableModel, "finish", broken)
        with pytest.raises(TrainingError, match="finished model's logits differ from the trained model's"):
            train(recipe({"max_steps": 1}), tmp_path / "run")
    assert not (tmp_path / "run" / "s0" / "config.json").exists()
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("stage", "compared"),
    [
        ({}, {"merged", "written"}),
        ({"precision": "bf16", "train": LORA}, {"bf16 to fp32", "merged", "written"}),
        (
            {"precision": "bf16", "train": {"llm": {"mode": "full", "only": ["layers.1"]}}},
            {"bf16 to fp32", "merged", "written"},
        ),
        ({"train": LORA, "save_dtype": "bfloat16"}, {"merged", "rounded to bfloat16", "written"}),
    ],
    ids=["full", "lora-bf16", "half-frozen-bf16", "saved-in-bf16"],
)
def test_finished_stage_says_its_differences(recipe, tmp_path, capsys, stage, compared):
    train(recipe({"max_steps": 1, **stage}), tmp_path / "run")
    assert (
        "Stage s0: the written checkpoint gives the logits of the trained model; they differ by no more than rounding ("
        in capsys.readouterr().err
    )
    found = json.loads((tmp_path / "run" / "model" / "environment.json").read_text())["differences"]
    assert found.keys() == compared
    assert found["written"] < 1e-6
    assert found["merged"] < 1e-5
    assert all(difference < 0.05 for difference in found.values())


def edited_writing(changed):
    """Return a `save_pretrained` after which the named weight in the folder is another one."""
    save = PreTrainedModel.save_pretrained

    def write(self, folder, *arguments, **options):
        save(self, folder, *arguments, **options)
        weights = load_file(folder / "model.safetensors")
        weights[changed] += 0.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def test_folder_that_holds_another_model_is_not_published(recipe, tmp_path, monkeypatch):
    settings = recipe({"max_steps": 1})
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LanguageObjective, "finish", _with_edited_writing(LanguageObjective.finish, patch))
        with pytest.raises(TrainingError, match=r"\(written\), and 100% of them by more than rounding"):
            train(settings, run)
    assert not (run / "s0" / "config.json").exists()
    assert not (run / "model").exists()
    assert train(settings, run, resume=True) == run / "model"


def _with_edited_writing(finish, patch):
    def finish_with(self, engine, context):
        patch.setattr(PreTrainedModel, "save_pretrained", edited_writing("language_model.model.norm.weight"))
        finish(self, engine, context)

    return finish_with


@pytest.mark.parametrize(("only", "other"), [("lm_head", "embed_tokens"), ("embed_tokens", "lm_head")])
def test_training_one_of_two_tied_weights_is_refused(recipe, tmp_path, only, other):
    settings = recipe({"train": {"llm": {"mode": "full", "only": [only]}}, "max_steps": 1})
    settings["model"]["llm"]["config"]["tie_word_embeddings"] = True
    with pytest.raises(RecipeError, match=f"{only}.*tied to '.*{other}.*Name both"):
        train(settings, tmp_path / "run")
    settings["stages"][0]["train"]["llm"]["only"] = [only, other]
    train(settings, tmp_path / "both")


def test_features_that_depend_on_the_batch_are_not_stored(recipe, tmp_path, caplog, monkeypatch):
    forward = ViT3D.forward

    def mixing(self, pixels):
        features = forward(self, pixels)
        return features + features.mean(0, keepdim=True)

    monkeypatch.setattr(ViT3D, "forward", mixing)
    stage = {"train": CONNECTORS, "max_steps": 2, "lr": 1e-3}
    with caplog.at_level(logging.WARNING):
        train(recipe({**stage, "feature_cache": True}), tmp_path / "stored")
    assert "trains without stored features of volumes: its features then differ by" in caplog.text
    assert not list((tmp_path / "stored" / "features").glob("volume-*/??"))
    assert list((tmp_path / "stored" / "features").glob("image-*/??"))
    train(recipe(stage), tmp_path / "plain")
    found, expected = (read_log(tmp_path / name / "log.jsonl") for name in ("stored", "plain"))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


@pytest.mark.parametrize("part", ["llm", "image_encoder"])
def test_compiled_layers_that_give_other_results_are_not_used(recipe, tmp_path, caplog, monkeypatch, part):
    def backend(graph, inputs):
        return lambda *values: [
            2 * out if out is not None and out.is_floating_point() else out for out in graph(*values)
        ]

    layers = []

    def compile_one(parts):
        layers.extend(repeated_layers(parts[part]))
        for layer in layers:
            layer.compile(backend=backend)

    monkeypatch.setattr(trainable, "compile_layers", compile_one)
    torch._dynamo.reset()
    stage = {"max_steps": 1, "lr": 1e-3}
    with caplog.at_level(logging.WARNING):
        train(recipe({**stage, "compile": True}), tmp_path / "compiled")
    torch._dynamo.reset()
    assert "trains without compile, since the model does not allow it: its results then differ by" in caplog.text
    assert layers
    assert all(layer._compiled_call_impl is None for layer in layers)
    train(recipe(stage), tmp_path / "plain")
    found, expected = (read_log(tmp_path / name / "log.jsonl") for name in ("compiled", "plain"))
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


def test_attention_that_fp32_changes_is_found(model_folder, monkeypatch):
    model = MedMVLForConditionalGeneration.from_pretrained(model_folder)
    bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
    assert why_no_fp32_attention(model, bf16) is None
    scaled = functional.scaled_dot_product_attention

    def attention(query, *arguments, **options):  # computes another thing in fp32
        return scaled(query, *arguments, **options) * (1 if torch.is_autocast_enabled("cpu") else 3)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    assert "logits then differ by" in why_no_fp32_attention(model, bf16)


@pytest.mark.parametrize("reason", [None, "a reason"])
def test_attention_in_fp32_is_used_only_if_it_holds(recipe, tmp_path, caplog, monkeypatch, reason):
    plain, seen = functional.scaled_dot_product_attention, []

    class Look(Callback):
        def on_step_begin(self, loop):
            seen.append(functional.scaled_dot_product_attention is plain)

    monkeypatch.setattr(language, "why_no_fp32_attention", lambda *_: reason)
    stage = {"max_steps": 1, "precision": "bf16", "train": CONNECTORS}
    with caplog.at_level(logging.WARNING):
        train(recipe(stage), tmp_path / "run", callbacks=[Look()])
    assert seen == [reason is not None]
    assert ("trains without attention in fp32" in caplog.text) == (reason is not None)


def test_lora_finds_the_layers_of_gpt2(recipe, tmp_path):
    settings = recipe({"train": LORA, "max_steps": 1})
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    settings["model"]["llm"]["config"] = gpt2
    train(settings, tmp_path / "run")
    start, end = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("init", "model"))
    changed = {
        name.rpartition(".h.0.")[2] for name in start if ".h.0." in name and not torch.equal(start[name], end[name])
    }
    assert changed == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert json.loads((tmp_path / "run" / "model" / "environment.json").read_text())["differences"]["merged"] < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parts", [CONNECTORS, LORA, {"llm": "full", **CONNECTORS}], ids=["connectors", "lora", "full"])
def test_half_precision_llm_with_a_full_precision_encoder(recipe, tmp_path, precision, parts):
    language_model("llama", vocab_size=300, max_position_embeddings=512).to(torch.bfloat16).save_pretrained(tmp_path)
    settings = recipe({"max_steps": 1, "lr": 1e-3, "precision": precision, "train": parts})
    settings["model"]["llm"] = {**settings["model"]["llm"], "init_from": str(tmp_path)}
    settings["model"]["llm"].pop("config")
    train(settings, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "model" / "environment.json").read_text())["differences"]
    assert found["written"] < 1e-6
    start, end = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("init", "model"))
    assert {start[name].dtype for name in start} == {torch.float32, torch.bfloat16}
    frozen = [name for name in start if ".encoder." in name]
    assert frozen
    assert all(torch.equal(start[name], end[name]) for name in frozen)
