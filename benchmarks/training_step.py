"""Time and memory of a training step: this toolkit and stock parts with the same weights and the same records.

    python benchmarks/training_step.py [--out benchmarks/results] [--epochs 5] [--threads 2] [--size small] [--only TEXT]

The peer is what one writes with stock parts: the model exported as `LlavaForConditionalGeneration`, in the stock
`transformers.Trainer`, batches padded to the longest row, logits at every position; in one variant batches come from
TRL's SFT collator (where TRL is importable), which tokenizes and prepares pictures in every step. All variants read the
records of `medical_mix.py`, in batches of 16, kept in memory after the first epoch, which is not timed.

Every variant runs in a separate process (so that peak memory means something). Those of a group are alive at once (13 GB in
the size "small") and take turns, one step each, so that whatever else the machine does falls on all of them alike. A ratio is that of two variants of a group for the
same epoch; the median over epochs counts. Peak memory is that of the whole run, above what the imports take.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import medical_mix
from medical_mix import SIZES

BATCH, RECORDS = 16, 64
EPOCH = RECORDS // BATCH
FULL, CONNECTOR = {"image_connector": "full", "llm": "full", "image_encoder": "full"}, {"image_connector": "full"}
OFF = {"packing": False, "supervised_logits": False}
#: variant -> (engine, what trains, settings of our stage)
VARIANTS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "stage 2: peer, fp32": ("peer", FULL, {}),
    "stage 2: peer, bf16": ("peer", FULL, {"precision": "bf16"}),
    "stage 2: peer with TRL's collator, fp32": ("trl", FULL, {}),
    "stage 2: ours, all off, fp32": ("ours", FULL, OFF),
    "stage 2: ours, packing only, fp32": ("ours", FULL, OFF | {"packing": True}),
    "stage 2: ours, supervised logits only, fp32": ("ours", FULL, OFF | {"supervised_logits": True}),
    "stage 2: ours, fp32": ("ours", FULL, {}),
    "stage 2: ours, bf16": ("ours", FULL, {"precision": "bf16"}),
    "stage 1: peer, fp32": ("peer", CONNECTOR, {}),
    "stage 1: peer, bf16": ("peer", CONNECTOR, {"precision": "bf16"}),
    "stage 1: ours, fp32": ("ours", CONNECTOR, {}),
    "stage 1: ours, feature cache, fp32": ("ours", CONNECTOR, {"feature_cache": True}),
    "stage 1: ours, feature cache, bf16": ("ours", CONNECTOR, {"feature_cache": True, "precision": "bf16"}),
}
#: Variants that are alive together; the peers come first, for the others are compared with them.
GROUPS = {
    "stage 2": ("stage 2: peer, fp32", "stage 2: peer, bf16", "stage 2: ours, fp32", "stage 2: ours, bf16"),
    "stage 1": tuple(name for name in VARIANTS if name.startswith("stage 1")),
    "stage 2, lever by lever": (
        "stage 2: peer, fp32",
        "stage 2: peer with TRL's collator, fp32",
        "stage 2: ours, all off, fp32",
        "stage 2: ours, packing only, fp32",
        "stage 2: ours, supervised logits only, fp32",
    ),
}
MAIN = ("stage 2", "stage 1")  # of the others one timed epoch is enough


# --- one variant, in a process of its own -------------------------------------------------------------------------


def say(**facts: Any) -> None:
    """Send a line to the conductor; other prints do not begin like it."""
    print("@" + json.dumps(facts), flush=True)


def turn_taker() -> Any:
    """Return a Trainer callback that waits for its turn before every step, and tells what the step took.

    A step's time begins when the turn comes and holds the fetching of its batch.
    """
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        started, busy = 0.0, 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            say(ready=True)
            self._wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            say(seconds=time.perf_counter() - self.started, cpu=time.process_time() - self.busy)
            self._wait()

        def _wait(self) -> None:
            sys.stdin.readline()
            self.started, self.busy = time.perf_counter(), time.process_time()

    return Turns()


def prepare(folder: Path, size: str) -> None:
    """Write data, our starting checkpoint and the same weights as a LLaVA folder."""
    from medmvl.checkpoints.llava_export import export_llava
    from medmvl.training.run import train

    medical_mix.write_data(folder, RECORDS)
    model = medical_mix.small_model(size)
    train(medical_mix.recipe(folder, model, CONNECTOR, {}, 1, BATCH), folder / "start")
    export_llava(folder / "start" / "init", folder / "llava")


def run_ours(folder: Path, train_parts: dict[str, str], settings: dict[str, Any], steps: int) -> None:
    """Train our stage."""
    from medmvl.training.engine.callbacks import Callback
    from medmvl.training.run import train

    turns = turn_taker()

    class Turns(Callback):
        def on_begin(self, loop: Any) -> None:
            turns.on_train_begin()

        def on_step_end(self, loop: Any) -> None:
            turns.on_step_end()

    ready = {"from": str(folder / "start" / "init")}
    described = medical_mix.recipe(folder, ready, train_parts, settings, steps, BATCH)
    described["run"]["device"] = "cpu"
    with tempfile.TemporaryDirectory(dir=folder) as out:
        train(described, out, callbacks=[Turns()])


def run_peer(folder: Path, train_parts: dict[str, str], settings: dict[str, Any], steps: int, trl: bool) -> None:
    """Train the exported model in the stock Trainer."""
    import torch
    from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

    model = LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype=torch.float32)
    if train_parts == CONNECTOR:
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    data, collate = trl_data(folder) if trl else padded_data(folder, model.config.image_token_id)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=1e-4,
            bf16=settings.get("precision") == "bf16",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[turn_taker()]).train()


def padded_data(folder: Path, image_token: int) -> tuple[list[Any], Any]:
    """Return encoded records in memory, and the padding collator."""
    from medmvl.data.dataset import SampleDataset
    from medmvl.processing import MedMVLProcessor

    processor = MedMVLProcessor.from_pretrained(folder / "start" / "init")
    data = SampleDataset(folder / "d.jsonl")
    encoded = [processor.encode(data[i], train=True) for i in range(len(data))]
    ours = processor.tokenizer.convert_tokens_to_ids("<image>")
    for sample in encoded:
        sample["input_ids"][sample["input_ids"] == ours] = image_token
    return encoded, processor.collate


def trl_data(folder: Path) -> tuple[list[Any], Any]:
    """Return conversations with open pictures, and TRL's collator with the loss on answers only."""
    from PIL import Image
    from transformers import LlavaProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    processor = LlavaProcessor.from_pretrained(folder / "llava")
    rows = []
    for line in (folder / "d.jsonl").read_text().splitlines():
        record = json.loads(line)
        pictures = [Image.open(folder / name).convert("RGB") for name in record["image"]]
        question, answer = (turn["value"] for turn in record["conversations"])
        parts = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question.replace("<image>\n", "")}]
        messages = [{"role": "user", "content": parts}]
        messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        rows.append({"images": pictures, "messages": messages})
    collate = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)

    def on_copies(samples: list[Any]) -> Any:  # the collator writes into its input
        return collate([{key: list(value) for key, value in sample.items()} for sample in samples])

    return rows, on_copies


