"""Every benchmark is complete, finds its own records, and fills the paper's tables."""

from __future__ import annotations

import pytest

from medmvl.data.roots import media_root_of
from medmvl.errors import EvaluationError
from medmvl.evaluation import BENCHMARKS, EvaluationOptions, evaluate_predictions, expand_benchmarks
from medmvl.evaluation.evaluate_model import benchmark_records
from medmvl.evaluation.published import published_tables
from medmvl.evaluation.report import LABELS
from medmvl.evaluation.tasks import PROFILES, with_profile
from medmvl.files import iter_jsonl, write_json, write_jsonl

NAMES = {
    *("medmnist-derma", "medmnist-organs", "medpix", "mimic-cxr", "pathvqa", "samed-identify", "samed-refer"),
    *("slake-vqa", "slake-identify", "slake-refer", "ct-rate-long", "ct-rate-short", "ct-rate-choice"),
    *("ct-rate-report", "m3d-report", "m3d-vqa", "phantom-2d", "phantom-ct"),
}


def record(identifier, answer, prediction, **extra):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}]
    return {"id": identifier, "conversations": turns, "answer": answer, "prediction": prediction, **extra}


def score(tmp_path, benchmark, *rows, **options):
    write_jsonl(tmp_path / "p.jsonl", rows)
    return evaluate_predictions(
        tmp_path / "p.jsonl", benchmark, tmp_path / "out", options=EvaluationOptions(**options)
    )["benchmarks"][benchmark]


