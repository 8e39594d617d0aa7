"""3D-RAD: open and closed questions, and test volumes under CT-RATE's names."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import question, run, write_csv
from .test_radgenome_chestct import write_volume

HEAD = [
    *("Task", "Subtask", "VolumeName", "Question", "Answer", "QuestionType", "AnswerChoice"),
    *("Choice A", "Choice B", "Choice C", "Choice D"),
]
LESIONS = [
    "Refractory Lesion (persistent)",
    "Resolved Lesion (now absent)",
    "New Lesion (now present)",
    "No Abnormality",
]


@pytest.fixture(params=["", "3DRAD"])
def source(request, tmp_path):
    tables = tmp_path / "3drad" / request.param
    thick = [3, 3, "train_5_a_1.nii.gz", "How thick is the effusion?", "14 mm", "Open", "-", "-", "-", "-", "-"]
    write_csv(tables / "train/Task3_Medical_Computation/Thickness.csv", [HEAD, thick])
    asked = [
        4,
        2,
        "test_9_a_1.nii.gz",
        "Does the CT scan exhibit atelectasis?",
        "No",
        "Close",
        "B",
        "Yes",
        "No",
        "-",
        "-",
    ]
    odd = [*asked[:5], "Perhaps", *asked[6:]]
    gone = [*asked[:2], "test_99_a_1.nii.gz", *asked[3:]]
    write_csv(tables / "test/Task4_Existence_Detection/Atelectasis.csv", [HEAD, asked, odd, gone])
    change = [5, 4, "test_9_a_1.nii.gz", "How is the hernia?", LESIONS[1], "Close", "B", *LESIONS]
    write_csv(tables / "test/Task5_Static_Temporal_Diagnosis/e.csv", [HEAD, change])
    write_volume(tmp_path / "3drad/CT-RATE/dataset/train_fixed/train_5/train_5_a/train_5_a_1.nii.gz")
    write_volume(tmp_path / "3drad/CT-RATE/dataset/valid_fixed/valid_9/valid_9_a/valid_9_a_1.nii.gz")
    return tmp_path / "3drad"


def test_questions_keep_their_form_and_volume(source, tmp_path) -> None:
    records, result = run("3d-rad", source, tmp_path / "out")
    (opened,) = records["train"]
    assert (opened["conversations"][1]["value"], opened["answer_type"]) == ("14 mm", "OPEN")
    assert (opened["question_type"], opened["subtask"]) == ("Medical_Computation", "Thickness")
    exists, change = records["test"]
    assert question(exists) == "<image3d>\nDoes the CT scan exhibit atelectasis? (a) Yes (b) No"
    assert (exists["answer"], exists["answer_choice"], exists["task"]) == ("(b) No", "B", "choice")
    assert (exists["patient"], exists["scan"]) == ("valid_9", "valid_9_a")
    assert exists["image3d"] == ["CT-RATE/dataset/valid_fixed/valid_9/valid_9_a/valid_9_a_1.nii.gz"]
    assert change["answer"] == "(b) Resolved Lesion (now absent)"
    assert result.report.faults == {"QuestionType is neither Open nor Close": 1, "volume is missing": 1}


def test_tasks_can_be_chosen(source, tmp_path) -> None:
    records, _ = run("3d-rad", source, tmp_path / "out", tasks="5")
    assert set(records) == {"test"}
    with pytest.raises(DataError, match="no task"):
        run("3d-rad", source, tmp_path / "out2", tasks="7")


def test_tables_alone_are_refused(tmp_path) -> None:
    write_csv(tmp_path / "train/Task3_Medical_Computation/Thickness.csv", [HEAD])
    with pytest.raises(DataError, match="no volumes of CT-RATE"):
        run("3d-rad", tmp_path, tmp_path / "out")