def resident(key: str) -> float:
    """Return a line of /proc/self/status in MB: VmRSS now, VmHWM at most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def run_variant(name: str, folder: Path, steps: int, threads: int) -> None:
    """Run one variant in this process."""
    import torch

    torch.set_num_threads(threads)
    engine, train_parts, settings = VARIANTS[name]
    import medmvl.training.run  # noqa: F401  (what the imports take is not what training takes)

    if engine == "trl":
        import trl.trainer.sft_trainer  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    if engine == "ours":
        run_ours(folder, train_parts, settings, steps)
    else:
        run_peer(folder, train_parts, settings, steps, engine == "trl")
    say(megabytes=resident("VmHWM") - before)


# --- the conductor ------------------------------------------------------------------------------------------------


class Variant:
    """A running variant."""

    def __init__(self, name: str, folder: Path, steps: int, threads: int) -> None:
        self.name, self.megabytes = name, 0.0
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it lives as long as the process)
        command = [sys.executable, __file__, "--variant", name, "--folder", str(folder), "--steps", str(steps)]
        self._process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self._hear()

    def step(self) -> None:
        """Let it take one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        heard = self._hear()
        self.seconds.append(heard["seconds"])
        self.cpu.append(heard["cpu"])

    def finish(self) -> None:
        """Let it end and read its peak memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.megabytes = self._hear()["megabytes"]
        self._process.wait()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        self._errors.seek(0)
        raise SystemExit(f"{self.name} has died:\n{self._errors.read()[-4000:]}")

    def epochs(self, cpu: bool = False) -> list[float]:
        """Return the seconds (or seconds of CPU time) of each epoch after the first."""
        values = self.cpu if cpu else self.seconds
        return [sum(values[i : i + EPOCH]) for i in range(EPOCH, len(values), EPOCH)]


def measure(folder: Path, names: list[str], epochs: int, threads: int) -> list[Variant]:
    """Run variants in turn: one epoch to warm up, then `epochs` that count."""
    steps = EPOCH * (1 + epochs)
    variants = []
    for name in names:
        variants.append(Variant(name, folder, steps, threads))
        print(f"ready: {name}", file=sys.stderr)
    for step in range(steps):
        for variant in variants:
            variant.step()
        print(f"step {step + 1} of {steps}", file=sys.stderr)
    for variant in variants:
        variant.finish()
    return variants


def rows(variants: list[Variant]) -> list[dict[str, Any]]:
    """Return what the table shows, per variant."""
    by_name = {variant.name: variant for variant in variants}
    found = []
    for variant in variants:
        stage, precision = variant.name.partition(":")[0], variant.name.rpartition(", ")[2]
        row: dict[str, Any] = {"variant": variant.name, "seconds_per_step": statistics.median(variant.epochs()) / EPOCH}
        row |= {"cpu_per_step": statistics.median(variant.epochs(cpu=True)) / EPOCH, "megabytes": variant.megabytes}
        for key, name in (("fp32", "fp32"), ("own", precision)):
            peer = by_name.get(f"{stage}: peer, {name}")
            if peer is not None:
                ratios = [p / o for p, o in zip(peer.epochs(), variant.epochs(), strict=True)]
                row |= {f"faster_than_{key}_peer": statistics.median(ratios), f"ratios_{key}": ratios}
                row[f"cpu_less_than_{key}_peer"] = statistics.median(peer.epochs(True)) / statistics.median(
                    variant.epochs(True)
                )
                row[f"memory_of_{key}_peer"] = variant.megabytes / peer.megabytes
        found.append(row)
    return found


def table(found: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"# Training step, {facts['date']}",
        "",
        f"`python benchmarks/training_step.py --size {facts['size']}`",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key not in ("date", "size")]
    lines += ["", "| variant | s per step | times faster than the fp32 peer | than the peer of its precision | "
              "MB | of the MB of the peer of its precision |", "|---|---|---|---|---|---|"]  # fmt: skip
    for index, row in enumerate(found):
        if index == 0 or row["group"] != found[index - 1]["group"]:
            lines.append(f"| **{row['group']}** | | | | | |")
        fp32, own, memory = (
            row.get(k) for k in ("faster_than_fp32_peer", "faster_than_own_peer", "memory_of_own_peer")
        )
        ratios = [f"{value:.2f}" if value is not None else "" for value in (fp32, own)]
        share = f"{memory:.0%}" if memory is not None else ""
        lines.append(
            f"| {row['variant']} | {row['seconds_per_step']:.3f} | {ratios[0]} | {ratios[1]} | {row['megabytes']:.0f} | {share} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--epochs", type=int, default=5, help="epochs of 4 steps that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", default="", help="variants whose name holds one of these texts, ; between")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant is not None:
        run_variant(arguments.variant, arguments.folder, arguments.steps, arguments.threads)
        return
    from importlib.metadata import version

    words = arguments.only.split(";")
    usable = [name for name in VARIANTS if any(word in name for word in words)]
    if importlib.util.find_spec("trl") is None:
        usable = [name for name in usable if VARIANTS[name][0] != "trl"]
    facts = {"date": datetime.now(UTC).date().isoformat(), "size": arguments.size, "machine": platform.machine()}
    facts |= {"cores": os.cpu_count(), "threads": arguments.threads, "load at the start": f"{os.getloadavg()[0]:.1f}"}
    facts |= {"epochs": f"{arguments.epochs} (lever by lever: 1)", "model": str(SIZES[arguments.size])}
    facts |= {name: version(name) for name in ("medmvl", "torch", "transformers")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{facts['date']}-training-step-{arguments.size}"
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.size)
        for group, members in GROUPS.items():
            names = [name for name in members if name in usable]
            epochs = arguments.epochs if group in MAIN else 1
            measured = rows(measure(Path(folder), names, epochs, arguments.threads))
            found += [{"group": group, **row} for row in measured]
            # After each group, so that an interrupted run leaves what it has.
            stem.with_suffix(".json").write_text(json.dumps({"facts": facts, "results": found}, indent=1) + "\n")
            stem.with_suffix(".md").write_text(table(found, facts))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
