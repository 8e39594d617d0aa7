"""Training at true size on a GPU, compared with stock parts: SigLIP-base-256, an MLP, Qwen2.5-3B, random weights, bf16.

    python benchmarks/gpu_training.py [--out benchmarks/results] [--steps 12] [--batch 32] [--only TEXT]
    python benchmarks/gpu_training.py --tiny        # the same with a tiny model on the CPU, to see that it runs

Variants: stage 1 (the connector), with and without the feature cache; stage 2 (everything but the encoder); LoRA; a CT
model that looks at 32 slices and pools them by attention (2D-Attn). The peer is `LlavaForConditionalGeneration` of the
same sizes in the stock Trainer: padding, logits at every position. Each runs in a separate process. If memory runs out,
the micro-batch is halved and the steps accumulate; the table says so.

MFU is the share of the *measured* matmul peak (bf16, 8192 x 8192) that goes into FLOPs the model needs: per token and
parameter 2 forward, 2 for the gradient of the inputs where gradients pass, 2 for that of trained weights; attention 4 per
pair of positions that see each other, three times that with gradients; the head only where there is a label. Padding and
logits without a label are not needed, and do not count, for anyone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import medical_mix

TRUE = {
    "llm": {
        "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "vision": {
        "model_type": "siglip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 256, "patch_size": 16,
    },
    "slices": 32,
}  # fmt: skip
TINY = {
    "llm": TRUE["llm"] | {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024,
    },
    "vision": TRUE["vision"] | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
    },
    "slices": 4,
}  # fmt: skip
CONNECTOR, FULL = {"image_connector": "full"}, {"image_connector": "full", "llm": "full"}
LORA = {"image_connector": "full", "llm": {"mode": "lora", "lora": {"r": 64, "alpha": 128}}}
#: variant -> (engine, what trains, settings of the stage)
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "stage 1: ours": ("ours", CONNECTOR, {}),
    "stage 1: ours, feature cache": ("ours", CONNECTOR, {"feature_cache": True}),
    "stage 1: peer": ("peer", CONNECTOR, {}),
    "stage 2: ours": ("ours", FULL, {}),
    "stage 2: peer": ("peer", FULL, {}),
    "LoRA: ours": ("ours", LORA, {}),
    "2D-Attn CT, 32 slices: ours": ("volume", {"volume_connector": "full", "llm": "full"}, {}),
}
RECORDS = 64


def sizes(tiny: bool) -> dict[str, Any]:
    """Return the sizes of the models."""
    return TINY if tiny else TRUE


def write_data(folder: Path, tiny: bool) -> None:
    """Write records with one picture each, and records with one volume each."""
    side, slices = sizes(tiny)["vision"]["image_size"], sizes(tiny)["slices"]
    for name in ("images", "volumes"):
        (folder / name).mkdir()
    medical_mix.write_data(folder / "images", RECORDS, side, (1, 1))
    medical_mix.write_volumes(folder / "volumes", RECORDS // 2, (slices, side, side))


def model(engine: str, tiny: bool) -> dict[str, Any]:
    """Return the recipe's `model`."""
    chosen = sizes(tiny)
    encoder = {"name": "siglip", "vision_config": chosen["vision"]}
    described: dict[str, Any] = {"llm": {"config": chosen["llm"], "tokenizer": {"vocab_size": 512}}}
    if engine != "volume":
        return described | {"image": {"encoder": encoder}}
    slicewise = {"name": "slicewise", "slices": chosen["slices"], "encoder": encoder}
    connector = {"pooling": {"name": "attention"}, "projector": "mlp2x_gelu"}
    return described | {"volume": {"encoder": slicewise, "connector": connector}}


