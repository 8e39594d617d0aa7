"""Label F1 of reports, and the rule-based labeler behind it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from medmvl.errors import EvaluationError
from medmvl.evaluation import evaluate_predictions
from medmvl.evaluation.breakdown import by_finding
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.metrics.label_conventions import CONVENTIONS
from medmvl.evaluation.metrics.labeler import LABELERS, label_chexpert, label_ct_rate
from medmvl.evaluation.metrics.labels import true_labels
from medmvl.evaluation.scoring import score_metric
from medmvl.evaluation.tasks import BENCHMARKS
from medmvl.files import write_jsonl
from medmvl.phantoms import texts
from medmvl.phantoms.findings import CT_RATE_LABELS, FINDINGS, Finding

MACRO, MICRO = (METRICS[f"label-f1-{kind}-rule-based-ct-rate"] for kind in ("macro", "micro"))


def stated(text):
    return {name for name, value in label_ct_rate(text).items() if value}


def test_the_labeler_knows_the_18_findings_in_ct_rate_order():
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
        ("Cardiothoracic index increased in favor of the heart.", {"Cardiomegaly"}),
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


ARTERIAL, CORONARY = "Arterial wall calcification", "Coronary artery wall calcification"


# Sentences of our own in the style of CT-RATE's translated reports.
@pytest.mark.parametrize(
    ("text", "findings"),
    [
        (
            "Several lymph nodes are observed in the mediastinum, the largest of which is 12 mm in short axis.",
            {"Lymphadenopathy"},
        ),
        ("Lymph nodes with a short axis of 8 mm are seen in the paratracheal area.", set()),
        ("Mediastinal lymph nodes measuring up to 14x9 mm in the subcarinal region.", {"Lymphadenopathy"}),
        ("In the right hilar region, lymph nodes with a short axis reaching 15 mm were observed.", {"Lymphadenopathy"}),
        (
            "No enlarged lymph nodes in prevascular, pre-paratracheal, subcarinal or bilateral hilar-axillary pathological dimensions were detected.",
            set(),
        ),
        ("Millimetric lymph nodes are observed in the mediastinum, not reaching pathological size.", set()),
        (
            "There are lymph nodes in the mediastinum, some of which have reached pathological dimensions.",
            {"Lymphadenopathy"},
        ),
        ("Mediastinal lymph nodes that do not reach pathological dimensions were observed.", set()),
        ("Lymph nodes with fatty hilum, smaller than 1 cm, are seen in both axillae.", set()),
        ("Conglomerated lymphadenopathies are seen in the left axilla.", {"Lymphadenopathy"}),
        ("Lymphadenomegaly in the subcarinal area, 18 mm in diameter.", {"Lymphadenopathy"}),
        ("LAPs are seen in the aortopulmonary window.", {"Lymphadenopathy"}),
        ("A 2.1 cm lymph node is present in the right lower paratracheal station.", {"Lymphadenopathy"}),
        ("No lymphadenopathy was observed in the supraclavicular fossa.", set()),
        ("Multiple enlarged mediastinal and hilar lymph nodes.", {"Lymphadenopathy"}),
        ("Short axis of lymph nodes in the mediastinum was measured as 11 mm.", {"Lymphadenopathy"}),
        ("Pathologically enlarged lymph nodes were not observed in both axillary regions.", set()),
        ("There are calcified lymph nodes in the right hilum measuring 7 mm.", set()),
        ("Lymph node with a diameter of 6.5 mm in the aortopulmonary window.", set()),
        ("Lymphadenopathies in the mediastinum have increased in size.", {"Lymphadenopathy"}),
        ("Calcific atheroma plaques are observed in the LAD.", {CORONARY}),
        ("Calcified plaques in the left anterior descending artery and circumflex artery.", {CORONARY}),
        (
            "Atherosclerotic wall calcifications are observed in the thoracic aorta and coronary arteries.",
            {CORONARY, ARTERIAL},
        ),
        ("Coronary artery calcifications.", {CORONARY}),
        ("Calcifications in the coronary vascular structures.", {CORONARY}),
        ("Millimetric calcific plaques are seen in the aortic arch.", {ARTERIAL}),
        (
            "There are calcific atheromatous plaques in the aorta, supraaortic branches and coronary arteries.",
            {CORONARY, ARTERIAL},
        ),
        ("No calcification was observed in the coronary arteries.", set()),
        ("Calcific plaque formations are observed at the level of the LAD and RCA.", {CORONARY}),
        ("A stent is seen in the coronary artery.", {"Medical material"}),
        ("Coronary artery walls show calcific atherosclerotic changes.", {CORONARY}),
        ("Aortic wall calcifications and coronary calcified plaques were noted.", {CORONARY, ARTERIAL}),
        ("Atheroma plaques are present in the aorta and coronary arteries.", {CORONARY, ARTERIAL}),
        ("Atherosclerotic changes are present in the aorta.", {ARTERIAL}),
        ("Calcific atheroma plaques are observed on the wall of the descending aorta.", {ARTERIAL}),
        ("Heart contour and size are normal. The thoracic aorta diameter is normal.", set()),
        ("Calcification is observed in the mitral valve.", set()),
        ("Aortic valve calcification.", set()),
        ("Diffuse calcific plaques in the abdominal aorta and its branches.", {ARTERIAL}),
        ("Tracheostomy cannula is seen.", {"Medical material"}),
        ("Pacemaker leads are seen in the right heart chambers.", {"Medical material"}),
        ("Sternotomy wires are observed.", {"Medical material"}),
        ("A port catheter extends to the superior vena cava.", {"Medical material"}),
        ("The heart is larger than normal.", {"Cardiomegaly"}),
        ("The heart size has increased.", {"Cardiomegaly"}),
        ("Left ventricle is dilated and heart dimensions are increased.", {"Cardiomegaly"}),
        ("Heart sizes are within normal limits.", set()),
        ("Minimal fluid is seen in the pericardium.", {"Pericardial effusion"}),
        ("Pericardial effusion-thickening was not observed.", set()),
        ("Minimal pericardial effusion measuring 5 mm.", {"Pericardial effusion"}),
        ("Sliding type hiatal hernia is observed at the lower end of the esophagus.", {"Hiatal hernia"}),
        ("Centriacinar emphysema areas in both upper lobes.", {"Emphysema"}),
        ("Bullous-emphysematous changes at the apices.", {"Emphysema"}),
        ("A 3 cm bulla in the right apex.", {"Emphysema"}),
        ("Linear subsegmental atelectatic changes in the lingula.", {"Atelectasis"}),
        (
            "Compressive atelectasis adjacent to effusion in the left pleural space.",
            {"Atelectasis", "Pleural effusion"},
        ),
        ("Millimetric nonspecific nodules are observed in both lungs.", {"Lung nodule"}),
        ("A 4 mm nodule in the thyroid gland.", set()),
        ("Hypodense nodule in the left thyroid lobe.", set()),
        ("No mass or nodule was detected in both lungs.", set()),
        ("A 6 mm nodular lesion in the left adrenal gland.", set()),
        ("Ground glass densities are seen in the lower lobes.", {"Lung opacity"}),
        ("Frosted glass areas in both lungs.", {"Lung opacity"}),
        ("Patchy density increases in the right lower lobe.", {"Lung opacity"}),
        ("Pleuroparenchymal sequelae changes at both apices.", {"Pulmonary fibrotic sequela"}),
        ("Sequela fibrotic bands in the right middle lobe.", {"Pulmonary fibrotic sequela"}),
        ("Bilateral pleural fluid reaching 4 cm.", {"Pleural effusion"}),
        ("No pleural effusion or thickening was detected.", set()),
        ("Effusion is observed in the right hemithorax.", {"Pleural effusion"}),
        ("Mosaic attenuation pattern is observed in both lungs.", {"Mosaic attenuation pattern"}),
        ("Mosaic perfusion in the lower lobes.", {"Mosaic attenuation pattern"}),
        ("Peribronchial thickness increases in central bronchi.", {"Peribronchial thickening"}),
        ("Bronchial wall thickening.", {"Peribronchial thickening"}),
        ("Thickening of the peribronchovascular interstitium.", {"Peribronchial thickening"}),
        ("Consolidated area with air bronchograms in the right lower lobe.", {"Consolidation"}),
        ("Tubular bronchiectasis in the middle lobe.", {"Bronchiectasis"}),
        ("Bronchiectatic changes in the lower lobes.", {"Bronchiectasis"}),
        ("Smooth interlobular septal thickenings.", {"Interlobular septal thickening"}),
        ("Thickening of the interlobular septa.", {"Interlobular septal thickening"}),
        ("Interlobular septa are thickened.", {"Interlobular septal thickening"}),
        (
            "Trachea and main bronchi are open and no occlusive pathology is detected. Mediastinal main vascular structures are normal.",
            set(),
        ),
        ("No upper abdominal free fluid was observed.", set()),
        ("Gallbladder was not observed (operated). Clips in the operation site.", {"Medical material"}),
        ("There is no infiltration or consolidation in the lung parenchyma.", set()),
        ("Thoracic esophagus calibration was normal and no significant tumoral wall thickening was detected.", set()),
        ("Prominent bronchovascular structures and mild bronchial wall thickenings.", {"Peribronchial thickening"}),
        ("No active infiltration; a few millimetric nodules, the largest 3 mm.", {"Lung nodule"}),
        ("Lymph nodes with a short axis smaller than 1 cm in the mediastinum.", set()),
        ("Lymph nodes, the largest of which is 9 mm, in the mediastinum.", set()),
        ("Lymph nodes measuring less than 10 mm in short diameter.", set()),
        ("Lymph nodes measuring 13 mm in the largest are seen.", {"Lymphadenopathy"}),
        ("Multiple lymph nodes, 1.5 cm in short axis, paraaortic.", {"Lymphadenopathy"}),
    ],
)
def test_sentences_of_chest_ct_reports(text, findings):
    assert stated(text) == findings


def test_a_runaway_report_is_labeled_in_seconds():
    begun = time.process_time()
    assert stated("no nodule " * 10_000) == set()
    assert time.process_time() - begun < 5


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


def test_an_invented_finding_costs_under_the_chexbert_convention(item):
    metric = METRICS["label-f1-micro-rule-based-chexpert"]
    asked = item("Cardiomegaly and pneumothorax.", "truth", task="report", labels={"Cardiomegaly": 1})
    assert score_metric(metric, [asked]).value == pytest.approx(2 / 3)  # blank Pneumothorax is negative
    uncertain = item("Cardiomegaly.", "truth", task="report", labels={"Cardiomegaly": -1, "Edema": None})
    assert score_metric(metric, [uncertain]).value == 1


def test_merlin_ignores_findings_not_mentioned(item):
    labels = {"submucosal_edema": -1, "renal_cyst": 1, "ascites": 0}
    assert true_labels(item("", "truth", labels=labels)) == {"renal_cyst": 1, "ascites": 0}


def test_a_record_may_name_its_convention(item):
    labels = {"Nodule": -1, "Cyst": ""}
    assert true_labels(item("", "truth", labels=labels)) == {"Nodule": 1, "Cyst": 0}
    assert true_labels(item("", "truth", labels=labels, label_convention="merlin")) == {}
    with pytest.raises(EvaluationError, match="Unknown label convention 'merlim'"):
        true_labels(item("", "truth", labels=labels, label_convention="merlim"))
    with pytest.raises(EvaluationError, match="label that cannot be read"):
        true_labels(item("", "truth", labels={"Nodule": "maybe"}))


def test_the_results_name_the_convention(tmp_path):
    row = {
        "id": "a",
        "question": "Report.",
        "answer": "x",
        "prediction": "Edema.",
        "labels": {"Edema": 1},
        "task": "report",
    }
    write_jsonl(tmp_path / "p.jsonl", [row])
    entry = evaluate_predictions(tmp_path / "p.jsonl", "mimic-cxr", tmp_path / "out")["benchmarks"]["mimic-cxr"]
    assert set(entry["label_conventions"]) == {"chexbert"}
    assert "blank: negative, -1: positive" in (tmp_path / "out" / "table.md").read_text()


def test_labels_from_outside_win_over_the_rules(item):
    given = item("no text", "truth", task="report", labels={"Emphysema": 1}, predicted_labels={"Emphysema": 1})
    assert score_metric(MICRO, [given]).value == 1


def test_uncertain_labels_count_and_unlabeled_reports_are_dropped(item):
    items = reports(item, ("Emphysema.", {"Emphysema": -1}), ("Emphysema.", {}))
    score = score_metric(MICRO, items)
    assert (score.value, score.n, score.dropped) == (1, 1, 1)


def test_a_finding_the_labeler_does_not_know(item):
    with pytest.raises(EvaluationError, match=r"'Fracture', which the labeler does not know"):
        score_metric(MACRO, reports(item, ("A fracture.", {"Fracture": 1})))


def test_labelers_are_named_as_what_they_are():
    assert all(name.startswith(("rule-based", "listed")) for name in LABELERS)


@pytest.mark.parametrize("value", [2, 3, 0.7, "2.0", -2])
def test_codes_of_other_tools_are_refused(value):
    """In CheXbert's raw output 2 is negative and 3 uncertain; as a number above 0 it would count as positive."""
    with pytest.raises(ValueError, match="none of 1, 0, -1 and empty"):
        CONVENTIONS["plain"].read({"Edema": value})


@pytest.mark.parametrize(("name", "read"), [("plain", {"Edema": 0}), ("merlin", {}), ("chexbert", {"Edema": 0})])
def test_nan_is_an_empty_cell(name, read):
    found = CONVENTIONS[name].read({"Edema": float("nan")})
    assert {key: value for key, value in found.items() if key == "Edema"} == read
