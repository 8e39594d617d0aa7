"""Export to HF LLaVA: equal logits in transformers, and the fields vLLM and SGLang ask for, one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from tests.parity.sets import HERE
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from medmvl.checkpoints import convert, export_llava
from medmvl.checkpoints.engine_templates import llama_cpp_template, without_generation
from medmvl.checkpoints.gguf.llm import llm_tensors
from medmvl.checkpoints.llava_export import (
    LlavaExport,
    _build,
    check_expressible,
    head_is_tied,
    remove_volume_tower,
)
from medmvl.data.sample import Message, Sample
from medmvl.errors import CheckpointError
from medmvl.inference import Predictor
from medmvl.models.weights import Weights
from medmvl.processing import MedMVLProcessor
from medmvl.processing.chat import render
from tiny import make_model, make_tokenizer

QUESTION = "<image>\nIs there a nodule in the left lung?"


@pytest.fixture(scope="module", params=["v1", "v5", "v6b", "v6c", "v8"])
def pair(
    request: pytest.FixtureRequest, converted: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    source = converted(request.param)
    target = tmp_path_factory.mktemp("llava") / "model"
    export_llava(source, target)
    return source, target


def test_logits_are_equal_in_transformers(pair: tuple[Path, Path]) -> None:
    """Through each side's own files, on the same prompt ids; measured worst difference 0."""
    source, target = pair
    predictor = Predictor.from_pretrained(source, device="cpu")
    encoded = predictor.processor.encode(
        Sample("s", (Message("user", QUESTION),)), train=False, images=[str(HERE / "data/img1.png")]
    )
    batch = predictor.processor.collate([encoded])
    model = LlavaForConditionalGeneration.from_pretrained(target, dtype=torch.float32).eval()
    with torch.no_grad():
        ours, theirs = predictor.model(**batch).logits, model(**batch).logits
    assert float((ours - theirs[..., : ours.shape[-1]]).abs().max()) < 1e-5


def test_prompt_ids_and_pixels_are_equal(pair: tuple[Path, Path]) -> None:
    source, target = pair
    predictor = Predictor.from_pretrained(source, device="cpu")
    sample = Sample("s", (Message("user", QUESTION),))
    image = Image.open(HERE / "data/img1.png").convert("RGB")
    ours = predictor.processor.encode(sample, train=False, images=[image])
    processor = AutoProcessor.from_pretrained(target)
    assert isinstance(processor, LlavaProcessor)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION.removeprefix("<image>\n")}]}
    ]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt == processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    bos = processor.tokenizer.bos_token or "\0"
    theirs = processor(text=prompt, images=[image], return_tensors="np", add_special_tokens=not prompt.startswith(bos))
    # torchvision's resize, where it is installed, differs from PIL's by a gray level here and there.
    assert np.abs(theirs["pixel_values"][0] - ours["pixel_values"][0].numpy()).max() < 0.05
    if not predictor.processor.slow_spaces:  # told by a note of the export
        assert theirs["input_ids"][0].tolist() == ours["input_ids"].tolist()


