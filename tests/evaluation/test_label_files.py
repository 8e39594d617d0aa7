"""Label files from outside: CT-RATE's table, CheXpert's empty cells, JSON; what does not match is named."""

from __future__ import annotations

import json

import pytest

from medmvl.errors import EvaluationError
from medmvl.evaluation import EvaluationOptions, evaluate_predictions
from medmvl.evaluation.items import Faults
from medmvl.evaluation.label_files import attach_labels, read_label_file
from medmvl.files import write_jsonl


def test_ct_rate_and_chexpert_tables(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffVolumeName,Lung nodule,Emphysema\nvalid_1_a_1.nii.gz,1,0\nvalid_2_a_1.nii.gz,,-1.0\n")
    assert read_label_file(path) == {
        "valid_1_a_1.nii.gz": {"Lung nodule": 1, "Emphysema": 0},
        "valid_2_a_1.nii.gz": {"Lung nodule": 0, "Emphysema": -1},
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("a.csv", "key,Edema\nx,maybe\n", "'maybe', not a number"), ("a.csv", "key\nx\n", "at least one finding"),
     ("a.json", "[]", "holds no labels")],
)  # fmt: skip
def test_what_is_no_table_of_labels(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_label_file(tmp_path / name)


def test_keys_may_be_ids_or_file_names(item):
    items = [
        item("", "a", id="q1"),
        item("", "b", id="q2", image3d=["dataset/valid/valid_1_a_1.nii.gz"]),
        item("", "c", id="q3", image="p/s.jpg"),
        item("", "d", id="q4"),
    ]
    table = {"q1": {"Edema": 1.0}, "valid_1_a_1": {"Edema": 2.0}, "s.jpg": {"Edema": 3.0}}
    faults = Faults()
    found = attach_labels(items, table, "labels", faults, "true labels")
    assert [row.record.get("labels", {}).get("Edema") for row in found] == [1, 2, 3, None]
    assert faults.found == {"no true labels in the label file": ["q4"]}


def test_outside_labels_are_scored(tmp_path):
    rows = [
        {"id": f"r{n}", "conversations": [{"from": "human", "value": "Report."}, {"from": "gpt", "value": "x"}],
         "prediction": "nothing said", "task": "report", "patient": str(n)}
        for n in range(4)
    ]  # fmt: skip
    write_jsonl(tmp_path / "p.jsonl", rows)
    (tmp_path / "true.json").write_text(json.dumps({f"r{n}": {"Emphysema": n % 2} for n in range(4)}))
    (tmp_path / "said.json").write_text(json.dumps({f"r{n}": {"Emphysema": int(n == 1)} for n in range(4)}))
    results = evaluate_predictions(
        tmp_path / "p.jsonl", "phantom-ct", tmp_path / "out",
        options=EvaluationOptions(labels=tmp_path / "true.json", predicted_labels=tmp_path / "said.json"),
    )  # fmt: skip
    assert results["benchmarks"]["phantom-ct"]["model"]["label_f1_micro"]["value"] == pytest.approx(2 / 3)
