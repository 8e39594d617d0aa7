"""Export to GGUF: read back by gguf tensor by tensor, and by transformers as a model with equal logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.zoo import encoder as tiny_encoder
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from medmvl.checkpoints import export_gguf
from medmvl.checkpoints.gguf.llm import llm_tensors, to_rotary_order, to_stored
from medmvl.errors import CheckpointError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import ImageProcessor, MedMVLProcessor

gguf = pytest.importorskip("gguf")


GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,  # the sixth sees all
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 8,
}


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Gemma's kind: byte fallback, spaces as word marks, none in front of the text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    letters = "\u2581\nabcdefghijklmnopqrstuvwxyzAIUSERTN0123456789:?,.'"
    pieces = [
        *special,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "is",
        "he",
        "\u2581is",
        "\u2581t",
        "\u2581the",
    ]
    merges = [("i", "s"), ("h", "e"), ("\u2581", "is"), ("\u2581", "t"), ("\u2581t", "he")]
    model = BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special[4:], **names)


def gemma(folder: Path, **changes: object) -> Path:
    """A random Gemma 3 with a SigLIP tower; norms away from zero, as trained ones are."""
    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    settings = {**GEMMA, "vocab_size": len(tokenizer) + 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    model = MedMVLForConditionalGeneration.from_parts(
        {**settings, **changes}, image=(tiny_encoder("siglip"), "mlp2x_gelu")
    )
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    processor = MedMVLProcessor.from_parts(model.config, tokenizer, image=ImageProcessor.for_size(16, 16))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["v1", "v5", "v6a", "v6b", "v8", "gemma"])
def pair(
    request: pytest.FixtureRequest, converted: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    target = tmp_path_factory.mktemp("gguf") / "model"
    source = gemma(target.parent / "gemma") if request.param == "gemma" else converted(request.param)
    export_gguf(source, target)
    return source, target


def field(reader: object, name: str) -> object:
    return reader.fields[name].contents()  # type: ignore[attr-defined]


def test_the_llm_is_read_back_tensor_by_tensor(pair: tuple[Path, Path]) -> None:
    source, target = pair
    model = MedMVLForConditionalGeneration.from_pretrained(source)
    config, state = model.config.text_config, model.language_model.state_dict()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(target / "model.gguf").tensors}
    names = {ours: theirs for ours, theirs, _ in llm_tensors(config, state, tied=config.tie_word_embeddings)}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(names) == set(state) - tied
    for ours, theirs in names.items():
        read = torch.from_numpy(gguf.dequantize(found[theirs].data, found[theirs].tensor_type).copy())
        back = to_stored(config, ours, read.reshape(state[ours].shape), back=True)
        exact = "gemma" not in config.model_type or "norm" not in ours  # 1 + weight is rounded
        assert torch.allclose(back, state[ours].float(), rtol=0, atol=0 if exact else 1e-6), ours


def test_transformers_loads_the_llm_with_equal_logits(pair: tuple[Path, Path]) -> None:
    """An independent reader; measured worst difference 0. It knows no phi-2."""
    source, target = pair
    if "v6a" in source.name:
        pytest.skip("transformers reads no GGUF of phi-2")
    model = MedMVLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    loaded = AutoModelForCausalLM.from_pretrained(target, gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float((loaded(ids).logits - model.language_model(ids).logits).abs().max()) < 1e-5


def test_the_tokenizer_is_read_back(pair: tuple[Path, Path]) -> None:
    source, target = pair
    tokenizer = AutoTokenizer.from_pretrained(source)
    reader = gguf.GGUFReader(target / "model.gguf")
    pieces = field(reader, "tokenizer.ggml.tokens")
    assert len(pieces) == AutoConfig.from_pretrained(source).text_config.vocab_size
    assert all(pieces[index] == piece for piece, index in tokenizer.get_vocab().items() if index < len(pieces))
    assert field(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert bool(field(reader, "tokenizer.ggml.add_bos_token")) == begins
    assert "generation" not in field(reader, "tokenizer.chat_template").replace("add_generation_prompt", "")
    if "v6a" not in source.name:
        text = "USER: Is there a nodule, 12 mm? ASSISTANT: Yes."
        loaded = AutoTokenizer.from_pretrained(target, gguf_file="model.gguf")
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_vision_file_holds_tower_and_projector(pair: tuple[Path, Path]) -> None:
    source, target = pair
    model = MedMVLForConditionalGeneration.from_pretrained(source)
    reader = gguf.GGUFReader(target / "mmproj.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    tower = model.towers["image"]
    assert len(found) == len(tower.state_dict())
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        read = torch.from_numpy(gguf.dequantize(found[f"mm.{name}"].data, found[f"mm.{name}"].tensor_type).copy())
        expected = tower.connector.projector.state_dict()[name].float()
        assert torch.equal(read.reshape(expected.shape), expected)
    patch = found["v.patch_embd.weight"]
    weight = tower.encoder.model.state_dict()["embeddings.patch_embedding.weight"].float()
    read = torch.from_numpy(gguf.dequantize(patch.data, patch.tensor_type).copy()).reshape(weight.shape)
    assert torch.allclose(read, weight, rtol=1e-3, atol=1e-6)  # float16 where the checkpoint has bfloat16
    spec = model.config.tower("image").encoder_spec
    assert field(reader, "general.architecture") == "clip"
    assert field(reader, "clip.projector_type") == "mlp"
    assert field(reader, "clip.vision.feature_layer") == [spec.used_layers]
    assert field(reader, "clip.vision.block_count") == spec.used_layers
    assert field(reader, "clip.vision.image_size") == spec.input_size[0]
    assert field(reader, "clip.vision.projection_dim") == model.config.text_config.hidden_size
    assert "v.post_ln.weight" not in found  # or llama.cpp would apply it


@pytest.mark.parametrize(
    ("variant", "reason"), [("v2", "volume tower|pools"), ("v4", "volume tower"), ("v6c", "drops the class token")]
)
def test_what_llama_cpp_cannot_express(
    converted: Callable[[str], Path], tmp_path: Path, variant: str, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        export_gguf(converted(variant), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_types": ["full_attention"] * 7}, "five with a window"),
        ({"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16, not 256"),
        ({"final_logit_softcapping": 30.0}, "caps its logits"),
        ({"hidden_activation": "silu"}, "hidden_activation is silu"),
    ],
)
def test_gemmas_that_llama_cpp_cannot_express(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    source = gemma(tmp_path / "gemma", **changes)
    with pytest.raises(CheckpointError, match=reason):
        export_gguf(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_two_rotary_bases_of_gemma_and_its_scaling(tmp_path: Path) -> None:
    scaled = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    export_gguf(gemma(tmp_path / "gemma", rope_parameters=scaled), tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert field(reader, "gemma3.rope.freq_base") == 1e6
    assert field(reader, "gemma3.rope.freq_base_swa") == 1e4
    assert field(reader, "gemma3.rope.scaling.type") == "linear"
    assert field(reader, "gemma3.rope.scaling.factor") == 8.0
    assert field(reader, "gemma3.attention.sliding_window") == 8
    assert field(reader, "gemma3.attention.key_length") == 256


def test_gemmas_words_have_no_mark_in_front(tmp_path: Path, converted: Callable[[str], Path]) -> None:
    for name, expected in (("gemma", False), ("v6b", True)):
        source = gemma(tmp_path / "gemma") if name == "gemma" else converted(name)
        export_gguf(source, tmp_path / name / "out")
        reader = gguf.GGUFReader(tmp_path / name / "out" / "model.gguf")
        assert bool(field(reader, "tokenizer.ggml.add_space_prefix")) is expected


def test_rotary_order_goes_there_and_back() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=2)
    name, weight = "model.layers.0.self_attn.k_proj.weight", torch.arange(8 * 16).float().view(8, 16)
    moved = to_rotary_order(config, name, weight)
    # rows 0, 1 of a head's first half meet rows 2, 3 of its second half
    assert moved[:4, 0].tolist() == [0.0, 32.0, 16.0, 48.0]
    assert torch.equal(to_rotary_order(config, name, moved, back=True), weight)


def test_llama3_frequencies_are_transformers_own() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from medmvl.checkpoints.gguf.llm import _llama3_factors

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters=scaling, max_position_embeddings=131072
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 128, 2).double() / 128)
    assert torch.allclose(_llama3_factors(config).double(), plain / scaled.double(), rtol=1e-4)