class Meter:
    """Times every step, after the device has finished it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def loop_callback(self) -> Any:
        """Return the callback for our training loop."""
        from medmvl.training.engine.callbacks import Callback

        clock = self.callback()

        class Clock(Callback):
            def on_begin(self, loop: Any) -> None:
                clock.on_train_begin()

            def on_step_end(self, loop: Any) -> None:
                clock.on_step_end()

        return Clock()

    def callback(self) -> Any:
        """Return the callback for the stock Trainer."""
        import torch
        from transformers import TrainerCallback

        meter = self

        class Clock(TrainerCallback):
            last = 0.0

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.last = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                now = time.perf_counter()
                meter.seconds.append(now - self.last)
                self.last = now

        return Clock()


@contextmanager
def without_folders(recipe: Any) -> Iterator[None]:
    """Let `train` begin with random weights on the device and write no checkpoint: 13 GB each would be the benchmark."""
    import torch

    from medmvl.training.build import build
    from medmvl.training.context import StageContext
    from medmvl.training.objectives import LanguageObjective
    from medmvl.training.run_folder import RunFolder

    before = LanguageObjective.read, LanguageObjective.finish, RunFolder.publish, StageContext.ready_source

    def read(*_: Any) -> Any:
        with torch.device("cuda") if torch.cuda.is_available() else nullcontext():
            return build(recipe)

    LanguageObjective.read = staticmethod(read)
    LanguageObjective.finish = lambda *_: None
    RunFolder.publish = lambda *_: None
    StageContext.ready_source = lambda self: self.source
    try:
        yield
    finally:
        LanguageObjective.read, LanguageObjective.finish, RunFolder.publish, StageContext.ready_source = before


def run_ours(folder: Path, engine: str, parts: dict[str, Any], settings: dict[str, Any], job: Any) -> dict[str, Any]:
    """Train our stage; return seconds and tokens per step and the FLOPs of a step."""
    from medmvl.training.recipe_io import load_recipe
    from medmvl.training.run import train
    from medmvl.training.run_folder import read_log

    data = folder / ("volumes" if engine == "volume" else "images")
    more = {"precision": "bf16", "micro_batch_size": job.micro} | settings
    described = medical_mix.recipe(data, model(engine, job.tiny), parts, more, job.warm + job.steps, job.batch)
    recipe = load_recipe(described | {"run": described["run"] | {"device": "cpu" if job.tiny else "cuda"}})
    meter = Meter()
    with tempfile.TemporaryDirectory(dir=folder) as out, without_folders(recipe):
        train(recipe, out, callbacks=[meter.loop_callback()])
        rows = read_log(Path(out) / "log.jsonl")[job.warm :]
    return {"seconds": meter.seconds[job.warm :], "tokens": [row["tokens"] for row in rows],
            "supervised": [row["supervised"] for row in rows]}  # fmt: skip


def run_peer(folder: Path, parts: dict[str, Any], job: Any) -> dict[str, Any]:
    """Train LLaVA of the same sizes in the stock Trainer."""
    import torch
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments

    from medmvl.data.dataset import SampleDataset
    from medmvl.training.build import build_config
    from medmvl.training.recipe_io import load_recipe

    described = medical_mix.recipe(folder / "images", model("peer", job.tiny), CONNECTOR, {}, 1, job.batch)
    _, processor = build_config(load_recipe(described))
    data = SampleDataset(folder / "images" / "d.jsonl")
    encoded = [processor.encode(data[i], train=True) for i in range(len(data))]
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    sub = [dict(sizes(job.tiny)[key]) for key in ("vision", "llm")]
    vision, text = (AutoConfig.for_model(one.pop("model_type"), **one) for one in sub)
    vision.vision_use_head = False
    settings = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_token_index": 1000}
    with torch.device("cuda") if torch.cuda.is_available() else nullcontext():
        peer = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **settings))
    for sample in encoded:
        sample["input_ids"][sample["input_ids"] == image] = 1000
    peer.requires_grad_(False)
    trained = [peer.model.multi_modal_projector, *([peer.model.language_model, peer.lm_head] if parts == FULL else [])]
    for module in trained:
        module.requires_grad_(True)
    meter, seen = Meter(), []

    def collate(samples: list[dict[str, Any]]) -> Any:
        seen.append(
            (sum(len(s["input_ids"]) for s in samples), sum(int((s["labels"][1:] != -100).sum()) for s in samples))
        )
        return processor.collate(samples)

    micro = job.micro or job.batch
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=job.batch // micro,
            max_steps=job.warm + job.steps,
            learning_rate=1e-4,
            bf16=True,
            use_cpu=job.tiny,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(peer, arguments, train_dataset=encoded, data_collator=collate, callbacks=[meter.callback()])
        trainer.train()
    per_step = [seen[i : i + job.batch // micro] for i in range(0, len(seen), job.batch // micro)]
    counts = [[sum(pair[k] for pair in step) for step in per_step][job.warm : job.warm + job.steps] for k in (0, 1)]
    return {"seconds": meter.seconds[job.warm :], "tokens": counts[0], "supervised": counts[1]}


def needed_flops(parts: dict[str, Any], engine: str, tokens: float, supervised: float, job: Any, cached: bool) -> float:
    """Return the FLOPs that a step of this many tokens needs, see the head of this file."""
    chosen = sizes(job.tiny)
    llm, vision = chosen["llm"], chosen["vision"]
    wide, layers = llm["hidden_size"], llm["num_hidden_layers"]
    keys = wide // llm["num_attention_heads"] * llm["num_key_value_heads"]
    body = layers * (2 * wide**2 + 2 * wide * keys + 3 * wide * llm["intermediate_size"])
    trained = body if parts.get("llm") == "full" else 0
    if isinstance(parts.get("llm"), dict):  # adapters: r times the widths of every linear layer
        rank = parts["llm"]["lora"]["r"]
        linear = 4 * wide + 2 * (wide + keys) + 3 * (wide + llm["intermediate_size"])
        trained = layers * rank * linear
    length = tokens / job.batch
    attention = 3 * 4 * layers * wide * tokens * length / 2
    head = llm["vocab_size"] * wide
    total = tokens * (4 * body + 2 * trained) + attention
    total += supervised * (4 + 2 * (parts.get("llm") == "full")) * head
    if not cached:
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        images = job.batch * (chosen["slices"] if engine == "volume" else 1)
        width = vision["hidden_size"]
        per_layer = 4 * width**2 + 2 * width * vision["intermediate_size"]
        total += images * patches * vision["num_hidden_layers"] * (2 * per_layer + 4 * width * patches)
    return float(total)


def matmul_peak(tiny: bool) -> float:
    """Return the FLOP/s of a large bf16 matrix product on this device, the best of some."""
    import torch

    device, size = ("cpu", 512) if tiny else ("cuda", 8192)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        if not tiny:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - started) / 10)
    return 2 * size**3 / best


def run_variant(name: str, folder: Path, job: Any) -> dict[str, Any]:
    """Run one variant in this process and return its row."""
    import torch

    engine, parts, settings = VARIANTS[name]
    peak = matmul_peak(job.tiny)
    while True:
        try:
            found = run_peer(folder, parts, job) if engine == "peer" else run_ours(folder, engine, parts, settings, job)
            break
        except Exception as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
            if not out_of_memory or (job.micro or job.batch) == 1:
                raise
        job.micro = (job.micro or job.batch) // 2
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, tokens = float(np.median(found["seconds"])), float(np.mean(found["tokens"]))
    flops = needed_flops(parts, engine, tokens, float(np.mean(found["supervised"])), job, "feature_cache" in settings)
    memory = torch.cuda.max_memory_allocated() / 1e9 if not job.tiny else resident()
    return {
        "variant": name,
        "micro_batch": job.micro or job.batch,
        "seconds_per_step": seconds,
        "samples_per_s": job.batch / seconds,
        "tokens_per_s": tokens / seconds,
        "mfu": flops / seconds / peak,
        "gigabytes": memory,
        "matmul_tflops": peak / 1e12,
    }


def resident() -> float:
    """Return the peak memory of this process in GB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"# Training on a GPU, {facts['date']}", "", f"`python benchmarks/gpu_training.py{facts['flags']}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key not in ("date", "flags")]
    lines += ["", "| variant | micro-batch | s per step | samples/s | tokens/s | times the peer | MFU | GB |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    peers = {row["variant"].partition(":")[0]: row for row in rows if row["variant"].endswith("peer")}
    for row in rows:
        peer = peers.get(row["variant"].partition(":")[0])
        ratio = f"{row['tokens_per_s'] / peer['tokens_per_s']:.2f}" if peer else ""
        lines.append(
            f"| {row['variant']} | {row['micro_batch']} | {row['seconds_per_step']:.3f} | {row['samples_per_s']:.1f} | "
            f"{row['tokens_per_s']:,.0f} | {ratio} | {row['mfu']:.0%} | {row['gigabytes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed, after one epoch that is not")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro", type=int, help="samples at once to begin with; default: the batch")
    parser.add_argument("--only", default="", help="variants whose name holds one of these texts, ; between")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    job = parser.parse_args()
    job.warm = -(-RECORDS // job.batch)
    if job.variant is not None:
        print("@" + json.dumps(run_variant(job.variant, job.folder, job)))
        return
    from importlib.metadata import version

    import torch

    if not job.tiny and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. --tiny shows on a CPU that the script runs.")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), job.tiny)
        for name in VARIANTS:
            if not any(text in name for text in job.only.split(";")):
                continue
            command = [sys.executable, __file__, "--variant", name, "--folder", folder, "--steps", str(job.steps)]
            command += ["--batch", str(job.batch), *(["--micro", str(job.micro)] if job.micro else [])]
            done = subprocess.run([*command, *(["--tiny"] if job.tiny else [])], capture_output=True, text=True)
            if done.returncode:
                print(f"{name} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
                continue
            rows.append(json.loads(done.stdout.splitlines()[-1][1:]))
            print(rows[-1], file=sys.stderr)
    flags = " --tiny" if job.tiny else ""
    facts = {"date": datetime.now(UTC).date().isoformat(), "flags": flags, "batch": job.batch}
    facts["device"] = torch.cuda.get_device_name() if not job.tiny else "cpu"
    facts["measured matmul peak, TFLOP/s"] = f"{max((row['matmul_tflops'] for row in rows), default=0):.1f}"
    facts |= {name: version(name) for name in ("medmvl", "torch", "transformers")}
    job.out.mkdir(parents=True, exist_ok=True)
    stem = job.out / f"{facts['date']}-gpu-training{'-tiny' if job.tiny else ''}"
    stem.with_suffix(".json").write_text(json.dumps({"facts": facts, "results": rows}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(rows, facts))
    print(stem.with_suffix(".md").read_text())
    if len(rows) < sum(any(text in name for text in job.only.split(";")) for name in VARIANTS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
