"""The glue to RadEval, with a stand-in for the package: its own metrics need weights from a hub."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from medmvl.errors import EvaluationError, MissingExtraError
from medmvl.evaluation import EvaluationOptions, evaluate_predictions
from medmvl.evaluation.radeval import radeval_scores
from medmvl.files import read_json, write_jsonl


class Scorer:
    """Answers as RadEval 2.2 does: lists with per_sample, else numbers; `asked` keeps what it was given."""

    asked: list = []

    def __init__(self, metrics, per_sample, show_progress):
        self.metrics, self.per_sample = metrics, per_sample

    def __call__(self, refs, hyps):
        Scorer.asked.append((self.metrics, refs, hyps))
        if "green" in self.metrics:
            raise OSError("We couldn't connect to the hub.\nmore")
        if "temporal" in self.metrics:
            raise Exception("Cannot download the file")  # RadEval 2.2.1 raises just this
        if "ratescore" in self.metrics:
            raise ModuleNotFoundError("No module named 'pysbd'", name="pysbd")
        if self.per_sample:
            return {"radgraph_partial": [1.0, 0.5, float("nan")][: len(refs)], "by_label": {"a": 1}}
        return {"f1chexbert_all_micro_f1": 0.25, "f1chexbert_label_scores_f1": {"x": 1}}


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("radeval")
    module.RadEval = Scorer
    monkeypatch.setitem(sys.modules, "radeval", module)
    monkeypatch.setitem(sys.modules, "RadEval", module)
    monkeypatch.delitem(sys.modules, "RadEval")
    monkeypatch.setattr(Scorer, "asked", [])


def reports(item):
    return [item(text, f"truth {n}", id=str(n), patient=str(n)) for n, text in enumerate(("a", "b", "c", ""))]


def test_values_per_report_get_intervals_and_corpus_values_do_not(package, item):
    scores = radeval_scores(reports(item), ["radgraph", "f1chexbert"])
    assert scores["radeval_radgraph_partial"]["value"] == 0.75
    assert scores["radeval_radgraph_partial"]["n"] == 2  # the nan is RadEval's "not defined"
    assert scores["radeval_radgraph_partial"]["ci95"] == [0.5, 1.0]
    assert scores["radeval_f1chexbert_all_micro_f1"] == {"value": 0.25, "n": 3, "ci95": None}
    assert set(scores) == {"radeval_radgraph_partial", "radeval_f1chexbert_all_micro_f1"}
    assert Scorer.asked[0][2] == ["a", "b", "c"]  # an empty report cannot be scored


def test_missing_weights_are_explained(package, item):
    with pytest.raises(EvaluationError, match=r"'green': We couldn't connect to the hub\. Its weights come from a hub"):
        radeval_scores(reports(item), ["green"])
    with pytest.raises(EvaluationError, match=r"'temporal': Cannot download the file Its weights"):
        radeval_scores(reports(item), ["temporal"])


def test_a_package_that_a_metric_needs_is_named(package, item):
    with pytest.raises(EvaluationError, match=r"'ratescore' needs the package 'pysbd'.*medmvl\[radeval\]"):
        radeval_scores(reports(item), ["ratescore"])


def test_package_is_found_under_its_import_name(package, item):
    radeval_scores(reports(item), ["radgraph"])
    assert sys.modules["RadEval"] is sys.modules["radeval"]


def test_clinical_metrics_stand_in_all_three_files(package, monkeypatch, tmp_path):
    monkeypatch.setattr("medmvl.evaluation.radeval.version", lambda name: "2.2.1")
    turns = [{"from": "human", "value": "Describe."}, {"from": "gpt", "value": "No effusion."}]
    rows = [{"id": str(n), "conversations": turns, "task": "report", "prediction": "x" * n} for n in range(3)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(EvaluationError, match="could not run 'green'"):  # after the others were written
        evaluate_predictions(
            tmp_path / "p.jsonl",
            "mimic-cxr",
            tmp_path / "out",
            options=EvaluationOptions(radeval=["green", "radgraph"]),
        )
    entry = read_json(tmp_path / "out" / "results.json")["benchmarks"]["mimic-cxr"]
    assert entry["model"]["bleu1"]
    assert entry["model"]["radeval_radgraph_partial"]["n"] == 2
    assert entry["scorers"]["radeval_radgraph_partial"]["dropped"] == 1
    for file in ("table.md", "report.html"):
        assert "radeval_radgraph_partial" in (tmp_path / "out" / file).read_text()


def test_the_missing_package_names_the_extra(monkeypatch, item):
    monkeypatch.setitem(sys.modules, "radeval", None)
    with pytest.raises(MissingExtraError, match=r"medmvl\[radeval\]"):
        radeval_scores(reports(item), ["radgraph"])


def test_only_local_metrics_are_offered(package, item):
    with pytest.raises(EvaluationError, match=r"Unknown RadEval metric 'radfact_ct'"):
        radeval_scores(reports(item), ["radfact_ct"])
    assert radeval_scores(reports(item), []) == {}
