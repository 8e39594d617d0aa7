"""Phantoms of the quickstart, drawn in the layouts of two public data sets.

Two processes draw, and begin at once: this module imports nothing that needs torch.
"""

from __future__ import annotations

from PIL import Image

from medmvl.data.synthetic import is_synthetic
from medmvl.experiments.quickstart.place import Quickstart
from medmvl.experiments.quickstart.processes import in_parallel
from medmvl.files import atomic_directory, write_text
from medmvl.phantoms import Phantom, split_patients, write_ct_rate, write_dicom_series, write_slake
from medmvl.progress_bar import progress_bar

#: Patients per split.
PATIENTS = {"train": 1000, "val": 4, "test": 60}
SCAN = (24, 72, 72)
RADIOGRAPH = 96

#: Folders of the patients that are drawn, below the raw data.
_DRAWN = ("slake/imgs/*", "ct-rate/dataset/*_fixed/*")


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
