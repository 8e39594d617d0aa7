"""The main job, end to end, on a laptop: draw, convert, train in stages, predict, score, report.

Everything a real project does is done here by the same code, only smaller: the phantoms are written in the layouts of
SLAKE and CT-RATE and go through their converters, the recipe trains a model with both towers, and the held-out patients
are scored together with two controls that do not see the right picture.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from medmvl.data.converters import convert
from medmvl.data.roots import MediaRoots
from medmvl.data.synthetic import is_synthetic
from medmvl.errors import RecipeError
from medmvl.evaluation import EvaluationOptions
from medmvl.evaluation.evaluate_model import PREDICTIONS, answer_benchmark, score_benchmark
from medmvl.files import PathLike, write_json
from medmvl.inference import GenerationOptions
from medmvl.phantoms import split_patients, write_ct_rate, write_dicom_series, write_slake
from medmvl.phantoms.warmup_texts import write_captions, write_closed, write_text_only_patients
from medmvl.progress_bar import progress_bar
from medmvl.training.acceleration.muon import require_muon
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train

#: Patients per split.
PATIENTS = {"train": 1000, "val": 4, "test": 60}
#: Patients that are described in words only.
TEXT_ONLY_PATIENTS = 4000
SCAN = (24, 72, 72)
RADIOGRAPH = 96

BENCHMARKS = ("phantom-2d", "phantom-ct")
CONTROLS = ("blank", "shuffled")
#: Folders of the patients that are drawn, below the raw data.
_DRAWN = ("slake/imgs/*", "ct-rate/dataset/*_fixed/*")
SLAKE_TASKS = ("vqa", "refer", "identify")
CT_RATE_TASKS = ("short", "long", "choice", "report")


@dataclass(frozen=True)
class Quickstart:
    """Paths of a quickstart.

    Attributes:
        root: the run folder.
    """

    root: Path

    @property
    def raw(self) -> Path:
        """The drawn data sets, as if downloaded."""
        return self.root / "raw"

    @property
    def data(self) -> Path:
        """The records."""
        return self.root / "data"

    @property
    def model(self) -> Path:
        """The finished checkpoint."""
        return self.root / "model"

    @property
    def media(self) -> MediaRoots:
        """The folders of the drawn pictures and scans."""
        return MediaRoots(self.raw / "slake", self.raw / "ct-rate")

    @property
    def dicom(self) -> Path:
        """One held-out CT as a DICOM series, to try `medmvl ask` on."""
        return self.root / "example-dicom"


def quickstart(
    out: PathLike = "runs/quickstart", seed: int = 0, *, scale: float = 1.0, console: Console | None = None
) -> dict[str, Any]:
    """Run the quickstart and return the content of results.json.

    Resumes an unfinished quickstart of the same seed and scale in `out`.

    Args:
        out: the run folder: raw/, data/, the stages, model/, log.jsonl, results.json, report.html.
        seed: of the phantoms, the weights and the order of the data.
        scale: share of the patients and epochs; 0.05 is a smoke test.

    Raises:
        RecipeError: if `scale` is not in (0, 1].
        MissingExtraError: if torch is older than 2.9.
    """
    if not 0 < scale <= 1:
        raise RecipeError(f"The scale must be above 0 and at most 1, got {scale}.")
    require_muon()  # now, rather than after the drawing
    console = console or Console()
    place = Quickstart(Path(out))
    begun = time.monotonic()
    with _step(console, "1/5  Draw synthetic patients and write them as SLAKE and CT-RATE"):
        draw(place, seed, scale)
    with _step(console, "2/5  Convert both data sets to records"):
        convert_all(place)
        write_warmup(place, seed, scale)
    with _step(console, "3/5  Train in stages"):
        train(recipe(place, seed, scale), place.root, resume=True)
    with _step(
        console, "4/5  Answer questions about held-out patients, with the right picture, a blank and a wrong one"
    ):
        results = evaluate(place)
    minutes = (time.monotonic() - begun) / 60
    with _step(console, "5/5  Report"):
        write_json(place.root / "quickstart.json", {"seed": seed, "scale": scale, "minutes": round(minutes, 2)})
    _say_what_next(place, results, minutes, console)
    return results


def draw(place: Quickstart, seed: int, scale: float = 1.0) -> None:
    """Draw the phantoms and write them in the layouts of the public data sets, and one scan as DICOM.

    The two data sets are drawn by two processes; complete parts are kept.
    """
    counts = patient_counts(scale)
    spawn = multiprocessing.get_context("spawn")  # a forked torch process may hang
    total = 2 * sum(counts.values()) - counts["val"]  # CT-RATE has no such split
    with ProcessPoolExecutor(2, mp_context=spawn) as pool, progress_bar("radiographs and scans", total) as bar:
        jobs = [pool.submit(write, place, seed, counts) for write in (_write_radiographs, _write_scans)]
        while wait(jobs, timeout=1).not_done:  # the processes draw no bar
            bar.update(sum(1 for pattern in _DRAWN for _ in place.raw.glob(pattern)))
    for job in jobs:
        job.result()


def patient_counts(scale: float) -> dict[str, int]:
    """Return the number of patients per split; even, because phantoms come in pairs of opposite findings."""
    return {name: max(2, round(count * scale / 2) * 2) for name, count in PATIENTS.items()}


def _write_radiographs(place: Quickstart, seed: int, counts: dict[str, int]) -> None:
    if not is_synthetic(place.raw / "slake"):  # the note is written last
        write_slake(place.raw / "slake", split_patients(seed, counts, SCAN, RADIOGRAPH))


def _write_scans(place: Quickstart, seed: int, counts: dict[str, int]) -> None:
    patients = split_patients(seed, counts, SCAN, RADIOGRAPH)
    if not is_synthetic(place.raw / "ct-rate"):
        write_ct_rate(place.raw / "ct-rate", {"train": patients["train"], "valid": patients["test"]})
    if not place.dicom.exists():
        write_dicom_series(place.dicom, patients["test"][0])


def convert_all(place: Quickstart) -> None:
    """Convert both data sets, with a separate file for each kind of task, so that the recipe can weight them.

    Training records hold all questions about a picture, test records one each; the test files hold every task.
    """
    for source, benchmark, tasks in (("slake", "phantom-2d", SLAKE_TASKS), ("ct-rate", "phantom-ct", CT_RATE_TASKS)):
        options = {"multi_turn": True, "turns": 20} if source == "slake" else {}
        for task in tasks:
            convert(source, place.raw / source, place.data / f"{benchmark}-{task}", options={**options, "tasks": task})
        every = convert(
            source, place.raw / source, place.data / benchmark, options={**options, "tasks": ",".join(tasks)}
        )
        held_out = every.files.get("test") or every.files["valid"]  # the paper tests on CT-RATE's valid split
        held_out.replace(place.data / benchmark / "test.jsonl")


def write_warmup(place: Quickstart, seed: int, scale: float) -> None:
    """Write the records of the first stages: captions, closed questions, and patients in words only."""
    patients = split_patients(seed, patient_counts(scale), SCAN, RADIOGRAPH)["train"]
    radiographs, scans = (place.data / name / "train.jsonl" for name in ("phantom-2d-vqa", "phantom-ct-report"))
    write_captions(place.data, patients, radiographs, scans)
    write_closed(radiographs, place.data / "radiograph-closed.jsonl")
    write_closed(place.data / "phantom-ct-short" / "train.jsonl", place.data / "ct-closed.jsonl")
    write_text_only_patients(place.data / "text-only-patients.jsonl", seed, round(TEXT_ONLY_PATIENTS * scale))


def recipe(place: Quickstart, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Return the quickstart's recipe for this folder and seed."""
    text = resources.files("medmvl.experiments").joinpath("quickstart.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    settings |= {"seed": seed, "data_root": str(place.data)}
    for stage in settings["stages"]:
        stage["epochs"] = stage["epochs"] * scale
    return load_recipe(settings).to_dict()


def evaluate(place: Quickstart) -> dict[str, Any]:
    """Answer both benchmarks with and without the right picture, and score them into one folder.

    Two processes answer, with one thread each: kernels of a model this small are too short to be shared by threads.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool, progress_bar("answers", _questions(place)) as bar:
        jobs = [pool.submit(_answer, place, name) for name in BENCHMARKS]
        while wait(jobs, timeout=1).not_done:
            bar.update(_answers(place))
    for job in jobs:
        job.result()
    title = "MedM-VL quickstart: synthetic phantoms, no clinical meaning"
    options = EvaluationOptions(log=place.root / "log.jsonl", title=title)
    results = [score_benchmark(name, place.data, place.root, roots=place.media, options=options) for name in BENCHMARKS]
    return results[-1]


def _answer(place: Quickstart, benchmark: str) -> None:
    torch.set_num_threads(1)
    options = GenerationOptions(max_new_tokens=96)
    answer_benchmark(
        place.model,
        benchmark,
        place.data,
        place.root,
        CONTROLS,
        roots=place.media,
        generation=options,
        batch_size=32,
    )


def _questions(place: Quickstart) -> int:
    return (1 + len(CONTROLS)) * sum(_lines(place.data / name / "test.jsonl") for name in BENCHMARKS)


def _answers(place: Quickstart) -> int:
    return sum(map(_lines, (place.root / PREDICTIONS).glob("*.jsonl")))


def _lines(file: Path) -> int:
    with file.open("rb") as handle:
        return sum(1 for _ in handle)


@contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    console.print(f"[bold]{title}[/bold]")
    begun = time.monotonic()
    yield
    console.print(f"     done in {time.monotonic() - begun:.0f} s")


def _say_what_next(place: Quickstart, results: dict[str, Any], minutes: float, console: Console) -> None:
    for name in BENCHMARKS:
        found = results["benchmarks"][name]
        accuracy = found["model"]["closed_accuracy"]["value"]
        blind = ", ".join(
            f"{control} {found['controls'][control]['closed_accuracy']['value']:.1%}" for control in CONTROLS
        )
        console.print(f"{name}: closed accuracy [bold]{accuracy:.1%}[/bold] on held-out patients ({blind})")
    console.print(f"All of it took {minutes:.1f} minutes. Open [bold]{place.root / 'report.html'}[/bold]")
    console.print("\nWhat to run next:")
    ask = f'medmvl ask --model {place.model} --volume {place.dicom} "Is there a pleural effusion?"'
    for command, purpose in (
        (ask, "ask about a CT given as DICOM files; put your own folder there"),
        (f"medmvl demo --model {place.model}", "look and ask in the browser"),
        ("medmvl list recipes", "the recipes of real models"),
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
        console.print(f"      [dim]{purpose}[/dim]")
