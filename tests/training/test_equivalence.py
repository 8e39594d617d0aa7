"""Every shortcut of a training step gives the loss and the gradients of the plain way."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from medmvl.data.dataset import SampleDataset
from medmvl.data.mixture import Mixture
from medmvl.models.assemble import llm_config
from medmvl.training.acceleration.attention import PACKED, attention
from medmvl.training.build import build
from medmvl.training.engine.callbacks import Callback
from medmvl.training.engine.dataset import TrainingDataset
from medmvl.training.engine.sampling import BatchLayout, StepSampler, split_by_tokens
from medmvl.training.objectives.language_batches import Collator
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log

from .conftest import CONNECTORS, MODEL

TOLERANCE = 1e-5  # relative to the largest gradient; measured 4e-7 in fp32


def gradients(model, batch, **settings):
    model.zero_grad()
    loss = model(**batch.inputs, **settings, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-6)
    assert set(first[1]) == set(second[1])
    scale = max(float(g.abs().max()) for g in first[1].values())
    worst = max(float((first[1][name] - second[1][name]).abs().max()) for name in first[1])
    assert worst <= TOLERANCE * scale


@pytest.mark.parametrize(
    "llm",
    [
        {},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"model_type": "phi3", "sliding_window": 8},
        {"model_type": "phi", "num_key_value_heads": 4},
    ],
    ids=["llama", "qwen2-window", "phi3-window", "phi"],
)
def test_packing_and_supervised_logits_change_nothing(recipe, data_folder, llm):
    settings = recipe({})
    settings["model"]["llm"]["config"] = MODEL["llm"]["config"] | llm
    torch.manual_seed(0)
    model, processor = build(load_recipe(settings))
    model.train()
    records = TrainingDataset(Mixture({"d": SampleDataset(data_folder / "d.jsonl")}), processor.encode)
    samples = [records[i] for i in range(8)]
    plain = gradients(model, Collator(processor, packed=False, supervised_only=False)(samples))
    assert_same(plain, gradients(model, Collator(processor, packed=False, supervised_only=True)(samples)))
    assert_same(plain, gradients(model, Collator(processor, packed=False, bucket_lengths=True)(samples)))
    with attention(model.language_model, PACKED):
        assert_same(plain, gradients(model, Collator(processor, packed=True, supervised_only=False)(samples)))
        assert_same(plain, gradients(model, Collator(processor, packed=True, supervised_only=True)(samples)))
        assert_same(plain, gradients(model, Collator(processor, packed=True, bucket_lengths=True)(samples)))
        batch = Collator(processor, packed=True, supervised_only=True)(samples)
        assert_same(plain, gradients(model, batch, cross_entropy="chunked"))
    assert llm_config(model.language_model)._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_loss_in_pieces_is_that_of_all_logits(monkeypatch, bias, frozen, dtype):
    from medmvl.models import head_loss as module

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=bias)
    hidden = torch.randn(23, 8, requires_grad=True)
    targets = torch.randint(50, (23,))
    wanted = [hidden, *([] if frozen else head.parameters())]
    head.requires_grad_(not frozen)
    monkeypatch.setattr(module, "PIECE", 50 * 4)  # four rows at a time, three in the last piece
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = head(hidden).float()
        whole = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / 7
        pieces = module.head_loss(hidden, head, targets, count=7)
    exact = dtype == torch.float32
    torch.testing.assert_close(pieces, whole, rtol=1e-6 if exact else 1e-2, atol=0.0)
    for one, other in zip(torch.autograd.grad(3 * pieces, wanted), torch.autograd.grad(3 * whole, wanted), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5 if exact else 2e-2, atol=1e-6 if exact else 2e-2)


def test_no_more_logits_than_a_piece_are_ever_made(monkeypatch):
    from medmvl.models import head_loss as module

    made = []
    original = module._loss_and_gradient
    monkeypatch.setattr(
        module, "_loss_and_gradient", lambda logits, *rest: made.append(logits.numel()) or original(logits, *rest)
    )
    head = torch.nn.Linear(4, 150_000, bias=False)
    module.head_loss(torch.randn(1000, 4), head, torch.zeros(1000, dtype=torch.long)).backward()
    assert max(made) <= module.PIECE
    assert sum(made) == 1000 * 150_000


def test_an_llm_that_changes_its_logits_keeps_its_own_way(recipe, tmp_path):
    from medmvl.errors import RecipeError

    settings = recipe({"max_steps": 1})
    settings["model"]["llm"]["config"] |= {"model_type": "cohere", "logit_scale": 0.5}
    train(settings, tmp_path / "auto")
    settings["stages"][0]["cross_entropy"] = "chunked"
    with pytest.raises(RecipeError, match="Use auto or full"):
        train(settings, tmp_path / "run")


def test_liger_is_refused_where_it_cannot_run(recipe, tmp_path):
    from medmvl.errors import RecipeError

    with pytest.raises(RecipeError, match="CUDA"):
        train(recipe({"cross_entropy": "liger"}), tmp_path / "run")
    with pytest.raises(RecipeError, match="needs `supervised_logits`"):
        train(recipe({"cross_entropy": "liger", "supervised_logits": False}), tmp_path / "run")


def test_samples_of_a_packed_row_do_not_see_each_other(recipe, data_folder):
    torch.manual_seed(0)
    model, processor = build(load_recipe(recipe({})))
    records = TrainingDataset(Mixture({"d": SampleDataset(data_folder / "d.jsonl")}), processor.encode)
    make = Collator(processor, packed=True, supervised_only=False)
    text_only = [records[3], records[7], records[11]]
    batch = make(text_only).inputs
    length = batch["segments"][0]
    with torch.no_grad(), attention(model.eval().language_model, PACKED):
        keys = ("input_ids", "position_ids", "segments")
        before = model(**{key: batch[key] for key in keys}, use_cache=False).logits
        batch["input_ids"][0, :length] = 5
        after = model(**{key: batch[key] for key in keys}, use_cache=False).logits
    assert not torch.equal(before[:, :length], after[:, :length])
    assert torch.equal(before[:, length:], after[:, length:])


def varlen_by_mask(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch documents of `varlen_attn`, which runs on CUDA only: (T, heads, width), by one big mask."""
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    position = torch.arange(len(q))
    sample = torch.bucketize(position, cu_seq_q[1:].long(), right=True)
    distance = position[:, None] - position[None, :]
    mask = (sample[:, None] == sample[None, :]) & (distance >= -window_size[1])
    if window_size[0] >= 0:
        mask &= distance <= window_size[0]
    q, k, v = (states.transpose(0, 1)[None] for states in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)[
        0
    ].transpose(0, 1)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("keys", [4, 2])
