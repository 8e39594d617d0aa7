"""OmniMedVQA: multiple-choice questions about images of 73 medical data sets; a benchmark, so that all of it is "test".

Sources of the layout: the card of the hub's foreverbeliever/OmniMedVQA (the tree below `OmniMedVQA/`; images only of
the open-access sets, and paths into the original data sets for the restricted ones), MedEvalKit's reader
(utils/OmniMedVQA/OmniMedVQA.py: `question`, `gt_answer` as a text, `option_A` ... `option_D`, `image_path`,
`question_type`, and `modality_type`, which one file calls `modality`).
No patients are named: an image stands for one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.checked import iter_objects
from medmvl.data.converters.choices import choice_record
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.splits import draw_split
from medmvl.data.tables import iter_json_array
from medmvl.errors import DataError

ACCESS = {"open": "Open-access", "restricted": "Restricted-access"}


class OmniMedVqaOptions(Options):
    """Settings of the OmniMedVQA converter."""

    access: Literal["open", "restricted", "all"] = Field(
        "open", description="questions whose images are included, those whose images are not, or both"
    )
    datasets: str | None = Field(
        None, description="comma-separated names of the JSON files, without .json; all without"
    )
    test_share: float = Field(
        1.0, ge=0, le=1, description="share of the images that are 'test'; below 1 the others become 'train'"
    )


def run(job: Job) -> Rows:
    """Yield the questions of every data set that is asked for."""
    root = next((path.parent for path in job.find("QA_information") if path.is_dir()), None)
    if root is None:
        raise DataError(f"{job.source} holds no QA_information/. Expected: {OMNI_MED_VQA.layout}")
    if job.options.test_share < 1:
        job.report.note(
            "OmniMedVQA is a benchmark without a training split: images were drawn for 'train' by their names."
        )
    wanted = None if job.options.datasets is None else {name.strip() for name in job.options.datasets.split(",")}
    names: set[str] = set()
    for access, folder in ACCESS.items():
        files = sorted((root / "QA_information" / folder).glob("*.json"))
        if job.options.access not in (access, "all"):
            job.report.note(f"{folder}: {len(files)} files of questions were not asked for (--set access=).")
            continue
        names.update(file.stem for file in files)
        for file in files:
            if wanted is None or file.stem in wanted:
                for number, row in enumerate(iter_objects(job, iter_json_array(file), file.name)):
                    yield from _question(job, root, file, number, row, restricted=access == "restricted")
    unknown = (wanted or set()) - names
    if unknown:
        raise DataError(
            f"No questions about {', '.join(sorted(unknown))}. There are: {', '.join(sorted(names)) or 'none'}."
        )


def _question(job: Job, root: Path, file: Path, number: int, row: dict[str, Any], *, restricted: bool) -> Rows:
    identifier = f"omnimedvqa-{row.get('question_id') or f'{file.stem}-{number}'}"
    image = str(row.get("image_path") or "").lstrip("/")
    if not image:
        job.report.fault("question without an image_path", identifier)
        return
    if restricted and not (root / image).exists():
        job.report.skip("image of a restricted-access data set that is not there")
        return
    path = relative_media(job, root / image)
    if path is None:
        return
    split = draw_split(image, job.options.test_share)
    record = _record(job, identifier, row, file, path, split)
    if record is not None:
        yield split, record


def _record(job: Job, identifier: str, row: dict[str, Any], file: Path, path: str, split: str) -> Record | None:
    options = {
        key.removeprefix("option_").upper(): text for key, text in sorted(row.items()) if key.startswith("option_")
    }
    return choice_record(
        job,
        identifier,
        str(row.get("question") or ""),
        options,
        row.get("gt_answer"),
        image=path,
        evaluation=split != "train",
        patient=path,
        question_type=row.get("question_type"),
        modality=row.get("modality_type") or row.get("modality"),
        dataset=row.get("dataset") or file.stem,
    )


OMNI_MED_VQA = DATASETS.add(
    "omnimedvqa",
    Converter(
        name="omnimedvqa",
        title="OmniMedVQA (Hu et al., CVPR 2024)",
        license="Each of its data sets has its own license, which applies to images and questions alike.",
        homepage="https://huggingface.co/datasets/foreverbeliever/OmniMedVQA (OmniMedVQA.zip)",
        layout="QA_information/{Open-access,Restricted-access}/<data set>.json and Images/<data set>/...",
        run=run,
        options=OmniMedVqaOptions,
    ),
)
