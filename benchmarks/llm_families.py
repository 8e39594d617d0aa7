"""Try every causal LM of the installed transformers as the LLM of a model, with tiny random weights.

    python benchmarks/llm_families.py [--only TYPE ...] [--write]

For each `model_type`: assemble it with an image tower, one training step, causality, save and load, generate, and a padded
batch against single prompts (same greedy tokens). Then the guards of a training stage say whether it packs rows and chooses
positions of the logits. Prints a table; `--write` puts it into docs/extending.md between its marks.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from medmvl.errors import MedMVLError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.training.acceleration.exactness import why_no_supervised_logits
from medmvl.training.acceleration.packing import Packing
from medmvl.training.acceleration.packing_check import choose_packing

DOCS = Path(__file__).parents[1] / "docs" / "extending.md"
BEGIN, END = "<!-- llm families: begin -->", "<!-- llm families: end -->"

#: Seconds that one family may take.
LIMIT = 120

#: More parameters than any tiny model has: a size that none of the settings below made small.
LARGEST = 30_000_000

VOCABULARY = 96
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

#: Names of sizes in configs -> tiny values; a config gets those that it has.
TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "embedding_size", "dim", "n_embed"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 64
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 256),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token"), 2),
    "vocab_size": VOCABULARY,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "state_size": 8,
    "sliding_window": 64,
}


#: Settings of families whose layers differ among themselves or whose sizes hang together.
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    **{
        kind: {"layer_types": ["linear_attention", "full_attention"]}
        for kind in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text", "olmo_hybrid", "lfm3")
    },
    "mamba2": {"num_heads": 8, "head_dim": 8},
}


class OutOfTimeError(Exception):
    """A family took too long."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `OutOfTimeError` in the body after this many seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tiny_settings(model_type: str) -> dict[str, Any]:
    """Return tiny settings of a family."""
    kind = type(AutoConfig.for_model(model_type))
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    names |= set(getattr(kind, "attribute_map", {}))
    settings = {name: value for name, value in TINY.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention has a key for every query head
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return {"model_type": model_type, **settings, **EXTRA.get(model_type, {})}


def assemble(settings: dict[str, Any]) -> MedMVLForConditionalGeneration:
    """Return a model of an LLM with an image tower."""
    torch.manual_seed(0)
    image = ({"name": "siglip", "vision_config": SIGLIP}, "linear")
    return MedMVLForConditionalGeneration.from_parts(settings, image=image)


def prompts(model: MedMVLForConditionalGeneration) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return two prompts (T,) of different lengths, each with an image, and their pixels (2, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    visual = torch.full((4,), int(model.config.image_token_id or 0))
    texts = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (5, 9)]
    return [torch.cat([text[:2], visual, text[2:]]) for text in texts], torch.randn(2, 3, 16, 16, generator=generator)


def try_family(model_type: str, settings: dict[str, Any] | None = None) -> dict[str, str]:
    """Return check -> "yes" or a sentence; the first check that fails is the last one.

    Args:
        model_type: of transformers.
        settings: of its config; default: `tiny_settings`.
    """
    found: dict[str, str] = {}
    check = "assemble"
    try:
        with limited(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for check, done in _checks(settings or tiny_settings(model_type)):
                found[check] = done
    except MedMVLError as error:
        found["refused"] = str(error).split(" Choose another")[0]
    except (OutOfTimeError, Exception) as error:  # anyone's model: whatever it raises is its answer
        found["failed"] = f"after {check}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return found


def _checks(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    model = assemble(settings)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise ValueError(f"no tiny config: {size} parameters")
    yield "assemble", "yes"
    rows, pixels = prompts(model)
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    model.train()
    loss = model(**batch, labels=ids.masked_fill((mask == 0) | (ids >= VOCABULARY), -100), use_cache=False).loss
    loss.backward()
    grown = [p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.towers.parameters()]
    yield "train", "yes" if all(grown) else "no gradient reaches the tower"
    model.eval()
    changed = ids.clone()
    changed[:, -1] = 3 + (ids[:, -1] - 2) % (VOCABULARY - 3)
    with torch.no_grad():
        expected = model(**batch).logits
        other = model(**{**batch, "input_ids": changed}).logits
    causal = torch.equal(expected[:, :-1][mask[:, :-1] == 1], other[:, :-1][mask[:, :-1] == 1])
    yield "causal", "yes" if causal else "a later token changes earlier logits"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = MedMVLForConditionalGeneration.from_pretrained(folder).eval()
        with torch.no_grad():
            same = torch.equal(loaded(**batch).logits, expected)
    yield "save and load", "yes" if same else "other logits"
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    single = []
    for row, pixel in zip(rows, pixels, strict=True):
        prompt = {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])}
        new = loaded.generate(**prompt, pixel_values=pixel[None], **options)[0, len(row) :].tolist()
        plain = list(row)
        for _ in range(6):
            read = torch.stack(plain)[None]
            with torch.no_grad():
                logits = loaded(input_ids=read, attention_mask=torch.ones_like(read), pixel_values=pixel[None]).logits
            plain.append(logits[0, -1].argmax())
        if [int(token) for token in plain[len(row) :]] != new:
            yield "generate", "other tokens than without a cache"
            return
        single.append(new)
    yield "generate", "yes"
    together = loaded.generate(**batch, **options)[:, longest:].tolist()
    yield "batch", "yes" if together == single else "other tokens in a padded batch"
    packing, reason = choose_packing(loaded.language_model)
    yield "packed", f"no, {reason}" if packing is None else WAYS[packing]
    reason = why_no_supervised_logits(loaded)
    yield "supervised logits", "yes" if reason is None else f"no, {reason}"


#: What keeps samples of a row apart -> the word of the table.
WAYS = {Packing.KERNEL: "yes", Packing.MASKS: "yes, by masks"}

#: Guards of a training stage: without the shortcut a family still works.
SHORTCUTS = ("packed", "supervised logits")


def works(found: dict[str, str]) -> bool:
    """Whether a family passed every check; a shortcut that is not used is no fault."""
    return found.get("batch") == "yes" and all(found[name] == "yes" for name in found if name not in SHORTCUTS)


def table(rows: dict[str, dict[str, str]]) -> str:
    """Return the Markdown between the marks."""
    passed = sorted(kind for kind, found in rows.items() if works(found))
    packed, masked = ([kind for kind in passed if rows[kind].get("packed") == way] for way in WAYS.values())
    padded = [kind for kind in passed if kind not in {*packed, *masked}]
    head = (
        f"Tried on {datetime.date.today()} with transformers {transformers.__version__} and torch {torch.__version__} by "
        "`python benchmarks/llm_families.py --write`: tiny random weights, an image tower; assemble, one training step, causality, save "
        "and load (equal logits), generate (the tokens of a run without a cache), and a padded batch (the tokens of single "
        "prompts). The guard of training measured whether packed rows give the logits of separate ones.\n\n"
        f"**Pass all of it and train on packed rows, with our attention function ({len(packed)}):** {', '.join(packed)}.\n\n"
        "**Pass all of it and train on packed rows, with transformers' own masks, where that saves attention "
        f"({len(masked)}):** {', '.join(masked)}.\n\n"
        f"**Pass all of it and train on padded rows ({len(padded)}):**\n\n"
    )
    lines = ["| `model_type` | not packed, since |", "|---|---|"]
    lines += [f"| {kind} | {_cell(rows[kind]['packed'].removeprefix('no, '))} |" for kind in padded]
    chosen = [kind for kind in passed if rows[kind]["supervised logits"] != "yes"]
    lines += ["", f"Of all three, {', '.join(chosen) or 'none'} computes logits at all positions.", ""]
    others = {kind: found for kind, found in sorted(rows.items()) if kind not in passed}
    lines += ["| other `model_type` | outcome |", "|---|---|"]
    for kind, found in others.items():
        faults = [f"{name}: {text}" for name, text in found.items() if text != "yes"]
        lines.append(f"| {kind} | {_cell('; '.join(faults))} |")
    return head + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text[:160].replace("|", "/")


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = {}
    for kind in given.only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            if hasattr(AutoConfig.for_model(kind), "text_config"):
                continue  # its text part has a separate row
        except Exception:  # a config without defaults is tried, and its row says so
            pass
        rows[kind] = try_family(kind)
        print(kind, rows[kind], flush=True)
    text = table(rows)
    print(text)
    if given.write:
        docs = DOCS.read_text(encoding="utf-8")
        before, rest = docs.split(BEGIN)
        DOCS.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
