"""Data of the quickstart: phantoms, drawn and converted as the public data sets that they imitate."""

from __future__ import annotations

from PIL import Image

from medmvl.data.converters import convert
from medmvl.data.synthetic import is_synthetic
from medmvl.errors import DataError
from medmvl.experiments.quickstart.place import Quickstart
from medmvl.experiments.quickstart.processes import in_parallel
from medmvl.files import atomic_directory, write_text
from medmvl.phantoms import Phantom, split_patients, write_ct_rate, write_dicom_series, write_slake
from medmvl.phantoms.warmup_texts import write_captions, write_closed
from medmvl.processing.cache import build_cache
from medmvl.progress_bar import progress_bar
from medmvl.training.build import volume_geometry
from medmvl.training.recipe import Recipe

#: Patients per split.
PATIENTS = {"train": 1000, "val": 4, "test": 60}
SCAN = (24, 72, 72)
RADIOGRAPH = 96

#: Folders of the patients that are drawn, below the raw data.
_DRAWN = ("slake/imgs/*", "ct-rate/dataset/*_fixed/*")
SLAKE_TASKS = ("vqa", "refer", "identify")
CT_RATE_TASKS = ("short", "long", "choice", "report")


def patient_counts(scale: float) -> dict[str, int]:
    """Return the number of patients per split; even, because phantoms come in pairs of opposite findings."""
    return {name: max(2, round(count * scale / 2) * 2) for name, count in PATIENTS.items()}


def draw(place: Quickstart, seed: int, scale: float = 1.0) -> None:
    """Draw the phantoms and write them in the layouts of the public data sets, and one patient as an example.

    The two data sets are drawn by two processes; complete parts are kept.
    """
    counts = patient_counts(scale)
    total = 2 * sum(counts.values()) - counts["val"]  # CT-RATE has no such split
    with progress_bar("radiographs and scans", total) as bar:
        in_parallel(
            [(write, place, seed, counts) for write in (_write_radiographs, _write_scans)],
            lambda: bar.update(sum(1 for pattern in _DRAWN for _ in place.raw.glob(pattern))),
        )


def _write_radiographs(place: Quickstart, seed: int, counts: dict[str, int]) -> None:
    if not is_synthetic(place.raw / "slake"):  # the note is written last
        write_slake(place.raw / "slake", split_patients(seed, counts, SCAN, RADIOGRAPH))


def _write_scans(place: Quickstart, seed: int, counts: dict[str, int]) -> None:
    patients = split_patients(seed, counts, SCAN, RADIOGRAPH)
    if not is_synthetic(place.raw / "ct-rate"):
        write_ct_rate(place.raw / "ct-rate", {"train": patients["train"], "valid": patients["test"]})
    if not place.dicom.exists():  # written last
        _write_example(place, patients["test"][0])


def _write_example(place: Quickstart, patient: Phantom) -> None:
    """Write one held-out patient's radiograph, true report and CT."""
    Image.fromarray(patient.radiograph).save(place.radiograph)
    write_text(place.report, patient.report.text + "\n")
    with atomic_directory(place.dicom) as folder:
        write_dicom_series(folder, patient)


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