def test_what_vllm_and_sglang_ask_for(pair: tuple[Path, Path]) -> None:
    _, target = pair
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["model_type"] == "llava"
    # the vision tower: a CLIP or SigLIP config of its own, with one fixed image size
    vision = config["vision_config"]
    assert vision["model_type"] in ("clip_vision_model", "siglip_vision_model")
    assert isinstance(vision["image_size"], int)
    assert vision["image_size"] % vision["patch_size"] == 0
    # the features: one layer, one of the two strategies, the number of tokens that the placeholders become
    assert isinstance(config["vision_feature_layer"], int)
    assert config["vision_feature_select_strategy"] in ("default", "full")
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    prefix = 1 if vision["model_type"] == "clip_vision_model" else 0
    dropped = 1 if config["vision_feature_select_strategy"] == "default" else 0
    assert config["image_seq_length"] == patches + prefix - dropped
    # the projector: two linear layers with a bias and GELU
    assert config["projector_hidden_act"] == "gelu"
    assert config["multimodal_projector_bias"] is True
    # the LLM: its class by name, and one image token inside its table
    (architecture,) = config["text_config"]["architectures"]
    assert architecture == type(AutoModelForCausalLM.from_config(_text(target))).__name__
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer("<image>", add_special_tokens=False)["input_ids"] == [config["image_token_index"]]
    assert config["image_token_index"] < config["text_config"]["vocab_size"]
    # the processor folder
    processor = json.loads((target / "processor_config.json").read_text())
    assert processor["processor_class"] == "LlavaProcessor"
    assert processor["patch_size"] == vision["patch_size"]
    assert processor["vision_feature_select_strategy"] == config["vision_feature_select_strategy"]
    assert processor["num_additional_image_tokens"] == prefix
    assert processor["image_token"] == "<image>"
    assert (target / "preprocessor_config.json").is_file()
    template = (target / "chat_template.jinja").read_text()
    assert "generation -%}" not in template
    # the weights: safetensors under the names of the published llava-hf folders
    names = set(Weights(target))
    beginnings = (
        "language_model.model.",
        "language_model.lm_head.",
        "vision_tower.vision_model.",
        "multi_modal_projector.linear_",
    )
    assert all(name.startswith(beginnings) for name in names)
    assert ("language_model.lm_head.weight" in names) != config["text_config"]["tie_word_embeddings"]
    assert not list(target.glob("*.bin"))


def _text(target: Path) -> object:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(target).text_config


