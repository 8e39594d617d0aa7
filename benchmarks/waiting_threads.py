"""How idle OpenMP threads should wait: what sleeping costs on idle cores, and what it saves on busy ones.

    python benchmarks/waiting_threads.py [--out benchmarks/results] [--sizes tiny quickstart smollm2] [--repeat 1]

Sizes, each run as a process of its own, imports included:
- tiny: `medmvl train tiny`;
- quickstart: `medmvl quickstart --scale 0.06`, with its drawing, encoders, stages and answers;
- smollm2: 3 steps of LoRA on a Llama of SmolLM2-135M's shape with random weights, batches of 4, bf16.
Loads: idle; busy, with one Python loop per core that never ends. Waits: `libgomp` (GNU OpenMP's own default of 300,000 turns,
set explicitly) and `medmvl` (nothing set, so the command line's default holds).
The waits of one size and load take turns, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

import medical_mix

WAITS: dict[str, dict[str, str]] = {
    "libgomp": {"GOMP_SPINCOUNT": "300000"},
    "medmvl": {},
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def smollm2_steps(folder: str) -> None:
    """Train 3 steps in this process."""
    from medmvl.training.run import train

    model = medical_mix.small_model("small")
    model["llm"]["config"] = LLAMA
    lora = {"llm": {"mode": "lora", "lora": {"r": 16}}, "image_connector": "full"}
    recipe = medical_mix.recipe(Path(folder), model, lora, {"precision": "bf16"}, steps=3, batch=4)
    train(recipe, Path(folder) / f"run-{os.getpid()}")


def command(size: str, data: Path, out: Path) -> list[str]:
    """Return the command that is timed."""
    if size == "smollm2":
        gently = "from medmvl.openmp import wait_as_fits; wait_as_fits()"
        return [sys.executable, "-c", f"{gently}; import waiting_threads; waiting_threads.smollm2_steps({str(data)!r})"]
    words = ["train", "tiny"] if size == "tiny" else ["quickstart", "--scale", "0.06"]
    return [sys.executable, "-m", "medmvl", *words, "--out", str(out)]


@contextlib.contextmanager
def load(busy: bool) -> Iterator[None]:
    """Occupy every core with a loop, or none."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1 if busy else 0)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds(size: str, wait: str, data: Path) -> float:
    """Time one run."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    }
    environment["PYTHONPATH"] = f"{Path(__file__).parent}:{environment.get('PYTHONPATH', '')}"
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        subprocess.run(
            command(size, data, Path(out) / "run"),
            env=environment | WAITS[wait],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - begun


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--sizes", nargs="+", default=["tiny", "quickstart", "smollm2"])
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    lines = [
        f"# Waiting OpenMP threads, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python benchmarks/waiting_threads.py --sizes {' '.join(options.sizes)} --repeat {options.repeat}`, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores.",
        f"Seconds by the clock, median of {options.repeat}; load of the machine at the start {os.getloadavg()[0]:.1f}.",
        "",
        "| size | load | libgomp | medmvl | libgomp / medmvl |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as data:
        medical_mix.write_data(Path(data), 64)
        for size in options.sizes:
            for busy in (False, True):
                taken: dict[str, list[float]] = {wait: [] for wait in WAITS}
                with load(busy):
                    for _ in range(options.repeat):
                        for wait, found in taken.items():
                            found.append(seconds(size, wait, Path(data)))
                median = {wait: statistics.median(found) for wait, found in taken.items()}
                numbers = " | ".join(f"{median[wait]:.1f}" for wait in WAITS)
                lines.append(
                    f"| {size} | {'busy' if busy else 'idle'} | {numbers} | {median['libgomp'] / median['medmvl']:.2f} |"
                )
                print(lines[-1], flush=True)
    path = options.out / f"{datetime.now(UTC):%Y-%m-%d}-waiting-threads.md"
    path.write_text("\n".join(lines) + "\n")
    print(path)


if __name__ == "__main__":
    main()
