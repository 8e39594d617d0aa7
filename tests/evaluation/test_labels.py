"""Label F1 of reports, and the rule-based labeller behind it."""

from __future__ import annotations

import numpy as np
import pytest

from medmvl.data.phantoms import texts
from medmvl.data.phantoms.findings import CT_RATE_LABELS, FINDINGS, Finding
from medmvl.errors import EvaluationError
from medmvl.evaluation.breakdown import by_finding
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.metrics.labeller import LABELLERS, label_chexpert, label_ct_rate
from medmvl.evaluation.scoring import score_metric
from medmvl.evaluation.tasks import BENCHMARKS

MACRO, MICRO = (METRICS[f"label-f1-{kind}-rule-based-ct-rate"] for kind in ("macro", "micro"))


def stated(text):
    return {name for name, value in label_ct_rate(text).items() if value}


def test_the_labeller_knows_the_18_findings_in_ct_rate_order():
    assert tuple(label_ct_rate("")) == CT_RATE_LABELS


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("No pleural effusion, pneumothorax or consolidation.", set()),
        ("There is no effusion, but a nodule is seen in the right lung.", {"Lung nodule"}),
        ("Pleural effusion-thickening was not detected.", set()),
        ("No pericardial effusion. Bilateral pleural effusions.", {"Pleural effusion"}),
        ("Pericardial effusion is present.", {"Pericardial effusion"}),
        ("Heart size is normal and a small hiatal hernia is noted.", {"Hiatal hernia"}),
        ("Cardiothoracic index increased in favour of the heart.", {"Cardiomegaly"}),
        ("Calcific plaques in the aortic arch and coronary arteries.",
         {"Arterial wall calcification", "Coronary artery wall calcification"}),
        ("No lymph node was observed in pathological size and appearance.", set()),
        ("Ground-glass opacities with interlobular septal thickening; mosaic attenuation.",
         {"Lung opacity", "Interlobular septal thickening", "Mosaic attenuation pattern"}),
        ("Peribronchial thickening, bronchiectasis and fibrotic sequelae.",
         {"Peribronchial thickening", "Bronchiectasis", "Pulmonary fibrotic sequela"}),
        ("Without consolidation or atelectasis, there is emphysema.", {"Emphysema"}),
        ("The effusion has resolved.", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_statements_and_negations(text, findings):
    assert stated(text) == findings


@pytest.mark.parametrize("name", FINDINGS)
def test_every_phantom_sentence_is_read_right(name):
    finding = Finding(name, side="left", lobe="upper", size=12)
    for draw in range(12):  # enough draws to meet each of the three wordings
        rng = np.random.default_rng(draw)
        assert FINDINGS[name] in stated(texts.sentence(name, finding, rng))
        assert stated(texts.sentence(name, None, rng)) == set()


def test_whole_phantom_reports_give_back_their_labels():
    rng = np.random.default_rng(1)
    for _ in range(60):
        present = [name for name in FINDINGS if rng.random() < 0.5]
        findings = {name: Finding(name, side="right", lobe="lower", size=9) for name in present}
        report = texts.write_report(findings, rng).text
        drawn = {FINDINGS[name] for name in FINDINGS}
        assert stated(report) & drawn == {FINDINGS[name] for name in present}, report


def test_chexpert_has_14_observations_and_no_finding():
    labels = label_chexpert("No focal consolidation. The heart is enlarged. Endotracheal tube in place.")
    assert len(labels) == 14
    assert {name for name, value in labels.items() if value} == {"Cardiomegaly", "Support Devices"}
    assert label_chexpert("The lungs are clear. No pneumothorax.")["No Finding"] == 1


def reports(item, *rows):
    return [
        item(text, "truth", id=str(number), task="report", labels=labels) for number, (text, labels) in enumerate(rows)
    ]


def test_f1_by_hand(item):
    items = reports(
        item,
        ("A nodule.", {"Lung nodule": 1, "Emphysema": 0}),  # hit
        ("Emphysema.", {"Lung nodule": 1, "Emphysema": 0}),  # miss, false alarm
        ("Emphysema and a nodule.", {"Lung nodule": 0, "Emphysema": 1}),  # false alarm, hit
        ("Nothing.", {"Lung nodule": 0, "Emphysema": 0, "Hiatal hernia": 0}),  # a finding on neither side
    )
    # Lung nodule: 1 hit, 1 false alarm, 1 miss: F1 1/2. Emphysema: 1 hit, 1 false alarm: F1 2/3. Hernia: undefined.
    assert score_metric(MACRO, items).value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert score_metric(MICRO, items).value == pytest.approx(4 / 7)
    table = by_finding(BENCHMARKS["phantom-ct"], items)
    assert table["Lung nodule"] == {"present": 2, "stated": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert table["Hiatal hernia"]["f1"] is None


def test_labels_from_outside_win_over_the_rules(item):
    given = item("no text", "truth", task="report", labels={"Emphysema": 1}, predicted_labels={"Emphysema": 1})
    assert score_metric(MICRO, [given]).value == 1


def test_an_uncertain_label_counts_as_stated_and_an_unlabelled_report_is_dropped(item):
    items = reports(item, ("Emphysema.", {"Emphysema": -1}), ("Emphysema.", {}))
    score = score_metric(MICRO, items)
    assert (score.value, score.n, score.dropped) == (1, 1, 1)


def test_a_finding_the_labeller_does_not_know(item):
    with pytest.raises(EvaluationError, match=r"'Fracture', which the labeller does not know"):
        score_metric(MACRO, reports(item, ("A fracture.", {"Fracture": 1})))


def test_labellers_are_named_as_what_they_are():
    assert all(name.startswith(("rule-based", "listed")) for name in LABELLERS)
