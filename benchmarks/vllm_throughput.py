"""Answers per second of `medmvl serve`, `vllm serve` with the plugin, and `medmvl serve --backend`, asked the same, in turns.

`python benchmarks/vllm_throughput.py --model` FOLDER writes the model. Start the servers on it by hand (see the result), then
`python benchmarks/vllm_throughput.py --servers NAME=URL=PID ... --out FILE.json`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import psutil
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import ImageProcessor, MedMVLProcessor

TOKENS = 32
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
          "num_attention_heads": 4, "image_size": 128, "patch_size": 16}  # fmt: skip
LLM = {"model_type": "qwen2", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
       "num_key_value_heads": 3, "max_position_embeddings": 1024, "tie_word_embeddings": True}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with ChatML tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Is there a pleural effusion?"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants so far."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def write_model(folder: Path) -> None:
    """Write a model with random weights: 12 of SmolLM2-135M's 30 layers, 64 visual tokens."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = MedMVLForConditionalGeneration.from_parts(
        {**LLM, "vocab_size": len(tokenizer)}, image=({"name": "siglip", "vision_config": SIGLIP}, "mlp2x_gelu")
    )
    image = ImageProcessor.for_size(128, 128)
    processor = MedMVLProcessor.from_parts(model.config, tokenizer, image=image, max_length=1024)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def picture(number: int) -> str:
    """Return a data URI of a picture of noise."""
    values = np.random.default_rng(number).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def measure(url: str, pictures: list[str], clients: int) -> float:
    """Return the seconds in which a server answers one question about each picture."""
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client,
        ThreadPoolExecutor(clients) as threads,
    ):

        def ask(uri: str) -> int:
            content = [
                {"type": "image_url", "image_url": {"url": uri}},
                {"type": "text", "text": "Is there a pleural effusion?"},
            ]
            reply = client.chat.completions.create(
                model="model",
                messages=[{"role": "user", "content": content}], max_tokens=TOKENS, temperature=0,
            )  # fmt: skip
            return int(reply.usage.completion_tokens)

        begun = time.perf_counter()
        counts = list(threads.map(ask, pictures))
        assert set(counts) == {TOKENS}, "an answer ended early"
        return time.perf_counter() - begun


def main() -> None:
    """Write the model, or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--servers", nargs="+", default=[])
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.model is not None:
        write_model(arguments.model)
        return
    servers = {
        name: (url, [int(pid) for pid in pids.split("+")])
        for name, url, pids in (one.split("=") for one in arguments.servers)
    }
    rows = []
    for url, _ in servers.values():
        measure(url, [picture(10**6)], 1)  # warm up
    for clients in (1, 8):
        for turn in range(arguments.rounds):
            for name, (url, pids) in servers.items():
                # Pictures that no server has seen: nothing is answered from a cache of features or prefixes.
                begin = 1000 * turn + 100_000 * clients
                count = arguments.requests if clients > 1 else arguments.requests // 3
                used = sum(map(cpu_seconds, pids))
                seconds = measure(url, [picture(begin + number) for number in range(count)], clients)
                used = sum(map(cpu_seconds, pids)) - used
                row = {"server": name, "clients": clients, "turn": turn, "tokens": count * TOKENS}
                rows.append(row | {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2)})
                print(rows[-1], flush=True)
    if arguments.out:
        facts = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__}
        arguments.out.write_text(json.dumps({**facts, "llm": LLM, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
