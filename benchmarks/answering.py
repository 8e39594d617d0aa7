"""Answering speed: several questions about one image, and one question about several images, against `generate` one by one.

    python benchmarks/answering.py [--questions 15] [--tokens 32] [--long 128] [--repeats 3] [--threads 2] [--out FILE.md]

The model has the size of SmolLM2-135M (Llama of 30 layers, width 576, 9 heads, 3 key-value heads, 49 152 tokens) with random
weights, and an image tower of 256 visual tokens; its tokenizer is written by code. "One by one" is transformers' `generate` with the
pixels of the image, as a script without this package would call it. All ways must give the same greedy tokens in float32.
Times are the best of the repeats, each in wall seconds, all in one process.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medmvl.inference import GenerationOptions, Predictor
from medmvl.inference.decoding.prefixes import Prefixes
from medmvl.inference.questions import question
from medmvl.inference.visual_cache import VisualCache
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import ImageProcessor, MedMVLProcessor

SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
#: 16 x 16 patches of 14 pixels: 256 visual tokens.
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 14,
}
SUBJECTS = ("nodule", "pleural effusion", "consolidation", "pneumothorax", "device", "fracture", "mass", "cardiomegaly")
TARGETS = {"questions about one image": 5.0, "different images": 3.0}


def make_predictor(seed: int = 0) -> Predictor:
    """Return a predictor with random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"Is there a {subject}? On which side?" for subject in SUBJECTS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    torch.manual_seed(seed)
    tower = {"name": "siglip", "vision_config": VISION}
    model = MedMVLForConditionalGeneration.from_parts(SMOLLM2_135M, image=(tower, "mlp2x_gelu"))
    processor = MedMVLProcessor.from_parts(model.config, fast, image=ImageProcessor.for_size(224, 224))
    processor.configure_generation(model.generation_config)
    return Predictor(model, processor)


def one_by_one(predictor: Predictor, encoded: list[dict[str, torch.Tensor]], tokens: int) -> list[list[int]]:
    """Return the tokens of `generate`, one prompt after the other."""
    found = []
    for prompt in encoded:
        visual = {key: value for key, value in prompt.items() if key != "input_ids"}
        ids = prompt["input_ids"][None]
        mask = torch.ones_like(ids)
        out = predictor.model.generate(ids, attention_mask=mask, **visual, max_new_tokens=tokens, do_sample=False)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def together(predictor: Predictor, encoded: list[dict[str, torch.Tensor]], tokens: int) -> list[list[int]]:
    """Return the tokens of the predictor, with nothing kept from before."""
    predictor.visual_cache, predictor.prefixes = VisualCache(), Prefixes()
    return [answer.token_ids for answer in predictor.generate(encoded, GenerationOptions(max_new_tokens=tokens))]


def best(run: Callable[[], list[list[int]]], repeats: int) -> tuple[float, list[list[int]]]:
    """Return the shortest time, and the result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - start)
    return min(times), found


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--long", type=int, default=128, help="tokens of the longer answers about different images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    predictor = make_predictor()
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)) for _ in range(arguments.questions)]
    texts = [f"Is there a {SUBJECTS[n % len(SUBJECTS)]}? Case {n}." for n in range(arguments.questions)]
    one, several = [(text, images[0]) for text in texts], list(zip(texts, images, strict=True))
    cases = [
        ("questions about one image", one, arguments.tokens),
        ("different images", several, arguments.tokens),
        ("different images", several, arguments.long),
    ]
    one_by_one(predictor, [predictor.encode(question(texts[0], 1, 0), images[:1], [])], 2)  # libraries set up lazily
    rows = []
    for name, pairs, tokens in cases:
        encoded = [predictor.encode(question(text, 1, 0), [image], []) for text, image in pairs]
        slow, expected = best(lambda e=encoded, n=tokens: one_by_one(predictor, e, n), arguments.repeats)
        fast, found = best(lambda e=encoded, n=tokens: together(predictor, e, n), arguments.repeats)
        same = sum(a == b for a, b in zip(expected, found, strict=True))
        row = f"| {len(encoded)} {name}, {tokens} tokens | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} | {TARGETS[name]:g} | {same} of {len(encoded)} |"
        print(row, flush=True)
        rows.append(row)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    report = [
        f"# Answering, {datetime.date.today()}",
        "",
        f"`python benchmarks/answering.py --questions {arguments.questions} --tokens {arguments.tokens} --long {arguments.long} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}`",
        "",
        f"{versions}, {os.cpu_count()} cores (load {load} at the end), {platform.machine()}, float32.",
        "",
        "| case | one by one, s | together, s | ratio | target | answers with equal tokens |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    if arguments.out is not None:
        arguments.out.write_text("\n".join(report), encoding="utf-8")


if __name__ == "__main__":
    main()
