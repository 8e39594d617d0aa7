"""Pretrain the quickstart's LLM on texts about described patients, and write it as the package ships it.

    python tools/phantom_llm.py [--work runs/phantom-llm] [--out src/medmvl/experiments/phantom_llm]

No picture is used: a description in words stands where a picture will stand. The folder holds weights in bfloat16, tokenizer, chat
template, the recipe, its training data, and a README with what was measured. An unfinished run in `--work` continues.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
from collections import defaultdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from medmvl.cards.training_data import FILE as TRAINING_DATA
from medmvl.checkpoints.llm_export import export_llm
from medmvl.data.sample import Message, Sample
from medmvl.data.synthetic import LICENSE
from medmvl.experiments.quickstart import PRETRAINED_LLM
from medmvl.files import write_json, write_jsonl, write_text
from medmvl.inference import GenerationOptions, Predictor
from medmvl.phantoms.warmup_texts import described_patient
from medmvl.training.run import train

SEED = 2026
#: File, first patient, number of patients, kind of dialogs (None: all).
TEXTS = (("text-only-patients.jsonl", 0, 30_000, None), ("sides.jsonl", 30_000, 12_000, "sides"))
#: What the folder of the dialogs says of them, for cards of models that begin with this one.
REPORT = {"title": "Dialogs about described phantoms, without pictures", "license": LICENSE, "synthetic": True}
PATIENTS = sum(count for _, _, count, _ in TEXTS)
HELD_OUT = 1_000
#: Kinds of dialogs whose answers have one right wording.
SCORED = ("radiograph", "ct", "choices", "boxes", "caption")

CARD = """---
license: apache-2.0
language: [en, zh]
library_name: transformers
tags: [medmvl, synthetic]
---
# The quickstart's LLM

A Qwen3 of {weights:,} weights that answers questions about a described patient. `python tools/phantom_llm.py` made this folder on
{date} (Python {python}, torch {torch}, {threads} thread(s), {minutes:.0f} minutes of training).

- **Trained on**: {patients:,} dialogs about synthetic patients of `medmvl.phantoms` (seed {seed}, numbers from 1,000,000): their
  findings in words, or the boxes on their radiographs. It has seen no picture, no real patient and no text from elsewhere.
- **Not for**: anything but the quickstart and learning. It knows {vocabulary} tokens and eight findings.
- **Held out**: the first questions of {questions} dialogs about further patients; share of answers that are right to the letter:
  {scores}.
"""


def main() -> None:
    """Draw the texts, train, export, measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, default=Path("runs/phantom-llm"))
    parser.add_argument("--out", type=Path, default=PRETRAINED_LLM)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    draw(options.work)
    recipe = options.out / "recipe.yaml"
    train(recipe, options.work / "run", resume=True, overrides=[f"data_root={options.work.resolve()}"])
    export = options.work / "export"
    shutil.rmtree(export, ignore_errors=True)
    export_llm(options.work / "run" / "model", export)
    llm = AutoModelForCausalLM.from_pretrained(export, dtype=torch.bfloat16)
    llm.save_pretrained(export)
    write_text(export / "README.md", card(llm, options.work))
    shutil.copyfile(options.work / "run" / "model" / TRAINING_DATA, export / TRAINING_DATA)
    for file in export.iterdir():
        shutil.copyfile(file, options.out / file.name)
    print((options.out / "README.md").read_text())


def draw(work: Path) -> None:
    """Write the dialogs to train on, unless they are there."""
    write_json(work / "report.json", REPORT)
    for name, first, count, kind in TEXTS:
        if not (work / name).is_file():
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                patients = range(first, first + count)
                write_jsonl(
                    work / name, pool.imap(partial(described_patient, SEED, kind=kind), patients, chunksize=100)
                )


def card(llm: Any, work: Path) -> str:
    """Return the model card, with the accuracy of the weights as they are shipped."""
    predictor = Predictor.from_pretrained(work / "run" / "model", device="cpu")
    predictor.model.language_model.load_state_dict(llm.float().state_dict())
    right = answers(predictor)
    log = (work / "run" / "log.jsonl").read_text().splitlines()
    return CARD.format(
        weights=llm.num_parameters(),
        date=datetime.now(UTC).date(),
        python=platform.python_version(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        minutes=sum(json.loads(line)["seconds"] for line in log) / 60,
        patients=PATIENTS,
        seed=SEED,
        vocabulary=llm.config.vocab_size,
        questions=sum(map(len, right.values())),
        scores=", ".join(f"{kind} {sum(right[kind]) / len(right[kind]):.3f}" for kind in SCORED),
    )


def answers(predictor: Predictor) -> dict[str, list[bool]]:
    """Return kind of dialog -> whether the first question was answered right, for patients that were not trained on."""
    rows = [row for row in (described_patient(SEED, PATIENTS + i) for i in range(HELD_OUT)) if row["task"] in SCORED]
    right: dict[str, list[bool]] = defaultdict(list)
    for begin in range(0, len(rows), 64):
        batch = rows[begin : begin + 64]
        samples = [Sample("", (Message("user", row["conversations"][0]["value"]),)) for row in batch]
        said = predictor.generate(
            [predictor.encode(sample) for sample in samples], GenerationOptions(max_new_tokens=96)
        )
        for row, answer in zip(batch, said, strict=True):
            right[row["task"]].append(answer.text.strip() == row["conversations"][1]["value"])
    return right


if __name__ == "__main__":
    main()
