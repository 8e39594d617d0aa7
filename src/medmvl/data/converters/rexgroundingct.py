"""ReXGroundingCT: findings of CT-RATE's reports with their masks, as questions about where a finding is and what is there.

Sources of the layout: the card of the hub's rajpurkarlab/ReXGroundingCT (dataset.json and MICCAI_challenge_dataset.json
with items {"name": "train_1741_b_2.nii.gz", "findings": {"0": text}, ...}; test masks are withheld), and public readers
that keep the masks as segmentations/<name>. Its splits are its own: validation and test volumes may be of CT-RATE's
training split.
Not verified, and therefore checked for every file: which axis of a mask counts the findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medmvl.data.converters.boxtext import phrase
from medmvl.data.converters.boxtext3d import box_text_3d, mask_box
from medmvl.data.converters.checked import iter_objects
from medmvl.data.converters.converter import DATASETS, Converter, Job, Record, Rows, qa_record
from medmvl.data.converters.ct_rate import volume_facts
from medmvl.data.converters.ct_rate_derived import CtRateVolumeOptions, open_volumes
from medmvl.data.converters.ct_rate_release import UNREADABLE
from medmvl.data.converters.ct_rate_volumes import Volumes
from medmvl.data.tables import iter_json_under
from medmvl.errors import DataError

INDEX = {"release": "dataset.json", "challenge": "MICCAI_challenge_dataset.json"}
SPLITS = {"train": "train", "val": "validation", "test": "test"}
# The wordings are ours; evaluation uses the first of each.
REFER = ("Where in the CT is this finding? {finding}", "Give the box of this finding: {finding}")
IDENTIFY = ("Which finding is in the box {box} of the CT?", "Describe the finding within {box}.")


class RexGroundingOptions(CtRateVolumeOptions):
    """Settings of the ReXGroundingCT converter."""

    index: Literal["auto", "release", "challenge"] = Field("auto", description="dataset.json or the MICCAI 2026 file")
    tasks: str = Field("refer,identify", description="comma-separated: refer, identify")


def run(job: Job) -> Rows:
    """Yield two records per finding whose mask is there: where it is, and what is in its box."""
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    if tasks - {"refer", "identify"}:
        raise DataError(
            f"ReXGroundingCT has no task {sorted(tasks - {'refer', 'identify'})}. Allowed: refer, identify."
        )
    names = list(INDEX.values()) if job.options.index == "auto" else [INDEX[job.options.index]]
    index = next((path for name in names for path in job.find(name)), None)
    if index is None:
        raise DataError(f"{job.source} holds no {' or '.join(names)}. Expected: {REXGROUNDINGCT.layout}")
    volumes = open_volumes(job, REXGROUNDINGCT.layout)
    seen_in_training = 0
    for key, split in SPLITS.items():
        for item in iter_objects(job, iter_json_under(index, key), key):
            records = list(_findings(job, index.parent, item, split, volumes, tasks))
            seen_in_training += bool(records) and split != "train" and str(item["name"]).startswith("train_")
            yield from ((split, record) for record in records)
    if seen_in_training:
        job.report.note(
            f"{seen_in_training} volumes of validation and test are of CT-RATE's training split: a model that was trained on "
            "CT-RATE has seen them."
        )


def _findings(
    job: Job, root: Path, item: dict[str, Any], split: str, volumes: dict[str, Volumes], tasks: set[str]
) -> Iterator[Record]:
    name, findings = str(item.get("name", "")), item.get("findings")
    theirs = name.partition("_")[0]
    if not isinstance(findings, dict) or not findings or not all(key.isdecimal() for key in findings):
        job.report.fault("item without numbered findings", name or "?")
        return
    if theirs not in volumes:
        job.report.fault("volume is missing", name)
        return
    file = next((p for p in (root / "segmentations" / name, root / "segmentations_flat" / name) if p.is_file()), None)
    if file is None:
        if split == "test":
            job.report.skip("test finding whose mask is withheld", len(findings))
        else:
            job.report.fault("mask is missing", name)
        return
    path = volumes[theirs].path(name)
    masks = None if path is None else _read_masks(job, file, len(findings))
    if path is None or masks is None:
        return
    for number, (key, text) in enumerate(sorted(findings.items(), key=lambda entry: int(entry[0]))):
        box = mask_box(masks[0][number], masks[1])
        if box is None:
            job.report.fault("finding has an empty mask", f"{name}: {key}")
            continue
        mask = {"mask": file.relative_to(job.source).as_posix(), "mask_channel": number}
        yield from _records(item, key, str(text), box, path, split, tasks, mask)


def _read_masks(job: Job, file: Path, count: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Return masks (findings, I, J, K) and the affine (4, 4); None, with a fault, if the shape does not say which axis.

    All masks of a volume are in memory together: about 80 MB for each finding of a usual chest CT.
    """
    try:
        image = nibabel.load(file)
        values = np.asanyarray(image.dataobj) > 0  # type: ignore[attr-defined]
        affine = np.array(image.affine)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        job.report.fault(f"mask is not readable ({type(error).__name__})", file.name)
        return None
    if values.ndim == 3 and count == 1:
        return values[None], affine
    axes = [axis for axis in (0, -1) if values.ndim == 4 and values.shape[axis] == count]
    if len(axes) != 1:
        job.report.fault(f"mask of shape {values.shape} does not show which axis counts the findings", file.name)
        return None
    return np.moveaxis(values, axes[0], 0), affine


def _records(
    item: dict[str, Any],
    key: str,
    text: str,
    box: list[float],
    path: str,
    split: str,
    tasks: set[str],
    mask: dict[str, Any],
) -> Iterator[Record]:
    name = str(item["name"])
    identifier = f"{name.split('.')[0]}-{key}"
    finding = " ".join(text.split())
    evaluation = split != "train"
    answer = box_text_3d(box)
    asked = {
        "refer": (phrase(REFER, identifier, evaluation=evaluation).format(finding=finding), answer),
        "identify": (phrase(IDENTIFY, identifier, evaluation=evaluation).format(box=answer), finding),
    }
    for task in sorted(tasks):
        question, reply = asked[task]
        record = qa_record(
            f"rex-{task}-{identifier}",
            question,
            reply,
            volume=path,
            evaluation=evaluation,
            task=task,
            boxes3d=[[round(side, 6) for side in box]],
            object=finding,
            category=(item.get("categories") or {}).get(key),
        )
        yield record | mask | volume_facts(name)


REXGROUNDINGCT = DATASETS.add(
    "rexgroundingct",
    Converter(
        name="rexgroundingct",
        title="ReXGroundingCT (Baharoon et al., 2025)",
        license="On its gated card; CT-RATE's volumes are CC BY-NC-SA 4.0: accept both before use.",
        homepage="https://huggingface.co/datasets/rajpurkarlab/ReXGroundingCT (accept the conditions there)",
        layout="dataset.json (or MICCAI_challenge_dataset.json), segmentations/<name>.nii.gz, and CT-RATE's "
        "{train,valid}_fixed/ next to them or below dataset/ or CT-RATE/dataset/.",
        run=run,
        options=RexGroundingOptions,
    ),
)