def test_an_exported_folder_converts_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = pair
    convert(target, tmp_path / "back")
    first, second = Weights(source), Weights(tmp_path / "back")
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_table_without_room_for_the_image_token_grows(converted: Callable[[str], Path], tmp_path: Path) -> None:
    from medmvl.models import MedMVLForConditionalGeneration
    from medmvl.processing import MedMVLProcessor

    source = converted("v1")
    model = MedMVLForConditionalGeneration.from_pretrained(source)
    tokens = len(AutoTokenizer.from_pretrained(source)) - 2  # without our two placeholders
    model.language_model.resize_token_embeddings(tokens)
    model.config.text_config = model.language_model.config
    model.save_pretrained(tmp_path / "full")
    MedMVLProcessor.from_pretrained(str(source)).save_pretrained(tmp_path / "full")
    done = export_llava(tmp_path / "full", tmp_path / "llava")
    assert any("grows" in note for note in done.notes)
    assert done.difference < 1e-5


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("v2", "volume tower|pools"), ("v3", "volume tower"), ("v6a", "head has a bias")],
)
def test_what_llava_cannot_express(converted: Callable[[str], Path], tmp_path: Path, variant: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        export_llava(converted(variant), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


CONVERSATIONS = [
    [["I", "Is there a nodule?"]],
    [["Is there a nodule?", "I"]],
    [["I", "I", "Compare."]],
    [["Before:", "I", "After:", "I", "What changed?"]],
    [["I", "What is it?"], "A lung.", ["Which side?"]],
    [["What is a lung?"]],
]


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=str)
def test_prompt_ids_are_ours_in_one_step_and_two(pair: tuple[Path, Path], turns: list) -> None:
    source, target = pair
    ours, theirs = MedMVLProcessor.from_pretrained(source), AutoProcessor.from_pretrained(target)
    if ours.slow_spaces:
        pytest.skip("told by a note of the export")
    image = Image.open(HERE / "data/img1.png").convert("RGB")
    chat, messages = [], []
    for turn in turns:
        parts = [turn] if isinstance(turn, str) else turn
        role = "assistant" if isinstance(turn, str) else "user"
        content = [{"type": "image", "image": image} if p == "I" else {"type": "text", "text": p} for p in parts]
        chat.append({"role": role, "content": content})
        messages.append(Message(role, "\n".join("<image>" if part == "I" else part for part in parts)))
    images = [image] * sum(turn.count("I") for turn in turns if isinstance(turn, list))
    expected = ours.encode(Sample("s", tuple(messages)), train=False, images=images)["input_ids"].tolist()
    one = theirs.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    two = theirs(text=text, images=images or None, return_tensors="pt")
    assert one["input_ids"][0].tolist() == expected
    assert two["input_ids"][0].tolist() == expected


def test_exported_files_are_readable_by_others(pair: tuple[Path, Path]) -> None:
    assert {file.stat().st_mode & 0o044 for file in pair[1].iterdir()} == {0o044}


def test_trained_head_is_exported_although_the_config_says_tied(tmp_path: Path) -> None:
    model, _ = make_model()
    remove_volume_tower(model)
    model.language_model.lm_head = torch.nn.Linear(32, model.config.text_config.vocab_size, bias=False)
    assert model.config.text_config.tie_word_embeddings
    assert not head_is_tied(model)
    llava = _build(model, check_expressible(model.config), 0, 1, LlavaExport(0.0))
    assert torch.equal(llava.lm_head.weight, model.language_model.lm_head.weight)
    names = {
        name
        for name, *_ in llm_tensors(
            model.config.text_config, model.language_model.state_dict(), tied=head_is_tied(model)
        )
    }
    assert "lm_head.weight" in names


def test_volume_tower_is_dropped_on_request(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--drop-volume-tower"):
        export_llava(model_folder, tmp_path / "refused")
    done = export_llava(model_folder, tmp_path / "out", drop_volume_tower=True)
    assert done.difference < 1e-5
    assert any("head" in note and "size 8" in note for note in done.notes)  # vLLM's CPU build takes 32 and more
    assert (tmp_path / "out" / "config.json").is_file()
    model, _ = make_model()
    remove_volume_tower(model)
    with pytest.raises(CheckpointError, match="image tower and a volume tower"):
        remove_volume_tower(model)


@pytest.mark.parametrize("begin", ["{% generation %}", "{%- generation -%}", "{%generation%}", "{%+ generation -%}"])
@pytest.mark.parametrize("end", ["{% endgeneration %}", "{%- endgeneration -%}", "{% endgeneration +%}"])
def test_generation_tags_of_any_spelling_are_removed(begin: str, end: str) -> None:
    source = f"a \n {begin} {{{{ messages[0]['content'] }}}} {end} \n b"
    plain = without_generation(source)
    assert "generation" not in plain
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    ours = render([Message("user", "x")], source, make_tokenizer()).text
    assert environment.from_string(plain).render(messages=[{"role": "user", "content": "x"}]) == ours


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<__media__>What?", "<__media__>\nWhat?"),
        ("<__media__>\nWhat?", "<__media__>\nWhat?"),
        ("What?\n<__media__>", "What?\n<__media__>"),
        ("What?<__media__>", "What?\n<__media__>"),
        (
            "Before:<__media_ab12__>After:<__media_ab12__>Why?",
            "Before:\n<__media_ab12__>\nAfter:\n<__media_ab12__>\nWhy?",
        ),
        ("<__media_ab12__><__media_ab12__>What?", "<__media_ab12__>\n<__media_ab12__>\nWhat?"),
        ("What is __init__>?", "What is __init__>?"),
    ],
)
def test_images_stand_on_their_own_lines_under_llama_cpp(given: str, expected: str) -> None:
    template = llama_cpp_template("{{ messages[0]['content'] }}")
    rendered = (
        ImmutableSandboxedEnvironment().from_string(template).render(messages=[{"role": "user", "content": given}])
    )
    assert rendered == expected


def test_missing_special_tokens_are_empty_under_llama_cpp() -> None:
    template = llama_cpp_template("{{ bos_token or '' }}{{ messages[0]['content'] }}", ["bos_token"])
    environment = ImmutableSandboxedEnvironment()
    assert environment.from_string(template).render(messages=[{"role": "user", "content": "x"}], bos_token=",") == "x"
