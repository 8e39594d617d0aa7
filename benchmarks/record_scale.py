"""What a record costs in data sets of 10^3 to 10^6 records, and how long it takes until the first step.

    python benchmarks/record_scale.py [--out benchmarks/results] [--sizes 1000 10000 100000 1000000]

Per size, in a separate process that has read nothing yet:
- open: index the JSON Lines file (first time, and again with the index kept), or memory-map the Parquet file;
- record: draw steps from the mixture, balance them, read, tokenize and pack their records, at random places; CPU time per
  record, the median of 128 steps;
- memory: what the process holds above the imports after that;
- first step: seconds from the start of `medmvl train` on a tiny model to its first optimizer step, imports included
  (the second start, the index being kept), and their CPU time.
Ratios to the smallest size are what matters; records are texts with one of 16 pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import medical_mix

BATCH, STEPS = 16, 128


def write_records(folder: Path, count: int) -> None:
    """Write `d.jsonl` and `d.parquet` of `count` records."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(16):
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{index}.png")
    rows = []
    words = np.array(medical_mix.WORDS)
    with (folder / "d.jsonl").open("w") as handle:
        for number in range(count):
            question, answer = " ".join(words[rng.integers(0, 13, 25)]), " ".join(words[rng.integers(0, 13, 12)])
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            row = {"id": str(number), "conversations": turns, "image": [f"{number % 16}.png"]}
            handle.write(json.dumps(row) + "\n")
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")


def model() -> dict[str, Any]:
    """Return the recipe's `model` of a tiny one, whose steps take next to nothing."""
    described = medical_mix.small_model("tiny")
    described["image"]["encoder"]["vision_config"] |= {"image_size": 32, "num_hidden_layers": 1}
    return described


def run_probe(folder: Path, file: str) -> None:
    """Measure one file in this process and print JSON."""
    from medmvl.data.dataset import SampleDataset
    from medmvl.data.mixture import Mixture
    from medmvl.processing import MedMVLProcessor
    from medmvl.training.engine.dataset import TrainingDataset
    from medmvl.training.engine.sampling import BatchLayout, StepSampler
    from medmvl.training.objectives.language import sample_size
    from medmvl.training.objectives.language_batches import Collator

    processor = MedMVLProcessor.from_pretrained(folder.parent / "start" / "init")
    before = resident()
    found: dict[str, float] = {}
    for name in ("first", "again"):
        started = time.perf_counter()
        dataset = SampleDataset(folder / file)
        found[f"open_{name}"] = time.perf_counter() - started
    mixture = Mixture({"d": dataset})
    started = time.perf_counter()
    mixture.stream(0, BATCH)
    found["shuffle"] = time.perf_counter() - started
    shape = BatchLayout.of(BATCH, BATCH // 2, 1)
    sampler = StepSampler(mixture, STEPS + 4, shape, 0, lambda number: sample_size(mixture.sample(number), processor))
    records, make = TrainingDataset(mixture, processor.encode), Collator(processor)
    seconds = []
    for step in range(STEPS + 4):
        started = time.process_time()
        for numbers in sampler.step(step):
            make([records[number] for number in numbers])
        seconds.append(time.process_time() - started)
    found["record_ms"] = 1e3 * float(np.median(seconds[4:])) / BATCH
    found["megabytes"] = resident() - before
    print(json.dumps(found))


def resident() -> float:
    """Return this process's memory without mapped files, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def first_step(folder: Path, file: str) -> tuple[float, float]:
    """Return the seconds from the start of the real command to the end of its first step, and the CPU time of all of it."""
    start = {"from": str(folder.parent / "start" / "init")}
    recipe = medical_mix.recipe(folder, start, {"image_connector": "full"}, {}, 1, BATCH)
    recipe["data"] = {"d": {"path": file}}
    recipe["run"] = {"progress": False, "device": "cpu"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    out = folder / f"run-{time.time_ns()}"
    started = time.time()
    command = [sys.executable, "-m", "medmvl", "train", str(folder / "recipe.yaml"), "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (out / "log.jsonl").stat().st_mtime - started, busy


def measure(root: Path, count: int) -> list[dict[str, Any]]:
    """Return a row per file format."""
    folder = root / str(count)
    folder.mkdir()
    write_records(folder, count)
    found = []
    for file in ("d.jsonl", "d.parquet"):
        command = [sys.executable, __file__, "--probe", str(folder), file]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = {"records": count, "format": Path(file).suffix[1:], **json.loads(done.stdout.splitlines()[-1])}
        row["first_step"], row["first_step_cpu"] = first_step(folder, file)
        print(row, file=sys.stderr)
        found.append(row)
    return found


def table(found: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"# Records from 10^3 to 10^6, {facts['date']}", "", "`python benchmarks/record_scale.py`", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key != "date"]
    lines += ["", "| format | records | open, first time s | again s | shuffle s | CPU ms per record | of the smallest "
              "| MB | first step s | CPU s of the whole command |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in sorted(found, key=lambda row: (row["format"], row["records"])):
        smallest = next(other for other in found if other["format"] == row["format"])["record_ms"]
        lines.append(
            f"| {row['format']} | {row['records']:,} | {row['open_first']:.3f} | {row['open_again']:.3f} | "
            f"{row['shuffle']:.3f} | {row['record_ms']:.3f} | {row['record_ms'] / smallest:.2f} | "
            f"{row['megabytes']:.0f} | {row['first_step']:.1f} | {row['first_step_cpu']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        run_probe(Path(arguments.probe[0]), arguments.probe[1])
        return
    from importlib.metadata import version

    from medmvl.training.run import train

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["MEDMVL_CACHE"] = str(root / "cache")
        (root / "0").mkdir()
        write_records(root / "0", 32)
        train(medical_mix.recipe(root / "0", model(), {"image_connector": "full"}, {}, 1, BATCH), root / "start")
        found = [row for count in arguments.sizes for row in measure(root, count)]
    facts = {"date": datetime.now(UTC).date().isoformat(), "cores": os.cpu_count(), "load at the start": f"{load:.1f}"}
    facts |= {name: version(name) for name in ("medmvl", "torch", "transformers", "datasets")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{facts['date']}-record-scale"
    stem.with_suffix(".json").write_text(json.dumps({"facts": facts, "results": found}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(found, facts))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