def test_row_kernel_equals_segment_loop(monkeypatch, window, keys):
    from medmvl.training.acceleration import attention as module

    torch.manual_seed(0)
    segments = [5, 1, 9, 4]
    shapes = [(1, heads, sum(segments), 8) for heads in (4, keys, keys)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    loop, _ = module.packed_attention(None, *inputs, None, segments=segments, sliding_window=window)
    expected = torch.autograd.grad(loop.square().sum(), inputs)
    monkeypatch.setattr(module, "_flash", lambda query: True)
    monkeypatch.setattr(module, "_varlen_attention", lambda: varlen_by_mask)
    once, _ = module.packed_attention(None, *inputs, None, segments=segments, sliding_window=window)
    torch.testing.assert_close(once, loop)
    for one, other in zip(torch.autograd.grad(once.square().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_positions_that_begin_anew_are_not_enough_to_pack(recipe, data_folder):
    """The trap: without our attention, a packed row with a key-value cache is attended to as one long text, without an error."""
    torch.manual_seed(0)
    model, processor = build(load_recipe(recipe({})))
    records = TrainingDataset(Mixture({"d": SampleDataset(data_folder / "d.jsonl")}), processor.encode)
    batch = Collator(processor, packed=True, supervised_only=False)([records[3], records[7]]).inputs
    keys = ("input_ids", "position_ids", "segments")
    rows = {key: batch[key] for key in keys}
    second = slice(batch["segments"][0], None)
    with torch.no_grad(), attention(model.eval().language_model, PACKED):
        ours = model(**rows, use_cache=False).logits[:, second]
    alone = model(input_ids=batch["input_ids"][:, second], use_cache=False).logits
    torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)
    del rows["segments"]
    trapped = model(**rows, use_cache=True).logits[:, second]
    assert float((trapped - alone).detach().abs().max()) > 1e-3


def test_eight_at_once_equal_eight_times_one(recipe, tmp_path):
    logs = []
    for name, size in (("once", None), ("threes", 3), ("ones", 1)):
        out = tmp_path / name
        train(recipe({"batch_size": 8, "micro_batch_size": size, "max_steps": 3, "warmup": 0, "lr": 1e-3}), out)
        logs.append(read_log(out / "log.jsonl"))
    for other in logs[1:]:
        for first, second in zip(logs[0], other, strict=True):
            assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
            assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
            assert first["supervised"] == second["supervised"]


def test_padded_and_packed_runs_have_the_same_course(recipe, tmp_path):
    logs = []
    for packing in (True, False):
        out = tmp_path / str(packing)
        train(recipe({"packing": packing, "supervised_logits": packing, "lr": 1e-3}), out)
        logs.append(read_log(out / "log.jsonl"))
    for packed, padded in zip(*logs, strict=True):
        assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)
        assert packed["positions"] == packed["tokens"] == padded["tokens"] < padded["positions"]


@pytest.mark.parametrize("chosen", [True, ["llm"], ["image_encoder", "volume_encoder"]])
def test_recomputed_activations_give_the_same_gradients(recipe, data_folder, chosen):
    from transformers.modeling_layers import GradientCheckpointingLayer

    from medmvl.models import parts
    from medmvl.training.engine.trainable import checkpoint_activations

    torch.manual_seed(0)
    model, processor = build(load_recipe(recipe({})))
    model.train()
    records = TrainingDataset(Mixture({"d": SampleDataset(data_folder / "d.jsonl")}), processor.encode)
    batch = Collator(processor, packed=False)([records[i] for i in range(6)])
    plain = gradients(model, batch)
    checkpoint_activations(model, chosen)
    runs = {}
    for name, part in parts(model).items():
        for layer in part.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                runs[name, layer] = 0
                # Hooks of the layer itself stay outside of what is recomputed; those of its norms do not.
                norm = next(child for label, child in layer.named_children() if "norm" in label)
                norm.register_forward_pre_hook(lambda *_, key=(name, layer): runs.__setitem__(key, 1 + runs[key]))
    assert_same(plain, gradients(model, batch))
    twice = {"llm", "image_encoder", "volume_encoder"} if chosen is True else set(chosen)
    assert {name for name, _ in runs} == {"llm", "image_encoder", "volume_encoder"}
    assert all(count == (2 if name in twice else 1) for (name, _), count in runs.items())


def test_a_part_without_layers_cannot_recompute(recipe, tmp_path):
    from medmvl.errors import RecipeError

    with pytest.raises(RecipeError, match="no layers that can recompute"):
        train(recipe({"activation_checkpointing": ["image_connector"]}), tmp_path / "run")


def test_bf16_stays_near_and_frozen_parts_keep_their_numbers(recipe, tmp_path):
    from safetensors.torch import load_file

    stage = {"train": {"image_connector": "full", "llm": {"mode": "lora", "lora": {"r": 2}}}, "lr": 1e-3}
    train(recipe(stage), tmp_path / "fp32")
    train(recipe(stage | {"precision": "bf16"}), tmp_path / "bf16")
    exact, rough = (read_log(tmp_path / name / "log.jsonl") for name in ("fp32", "bf16"))
    for a, b in zip(exact, rough, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
    before = load_file(tmp_path / "bf16" / "init" / "model.safetensors")
    after = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    frozen = [key for key in before if "volume" in key or "image.encoder" in key or "embed" in key]
    assert frozen
    assert all(torch.equal(before[key], after[key]) for key in frozen)


def test_steps_are_shared_out_completely_and_evenly(data_folder):
    mixture = Mixture({"d": SampleDataset(data_folder / "d.jsonl")})
    shape = BatchLayout.of(batch_size=10, micro_batch_size=2, world=2)
    assert shape.accumulation == 3
    costs = {n: ("image" if n % 2 else "", float(n + 1)) for n in range(len(mixture))}
    ranks = [list(StepSampler(mixture, 2, shape, rank, costs.__getitem__)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [6, 6]
    for step in range(2):
        numbers = [n for rank in ranks for batch in rank[3 * step : 3 * step + 3] for n in batch]
        assert sorted(numbers) == sorted(mixture.stream(10 * step, 10).tolist())
    assert all(batch for rank in ranks for batch in rank)


def test_share_out_keeps_kinds_and_lengths_together():
    import numpy as np

    kinds = ["image", "", "image", "", "image", ""]
    groups = split_by_tokens(kinds, np.array([10.0, 3, 9, 3, 11, 30]), 3)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert groups[0] == [5]  # the long text alone
    assert split_by_tokens([""] * 3, np.array([100.0, 1, 1]), 3) == [[0], [1], [2]]


def test_stored_features_stand_for_frozen_encoders(recipe, tmp_path, monkeypatch):
    from medmvl.models.encoders.vit3d import ViT3D
    from medmvl.training.acceleration.features import StoredMedia

    stage = {"train": CONNECTORS | {"llm": "full"}, "lr": 1e-3}
    train(recipe(stage), tmp_path / "pixels")
    train(recipe(stage | {"feature_cache": True}), tmp_path / "features")
    pixels, features = (read_log(tmp_path / name / "log.jsonl") for name in ("pixels", "features"))
    for a, b in zip(pixels, features, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    encode = StoredMedia.encode
    seen = []

    def no_encoder(self, pixels):
        raise AssertionError("a frozen encoder ran although its features are stored")

    class EncoderAfterTheSteps(Callback):
        """Lets the encoder run again when the steps are done: the finished stage is probed with pixels."""

        def on_end(self, loop):
            monkeypatch.setattr(ViT3D, "forward", forward)

    forward = ViT3D.forward
    monkeypatch.setattr(StoredMedia, "encode", lambda self, sample: seen.append(sample.id) or encode(self, sample))
    monkeypatch.setattr(ViT3D, "forward", no_encoder)
    again = recipe(stage | {"feature_cache": True, "max_steps": 1}, {"train": {"image_encoder": "full"}, "lr": 1e-3})
    only = again | {"stages": again["stages"][:1], "seed": 3}
    train(only, _with_features(tmp_path), callbacks=[EncoderAfterTheSteps()])
    assert seen


@pytest.mark.parametrize(
    "pooling", [{"name": "spatial", "factor": [1, 2, 2]}, {"name": "attention", "heads": 2}, "none"]
)
def test_a_pooling_without_weights_is_stored_with_the_features(recipe, tmp_path, pooling):
    settings = {}
    for name, cached in (("pixels", False), ("features", True)):
        settings = recipe({"train": {"volume_connector": "full", "llm": "full"}, "lr": 1e-3, "feature_cache": cached})
        settings["model"]["volume"]["connector"] = {"pooling": pooling, "projector": "linear"}
        train(settings, tmp_path / name)
    losses = [[row["loss"] for row in read_log(tmp_path / n / "log.jsonl")] for n in ("pixels", "features")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    stored = next((tmp_path / "features" / "features").glob("volume-*/??/*.safetensors"))
    weightless = isinstance(pooling, dict) and pooling["name"] == "spatial"
    assert load_file(stored)["features"].shape[0] == (
        2 if weightless else 8
    )  # tokens of (2, 2, 2), pooled to (2, 1, 1)


def test_features_are_stored_once_and_again_after_changes(recipe, data_folder, tmp_path, monkeypatch):
    from medmvl.errors import RecipeError
    from medmvl.training.acceleration import features

    filled = []
    fill = features._fill
    monkeypatch.setattr(features, "_fill", lambda *arguments: filled.append(arguments[2]) or fill(*arguments))
    described = recipe({"train": CONNECTORS, "feature_cache": True, "max_steps": 3})
    train(described, tmp_path / "features")
    assert all(filled)
    filled.clear()
    again = _with_features(tmp_path)
    train(described, again)
    assert not filled  # nobody asked
    changed = data_folder / "i0.png"
    os.utime(changed, (0, 0))
    shutil.rmtree(again / "s0")
    with pytest.raises(RecipeError, match="stored features of .*i0.png are missing, or it has changed"):
        train(described, again, resume=True)
    train(described, again, resume=True)
    assert [str(changed)] in filled


def _with_features(folder):
    """A new run folder that already holds the stored features of an earlier run of the same model."""
    shutil.copytree(folder / "features" / "features", folder / "again" / "features")
    return folder / "again"


def test_feature_cache_needs_a_frozen_encoder(recipe, tmp_path):
    from medmvl.errors import RecipeError

    with pytest.raises(RecipeError, match="every encoder trains"):
        train(recipe({"feature_cache": True}), tmp_path / "run")


@pytest.mark.parametrize("autocast", [True, False])
def test_attention_in_half_precision_on_the_cpu_is_that_of_fp32(autocast):
    from medmvl.training.acceleration.cpu import whole_attention_on_cpu

    torch.manual_seed(0)
    half = [torch.randn(2, 4, 40, 16).bfloat16() for _ in range(3)]
    given = [(value.float() if autocast else value.clone()).requires_grad_() for value in half]
    exact = [value.float().requires_grad_() for value in half]
    with whole_attention_on_cpu(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True)
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected.bfloat16())
    slope = torch.randn_like(result)
    gradients = torch.autograd.grad(result, given, slope)
    for one, other in zip(gradients, torch.autograd.grad(expected, exact, slope.float()), strict=True):
        assert torch.equal(one, other.to(one.dtype))


def test_layers_computed_again_attend_as_they_did(recipe, tmp_path):
    runs = {}
    for name, again in (("kept", False), ("again", True)):
        settings = {"precision": "bf16", "activation_checkpointing": again, "max_steps": 3, "lr": 1e-3}
        train(recipe(settings), tmp_path / name)
        runs[name] = [row["loss"] for row in read_log(tmp_path / name / "log.jsonl")]
    assert runs["kept"] == runs["again"]


def test_attention_in_full_precision_is_left_alone():
    from medmvl.training.acceleration.cpu import whole_attention_on_cpu

    torch.manual_seed(0)
    inputs = dict(zip(("query", "key", "value"), torch.randn(3, 1, 2, 9, 8), strict=True))
    plain = torch.nn.functional.scaled_dot_product_attention(**inputs)
    with whole_attention_on_cpu():
        assert torch.equal(torch.nn.functional.scaled_dot_product_attention(**inputs), plain)
