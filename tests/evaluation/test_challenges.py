"""VLM3D files and metrics, ReXGroundingCT metrics, findings in reports, predictions of other tools, and served models."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.errors import EvaluationError
from medmvl.evaluation import EvaluationOptions, evaluate_predictions
from medmvl.evaluation.grounding import (
    dice,
    grounding_scores,
    instances,
    mask_of_box,
    mask_of_heat_map,
    match_instances,
)
from medmvl.evaluation.metrics.auroc import auroc
from medmvl.evaluation.metrics.boxes import item_iou
from medmvl.evaluation.metrics.labeler import finding_sides, label_ct_rate
from medmvl.evaluation.report_findings import report_findings
from medmvl.evaluation.statistics import mcnemar
from medmvl.evaluation.vlm3d import (
    CT_RATE_FINDINGS,
    classification_scores,
    crg_of_counts,
    read_probabilities,
    read_reports,
    report_scores,
    table_baseline,
    validation_scans,
    write_probabilities,
    write_reports,
)
from medmvl.files import iter_jsonl, read_json, write_json, write_jsonl


def labels(*present):
    return {name: int(name in present) for name in CT_RATE_FINDINGS}


# --- VLM3D ---


def test_crg_by_hand():
    # X = 36 labels of 2 exams, A = 4: r = 4, U = 16; 3 hits, 1 miss, 2 false alarms: s = 12 - 4 - 2 = 6.
    assert crg_of_counts(hits=3, alarms=2, misses=1, labels=36) == pytest.approx(16 / (32 - 6))
    assert crg_of_counts(hits=4, alarms=0, misses=0, labels=36) == pytest.approx(1)
    assert crg_of_counts(hits=0, alarms=0, misses=4, labels=36) == pytest.approx(1 / 3)
    assert math.isnan(crg_of_counts(hits=0, alarms=1, misses=0, labels=36))


def test_auroc_counts_ties_half():
    assert auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.75)
    assert auroc([0.5, 0.5], [0, 1]) == pytest.approx(0.5)
    assert math.isnan(auroc([0.5, 0.6], [1, 1]))
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 60) / 9, rng.integers(0, 2, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth == 1] for b in scores[truth == 0]]
    assert auroc(scores.tolist(), truth.tolist()) == pytest.approx(np.mean(pairs))


def test_classification_file_round_trip_and_scores(tmp_path):
    truth = {"valid_1_a_1": labels("Emphysema"), "valid_2_a_1": labels("Lung nodule", "Emphysema")}
    perfect = {name: {key: 0.9 * value + 0.05 for key, value in row.items()} for name, row in truth.items()}
    write_probabilities(tmp_path / "p.json", perfect)
    assert read_probabilities(tmp_path / "p.json") == perfect
    scores = classification_scores(perfect, truth)
    assert scores["crg"] == pytest.approx(1)
    assert scores["accuracy"] == 1
    assert scores["auroc_macro"] == 1  # of Lung nodule, the only finding with both classes
    assert scores["f1_macro"] == pytest.approx(2 / 18)  # 16 findings do not occur and count as 0
    with pytest.raises(EvaluationError, match="1 image has no prediction, the first is valid_2_a_1"):
        classification_scores({"valid_1_a_1": perfect["valid_1_a_1"]}, truth)


def test_report_file_round_trip_and_faults(tmp_path):
    write_reports(tmp_path / "r.json", {"valid_1_a_1": "No finding."}, {"valid_1_a_1": [0] * 18})
    assert read_reports(tmp_path / "r.json") == {"valid_1_a_1": "No finding."}
    write_json(tmp_path / "twice.json", [{"input_image_name": name, "report": "x"} for name in ("a.nii.gz", "d/a.mha")])
    with pytest.raises(EvaluationError, match="a occurs twice"):
        read_reports(tmp_path / "twice.json")
    write_json(tmp_path / "short.json", [{"input_image_name": "a", "probabilities": [0.5]}])
    with pytest.raises(EvaluationError, match="each of the 18 findings"):
        read_probabilities(tmp_path / "short.json")
    write_json(tmp_path / "odd.json", [{"name": "a"}])
    with pytest.raises(EvaluationError, match="entry 0: it needs input_image_name and report"):
        read_reports(tmp_path / "odd.json")


def test_report_scores_of_perfect_and_of_normal_reports():
    references = {
        "valid_1_a_1": "Emphysema is seen in both lungs.",
        "valid_2_a_1": "A nodule of 8 mm in the left lung is seen.",
    }
    truth = {"valid_1_a_1": labels("Emphysema"), "valid_2_a_1": labels("Lung nodule")}
    perfect = report_scores(references, references, truth)
    assert all(
        perfect[key] == pytest.approx(1, abs=0.02) for key in ("bleu1", "bleu4", "rouge_l", "meteor", "crg", "accuracy")
    )
    normal = report_scores(dict.fromkeys(references, "Normal."), references, truth)
    assert normal["crg"] == pytest.approx(1 / 3)
    assert normal["bleu1"] < 0.01
    assert "auroc_macro" not in normal
    with pytest.raises(EvaluationError, match="1 image has no report, the first is valid_2_a_1"):
        report_scores({"valid_1_a_1": "x"}, references, truth)


def test_validation_list_is_one_volume_per_scan_and_report():
    reports = {
        "valid_10_a_1.nii.gz": "d", "valid_1_a_2.nii.gz": "a", "valid_1_a_1.nii.gz": "a", "valid_2_a_1.nii.gz": "a ",
        "valid_2_b_1.nii.gz": "b", "valid_3_a_1.nii.gz": "c",
    }  # fmt: skip
    kept = validation_scans(reports, ["dataset/valid_3/valid_3_a/valid_3_a_2.nii.gz"])
    assert kept == ["valid_1_a_1.nii.gz", "valid_2_b_1.nii.gz", "valid_10_a_1.nii.gz"]


def test_list_of_the_published_sizes_is_cut_to_the_published_counts():
    """1 564 scans, 13 of them of other body parts, 58 with the report of an earlier scan, some with two reconstructions."""
    reports = {f"valid_{number}_a_1.nii.gz": f"Report of scan {number}." for number in range(1, 1565)}
    reports |= {f"valid_{number}_a_2.nii.gz": f"Report of scan {number}." for number in range(1, 1565, 3)}
    not_chest = [f"valid_{number}_a_1.nii.gz" for number in range(100, 1400, 100)]
    assert len(validation_scans(reports)) == 1564
    assert len(validation_scans(reports, not_chest)) == 1551
    for number in range(1501, 1559):
        reports[f"valid_{number}_a_1.nii.gz"] = f"Report  of\nscan {number - 1500}."  # equal but for its line breaks
        reports.pop(f"valid_{number}_a_2.nii.gz", None)
    kept = validation_scans(reports, not_chest)
    assert len(kept) == 1493
    assert kept[0] == "valid_1_a_1.nii.gz"


def test_table_baseline_answers_with_the_nearest_combination():
    baseline = table_baseline([((0, 0), "normal"), ((1, 0), "nodule a"), ((1, 0), "nodule"), ((1, 0), "nodule")])
    assert baseline.report((1, 0)) == "nodule"
    assert baseline.report((1, 1)) == "nodule"
    assert baseline.report((0, 1)) == "normal"


# --- ReXGroundingCT ---


def test_grounding_scores_by_hand():
    shape = (4, 10, 10)
    reference = mask_of_box((0, 0, 0, 2, 4, 4), shape) | mask_of_box((2, 6, 6, 4, 10, 10), shape)
    half = mask_of_box((0, 0, 0, 2, 4, 4), shape)
    assert dice(half, reference) == pytest.approx(2 * 32 / (32 + 64))
    assert instances(reference).max() == 2
    empty = np.zeros(shape, dtype=bool)
    scores = grounding_scores([(half, reference), (empty, half)])
    assert scores["dice"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["hit_rate"] == 0.5
    assert scores["instance_precision"] == 1
    assert scores["instance_recall"] == pytest.approx(1 / 3)
    assert scores["instance_f1"] == pytest.approx(2 / 4)


def test_instances_are_matched_one_to_one():
    reference = instances(mask_of_box((0, 0, 0, 1, 1, 4), (1, 3, 20)) | mask_of_box((0, 0, 6, 1, 1, 10), (1, 3, 20)))
    bridge = instances(mask_of_box((0, 0, 0, 1, 1, 10), (1, 3, 20)))
    assert match_instances(bridge, reference) == 1
    assert match_instances(reference, reference) == 2
    halves = instances(mask_of_box((0, 0, 0, 1, 1, 1), (1, 3, 20)) | mask_of_box((0, 0, 2, 1, 1, 4), (1, 3, 20)))
    assert match_instances(halves, reference) == 1


def test_heat_maps_become_masks():
    heat = np.zeros((1, 2, 2))
    assert not mask_of_heat_map(heat).any()
    heat[0, 0, 0], heat[0, 1, 1] = 4.0, 1.0
    assert mask_of_heat_map(heat).sum() == 1
    assert mask_of_heat_map(heat, threshold=0.2).sum() == 2


# --- findings in reports ---


def test_findings_in_reports_by_hand(item):
    items = [
        item("A nodule in the left lung. Emphysema.", "A nodule in the right lung.", id="a", patient="a",
             labels=labels("Lung nodule")),  # a hallucinated emphysema, and the wrong side
        item("No finding.", "Right pleural effusion.", id="b", patient="b", labels=labels("Pleural effusion")),  # missed
    ]  # fmt: skip
    found = report_findings(items, label_ct_rate)
    values = {name: score["value"] for name, score in found.items()}
    assert values["hallucinated_per_report"] == 0.5
    assert values["missed_per_report"] == 0.5
    assert values["hallucinated_share"] == 0.5
    assert values["missed_share"] == 0.5
    assert values["laterality_errors"] == 1
    assert values["crg"] == pytest.approx(crg_of_counts(hits=1, alarms=1, misses=1, labels=36))
    assert found["missed_per_report"]["ci95"] == [0.0, 1.0]


def test_sides_of_findings():
    assert finding_sides("Bilateral pleural effusions. A nodule.") == {"Pleural effusion": {"left", "right"}}
    assert finding_sides("No effusion on the left.") == {}


def test_findings_stand_in_the_results(tmp_path):
    row = {"question": "Report.", "answer": "A nodule.", "task": "report", "labels": labels("Lung nodule")}
    write_jsonl(tmp_path / "p.jsonl", [{**row, "id": str(n), "prediction": "Emphysema."} for n in range(3)])
    write_jsonl(tmp_path / "b.jsonl", [{**row, "id": str(n), "prediction": "A nodule."} for n in range(3)])
    results = evaluate_predictions(
        tmp_path / "p.jsonl", "ct-rate-report", tmp_path / "out", {"blank": tmp_path / "b.jsonl"}
    )
    found = results["benchmarks"]["ct-rate-report"]["report_findings"]
    assert found["model"]["hallucinated_per_report"]["value"] == 1
    assert found["controls"]["blank"]["hallucinated_per_report"]["value"] == 0
    assert "hallucinated_per_report" in (tmp_path / "out" / "table.md").read_text()


# --- predictions of other tools ---


def test_keys_of_another_tool_are_mapped(tmp_path):
    rows = [{"question_id": n, "prompt": "Is it?", "gt": "yes", "text": "Yes."} for n in range(2)]
    write_json(tmp_path / "theirs.json", rows)
    words = ["evaluate", "--predictions", tmp_path / "theirs.json", "--benchmark", "own", "--out", tmp_path / "out"]
    words += ["--keys", "id=question_id,question=prompt,answer=gt,prediction=text"]
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert outcome.exit_code == 0, outcome.output
    assert read_json(tmp_path / "out" / "results.json")["benchmarks"]["own"]["model"]["closed_accuracy"]["value"] == 1


@pytest.mark.parametrize(
    ("box_format", "text"),
    [
        ("qwen-vl", "<box>(100,200),(500,600)</box>"),
        ("qwen2.5-vl", '```json\n[{"bbox_2d": [20, 20, 100, 60], "label": "heart"}]\n```'),
        ("qwen3-vl", '{"bbox_2d": [100, 200, 500, 600]}'),
        ("list-fraction", "The heart is at [0.1, 0.2, 0.5, 0.6]."),
        ("list-percent", "[10, 20, 50, 60]"),
        ("list-percent", "[10%, 20 %, 50%, 60%]"),
        ("list-thousandth", "(100, 200, 500, 600)"),
        ("list-pixel", "[20, 20, 100, 60]"),
    ],
)
def test_boxes_in_the_formats_of_other_models(item, box_format, text):
    facts = {"boxes": [[20, 20, 80, 40]], "image_size": [200, 100], "box_format": box_format}
    assert item_iou(item(text, "x", **facts)) == pytest.approx(1)
    assert item_iou(item("nowhere", "x", **facts)) == 0


def test_an_unknown_box_format_is_named(tmp_path):
    row = {
        "id": "a",
        "question": "Where?",
        "answer": "",
        "boxes": [[1, 1, 5, 5]],
        "image_size": [9, 9],
        "prediction": "x",
    }
    write_jsonl(tmp_path / "p.jsonl", [row])
    with pytest.raises(EvaluationError, match="Unknown box format 'qwen-v'. Did you mean 'qwen-vl'"):
        evaluate_predictions(
            tmp_path / "p.jsonl", "own", tmp_path / "out", options=EvaluationOptions(box_format="qwen-v")
        )


def test_mcnemar_is_the_exact_binomial_test():
    first = dict(zip("abcdefg", (1, 1, 1, 1, 1, 0, 1), strict=True))
    second = dict(zip("abcdefg", (0, 0, 0, 0, 0, 1, 1), strict=True))
    assert mcnemar(first, second) == {"only_first": 5, "only_second": 1, "p_value": pytest.approx(2 * 7 / 64)}
    assert mcnemar({"a": 0.5}, {"a": 1.0}) is None
    assert mcnemar(first, {}) is None


# --- served models ---


class Server(BaseHTTPRequestHandler):
    """An endpoint that answers with the number of images; it fails once with status 503 and counts what runs at a time."""

    seen: list[dict] = []
    running = highest = 0
    broken = 1
    lock = threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Server.running += 1
            Server.highest = max(Server.highest, Server.running)
            fails = Server.broken > 0
            Server.broken -= fails
        content = body["messages"][-1]["content"]
        images = [part for part in content if isinstance(part, dict) and part["type"] == "image_url"]
        with self.lock:
            Server.running -= 1
            if not fails:
                Server.seen.append(body)
        reply = json.dumps({"choices": [{"message": {"content": f"{len(images)} image"}}]}).encode()
        self.send_response(503 if fails else 200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served():
    Server.seen, Server.running, Server.highest, Server.broken = [], 0, 0, 1
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_served_model_answers_a_benchmark(tmp_path, media, served):
    rows = [
        {"id": f"{name}{n}", "image": [f"{name}.png"], "patient": name, "answer": "1 image",
         "conversations": [{"from": "human", "value": "<image>\nHow many?"}]}
        for name in "abc" for n in range(2)
    ]  # fmt: skip
    write_jsonl(tmp_path / "data.jsonl", rows)
    words = ["evaluate", "--endpoint", served, "--served-model", "m", "--benchmark", "own", "--data-root",
             tmp_path / "data.jsonl", "--image-root", media, "--out", tmp_path / "out", "--concurrency", 2]  # fmt: skip
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    kept = list(iter_jsonl(tmp_path / "out" / "predictions" / "own.jsonl"))
    assert [row["id"] for row in kept] == [row["id"] for row in rows]
    assert {row["prediction"] for row in kept} == {"1 image"}
    assert len(Server.seen) == 6
    assert Server.highest <= 2
    assert Server.seen[0]["model"] == "m"
    assert read_json(tmp_path / "out" / "results.json")["benchmarks"]["own"]["model"]["accuracy"]["value"] == 1

    path = tmp_path / "out" / "predictions" / "own.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:4]))
    again = CliRunner().invoke(app, [str(word) for word in words])
    assert again.exit_code == 0, (again.output, again.exception)
    assert len(Server.seen) == 8  # only the two missing ones were asked again


def test_an_endpoint_that_refuses_is_named(tmp_path, media):
    words = [
        "evaluate",
        "--endpoint",
        "ftp://x",
        "--served-model",
        "m",
        "--benchmark",
        "own",
        "--data-root",
        "d",
        "--out",
        "o",
    ]
    outcome = CliRunner().invoke(app, words)
    assert isinstance(outcome.exception, EvaluationError)
    assert "begins with http:// or https://" in str(outcome.exception)


# --- Commands ---


def table(file, rows, columns):
    lines = [",".join(columns), *(",".join(str(row[column]) for column in columns) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.fixture
def submission(tmp_path):
    """Two scans, one reconstructed twice, and one of another body part; predictions that are right but for one label."""
    names = ["valid_1_a_1", "valid_1_a_2", "valid_2_a_1", "valid_3_a_1"]
    truth = {names[0]: labels("Atelectasis"), names[1]: labels("Atelectasis"), names[2]: labels("Cardiomegaly")}
    truth[names[3]] = labels()
    said = {name: dict(row) for name, row in truth.items()} | {names[2]: labels("Cardiomegaly", "Emphysema")}
    texts = {name: "There is atelectasis." if "_1_" in name[5:8] else f"Enlarged heart {name}." for name in names}
    columns = ["VolumeName", *CT_RATE_FINDINGS]
    rows = [{"VolumeName": f"{name}.nii.gz"} | truth[name] for name in names]
    reports = [{"VolumeName": f"{n}.nii.gz", "Findings_EN": t, "Impressions_EN": ""} for n, t in texts.items()]
    write_probabilities(tmp_path / "classes.json", said)
    write_reports(tmp_path / "reports.json", texts)
    (tmp_path / "other.txt").write_text("valid_3_a_1.nii.gz\n")
    return {
        "--labels": table(tmp_path / "labels.csv", rows, columns),
        "--references": table(tmp_path / "texts.csv", reports, ["VolumeName", "Findings_EN", "Impressions_EN"]),
        "--probabilities": str(tmp_path / "classes.json"),
        "--reports": str(tmp_path / "reports.json"),
        "--out": str(tmp_path / "scores.json"),
    }


def challenge(name, options):
    return CliRunner().invoke(app, ["challenge", name, *(word for pair in options.items() for word in pair)])


def test_vlm3d_command_scores_the_corrected_list(submission, tmp_path):
    options = submission | {
        "--not-chest": str(tmp_path / "other.txt"),
        "--train-reports": submission["--references"],
        "--train-labels": submission["--labels"],
    }
    done = challenge("vlm3d", options)
    assert done.exit_code == 0, done.output
    scores = read_json(tmp_path / "scores.json")
    assert scores["images"] == {"count": 2}  # one reconstruction per scan, chest only
    assert scores["classification"]["crg"] == pytest.approx(crg_of_counts(hits=2, alarms=1, misses=0, labels=36))
    assert scores["reports"]["bleu1"] == pytest.approx(1)
    assert scores["table_baseline"]["rouge_l"] == pytest.approx(1)  # its table holds these very reports


@pytest.mark.parametrize(
    ("leave_out", "words"),
    [
        (("--reports", "--probabilities"), "Nothing to score"),
        (("--references",), "need --references"),
        (("--labels",), "--labels"),
    ],
)
def test_vlm3d_command_says_what_is_missing(submission, leave_out, words):
    done = challenge("vlm3d", {name: value for name, value in submission.items() if name not in leave_out})
    assert done.exit_code != 0
    assert words in f"{done.output} {done.exception}"


def test_vlm3d_command_refuses_a_label_that_is_none(submission, tmp_path):
    text = (tmp_path / "labels.csv").read_text().replace(",1", ",-1", 1)
    (tmp_path / "labels.csv").write_text(text)
    done = challenge("vlm3d", submission)
    assert "must be 0 or 1" in f"{done.output} {done.exception}"


def write_mask(folder, name, values):
    folder.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / name)


def test_rexgroundingct_command_scores_masks_and_heat_maps(tmp_path):
    wanted = np.zeros((8, 8, 6, 2), np.uint8)
    wanted[1:4, 1:4, 1:4, 0], wanted[5:7, 5:7, 2:4, 1] = 1, 1
    heat = wanted.astype(np.float32) * 0.9 + 0.01
    heat[..., 1] = 0
    heat[0, 0, 0, 1] = 1.0  # the second finding is looked for in the wrong place
    write_mask(tmp_path / "masks", "valid_1_a_1.nii.gz", wanted)
    write_mask(tmp_path / "heat", "valid_1_a_1.nii.gz", heat)
    options = {"--predictions": str(tmp_path / "heat"), "--masks": str(tmp_path / "masks")}
    done = challenge("rexgroundingct", options | {"--out": str(tmp_path / "scores.json")})
    assert done.exit_code == 0, done.output
    scores = read_json(tmp_path / "scores.json")["grounding"]
    assert scores["dice"] == pytest.approx(0.5)
    assert scores["hit_rate"] == pytest.approx(0.5)
    assert scores["instance_f1"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "name", "words"),
    [
        ((8, 8, 6, 2), "other.nii.gz", "no mask"),
        ((8, 8, 5, 2), "a.nii.gz", "one grid"),
        ((8, 8), "a.nii.gz", "3 or 4 axes"),
    ],
)
def test_rexgroundingct_command_refuses_what_does_not_fit(tmp_path, shape, name, words):
    write_mask(tmp_path / "masks", "a.nii.gz", np.zeros((8, 8, 6, 2), np.uint8))
    write_mask(tmp_path / "ours", name, np.zeros(shape, np.uint8))
    done = challenge("rexgroundingct", {"--predictions": str(tmp_path / "ours"), "--masks": str(tmp_path / "masks")})
    assert words in f"{done.output} {done.exception}"
