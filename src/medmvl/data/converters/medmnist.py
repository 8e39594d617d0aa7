"""MedMNIST v2 and MedMNIST+: 12 sets of images and 6 of volumes, as questions that list the classes."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import export_array
from medmvl.data.converters.medmnist_subsets import SUBSETS, Subset, spoken
from medmvl.errors import DataError, did_you_mean
from medmvl.files import atomic

SPLITS = {"train": "train", "val": "validation", "test": "test"}
_FILE = re.compile(r"(?P<flag>[a-z0-9]+?)(?:_(?P<size>64|128|224))?\.npz")
NO_FINDING = "no finding"


class MedMnistOptions(Options):
    """Settings of the MedMNIST converter."""

    flags: str = Field("all", description="comma-separated subsets (dermamnist,organsmnist,...), or all that are there")
    size: int | None = Field(None, description="28, 64, 128 or 224; by default the largest that is there")


def run(job: Job) -> Rows:
    """Yield the records of every chosen subset; `dataset` holds the subset's flag."""
    files = _files(job)
    wanted = list(files) if job.options.flags == "all" else [f.strip() for f in job.options.flags.split(",")]
    for flag in wanted:
        if flag not in SUBSETS:
            raise DataError(f"MedMNIST has no subset {flag!r}. {did_you_mean(flag, SUBSETS)}")
        if flag not in files:
            raise DataError(f"{job.source} holds no {flag}.npz (nor {flag}_64.npz ...).")
        size, file = _pick_size(files[flag], flag, job.options.size)
        if SUBSETS[flag].license != "CC BY 4.0":
            job.report.note(f"{flag} is under {SUBSETS[flag].license}.")
        yield from _subset(job, flag, size, file)


def _files(job: Job) -> dict[str, dict[int, Path]]:
    """Return flag -> size -> file."""
    found: dict[str, dict[int, Path]] = {}
    candidates = [job.file] if job.file else job.find("*.npz")
    for file in candidates:
        match = _FILE.fullmatch(file.name)
        if match and match["flag"] in SUBSETS:
            found.setdefault(match["flag"], {})[int(match["size"] or 28)] = file
    if not found:
        raise DataError(f"{job.source} holds no MedMNIST file. {MEDMNIST.layout}")
    return found


def _pick_size(sizes: dict[int, Path], flag: str, wanted: int | None) -> tuple[int, Path]:
    size = wanted if wanted is not None else max(sizes)
    if size not in sizes:
        raise DataError(f"{flag} is not there in size {size}; there is: {', '.join(map(str, sorted(sizes)))}.")
    return size, sizes[size]


def _subset(job: Job, flag: str, size: int, file: Path) -> Rows:
    subset = SUBSETS[flag]
    for split, name in SPLITS.items():
        try:
            labels = np.stack(list(iter_npz_rows(file, f"{split}_labels")))
            for index, pixels in enumerate(iter_npz_rows(file, f"{split}_images")):
                record = _record(job, flag, subset, split, index, pixels, labels[index], size)
                if record is not None:
                    yield name, record
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, IndexError, zlib.error) as error:
            raise DataError(f"{file} is not a whole MedMNIST file ({error}). Download it again.") from error


def _record(
    job: Job, flag: str, subset: Subset, split: str, index: int, pixels: Any, label: Any, size: int
) -> Record | None:
    identifier = f"{flag}-{split}-{index}"
    answer = _answer(subset, label)
    if answer is None:
        job.report.fault("label is not one of the classes", identifier)
        return None
    image = volume = None
    if subset.volume:
        volume = _export_volume(job, pixels, f"volumes/{flag}_{size}/{split}/{index}.npy")
    else:
        image = export_array(job, pixels, f"images/{flag}_{size}/{split}/{index}.png")
    findings = None
    if subset.multi_label:
        findings = {name: int(value) for name, value in zip(subset.classes, label.tolist(), strict=True)}
    return qa_record(
        identifier,
        question(subset),
        answer,
        image=image,
        volume=volume,
        evaluation=split != "train",
        task="classify",
        dataset=flag,
        classes=[spoken(name) for name in subset.classes],
        labels=findings,
    )


def question(subset: Subset) -> str:
    """Return the question, which lists all class names in id order.

    For DermaMNIST and OrganSMNIST it is word for word the one that the published 2D checkpoint was trained and scored with
    (MSIIP/Uni-Med, uni_med/datasets/datasets/medmnist_dataset.py). The other subsets follow the same form.
    """
    names = [spoken(name) for name in subset.classes]
    if subset.multi_label:
        return f"Which of these findings does this {subset.picture} show: {'; '.join(names)}, or {NO_FINDING}?"
    # Semicolons separate the options where a class name holds a comma.
    comma = "; " if any("," in name for name in names) else ", "
    return f"Which category does this {subset.picture} belong to: {comma.join(names[:-1])}{comma}or {names[-1]}?"


def _answer(subset: Subset, label: Any) -> str | None:
    """Return the class name, or the names of all findings of a multi-label row ("no finding" for none)."""
    values = np.asarray(label).ravel().tolist()
    if subset.multi_label:
        if len(values) != len(subset.classes):
            return None
        found = [spoken(name) for name, value in zip(subset.classes, values, strict=True) if value]
        return "; ".join(found) or NO_FINDING
    if len(values) != 1 or not 0 <= int(values[0]) < len(subset.classes):
        return None
    return spoken(subset.classes[int(values[0])])


def _export_volume(job: Job, voxels: Any, target: str) -> str:
    """Write a (D, H, W) uint8 volume as .npy; 8-bit values are read as arbitrary units, not HU."""
    job.report.exported = True
    if not (job.out / target).is_file():
        with atomic(job.out / target) as temporary:
            np.save(temporary, np.ascontiguousarray(voxels, dtype=np.uint8), allow_pickle=False)
    return target


def iter_npz_rows(file: Path, name: str) -> Iterator[Any]:
    """Yield the rows of one array of a .npz file without unpacking the array (224 px sets are tens of gigabytes).

    Raises:
        KeyError, ValueError, EOFError, zipfile.BadZipFile: if the array is not there or the file is damaged.
    """
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if dtype.hasobject or fortran:
            raise ValueError(f"array {name} holds objects or is in Fortran order")
        count = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for _ in range(shape[0]):
            data = member.read(count)
            if len(data) != count:
                raise EOFError(f"array {name} ends early")
            yield np.frombuffer(data, dtype=dtype).reshape(shape[1:])


MEDMNIST = DATASETS.add(
    "medmnist",
    Converter(
        name="medmnist",
        title="MedMNIST v2 / MedMNIST+ (Yang et al., 2023)",
        license="CC BY 4.0; DermaMNIST CC BY-NC 4.0.",
        homepage="https://zenodo.org/records/10519652",
        layout="<flag>.npz (28 px), <flag>_64.npz, <flag>_128.npz, <flag>_224.npz; `medmnist` keeps them in ~/.medmnist.",
        run=run,
        options=MedMnistOptions,
    ),
)
