"""BIMCV-R: reports in two languages, and volumes paired with another patient's report."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import question, run, write_csv
from .test_radgenome_chestct import write_volume

HEAD = ["PatientID", "ReportID", "Report", "Labels", "num", "path", "Report_en", "ct_path"]
ROOT = "/raid/BIMCV-COVID19-cIter_1_2_3/covid19_posi"


def row(patient: str, session: str, file: str, **changes: object) -> list[object]:
    """Return a row of BIMCV-R.csv whose report is of `patient` and `session`."""
    folder = f"{ROOT}/{patient}/{session}/mod-rx"
    cells = dict(zip(HEAD, [patient, session, "Sin derrame.", "['nodule', ' pneumonia', '']", 2.0], strict=False))
    cells |= {"path": folder, "Report_en": "No  spill.", "ct_path": f"{folder}/{file}"} | changes
    return [cells[name] for name in HEAD]


@pytest.fixture
def source(tmp_path):
    names = [f"sub-S{n}_ses-E{n}_run-1_bp-chest_ct.nii.gz" for n in range(1, 5)]
    for number, name in enumerate(names):
        write_volume(tmp_path / (f"CT1/ct/{name}" if number % 2 else f"CT2/{name}"))
    rows = [row(f"sub-S{n}", f"ses-E{n}", names[n - 1]) for n in range(1, 4)]
    rows.append(row("sub-S1", "ses-E9", names[3]))
    rows.append(row("sub-S5", "ses-E5", "sub-S5_ses-E5_run-1_bp-chest_ct.nii.gz"))
    rows.append(row("sub-S3", "ses-E3", names[2], Report_en="", ct_path=f"{ROOT}/sub-S3_ses-E3_x.nii.gz"))
    rows.append(row("sub-S3", "ses-E3", "", ct_path="", path=ROOT))
    write_csv(tmp_path / "BIMCV-R.csv", [HEAD, *rows])
    return tmp_path


def test_reports_of_other_patients_are_left_out(source, tmp_path) -> None:
    records, result = run("bimcv-r", source, tmp_path / "out", test_share=1.0)
    assert [r["patient"] for r in records["test"]] == ["sub-S1", "sub-S2", "sub-S3"]
    first = records["test"][0]
    assert question(first) == "<image3d>\nGenerate a radiology report for the CT."
    assert (first["answer"], first["study"]) == ("No spill.", "sub-S1_ses-E1")
    assert first["finding_labels"] == ["nodule", "pneumonia"]
    assert first["image3d"] == ["CT2/sub-S1_ses-E1_run-1_bp-chest_ct.nii.gz"]
    assert result.report.left_out == {"volume of another patient or session than its report": 1}
    assert result.report.faults == {
        "volume is missing": 1,
        "report is empty": 1,
        "row without a volume or a patient": 1,
    }


def test_mismatched_rows_and_spanish_can_be_asked_for(source, tmp_path) -> None:
    records, result = run("bimcv-r", source, tmp_path / "out", mismatched="keep", language="es", test_share=0.0)
    assert len(records["train"]) == 4
    assert {r["conversations"][1]["value"] for r in records["train"]} == {"Sin derrame."}
    assert result.report.left_out == {}


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"BIMCV-R\.csv"):
        run("bimcv-r", tmp_path, tmp_path / "out")
