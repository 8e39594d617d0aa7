"""Conversion beyond parity: names, options, notes; and every bad input leaves a message and no folder."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from tests.parity.sets import HERE

from medmvl.checkpoints import convert, parse_resolutions
from medmvl.checkpoints.base_parts import llm_config, load_image_processor, load_tokenizer
from medmvl.errors import CheckpointError, MedMVLError
from medmvl.inference import GenerationOptions, Predictor
from medmvl.inference.questions import question
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.weights import Weights
from medmvl.processing import MedMVLProcessor

V1 = "v1_siglip_mlp_qwen2"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of a small checkpoint, with its base parts next to it, to be damaged."""
    shutil.copytree(HERE / "pretrained", tmp_path / "pretrained")
    shutil.copytree(HERE / "checkpoints" / V1, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "(removed)"}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def refuses(source: Path, match: str, **options: object) -> None:
    target = source.parent / "out"
    with pytest.raises(MedMVLError, match=match):
        convert(source, target, **options)  # type: ignore[arg-type]
    leftovers = [path.name for path in source.parent.iterdir() if "out" in path.name]
    assert leftovers == []


def test_names_are_found_beside_the_checkpoint_and_reported(source: Path) -> None:
    done = convert(source, source.parent / "out")
    assert done.names == {"pretrained/qwen2-tiny": "found as a path", "pretrained/siglip-tiny": "found as a path"}
    assert sum(done.unused.values()) == 13


def test_base_weights_are_never_read(source: Path) -> None:
    assert not list((source.parent / "pretrained").rglob("*.safetensors"))
    convert(source, source.parent / "out")


def test_a_given_folder_wins(source: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "pretrained" / "qwen2-tiny", tmp_path / "elsewhere")
    done = convert(source, tmp_path / "out", {"pretrained/qwen2-tiny": tmp_path / "elsewhere"})
    assert done.names["pretrained/qwen2-tiny"] == "given"


