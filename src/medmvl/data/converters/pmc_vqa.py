"""PMC-VQA: multiple-choice questions about figures of PubMed Central articles, in two versions.

Sources of the layout:
- The card of the hub's xmcmic/PMC-VQA (now RadGenome/PMC-VQA): version 1 is train.csv, test.csv, the checked subset
  test_clean.csv and images.zip, with the options written as "B:Focal uptake pattern"; version 2 is train_2.csv,
  test_2.csv and images_2.zip.
- The columns of version 2 (index, Figure_path, Caption, Question, Choice A ... D, Answer, split), where `Answer` is a
  letter, and its folder figures/, are in MedEvalKit's reader (utils/PMC_VQA/PMC_VQA.py).
The card names no patients: the figures of one article (PMC1064097_F1.jpg: PMC1064097) stand for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.choices import choice_letter, choice_record, option_text
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record, yes_or_no
from medmvl.data.converters.media import relative_media
from medmvl.errors import DataError

#: version -> table -> our split; tests come first, so that their articles are known when training begins
TABLES = {
    "1": {"test.csv": "test", "test_clean.csv": "test_clean", "train.csv": "train"},
    "2": {"test_2.csv": "test", "train_2.csv": "train"},
}
LETTERS = "ABCD"
_COLUMNS = ["Figure_path", "Question", *(f"Choice {letter}" for letter in LETTERS)]
_FOLDERS = ("images", "figures", "images_2", "images_2/figures", "")


class PmcVqaOptions(Options):
    """Settings of the PMC-VQA converter."""

    version: Literal["auto", "1", "2"] = Field("auto", description="which tables; auto: version 1 if it is there")
    form: Literal["closed", "open", "both"] = Field("closed", description="ask with choices, without, or each way")


def run(job: Job) -> Rows:
    """Yield the test questions, then the training questions, of one version."""
    found = {
        version: {job.find(name)[0]: split for name, split in tables.items() if job.find(name)}
        for version, tables in TABLES.items()
    }
    there = [version for version, tables in found.items() if tables]
    version = job.options.version if job.options.version != "auto" else next(iter(there), "1")
    if not found[version]:
        raise DataError(f"{job.source} holds no table of version {version}. Expected: {PMC_VQA.layout}")
    if len(there) > 1:
        job.report.note(f"Version {version} was converted. The other version is there, too (--set version=).")
    if version == "1":
        job.report.note("test_clean is a checked part of test: score one of them, and train on neither.")
    yield from _tables(job, found[version])


def _tables(job: Job, tables: dict[Path, str]) -> Rows:
    tested: set[str] = set()
    shared: set[str] = set()
    for table, split in tables.items():
        for number, row in enumerate(job.rows(table, _COLUMNS)):
            article = row["Figure_path"].split("_")[0]
            if split != "train":
                tested.add(article)
            elif article in tested:
                shared.add(article)
            yield from ((split, record) for record in _records(job, table, split, number, row))
    if shared:
        job.report.note(f"{len(shared)} of {len(tested)} articles with test figures have figures in training, too.")


def _records(job: Job, table: Path, split: str, number: int, row: dict[str, str]) -> Iterator[Record]:
    figure = row["Figure_path"]
    identifier = f"pmcvqa-{table.stem}-{row.get('index') or number}"
    if not figure:
        job.report.fault("row without a figure", identifier)
        return
    path = relative_media(job, *(table.parent / folder / figure for folder in _FOLDERS))
    if path is None:
        return
    options = {letter: option_text(letter, row[f"Choice {letter}"]) for letter in LETTERS}
    answer = row.get("Answer_label") or row.get("Answer") or row.get("Anwser") or ""
    facts: dict[str, Any] = {"image": path, "evaluation": split != "train", "patient": figure.split("_")[0]}
    if job.options.form in ("closed", "both"):
        suffix = "-closed" if job.options.form == "both" else ""
        record = choice_record(job, identifier + suffix, row["Question"], options, answer, **facts)
        if record is not None:
            yield record
    if job.options.form in ("open", "both"):
        suffix = "-open" if job.options.form == "both" else ""
        yield from _open(job, identifier + suffix, row["Question"], options, answer, facts)


def _open(
    job: Job, identifier: str, question: str, options: dict[str, str], answer: str, facts: dict[str, Any]
) -> Iterator[Record]:
    """Yield the question without its options; the text of the right option is the answer."""
    letter = choice_letter(answer, {letter: text for letter, text in options.items() if text})
    if not question or letter is None:
        job.report.fault("question without a text, or answer that is none of the options", identifier)
        return
    text = options[letter]
    kind = "CLOSED" if yes_or_no(text) else "OPEN"
    yield qa_record(identifier, " ".join(question.split()), text, task="vqa", answer_type=kind, **facts)


PMC_VQA = DATASETS.add(
    "pmc-vqa",
    Converter(
        name="pmc-vqa",
        title="PMC-VQA (Zhang et al., 2023)",
        license="No license on the card that we read; the figures belong to their PubMed Central articles: check before use.",
        homepage="https://huggingface.co/datasets/RadGenome/PMC-VQA",
        layout="train.csv, test.csv, test_clean.csv and images/ (version 1); train_2.csv, test_2.csv and figures/ (version 2).",
        run=run,
        options=PmcVqaOptions,
    ),
)