def test_the_promised_benchmarks_are_there():
    assert set(BENCHMARKS) >= NAMES
    assert sum(name.startswith("medmnist-") for name in BENCHMARKS) == 18


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_states_its_facts(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name
    assert all((benchmark.title, benchmark.about, benchmark.license, benchmark.files))
    assert {column.key for column in benchmark.columns} <= set(LABELS), "a column has no name for people"


def test_groups_expand_in_the_order_of_the_tables():
    assert expand_benchmarks(["paper-ct"]) == [f"ct-rate-{task}" for task in ("long", "short", "choice", "report")]
    assert len(expand_benchmarks(["paper-2d", "slake-vqa,pathvqa"])) == 10
    with pytest.raises(EvaluationError, match="Did you mean 'paper-2d'"):
        expand_benchmarks(["paper2d"])


@pytest.mark.parametrize("table", published_tables(), ids=lambda table: table.title)
def test_the_published_tables_are_well_formed(table):
    assert set(table.columns.values()) <= set(BENCHMARKS)
    assert all(len(cells) == len(table.columns) for _, cells, _ in table.rows)
    for own in table.own:
        for benchmark, key in zip(table.columns.values(), own.keys, strict=True):
            assert BENCHMARKS[benchmark].column(key)


def test_own_records_have_no_published_row(tmp_path):
    rows = [
        record("a", "Yes", "yes.", task="anything"),
        record("b", "Left lung", "the left lung"),
        record("c", "(b) Mild", "(b) Mild"),
    ]
    entry = score(tmp_path, "own", *rows)
    assert entry["counts"]["records"] == 3
    assert entry["model"]["closed_accuracy"]["value"] == 1.0
    assert entry["model"]["letter_accuracy"] == entry["model"]["letter_accuracy"] | {"value": 1.0, "n": 1}
    assert "this run" not in (tmp_path / "out" / "report.html").read_text()


def test_ct_rate_has_both_bleu_flavors_and_letters(tmp_path):
    rows = [
        record("a", "(b) Mild recessions", "(a) Severe recessions", task="choice"),
        record("b", "(a) None", "(a) None", task="choice"),
        record("c", "Yes", "Yes", task="short"),  # another benchmark's
    ]
    entry = score(tmp_path, "ct-rate-choice", *rows)
    model = entry["model"]
    assert entry["counts"]["records"] == 2
    assert entry["counts"]["other_records"] == 1
    assert model["bleu1"]["value"] == pytest.approx(
        (0.6 + 1) / 2
    )  # mean on 13a tokens: "(", ")", "recessions" are shared
    assert model["bleu1_coco_corpus"]["value"] == pytest.approx(3 / 5)  # "recessions", "(a)", "None" of 5 words
    assert model["letter_accuracy"]["value"] == 0.5
    table = (tmp_path / "out" / "table.md").read_text()
    assert "MedM-VL-CT-Chest, 2D-Attn" in table
    assert "this run, as the CT-CHAT rows" in table
    assert "0.600" in table


def test_slake_is_split_by_language_and_chinese_is_scored_by_character(tmp_path):
    rows = [
        record("e", "left lung", "lung", task="vqa", language="en"),
        record("z", "左肺", "右肺", task="vqa", language="zh"),
        record("y", "是", "是的", task="vqa", language="zh", answer_type="CLOSED"),
    ]
    english = score(tmp_path, "slake-vqa", *rows)
    assert english["model"]["bleu1"]["n"] == 1
    chinese = score(tmp_path, "slake-vqa-zh", *rows)
    assert chinese["counts"]["chinese"] == 2
    assert chinese["model"]["token_f1_unimed"]["value"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert chinese["model"]["rouge_l"]["value"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert chinese["model"]["closed_accuracy"]["value"] == 1
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "2 in Chinese, scored by character" in page


def test_medmnist_reads_its_own_subset_and_lists(tmp_path):
    labels = {"atelectasis": 1, "mass": 1, "nodule": 0}
    rows = [
        record("d", "melanoma", "Melanoma.", task="classify", dataset="dermamnist"),
        record("o", "left kidney", "right kidney", task="classify", dataset="organsmnist"),
        record("c", "atelectasis; mass", "mass; nodule", task="classify", dataset="chestmnist", labels=labels),
    ]
    assert score(tmp_path, "medmnist-derma", *rows)["model"]["accuracy"] == {"value": 1.0, "n": 1, "ci95": None}
    assert score(tmp_path, "medmnist-organs", *rows)["model"]["accuracy"]["value"] == 0
    assert score(tmp_path, "medmnist-chest", *rows)["model"]["label_f1_micro"]["value"] == pytest.approx(0.5)


def test_boxes_as_in_the_published_files(tmp_path):
    box = [[20, 10, 80, 50]]
    rows = [
        record("r1", "{<10><10><50><60>}", "{<10><10><50><60>}", task="refer", boxes=box, image_size=[200, 100]),
        record("r2", "[20, 10, 80, 50]", "The box is {<10><10><50><60>}", task="refer", image_size=[200, 100]),
        record("r3", "{<10><10><50><60>}", "", task="refer", image_size=[200, 100]),
    ]
    model = score(tmp_path, "samed-refer", *rows)["model"]
    assert model["miou"]["value"] == pytest.approx(2 / 3)
    assert model["miou_published"]["value"] == pytest.approx(1 / 3)  # the published rule wants the box first
    assert model["acc_iou50"]["value"] == pytest.approx(2 / 3)
    with pytest.raises(EvaluationError, match=r"'r4' is scored by boxes and has image_size = None"):
        score(tmp_path, "samed-refer", record("r4", "{<1><1><5><6>}", "", task="refer"))


def test_m3d_letters_and_words(tmp_path):
    rows = [
        record("a", "B. liver", "The answer is B. liver", task="vqa", answer_choice="B"),
        record("b", "spleen", "the spleen", task="vqa"),
    ]
    model = score(tmp_path, "m3d-vqa", *rows)["model"]
    assert model["letter_accuracy_published"] == {"value": 1.0, "n": 1, "ci95": None}
    assert model["bleu1"]["value"] == pytest.approx(0.5)


def test_m3d_mean_over_question_types(tmp_path):
    rows = [
        record("a", "axial", "axial", task="vqa", question_type="plane"),
        record("b", "axial", "coronal", task="vqa", question_type="plane"),
        record("c", "axial", "axial", task="vqa", question_type="plane"),
        record("d", "liver", "liver", task="vqa", question_type="organ"),
        record("e", "liver", "spleen", task="vqa"),  # has no type
        record("f", "B. liver", "B. liver", task="choice", answer_choice="B", question_type="organ"),
        record("g", "A. axial", "B. axial", task="choice", answer_choice="A", question_type="plane"),
        record("h", "A. axial", "B. axial", task="choice", answer_choice="A", question_type="plane"),
    ]
    model = score(tmp_path, "m3d-vqa", *rows)["model"]
    assert model["bleu1"]["value"] == pytest.approx(3 / 5)
    assert model["bleu1_over_types"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert model["bleu1_over_types"]["n"] == 4
    assert model["letter_accuracy"]["value"] == pytest.approx(1 / 3)
    assert model["letter_accuracy_over_types"]["value"] == pytest.approx(1 / 2)


def test_another_profile_changes_columns_and_headline(tmp_path):
    rows = [
        record("a", "left lung", "lung", task="vqa", answer_type="OPEN", language="en"),
        record("b", "no", "not seen", task="vqa", answer_type="CLOSED", language="en"),
    ]
    entry = score(tmp_path, "slake-vqa", *rows, profile="llava-med")
    assert entry["headline"] == "open_recall"
    assert entry["model"]["open_recall"]["value"] == 0.5
    assert entry["model"]["closed_accuracy_published"]["value"] == 1
    assert entry["model"]["closed_accuracy"]["value"] == 0
    with pytest.raises(EvaluationError, match="Unknown scorer profile 'lava-med'. Did you mean 'llava-med'"):
        with_profile(BENCHMARKS["slake-vqa"], "lava-med")
    assert {"unimed-vqa", "ct-rate", "m3d", "llava-med"} <= set(PROFILES)


def test_a_file_of_other_tasks_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no record of the benchmark 'samed-refer': its tasks are vqa"):
        score(tmp_path, "samed-refer", record("a", "x", "x", task="vqa"))


def test_the_part_of_a_converted_file_that_is_asked(tmp_path):
    source = tmp_path / "slake" / "test.jsonl"
    write_jsonl(source, [record("a", "x", "", task="vqa", language="en"), record("b", "y", "", task="refer")])
    write_json(tmp_path / "slake" / "report.json", {"dataset": "slake", "media_root": "../pictures"})
    part = benchmark_records(BENCHMARKS["slake-vqa"], source, tmp_path / "out")
    assert [row["id"] for row in iter_jsonl(part)] == ["a"]
    assert media_root_of(source).resolve() == (tmp_path / "pictures").resolve()
    assert benchmark_records(BENCHMARKS["phantom-2d"], source, tmp_path / "out") == source
