"""A small export as hospitals make them: DICOM folders per patient, films as PNG, an Excel table of reports, a table of questions.

All of it is synthetic. The guides are typed with it, so that they need no data of their own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import openpyxl
from PIL import Image

from medmvl.data.synthetic import write_note
from medmvl.files import PathLike, atomic_directory, check_new_folder
from medmvl.phantoms import texts
from medmvl.phantoms.dicom import write_dicom_radiograph, write_dicom_series
from medmvl.phantoms.findings import FINDINGS
from medmvl.phantoms.phantom import Phantom, draw_patient
from medmvl.progress_bar import track

#: (D, H, W) of the CTs in voxels, and side of the films in pixels.
CT_SIZE, FILM_SIZE = (32, 96, 96), 128
#: Another cohort than the quickstart's, whose model has seen its own.
DEFAULT_SEED = 2026
STUDY_COLUMNS = ("MRN", "Sex", "Age", "Film", "CT", "Report")
QUESTION_COLUMNS = ("MRN", "CT", "Question", "Answer")
README = """
MedM-VL drew the patients, nobody was examined.

dicom/<MRN>/ct       a chest CT, one DICOM file per slice, numbered in no order
dicom/<MRN>/cr       the radiograph of the same patient
films/<MRN>.png      the radiograph as a picture
studies.xlsx         a row per patient, with the report
questions.csv        questions about the CTs, with their answers
"""


def write_sample_export(target: PathLike, patients: int = 24, seed: int = DEFAULT_SEED) -> Path:
    """Write the export into a new folder and return it; equal arguments give equal pixels and texts.

    Args:
        target: must not exist, or be empty.
        patients: how many; the findings are balanced for even numbers.
        seed: of the patients.

    Raises:
        OutputError: if `target` holds something.
    """
    target = Path(target)
    check_new_folder(target)
    cohort = [draw_patient(seed, index, CT_SIZE, FILM_SIZE) for index in range(patients)]
    with atomic_directory(target) as folder:
        (folder / "films").mkdir()
        for phantom in track(cohort, "patients"):
            write_dicom_series(folder / "dicom" / phantom.patient / "ct", phantom, shuffle=True)
            write_dicom_radiograph(folder / "dicom" / phantom.patient / "cr" / "film.dcm", phantom)
            Image.fromarray(phantom.radiograph).save(folder / _film(phantom))
        _write_studies(folder / "studies.xlsx", cohort)
        with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([QUESTION_COLUMNS, *(row for phantom in cohort for row in _questions(phantom))])
        write_note(folder, "a hospital's export", README)
    return target


def _film(phantom: Phantom) -> str:
    return f"films/{phantom.patient}.png"


def _ct(phantom: Phantom) -> str:
    return f"dicom/{phantom.patient}/ct"


def _write_studies(path: Path, cohort: list[Phantom]) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "studies"
    sheet.append(STUDY_COLUMNS)
    for phantom in cohort:
        sheet.append((phantom.patient, phantom.sex, phantom.age, _film(phantom), _ct(phantom), phantom.report.text))
    book.save(path)


def _questions(phantom: Phantom) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each closed question about the CT."""
    rng = phantom.text_rng()
    asked = [
        *texts.yes_no(phantom.findings, tuple(FINDINGS), "scan", rng),
        *texts.which_side(phantom.findings, tuple(FINDINGS), rng),
    ]
    for question in asked:
        yield phantom.patient, _ct(phantom), question.text, question.answer
