"""The audit finds the leaks of published splits in miniatures of SLAKE, SA-Med2D-20M and M3D."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmvl.data.audit import Audit, audit
from medmvl.data.converters import convert

from .converters.helpers import picture, write_json


def leaks(result: Audit) -> set[tuple[str, int]]:
    """Return the kind and the count of every leak."""
    return {(finding.kind, finding.count) for finding in result.leaks}


def test_languages_of_slake_share_images(tmp_path) -> None:
    root = tmp_path / "slake"
    rows = {}
    for image in ("xmlab1", "xmlab2"):
        picture(root / f"imgs/{image}/source.jpg", (64 + int(image[-1]), 64))
        for language, ask in (("en", "Which organ?"), ("zh", "哪个器官？")):
            row = {"img_name": f"{image}/source.jpg", "question": ask, "answer": "Heart", "q_lang": language}
            rows[image, language] = row | {"qid": f"{image}{language}", "answer_type": "OPEN"}
    # Each language is split by image, so no language leaks within itself.
    write_json(root / "train.json", [rows["xmlab1", "en"], rows["xmlab2", "zh"]])
    write_json(root / "test.json", [rows["xmlab2", "en"], rows["xmlab1", "zh"]])
    for language in ("en", "zh"):
        convert("slake", root, tmp_path / language, options={"language": language, "tasks": "vqa"})
    english, chinese = tmp_path / "en", tmp_path / "zh"
    assert leaks(audit([english / "train.jsonl", english / "test.jsonl"])) == set()
    assert ("patient", 1) in leaks(audit([english / "train.jsonl", chinese / "test.jsonl"]))


def samed_folder(root: Path, frame: str, seed: int) -> Path:
    """Write a release of SA-Med2D-20M that holds one frame of patient001 of ACDC, with a mask."""
    image = f"mr_00--ACDC--patient001_{frame}--z_0001"
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    Image.fromarray(rng.integers(0, 255, (10, 20, 3), dtype=np.uint8)).save(root / f"images/{image}.png")
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[2:6, 3:9] = 1
    Image.fromarray(mask).save(root / f"masks/{image}--0001_000.png")
    write_json(root / "SAMed2D_v1.json", {f"images/{image}.png": [f"masks/{image}--0001_000.png"]})
    write_json(root / "SAMed2D_v1_class_mapping_id.json", {"ACDC": {"left_ventricle": 1}})
    return root


def test_frames_of_one_samed_patient_are_one_patient(tmp_path) -> None:
    train, test = samed_folder(tmp_path / "a", "frame01", 1), samed_folder(tmp_path / "b", "frame12", 2)
    convert("sa-med2d-20m", train, tmp_path / "out/train", options={"test_share": "0"})
    convert("sa-med2d-20m", test, tmp_path / "out/test", options={"test_share": "1"})
    result = audit([tmp_path / "out/train/train.jsonl", tmp_path / "out/test/test.jsonl"])
    assert ("patient", 1) in leaks(result)


@pytest.mark.parametrize(("folder", "expected"), [("ct_case", {("patient", 1)}), ("ct_quizze", set())])
def test_m3d_series_of_one_case_leak_and_a_quiz_does_not(folder, expected, tmp_path) -> None:
    index = {}
    for seed, (split, where, series) in enumerate([("train", "ct_case", "Axial"), ("test", folder, "Coronal")]):
        case = tmp_path / f"M3D_Cap_npy/{where}/000007"
        case.mkdir(parents=True, exist_ok=True)
        np.save(case / f"{series}.npy", np.random.default_rng(seed).random((1, 4, 8, 8), dtype=np.float32))
        (case / "text.txt").write_text(f"Text of {where}.")
        prefix = f"M3D_Cap_npy/{where}/000007"
        index[split] = [{"image": f"{prefix}/{series}.npy", "text": f"{prefix}/text.txt"}]
    write_json(tmp_path / "M3D_Cap_npy/M3D_Cap.json", index)
    convert("m3d-cap", tmp_path, tmp_path / "out")
    assert leaks(audit([tmp_path / "out/train.jsonl", tmp_path / "out/test.jsonl"])) == expected
