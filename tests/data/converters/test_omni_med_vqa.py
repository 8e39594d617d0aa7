"""OmniMedVQA: questions of open and restricted data sets, and answers that are texts of options."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import picture, question, run, write_json


def item(number: int, image: str, **changes: object) -> dict[str, object]:
    """Return a question as OmniMedVQA writes it."""
    return {
        "dataset": "ACRIMA",
        "question_id": f"ACRIMA_{number:04d}",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was employed?",
        "gt_answer": "Fundus photography",
        "image_path": image,
        "option_A": "PET scan",
        "option_B": "CT scan",
        "option_C": "Fundus photography",
        "option_D": "MRI",
        "modality_type": "Fundus Photography",
    } | changes


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "OmniMedVQA"
    picture(root / "Images/ACRIMA/Im002_ACRIMA.png")
    two = item(2, "Images/ACRIMA/Im002_ACRIMA.png", gt_answer="No.", option_A="Yes", option_B="No.")
    del two["option_C"], two["option_D"]
    three = item(3, "Images/ACRIMA/Im002_ACRIMA.png", option_A="fundus photography", modality="Fundus")
    write_json(
        root / "QA_information/Open-access/ACRIMA.json",
        [item(1, "/Images/ACRIMA/Im002_ACRIMA.png"), two, three, item(4, "Images/ACRIMA/gone.png")],
    )
    write_json(root / "QA_information/Restricted-access/AIDA.json", [item(5, "AIDA/1.png", question_id="AIDA_0005")])
    return tmp_path


def test_questions_become_choices_of_the_test_split(source, tmp_path) -> None:
    records, result = run("omnimedvqa", source, tmp_path / "out")
    assert set(records) == {"test"}
    first, second = records["test"]
    assert question(first).endswith("(a) PET scan (b) CT scan (c) Fundus photography (d) MRI")
    assert (first["answer"], first["answer_choice"]) == ("(c) Fundus photography", "C")
    assert (first["modality"], first["dataset"]) == ("Fundus Photography", "ACRIMA")
    assert first["image"] == ["OmniMedVQA/Images/ACRIMA/Im002_ACRIMA.png"]
    assert (second["answer"], second["options"]) == ("(b) No.", {"A": "Yes", "B": "No."})
    assert result.report.faults == {"answer is none of the options, or more than one": 1, "image is missing": 1}
    assert any("Restricted-access: 1 files" in note for note in result.report.notes)


def test_restricted_images_that_are_absent_are_no_faults(source, tmp_path) -> None:
    with pytest.raises(DataError, match="No record came out"):
        run("omnimedvqa", source, tmp_path / "out", access="restricted")
    picture(source / "OmniMedVQA/AIDA/1.png")
    records, result = run("omnimedvqa", source, tmp_path / "out2", access="restricted")
    assert [r["id"] for r in records["test"]] == ["omnimedvqa-AIDA_0005"]
    assert result.report.faults == {}


def test_data_sets_and_training_share_can_be_chosen(source, tmp_path) -> None:
    records, result = run("omnimedvqa", source, tmp_path / "out", datasets="ACRIMA", test_share=0.0)
    assert set(records) == {"train"}
    assert any("drawn for 'train'" in note for note in result.report.notes)
    with pytest.raises(DataError, match="No questions about ACRIME"):
        run("omnimedvqa", source, tmp_path / "out2", datasets="ACRIME")
