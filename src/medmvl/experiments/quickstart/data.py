"""Records of the quickstart: its drawn data sets, converted as the public ones that they imitate, and captions."""

from __future__ import annotations

from medmvl.data.converters import convert
from medmvl.errors import DataError
from medmvl.experiments.quickstart.drawing import RADIOGRAPH, SCAN, patient_counts
from medmvl.experiments.quickstart.place import Quickstart
from medmvl.phantoms import split_patients
from medmvl.phantoms.warmup_texts import write_captions, write_closed
from medmvl.processing.cache import build_cache
from medmvl.progress_bar import progress_bar
from medmvl.training.build import volume_geometry
from medmvl.training.recipe import Recipe

SLAKE_TASKS = ("vqa", "refer", "identify")
CT_RATE_TASKS = ("short", "long", "choice", "report")


def convert_all(place: Quickstart) -> None:
    """Convert both data sets, with a separate file for each kind of task, so that the recipe can weight them.

    Training records hold all questions about a picture, test records one each; the test files hold every task.
    """
    for source, benchmark, tasks in (("slake", "phantom-2d", SLAKE_TASKS), ("ct-rate", "phantom-ct", CT_RATE_TASKS)):
        options = {"multi_turn": True, "turns": 20, "language": "all"} if source == "slake" else {}
        for task in tasks:
            convert(source, place.raw / source, place.data / f"{benchmark}-{task}", options={**options, "tasks": task})
        every = convert(
            source, place.raw / source, place.data / benchmark, options={**options, "tasks": ",".join(tasks)}
        )
        held_out = every.files.get("test") or every.files["valid"]  # the paper tests on CT-RATE's valid split
        held_out.replace(place.data / benchmark / "test.jsonl")


def write_warmup(place: Quickstart, seed: int, scale: float) -> None:
    """Write the records that no data set has: captions, and the closed questions alone."""
    patients = split_patients(seed, patient_counts(scale), SCAN, RADIOGRAPH)["train"]
    radiographs, scans = (place.data / name / "train.jsonl" for name in ("phantom-2d-vqa", "phantom-ct-report"))
    write_captions(place.data, patients, radiographs, scans)
    write_closed(radiographs, place.data / "radiograph-closed.jsonl")
    write_closed(place.data / "phantom-ct-short" / "train.jsonl", place.data / "ct-closed.jsonl")


def prepare_volumes(place: Quickstart, recipe: Recipe) -> None:
    """Read and resample every training volume once, in two processes; all stages take the results.

    Args:
        place: where the volumes are and go.
        recipe: with the volume tower that they are prepared for.
    """
    assert recipe.model.volume is not None
    with progress_bar("volumes") as bar:
        report = build_cache(
            place.data / "ct-captions.jsonl",
            volume_geometry(recipe.model.volume),
            place.prepared,
            roots=place.media,
            workers=2,
            on_volume=bar.advance,
        )
    if report.failures:
        raise DataError(
            f"{len(report.failures)} drawn volumes cannot be read; {place.prepared}/failures.jsonl says why."
        )
