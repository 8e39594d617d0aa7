"""Miniatures of the data sets of the paper's tables, each in the layout that it is distributed in."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmvl.phantoms import split_patients, write_ct_rate, write_slake


def picture(path: Path, size: tuple[int, int] = (32, 24)) -> None:
    """Write a picture of (width, height) pixels whose content depends on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def table(path: Path, rows: list[list[Any]]) -> None:
    """Write a CSV file, gzipped if its name says so; the first row is the header."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def medmnist(root: Path) -> None:
    """DermaMNIST and OrganSMNIST at 224 pixels, two images per split."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for flag, shape in (("dermamnist", (224, 224, 3)), ("organsmnist", (224, 224))):
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 255, (2, *shape), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.array([[0], [3]], dtype=np.uint8)
        np.savez_compressed(root / f"{flag}_224.npz", **arrays)


def mpx_single(root: Path) -> None:
    """RadFM's tables of MedPix with three images."""
    header = ["", "name", "type", "context"]
    rows = [[str(n), f"synpic{n}.jpg", kind, text] for n, kind, text in (
        (0, "caption", "A mass in the left lung."), (1, "caption", "Fracture of the radius."), (2, "modality", "CT - noncontrast"),
    )]  # fmt: skip
    for split in ("train", "test"):
        table(root / f"MedPix_single_{split}.csv", [header, *rows])
    for number in range(3):
        picture(root / "MedPix-Images" / f"synpic{number}.jpg")


def mimic_cxr(root: Path) -> None:
    """MIMIC-CXR-JPG with a test study of one frontal image and a training study; reports as text files."""
    studies = (("aa-1", "50000001", "10000001", "train"), ("bb-1", "50000002", "10000002", "test"))
    split = [["dicom_id", "study_id", "subject_id", "split"], *[list(study) for study in studies]]
    views = [["dicom_id", "ViewPosition"], *[[study[0], "PA"] for study in studies]]
    labels = [["subject_id", "study_id", "Edema", "Pneumonia"], ["10000002", "50000002", "1.0", ""]]
    for name, rows in (("split", split), ("metadata", views), ("chexpert", labels)):
        table(root / f"mimic-cxr-2.0.0-{name}.csv.gz", rows)
    for dicom, study, subject, _ in studies:
        folder = root / f"files/p{subject[:2]}/p{subject}"
        picture(folder / f"s{study}/{dicom}.jpg")
        text = "                                 FINAL REPORT\n FINDINGS:  Mild edema. No effusion.\n \n IMPRESSION:  Edema.\n"
        (folder / f"s{study}.txt").write_text(text)


def path_vqa(root: Path) -> None:
    """The official pickles with one question per split."""
    for split in ("train", "val", "test"):
        row = {
            "img_id": f"{split}_0001",
            "sent": "Is it red?",
            "question_id": 1,
            "label": {"yes": 1},
            "answer_type": "yes/no",
        }
        file = root / f"pvqa/qas/{split}_vqa.pkl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps([row], protocol=2))
        picture(root / f"pvqa/images/{split}/{split}_0001.jpg")


def sa_med2d(root: Path) -> None:
    """Twenty CT slices of twenty cases with one mask each, so that the tenth that is the test split is not empty."""
    index = {}
    for case in range(20):
        name = f"ct_00--AbdomenCT1K--Case-{case:02d}--011--x_0040"
        picture(root / f"SAMed2Dv1/images/{name}.png", (40, 20))
        mask = np.zeros((20, 40), dtype=np.uint8)
        mask[4:12, 10:25] = 255
        (root / "SAMed2Dv1/masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / f"SAMed2Dv1/masks/{name}--0000_001.png")
        index[f"images/{name}.png"] = [f"masks/{name}--0000_001.png"]
    (root / "SAMed2Dv1/SAMed2D_v1.json").write_text(json.dumps(index))
    classes = {"AbdomenCT1K": {"liver": "0000"}}
    (root / "SAMed2Dv1/SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(classes))


def write_table1(root: Path) -> Path:
    """Write the sources of Table 1 below `root/raw` and return `root`."""
    medmnist(root / "raw/medmnist")
    mpx_single(root / "raw/mpx-single")
    mimic_cxr(root / "raw/mimic-cxr")
    path_vqa(root / "raw/path-vqa")
    sa_med2d(root / "raw/sa-med2d-20m")
    write_slake(root / "raw/slake", split_patients(0, {"train": 1, "validation": 1, "test": 1}, (12, 24, 24)))
    return root


def write_table2(root: Path) -> Path:
    """Write the source of Table 2 below `root/raw` and return `root`."""
    write_ct_rate(root / "raw/ct-rate", split_patients(0, {"train": 1, "test": 1}, (12, 24, 24)))
    return root
