"""Whether other versions of transformers give the results of the installed one.

    python benchmarks/transformers_versions.py 5.16.1 5.24.0 [--folder DIR] [--out FILE.md]

Writes one tiny checkpoint for each of some LLM families with the installed transformers. Each version is installed by pip into a
folder of its own (`DIR/VERSION`, with those of its needs that the installed packages do not meet; kept if DIR is given) and loads, asks and trains the same checkpoints in a
separate process. Compared are token ids of a conversation, logits of a probe batch, greedy answers, losses of three training
steps and the finished stage's logits, and whether rows are packed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

#: Family -> settings besides the sizes.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "phi": {},
    "phi3": {"pad_token_id": 0},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
#: Largest difference of a logit or loss, relative to the largest, that counts as equal.
TOLERANCE = 1e-5


def recipe(folder: Path, family: str, stage: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that builds a model of a family and trains one stage."""
    return {
        "name": family,
        "seed": 1,
        "data_root": str(folder),
        "model": {
            "llm": {"config": {"model_type": family, **SIZES, **FAMILIES[family]}, "tokenizer": {"vocab_size": 320}},
            "image": {"encoder": {"name": "siglip", "vision_config": SIGLIP}},
        },
        "data": {"d": {"path": "d.jsonl"}},
        "stages": [{"name": "s", "data": ["d"], "lr": 1e-3, "batch_size": 4, "max_steps": 3, **stage}],
        "run": {"progress": False, "device": "cpu"},
    }


def write_records(folder: Path) -> None:
    """Write eight records with images of noise."""
    import numpy as np
    from PIL import Image

    lines = []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns = [("human", "<image>\nIs there a nodule?"), ("gpt", ["Yes, there is.", "No."][number % 2])]
        row = {
            "id": str(number),
            "image": [f"{number}.png"],
            "conversations": [{"from": a, "value": b} for a, b in turns],
        }
        lines.append(json.dumps(row))
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")


def measure(folder: Path, family: str, out: Path) -> dict[str, Any]:
    """Return the results of the installed transformers on the checkpoint of a family."""
    import torch

    from medmvl.data.dataset import SampleDataset
    from medmvl.inference import GenerationOptions, Predictor
    from medmvl.models import MedMVLForConditionalGeneration
    from medmvl.models.probe import probe_batch, probe_logits
    from medmvl.training.acceleration.packing_check import why_not_packed
    from medmvl.training.run import train
    from medmvl.training.run_folder import read_log

    start = folder / family / "init"
    predictor = Predictor.from_pretrained(start, device="cpu")
    samples = [sample.as_question() for sample in SampleDataset(folder / "d.jsonl")]
    encoded = [predictor.encode(sample) for sample in samples]
    answers = predictor.generate(encoded, GenerationOptions(max_new_tokens=8))
    batch = probe_batch(predictor.model.config)
    trained: dict[str, Any] = {"llm": {"mode": "lora", "lora": {"r": 2}}, "image_connector": "full"}
    settings = recipe(folder, family, {"train": trained})
    settings["model"] = {"from": str(start)}
    finished = MedMVLForConditionalGeneration.from_pretrained(train(settings, out), dtype=torch.float32)
    return {
        "prompt ids": [item["input_ids"].tolist() for item in encoded],
        "logits": probe_logits(predictor.model, batch).flatten().tolist(),
        "greedy tokens": [answer.token_ids for answer in answers],
        "packs": why_not_packed(predictor.model.language_model) is None,
        "losses": [row["loss"] for row in read_log(out / "log.jsonl")],
        "trained logits": probe_logits(finished, batch).flatten().tolist(),
    }


def difference(found: Any, expected: Any) -> float | None:
    """Return the largest relative difference of two lists of floats; None for other results."""
    if not (isinstance(expected, list) and expected and isinstance(expected[0], float)):
        return None
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / max(map(abs, expected))


def install(version: str, folder: Path) -> Path:
    """Install a version of transformers into a folder of its own, unless it is there, and return it."""
    target = folder / version
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    if not (target / "transformers").is_dir():
        subprocess.run([*command, f"transformers=={version}"], check=True)
    (info,) = metadata.distributions(name="transformers", path=[str(target)])
    for line in info.requires or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        here = {found.name.lower().replace("_", "-"): found for found in metadata.distributions(path=[str(target)])}
        name = needed.name.lower().replace("_", "-")
        version_found = here[name].version if name in here else metadata.version(name)
        if not needed.specifier.contains(version_found, prereleases=True):
            subprocess.run([*command, f"{needed.name}{needed.specifier}"], check=True)
    return target


def child(folder: Path, family: str, out: Path, packages: Path | None) -> dict[str, Any]:
    """Return the results of a family from a separate process, with other packages in front; an error is a result."""
    paths = [str(packages)] if packages is not None else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, __file__, "--measure", str(folder), family, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return "equal" with the largest difference, or what differs."""
    if "error" in found:
        return str(found["error"])
    numbers = {name: difference(found[name], expected[name]) for name in expected}
    wrong = [f"{name} ({n:.1e})" for name, n in numbers.items() if n is not None and not n <= TOLERANCE]
    wrong += [name for name, n in numbers.items() if n is None and found[name] != expected[name]]
    return ", ".join(wrong) or f"equal ({max(n for n in numbers.values() if n is not None):.0e})"


def main() -> None:
    """Run all versions and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("versions", nargs="*")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "FAMILY", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        logging.disable(logging.WARNING)
        print(json.dumps(measure(Path(given.measure[0]), given.measure[1], Path(given.measure[2]))))
        return
    import torch
    import transformers

    from medmvl.training.run import train

    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        packages = {version: install(version, given.folder or work / "packages") for version in given.versions}
        write_records(work)
        for family in FAMILIES:
            train(recipe(work, family, {"train": {"image_connector": "full"}, "max_steps": 1}), work / family)
            expected = child(work, family, work / f"{family}-here", None)
            if "error" in expected:
                raise SystemExit(f"{family} with the installed transformers: {expected['error']}")
            rows[family] = [
                compared(child(work, family, work / f"{family}-{version}", packages[version]), expected)
                for version in given.versions
            ]
            print(family, *rows[family], sep=" | ", flush=True)
    head = (
        f"{date.today()}, torch {torch.__version__}, compared with transformers {transformers.__version__}; in brackets the largest "
        "difference of a logit or loss, relative to the largest.\n\n"
    )
    lines = [f"| LLM | {' | '.join(given.versions)} |", "|---" * (len(given.versions) + 1) + "|"]
    lines += [f"| {family} | {' | '.join(cells)} |" for family, cells in rows.items()]
    text = head + "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(f"# Results under other versions of transformers\n\n{text}")


if __name__ == "__main__":
    main()
