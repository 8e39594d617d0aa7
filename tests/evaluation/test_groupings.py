"""Scores by finding, object, language and wording, with the controls, in results, table, report and terminal."""

from __future__ import annotations

import pytest

from medmvl.evaluation import EvaluationOptions, evaluate_predictions
from medmvl.evaluation.headline import headline, weakest
from medmvl.evaluation.report import write_report
from medmvl.files import read_json, write_json, write_jsonl
from medmvl.phantoms import ct_rate, draw_patient, slake
from medmvl.phantoms.texts import finding_asked, is_new_wording

CLOSED = {"task": "vqa", "answer_type": "CLOSED"}
HEART = [20, 10, 80, 50]


def row(identifier, question, answer, prediction, **extra):
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    return {"id": identifier, "conversations": turns, "answer": answer, "prediction": prediction, **extra}


@pytest.fixture(scope="module")
def rows():
    """Four patients: one nodule is missed, one answer in Chinese is wrong, boxes of nodules are bad."""
    rows = []
    for index in range(4):
        common = {"patient": f"p{index}", "image_size": [200, 100]}
        box = {"boxes": [HEART], **common}
        place = "{<10><10><50><60>}"
        rows += [
            row(f"{index}-a", "Is there a nodule in the lungs?", "Yes", "Yes" if index else "No", **CLOSED, **common),
            row(f"{index}-b", "Does the patient have cardiomegaly?", "No", "No", **CLOSED, **common),
            row(f"{index}-c", "Is the heart enlarged?", "No", "No", **CLOSED, **common),
            row(f"{index}-d", "是否有肺气肿？", "是", "是" if index else "否", language="zh", **CLOSED, **common),
            row(f"{index}-e", "Where is Heart?", place, place, task="refer", object="Heart", **box),
            row(f"{index}-f", "Where is Nodule?", place, "nowhere", task="refer", object="Nodule", **box),
            row(f"{index}-g", "What is at {<10><10><50><60>}?", "Heart", "Heart", task="identify", object="Heart", **common),
        ]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groupings")
    write_jsonl(folder / "p.jsonl", rows)
    control = [{**one, "prediction": one["answer"] if one["task"] == "identify" else "No"} for one in rows]
    write_jsonl(folder / "s.jsonl", control)
    evaluate_predictions(folder / "p.jsonl", "phantom-2d", folder / "out", {"shuffled": folder / "s.jsonl"})
    return folder / "out"


def test_every_question_about_a_phantom_names_its_finding():
    for index in range(60):
        patient = draw_patient(5, index)
        asked = [*slake.questions(patient, new_wordings=True)]
        asked += [one for found in ct_rate.questions(patient, new_wordings=True).values() for one in found]
        for one in asked:
            if one.finding is not None:
                assert finding_asked(one.text) == one.finding, one.text
        assert {None} == {finding_asked(one.text) for one in asked if one.content in ("Modality", "Plane", "Report")}


def test_new_wordings_are_those_of_held_out_patients():
    def closed(new):
        patients = [draw_patient(6, index) for index in range(60)]
        asked = [one for patient in patients for one in slake.questions(patient, new_wordings=new)]
        asked += [one for patient in patients for one in ct_rate.questions(patient, new_wordings=new)["short_answer"]]
        return [one.text for one in asked if one.closed]

    assert not any(map(is_new_wording, closed(False)))
    new = [text for text in closed(True) if is_new_wording(text)]
    assert {text.split()[0] for text in new} == {"Does", "Is"}
    assert 0.1 < len(new) / len(closed(True)) < 0.5


def test_scores_by_group_hold_n_and_the_controls(folder):
    groups = read_json(folder / "results.json")["benchmarks"]["phantom-2d"]["groupings"]
    nodule = groups["finding"]["lung nodule"]["closed_accuracy"]
    assert (nodule["value"], nodule["n"], nodule["controls"]["shuffled"]) == (0.75, 4, 0.0)
    assert groups["finding"]["cardiomegaly"]["closed_accuracy"]["n"] == 8
    assert groups["language"]["Chinese"]["closed_accuracy"]["value"] == 0.75
    assert groups["wording"]["new wording"]["closed_accuracy"]["n"] == 4
    assert groups["object"]["Nodule"]["miou"]["value"] == 0
    assert groups["object"]["Heart"]["miou"]["value"] == pytest.approx(1)
    assert groups["object"]["Heart"]["accuracy"]["controls"] == {"shuffled": 1.0, "majority": 1.0}


def test_groups_add_up_to_the_whole(folder):
    entry = read_json(folder / "results.json")["benchmarks"]["phantom-2d"]
    for key, grouping in (("closed_accuracy", "finding"), ("closed_accuracy", "wording"), ("miou", "object")):
        scores = [found[key] for found in entry["groupings"][grouping].values() if key in found]
        assert sum(score["n"] for score in scores) == entry["model"][key]["n"]
        mean = sum(score["value"] * score["n"] for score in scores) / sum(score["n"] for score in scores)
        assert mean == pytest.approx(entry["model"][key]["value"])


def test_table_and_report_show_the_groups(folder):
    table = (folder / "table.md").read_text()
    assert "| Nodule | miou | 4 | 0.000 [0.00, 0.00] | 0.000 | 1.000 | +0.000 |" in table
    assert "| Heart | accuracy |" not in table
    assert "Without the right picture accuracy is 1.000 as well, so that it shows nothing: Heart (n = 4)." in table
    page = (folder / "report.html").read_text()
    assert (
        "Without the right picture accuracy (equality) is 1.000 as well, so that it shows nothing: Heart (n = 4)."
        in page
    )
    for text in (table, page):
        assert "Only 4 patients: further patients may well score outside of the brackets" in text
        assert "An interval without width, such as [1.00, 1.00], arises if all answers are right" in text
    assert "the 16 closed of 28 questions about 4 patients" in page
    for heading in ("By finding", "By wording", "By language", "By object"):
        assert f"<h3>{heading}</h3>" in page
    assert page.index("<td>Nodule</td>") < page.index("<td>Heart</td>")  # the lowest first


def test_terminal_names_the_lowest_groups(folder):
    entry = read_json(folder / "results.json")["benchmarks"]["phantom-2d"]
    said = weakest(entry)
    assert "closed accuracy (strict): emphysema 0.750 (n = 4)" in said
    assert "Chinese 0.750 (n = 4)" in said
    assert "mean IoU: Nodule 0.000 (n = 4)" in said
    assert "accuracy (equality)" not in said  # all groups are equal
    assert "the 16 closed of 28 questions" in headline("phantom-2d", entry)


def test_results_of_an_earlier_version_still_make_a_report(folder, tmp_path):
    results = read_json(folder / "results.json")
    for key in ("groupings", "notes"):
        del results["benchmarks"]["phantom-2d"][key]
    del results["benchmarks"]["phantom-2d"]["counts"]["closed"]
    write_json(tmp_path / "results.json", results)
    assert "<h3>By finding</h3>" not in write_report(tmp_path).read_text()


def test_a_profile_drops_groups_of_columns_that_it_lacks(rows, tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [one for one in rows if one["task"] == "refer"])
    options = EvaluationOptions(profile="unimed-refer")
    entry = evaluate_predictions(tmp_path / "p.jsonl", "phantom-2d", tmp_path / "out", options=options)
    groups = entry["benchmarks"]["phantom-2d"]["groupings"]
    assert set(groups) == {"object"}
    assert set(groups["object"]["Heart"]) == {"miou"}
