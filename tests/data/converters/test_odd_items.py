"""Odd items in the sources of the newer converters are counted, and the others are converted."""

from __future__ import annotations

import json

import pytest

from .helpers import run, write_csv, write_json
from .test_chexpert_plus import source as chexpert_source  # noqa: F401  (a fixture)
from .test_ms_cxr import HEAD, ms_cxr, ms_row  # noqa: F401  (a fixture)
from .test_omni_med_vqa import source as omni_source  # noqa: F401  (a fixture)
from .test_padchest_gr import padchest  # noqa: F401  (a fixture)
from .test_quilt_vqa import release as quilt_release  # noqa: F401  (a fixture)
from .test_rexgroundingct import source as rex_source  # noqa: F401  (a fixture)
from .test_vqa_rad import release as vqa_rad_release  # noqa: F401  (a fixture)

ODD = [None, 3, "text", ["list"]]


@pytest.mark.parametrize(
    ("name", "fixture", "file"),
    [
        ("vqa-rad", "vqa_rad_release", "osfstorage/VQA_RAD Dataset Public.json"),
        ("omnimedvqa", "omni_source", "OmniMedVQA/QA_information/Open-access/ACRIMA.json"),
        ("padchest-gr", "padchest", "grounded_reports_20240819.json"),
        ("quilt-vqa", "quilt_release", "quiltvqa_test_w_ans.json"),
    ],
)
def test_items_of_other_types_are_faults(name, fixture, file, request, tmp_path) -> None:
    path = request.getfixturevalue(fixture) / file
    plain, _ = run(name, request.getfixturevalue(fixture), tmp_path / "plain")
    write_json(path, [*json.loads(path.read_text(encoding="utf-8")), *ODD])
    records, result = run(name, request.getfixturevalue(fixture), tmp_path / "odd")
    assert records == plain
    assert result.report.faults["item is not an object with keys"] == len(ODD)


def test_findings_without_numbers_are_faults(rex_source, tmp_path) -> None:  # noqa: F811
    path = rex_source / "dataset.json"
    splits = json.loads(path.read_text(encoding="utf-8"))
    splits["train"] += [{"name": "train_1_a_1.nii.gz", "findings": {"first": "x"}}, {"findings": ["x"]}, None]
    write_json(path, splits)
    records, result = run("rexgroundingct", rex_source, tmp_path / "out")
    assert len(records["train"]) == 4
    assert result.report.faults["item without numbered findings"] == 2
    assert result.report.faults["item is not an object with keys"] == 1


def test_boxes_without_numbers_are_faults(ms_cxr, tmp_path) -> None:  # noqa: F811
    rows = [ms_row(1, "good", (0, 0, 9, 9)), ms_row(1, "bad", ("", 0, 9, 9)), ms_row(1, "odd", ("nan", 0, 9, 9))]  # type: ignore[arg-type]
    write_csv(ms_cxr / "MS_CXR_Local_Alignment_v1.1.0.csv", [HEAD, *rows])
    records, result = run("ms-cxr", ms_cxr, tmp_path / "out")
    assert len(records["test"]) == 2
    assert result.report.faults == {"box or image size is not a number": 2}


def test_labels_without_numbers_are_faults(chexpert_source, tmp_path) -> None:  # noqa: F811
    file = chexpert_source / "chexbert_labels/report_fixed.json"
    odd = {"path_to_image": "valid/patient64541/study1/view1_frontal.jpg", "Edema": "present"}
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(odd) + "\n[1]\n")
    records, result = run("chexpert-plus", chexpert_source, tmp_path / "out")
    assert "labels" in records["train"][0]
    assert "labels" not in records["validation"][0]
    assert result.report.faults["label is not a number"] == 1
    assert result.report.faults["item is not an object with keys"] == 1
