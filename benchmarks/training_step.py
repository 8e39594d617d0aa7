"""What a training step costs: this toolkit beside stock parts with the same weights and the same records.

    python benchmarks/training_step.py [--out benchmarks/results] [--rounds 3] [--threads 2] [--size small|tiny]

The peer is what one writes with stock parts: the model exported as `LlavaForConditionalGeneration`, in the stock
`transformers.Trainer`, batches padded to the longest row, logits at every position. Both read the same records, encoded
once and kept in memory, in batches of 16; only steps after the first epoch are timed. The mix imitates medical data:
1 to 4 pictures of 64 tokens, questions of 10 to 40 tokens, answers of 2 to 120 with a heavy tail.

Every variant runs in a process of its own (so that peak memory means something), the variants in turn, several rounds;
the median step of all rounds counts. Ratios are against the peer of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

BATCH, RECORDS, STEPS = 16, 64, 8
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vision": 96, "vocab": 4096},
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vision": 192, "vocab": 16384},
}
#: variant -> (engine, stage, settings of our stage)
OFF = {"packing": False, "supervised_logits": False}
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "stage 2: peer, fp32": ("peer", "full", {}),
    "stage 2: peer, bf16": ("peer", "full", {"precision": "bf16"}),
    "stage 2: ours, all off, fp32": ("ours", "full", OFF),
    "stage 2: ours, packing only, fp32": ("ours", "full", OFF | {"packing": True}),
    "stage 2: ours, supervised logits only, fp32": ("ours", "full", OFF | {"supervised_logits": True}),
    "stage 2: ours, fp32": ("ours", "full", {}),
    "stage 2: ours, bf16": ("ours", "full", {"precision": "bf16"}),
    "stage 1: peer, fp32": ("peer", "connector", {}),
    "stage 1: peer, bf16": ("peer", "connector", {"precision": "bf16"}),
    "stage 1: ours, fp32": ("ours", "connector", {}),
    "stage 1: ours, feature cache, fp32": ("ours", "connector", {"feature_cache": True}),
    "stage 1: ours, feature cache, bf16": ("ours", "connector", {"feature_cache": True, "precision": "bf16"}),
}


def write_data(folder: Path) -> None:
    """Write the records and their pictures."""
    from PIL import Image

    from medmvl.data.formats import write_records

    rng = np.random.default_rng(0)
    words = ["nodule", "effusion", "left", "right", "lung", "heart", "is", "there", "a", "the", "in", "no", "small"]
    rows = []
    for number in range(RECORDS):
        pictures = int(rng.integers(1, 5))
        names = []
        for index in range(pictures):
            names.append(f"{number}-{index}.png")
            Image.fromarray(rng.integers(0, 255, (128, 128), dtype=np.uint8)).save(folder / names[-1])
        question = " ".join(rng.choice(words, int(rng.integers(10, 41))))
        answer = " ".join(rng.choice(words, int(np.clip(rng.lognormal(2.3, 1.1), 2, 120))))
        turns = [("human", "<image>\n" * pictures + question), ("gpt", answer)]
        conversation = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": str(number), "conversations": conversation, "image": names})
    write_records(folder / "d.jsonl", rows)


def recipe(folder: Path, size: str, stage: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return our recipe of one stage that starts from the prepared checkpoint."""
    train = {"image_connector": "full"}
    if stage == "full":
        train |= {"llm": "full", "image_encoder": "full"}
    described: dict[str, Any] = {
        "name": "benchmark",
        "seed": 0,
        "data_root": str(folder),
        "data": {"d": {"path": "d.jsonl"}},
    }
    numbers = SIZES[size]
    ready = folder / "start" / "init"
    llm = {"model_type": "qwen2", "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    llm |= {key: numbers[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    vision = {"model_type": "siglip_vision_model", "hidden_size": numbers["vision"], "num_attention_heads": 6}
    vision |= {"intermediate_size": 4 * numbers["vision"], "num_hidden_layers": 6, "image_size": 128, "patch_size": 16}
    parts = {
        "llm": {
            "config": llm | {"vocab_size": numbers["vocab"], "tie_word_embeddings": True},
            "tokenizer": {"vocab_size": 512},
        },
        "image": {"encoder": {"name": "siglip", "vision_config": vision}},
    }
    described["model"] = {"from": str(ready)} if ready.exists() else parts
    numbers_of_stage = {"max_steps": steps, "batch_size": BATCH, "lr": 1e-4, "save_every": 10**6}
    described["stages"] = [{"name": "s", "train": train} | numbers_of_stage | settings]
    return described | {"run": {"progress": False, "device": "cpu", "cache_megabytes": 4096}}


def prepare(folder: Path, size: str) -> None:
    """Write data, our starting checkpoint and the same weights as a LLaVA folder."""
    from medmvl.checkpoints.export_llava import export_llava
    from medmvl.training.run import train

    write_data(folder)
    train(recipe(folder, size, "connector", {}, steps=1), folder / "start")
    export_llava(folder / "start" / "init", folder / "llava")


def run_ours(folder: Path, size: str, stage: str, settings: dict[str, Any]) -> list[float]:
    """Return the seconds of each step."""
    from medmvl.training.run import train

    with tempfile.TemporaryDirectory(dir=folder) as out:
        train(recipe(folder, size, stage, settings, steps=RECORDS // BATCH + STEPS), out)
        return [json.loads(line)["seconds"] for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def run_peer(folder: Path, stage: str, settings: dict[str, Any]) -> list[float]:
    """Return the seconds of each step of the stock Trainer on the exported model."""
    import torch
    from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

    from medmvl.data.dataset import SampleDataset
    from medmvl.processing import MedMVLProcessor

    model = LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype=torch.float32)
    if stage == "connector":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    processor = MedMVLProcessor.from_pretrained(folder / "start" / "init")
    data = SampleDataset(folder / "d.jsonl")
    encoded = [processor.encode(data[i], train=True) for i in range(len(data))]
    theirs, ours = model.config.image_token_id, processor.tokenizer.convert_tokens_to_ids("<image>")
    for sample in encoded:
        sample["input_ids"][sample["input_ids"] == ours] = theirs

    class Clock(TrainerCallback):
        seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=RECORDS // BATCH + STEPS,
            learning_rate=1e-4,
            bf16=settings.get("precision") == "bf16",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model, arguments, train_dataset=encoded, data_collator=processor.collate, callbacks=[Clock()])
        trainer.train()
    return Clock.seconds


def run_variant(name: str, folder: Path, size: str, threads: int) -> None:
    """Run one variant in this process and print its measurements as JSON."""
    import torch

    torch.set_num_threads(threads)
    engine, stage, settings = VARIANTS[name]
    import medmvl.training.run  # noqa: F401  (what the imports take is not what training takes)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = run_peer(folder, stage, settings) if engine == "peer" else run_ours(folder, size, stage, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds[RECORDS // BATCH :], "megabytes": (peak - before) / 1024}))


def measure(folder: Path, size: str, rounds: int, threads: int) -> dict[str, Any]:
    """Run all variants in turn, `rounds` times."""
    results: dict[str, Any] = {name: {"seconds": [], "rounds": [], "megabytes": []} for name in VARIANTS}
    for number in range(rounds):
        for name in VARIANTS:
            command = [sys.executable, __file__, "--variant", name, "--folder", str(folder), "--size", size]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                [*command, "--threads", str(threads)], env=environment, check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            results[name]["seconds"] += found["seconds"]
            results[name]["rounds"].append(statistics.median(found["seconds"]))
            results[name]["megabytes"].append(found["megabytes"])
            print(f"round {number + 1}: {name}: {results[name]['rounds'][-1]:.3f} s", file=sys.stderr)
    return results


def table(results: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"# Training step, {facts['date']}",
        "",
        f"`python benchmarks/training_step.py --size {facts['size']}`",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key not in ("date", "size")]
    lines += [
        "",
        "| variant | s per step | speed-up over the fp32 peer | over the peer of its precision | MB above start |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, found in results.items():
        stage, precision = name.partition(":")[0], name.rpartition(", ")[2]
        ratios = [_ratio(results, f"{stage}: peer, {peer}", name) for peer in ("fp32", precision)]
        median, memory = statistics.median(found["seconds"]), statistics.median(found["megabytes"])
        lines.append(f"| {name} | {median:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {memory:.0f} |")
    return "\n".join(lines) + "\n"


def _ratio(results: dict[str, Any], peer: str, name: str) -> float:
    """Return the median over rounds of peer time to own time: both ran within minutes of each other."""
    pairs = zip(results[peer]["rounds"], results[name]["rounds"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant is not None:
        run_variant(arguments.variant, arguments.folder, arguments.size, arguments.threads)
        return
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.size)
        results = measure(Path(folder), arguments.size, arguments.rounds, arguments.threads)
    facts = {"date": datetime.now(UTC).date().isoformat(), "size": arguments.size, "machine": platform.machine()}
    facts |= {"cores": os.cpu_count(), "threads": arguments.threads, "load at the end": f"{os.getloadavg()[0]:.1f}"}
    facts |= {name: version(name) for name in ("medmvl", "torch", "transformers")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"training_step-{facts['date']}-{arguments.size}"
    stem.with_suffix(".json").write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(results, facts))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