def test_a_name_that_is_nowhere(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.rmtree(source.parent / "pretrained" / "qwen2-tiny")
    refuses(source, r"--resolve pretrained/qwen2-tiny=FOLDER")


def test_a_hub_that_never_answers_is_not_waited_for(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that swallows packets: the connection stands, no word comes back."""
    shutil.rmtree(source.parent / "pretrained" / "qwen2-tiny")
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("medmvl.checkpoints.resolve.HfApi", lambda: HfApi(endpoint=endpoint))
        monkeypatch.setattr("medmvl.checkpoints.resolve._HUB_SECONDS", 0.3)
        started = time.monotonic()
        refuses(source, r"--resolve pretrained/qwen2-tiny=FOLDER")
        server.settimeout(0.0)
        server.accept()[0].close()  # it was asked
    assert time.monotonic() - started < 60


def test_a_given_name_that_nothing_asks_for_is_said(source: Path) -> None:
    done = convert(source, source.parent / "out", {"pretrained/qwen-tiny": source})
    assert any("pretrained/qwen-tiny" in note for note in done.notes)


@pytest.mark.parametrize("pair", ["name", "=folder", "name="])
def test_resolve_wants_both_sides(pair: str) -> None:
    with pytest.raises(CheckpointError, match="NAME=FOLDER"):
        parse_resolutions([pair])


def test_the_folder_stands_alone(source: Path, tmp_path: Path) -> None:
    def answer(folder: Path | str) -> list[int]:
        predictor = Predictor.from_pretrained(folder)
        prompt = predictor.encode(question("What is atelectasis?", 0, 0))
        return predictor.generate([prompt], GenerationOptions(max_new_tokens=8))[0].token_ids

    convert(source, tmp_path / "out")
    expected = answer(tmp_path / "out")
    assert expected
    shutil.rmtree(tmp_path / "pretrained")
    shutil.rmtree(source)
    moved = shutil.move(tmp_path / "out", tmp_path / "moved")
    for file in Path(moved).glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file
    assert answer(moved) == expected


def test_saving_a_loaded_checkpoint_changes_nothing(converted: Callable[[str], Path], tmp_path: Path) -> None:
    for variant in ("v2", "v3", "v6b"):
        folder = converted(variant)
        model = MedMVLForConditionalGeneration.from_pretrained(folder)
        processor = MedMVLProcessor.from_pretrained(str(folder))
        again = tmp_path / variant
        model.save_pretrained(again)
        processor.save_pretrained(again)
        first, second = Weights(folder), Weights(again)
        assert set(first) == set(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
        for file in ("processor_config.json", "chat_template.jinja"):
            assert (again / file).read_text() == (folder / file).read_text()


def test_the_preprocessor_file_of_the_older_published_clips(tmp_path: Path) -> None:
    """openai/clip-vit-large-patch14-336 still names a feature extractor, and gives its sizes as numbers."""
    clip = tmp_path / "clip"
    shutil.copytree(HERE / "pretrained" / "clip-tiny", clip)
    settings = json.loads((clip / "preprocessor_config.json").read_text())
    for key in ("image_processor_type", "do_rescale", "rescale_factor", "do_convert_rgb"):
        settings.pop(key)
    old = {**settings, "feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56}
    (clip / "preprocessor_config.json").write_text(json.dumps(old))
    image = str(HERE / "data" / "img0.png")
    today = load_image_processor(HERE / "pretrained" / "clip-tiny")
    assert torch.equal(load_image_processor(clip)(image), today(image))


def test_the_rotary_scaling_of_phi3_by_its_older_name(tmp_path: Path) -> None:
    """Only folders that say "su" could be used with the reference's pinned transformers; today's name is "longrope"."""
    folder = tmp_path / "phi3"
    shutil.copytree(HERE / "pretrained" / "phi3-tiny", folder)
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    edit_config(folder, rope_scaling={"type": "su", **factors}, max_position_embeddings=16384)
    config = llm_config(folder)
    found = {key: config.rope_parameters[key] for key in ("rope_type", "original_max_position_embeddings")}
    assert found == {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert load_tokenizer(folder, config).eos_token_id is not None


def test_a_head_that_is_missing_without_being_tied(source: Path) -> None:
    edit_config(source.parent / "pretrained" / "qwen2-tiny", tie_word_embeddings=False)
    edit_weights(source, lambda state: state.pop("llm.lm_head.weight"))
    refuses(source, "llm.lm_head.weight")


def test_a_tied_head_may_be_missing(source: Path) -> None:
    edit_weights(source, lambda state: state.pop("llm.lm_head.weight"))
    convert(source, source.parent / "out")
    model = MedMVLForConditionalGeneration.from_pretrained(source.parent / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_missing_tensor(source: Path) -> None:
    edit_weights(source, lambda state: state.pop("llm.model.norm.weight"))
    refuses(source, r"1 missing \(language_model.model.norm.weight\)")


def test_an_unknown_tensor(source: Path) -> None:
    edit_weights(source, lambda state: state.update({"encoder_audio.weight": torch.zeros(2)}))
    refuses(source, r"1 unknown \(encoder_audio.weight\)")


def test_a_wrong_shape(source: Path) -> None:
    edit_weights(source, lambda state: state.update({"connector_image.connector.0.bias": torch.zeros(63)}))
    refuses(source, r"connector.0.bias \(63,\), expected \(64,\)")


def test_a_missing_shard(source: Path) -> None:
    shutil.rmtree(source)
    shutil.copytree(HERE / "checkpoints" / "v2_siglip3d_attn_qwen2", source)
    (source / "model-00003-of-00004.safetensors").unlink()
    refuses(source, "shard model-00003-of-00004.safetensors")


def test_a_shard_index_that_leaves_the_folder(source: Path) -> None:
    index = {"weight_map": {"llm.model.norm.weight": "../../secret.safetensors"}}
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(source, "not a plain file name")


@pytest.mark.parametrize(
    ("name", "other", "match"),
    [
        ("qwen2-tiny", "siglip-tiny", "no language model"),
        ("qwen2-tiny", "llama3-tiny", "do not fit"),
        ("qwen2-tiny", "nowhere", "holds no config.json"),
        ("siglip-tiny", "clip-tiny", "got 'clip_vision_model'"),
        ("siglip-tiny", "m3dclip-tiny", "got 'm3d_clip'"),
    ],
)
def test_a_name_sent_to_another_part(source: Path, name: str, other: str, match: str) -> None:
    refuses(source, match, resolve={f"pretrained/{name}": source.parent / "pretrained" / other})


@pytest.mark.parametrize("there", [True, False])
def test_a_destination_behind_a_link(source: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    convert(source, tmp_path / "link")
    assert (tmp_path / "disk" / "model.safetensors").is_file()
    assert (tmp_path / "link").is_symlink()


def test_destinations_that_cannot_be(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (source, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            convert(source, target)
    with pytest.raises(CheckpointError, match="No folder can be made"):
        convert(source, tmp_path / "file" / "out")


def test_what_is_not_ours_is_not_built(source: Path, tmp_path: Path) -> None:
    """transformers would make a model of billions of random weights of it, or ask the hub for the name."""
    for folder, match in ((source, "checkpoint convert"), (tmp_path / "nowhere", "no config.json")):
        for load in (MedMVLForConditionalGeneration.from_pretrained, Predictor.from_pretrained):
            with pytest.raises(CheckpointError, match=match):
                load(folder)


def test_a_damaged_file(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refuses(source, "not a whole safetensors file")


def test_no_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()
    refuses(source, "holds no weights")


def test_plain_tensors_in_a_bin_file_are_read(source: Path) -> None:
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    assert convert(source, source.parent / "out").tensors == 66


def test_a_pickle_is_not_run(source: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (source / "model.safetensors").unlink()
    with (source / "pytorch_model.bin").open("wb") as handle:
        pickle.dump({"weight": Trap()}, handle)
    refuses(source, "never done")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("lvlm_encoder_image_type", "siglib", "did you mean 'siglip'|Did you mean 'siglip'"),
        ("lvlm_llm_type", "gpt", "unknown llm_type 'gpt'"),
        ("lvlm_connector_image_type", "qformer", "unknown connector_image_type"),
        ("lvlm_connector_image_name", "mlp2x_relu", "Unknown projector"),
        ("lvlm_encoder_image_select_layer", -9, "select_layer -9"),
        ("lvlm_encoder_image_select_feature", "patch", "no class token"),
        ("lvlm_llm_name_or_path", None, "llm_name_or_path"),
        ("auto_map", {"AutoModel": "code.Model"}, "never"),
        ("model_type", "lvln", "not a layout"),
    ],
)
def test_a_config_that_cannot_be(source: Path, key: str, value: object, match: str) -> None:
    edit_config(source, **{key: value})
    refuses(source, match)


def test_an_llm_that_needs_code_of_its_own(source: Path) -> None:
    edit_config(source.parent / "pretrained" / "qwen2-tiny", model_type="mystery", auto_map={"AutoConfig": "x.Y"})
    refuses(source, "never run")


def test_a_config_that_is_not_json(source: Path) -> None:
    (source / "config.json").write_text("{")
    refuses(source, "not valid JSON")


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    refuses(tmp_path / "nothing", "not a folder")


def test_an_occupied_destination_is_left_alone(source: Path) -> None:
    (source.parent / "full").mkdir()
    (source.parent / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not empty"):
        convert(source, source.parent / "full")
    assert (source.parent / "full" / "mine.txt").read_text() == "keep"


def test_ours_is_not_converted_again(converted: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="already"):
        convert(converted("v1"), tmp_path / "out")


def test_one_encoder_may_serve_both_kinds_of_input(tmp_path: Path) -> None:
    convert(HERE / "checkpoints/v2_siglip3d_attn_qwen2", tmp_path / "out", towers=["image", "volume"])
    predictor = Predictor.from_pretrained(tmp_path / "out")
    data = HERE / "data"
    assert isinstance(predictor.answer("What?", images=[str(data / "img0.png")], max_new_tokens=2), str)
    assert isinstance(predictor.answer("What?", volumes=[str(data / "vol0.npy")], max_new_tokens=2), str)


def test_the_older_codes_generation_settings_on_request(tmp_path: Path) -> None:
    source = HERE / "checkpoints/v8_legacy_config_siglip_mlp_qwen2"
    done = convert(source, tmp_path / "plain")
    assert any("repetition_penalty 1.05" in note for note in done.notes)
    convert(source, tmp_path / "hub", hub_generation=True)
    penalties = [
        MedMVLForConditionalGeneration.from_pretrained(tmp_path / name).generation_config.repetition_penalty
        for name in ("plain", "hub")
    ]
    assert penalties == [None, 1.05]


def test_an_unmerged_intermediate_save(tmp_path: Path) -> None:
    """v7: LoRA on v1, W + (alpha / r) B A; measured worst error of a weight 1.5e-8, of a logit 3e-6."""
    lora = load_file(HERE / "checkpoints/v7_lora/lora_tensors.safetensors")
    base = load_file(HERE / "checkpoints" / V1 / "model.safetensors")
    adapted = {name.rpartition(".lora_")[0].removeprefix("llm.base_model.model.") for name in lora if ".lora_A" in name}
    state = dict(lora)
    for name, tensor in base.items():
        inner = name.removeprefix("llm.")
        if not name.startswith("llm."):
            state.setdefault(name, tensor)
        elif inner.rpartition(".")[0] in adapted:
            layer, _, kind = inner.rpartition(".")
            state[f"llm.base_model.model.{layer}.base_layer.{kind}"] = tensor
        else:
            state[f"llm.base_model.model.{inner}"] = tensor
    source = tmp_path / "checkpoint"
    shutil.copytree(HERE / "checkpoints" / V1, source)
    shutil.copytree(HERE / "pretrained", tmp_path / "pretrained")
    save_file(state, source / "model.safetensors")
    refuses(source, "--lora-alpha")
    convert(source, tmp_path / "out", lora_alpha=8)
    found = Weights(tmp_path / "out")
    merged = load_file(HERE / "checkpoints/v7_lora/merged_changed_tensors.safetensors")
    for name, expected in merged.items():
        ours = name.replace("llm.", "language_model.").replace(
            "connector_image.connector", "towers.image.connector.projector"
        )
        assert torch.allclose(found[ours], expected, atol=1e-6, rtol=0), name
    assert len(merged) >= 4


def test_greedy_tokens_of_the_older_code_with_its_penalty(tmp_path: Path) -> None:
    import numpy as np

    from medmvl.data.record import parse_record

    name = "v8_legacy_config_siglip_mlp_qwen2"
    convert(HERE / "checkpoints" / name, tmp_path / "hub", hub_generation=True)
    predictor = Predictor.from_pretrained(tmp_path / "hub")
    facts = json.loads((HERE / f"fixtures/model/{name}.json").read_text())
    with np.load(HERE / f"fixtures/model/{name}.npz") as numbers:
        expected = numbers["gen_batch_ids_legacy_with_repetition_penalty"].tolist()
    items = facts.get("items") or json.loads((HERE / f"fixtures/model/{V1}.json").read_text())["items"]
    samples = [parse_record(item, "fixture").as_question() for item in items]
    encoded = [
        predictor.encode(sample, images=[str(HERE / "data" / image) for image in sample.images]) for sample in samples
    ]
    found = [answer.token_ids for answer in predictor.generate(encoded, GenerationOptions(max_new_tokens=12))]
    assert found == expected
