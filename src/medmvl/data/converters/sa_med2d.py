"""SA-Med2D-20M: 3.8 million images with masks, as "where is" (refer) and "what is" (identify) questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from medmvl.data.converters.boxtext import IDENTIFY, REFER, box_text, phrase
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import image_size, relative_media
from medmvl.data.converters.sa_med2d_regions import iter_regions
from medmvl.data.converters.splits import draw_split
from medmvl.data.tables import iter_json_object
from medmvl.errors import DataError
from medmvl.files import read_json
from medmvl.imaging.formats.pictures import open_picture

INDEX = "SAMed2D_v1.json"
CLASSES = "SAMed2D_v1_class_mapping_id.json"
DEMO_INDEX = "image2label_train.json"  # the older demo release in OpenGVLab/SAM-Med2D
#: what some sources append to a patient's name: ACDC writes patient001_frame01 and patient001_frame12
_FRAME = re.compile(r"(?:[_-]+(?:frame|fr|slice|time|phase|4d|ed|es)[_-]?\d*)+$", re.IGNORECASE)
#: data sets whose masks are stored inverted, and classes that cover other classes of the same image
INVERTED = ("ichallenge_adam_task2",)
COVERING = {"ACDC": ("0003",)}


class SaMed2dOptions(Options):
    """Settings of the SA-Med2D converter."""

    tasks: str = Field("refer,identify", description="comma-separated: refer, identify")
    per_modality: int | None = Field(None, ge=1, description="most images per modality (the whole set is 3.8 million)")
    test_share: float = Field(
        0.1, ge=0, le=1, description="share of the cases that become the test split; no official one"
    )
    instances: Literal["single", "all"] = Field("single", description="objects that occur once in an image, or all")
    min_pixels: int = Field(16, ge=1, description="masks with fewer pixels are left out")


@dataclass(frozen=True)
class Thing:
    """An object in an image: its name and its box (x, y, w, h) in pixels."""

    name: str
    box: tuple[int, int, int, int]


def run(job: Job) -> Rows:
    """Yield the records of the layout that is found: the release, Uni-Med's regions, or the demo release."""
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    if tasks - {"refer", "identify"}:
        raise DataError(f"SA-Med2D has no task {sorted(tasks)}. Allowed: refer, identify.")
    root = next((r for r in (job.source, job.source / "SAMed2Dv1") if (r / INDEX).is_file()), None)
    if root is not None:
        job.report.note(
            f"SA-Med2D has no official split: {job.options.test_share:g} of the cases, chosen by their name, are 'test'."
        )
        yield from _release(job, root, tasks)
    elif any(job.source.glob("regions_small_*")):
        job.report.note("Uni-Med's own selection of SA-Med2D, with its train and test parts.")
        for split, file, image, entries in iter_regions(job):
            things = [Thing(name, box) for name, box in entries]
            size = image_size(job.source / image)
            if size is None:
                job.report.fault("image is not readable", image)
                continue
            yield from ((split, r) for r in _questions(job, file, image, size, things, tasks, split, {}))
    elif (job.source / DEMO_INDEX).is_file():
        job.report.note("The demo release of SAM-Med2D: object names come from the mask names.")
        yield from _demo(job, tasks)
    else:
        raise DataError(f"{job.source} holds no {INDEX}, regions_small_* or {DEMO_INDEX}. {SA_MED2D.layout}")


def _release(job: Job, root: Path, tasks: set[str]) -> Rows:
    names = _class_names(root / CLASSES)
    taken: Counter[str] = Counter()
    for image, masks in iter_json_object(root / INDEX):
        stem = image.rsplit("/", 1)[-1].removesuffix(".png")
        parts = stem.split("--")
        if len(parts) < 4:
            job.report.fault("image name has not four parts", image)
            continue
        modality, dataset, case = parts[0], parts[1], "--".join(parts[2:-1])
        if job.options.per_modality is not None and taken[modality] >= job.options.per_modality:
            job.report.skip("more images of a modality than asked for")
            continue
        path = relative_media(job, root / image)
        size = None if path is None else image_size(root / image)
        if path is None or size is None:
            if path is not None:
                job.report.fault("image is not readable", image)
            continue
        things = list(_things(job, root, masks, size, dataset, names))
        patient = f"{dataset}--{patient_of(case)}"
        split = draw_split(patient, job.options.test_share)
        facts = {"modality": modality, "dataset": dataset, "patient": patient}
        records = list(_questions(job, stem, path, size, things, tasks, split, facts))
        taken[modality] += bool(records)
        yield from ((split, record) for record in records)


def patient_of(case: str) -> str:
    """Return a case without the number of its frame, time or slice, so that one patient stays in one split.

    >>> patient_of("patient001_frame12"), patient_of("Case_00011")
    ('patient001', 'Case_00011')
    """
    return _FRAME.sub("", case) or case


def _class_names(file: Path) -> dict[str, dict[int, str]]:
    """Return data set -> class id -> name; ids are zero-based numbers or texts."""
    table = read_json(file)
    return {dataset: {int(number): name for name, number in classes.items()} for dataset, classes in table.items()}


def _things(
    job: Job, root: Path, masks: Any, size: tuple[int, int], dataset: str, names: dict[str, dict[int, str]]
) -> Iterator[Thing]:
    """Yield the usable objects of an image."""
    for mask in masks if isinstance(masks, list) else []:
        last = mask.rsplit("--", 1)[-1].removesuffix(".png")  # case names may hold hyphens: split from the right
        number = last.split("_")[0]
        name = names.get(dataset, {}).get(int(number)) if number.isdigit() else None
        if name is None:
            job.report.fault("class of a mask is not in the class table", mask)
            continue
        if name.startswith("union_") or number in COVERING.get(dataset, ()):
            job.report.skip("mask that unites or covers other classes")
            continue
        box = mask_box(job, root / mask, size, inverted=dataset in INVERTED)
        if box is not None:
            yield Thing(name.replace("_", " "), box)


def mask_box(
    job: Job, file: Path, size: tuple[int, int], *, inverted: bool = False
) -> tuple[int, int, int, int] | None:
    """Return the box of a mask's foreground (> 0), or None after counting a mask that cannot be used."""
    name = file.name
    try:
        with open_picture(file) as picture:
            values = np.asarray(picture)
    except FileNotFoundError:
        job.report.fault("mask is missing", name)
        return None
    except OSError:  # also Pillow's for an unknown format
        job.report.fault("mask is not readable", name)
        return None
    region = (values if values.ndim == 2 else values.max(axis=-1)) > 0
    if (region.shape[1], region.shape[0]) != size:
        job.report.skip("mask of another size than its image")
        return None
    region = ~region if inverted else region
    if region.sum() < job.options.min_pixels:
        job.report.skip("mask that is empty or smaller than asked for")
        return None
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _questions(
    job: Job,
    stem: str,
    path: str,
    size: tuple[int, int],
    things: list[Thing],
    tasks: set[str],
    split: str,
    facts: dict[str, Any],
) -> Iterator[Record]:
    """Yield the questions about the objects of one image."""
    counts = Counter(thing.name for thing in things)
    evaluation = split != "train"
    for number, thing in enumerate(things):
        if job.options.instances == "single" and counts[thing.name] > 1:
            job.report.skip("object that occurs more than once in its image")
            continue
        key = f"{stem}-{number}"
        text = box_text(thing.box, size)
        asked = {
            "refer": (phrase(REFER, key, evaluation=evaluation).format(object=thing.name), text),
            "identify": (phrase(IDENTIFY, key, evaluation=evaluation).format(box=text), thing.name),
        }
        for task in sorted(tasks):
            yield qa_record(
                f"samed-{task}-{key}",
                *asked[task],
                image=path,
                evaluation=evaluation,
                task=task,
                boxes=[list(thing.box)],
                image_size=list(size),
                object=thing.name,
                **facts,
            )


def _demo(job: Job, tasks: set[str]) -> Rows:
    """Yield the records of the demo release: image -> masks, names like masks/amos_0004_75_liver_000.png."""
    for image, masks in iter_json_object(job.source / DEMO_INDEX):
        inside = image.removeprefix("data_demo/")
        path = relative_media(job, job.source / image, job.source / inside, job.source.parent / image)
        size = None if path is None else image_size(job.source / path)
        if path is None or size is None:
            continue
        stem = Path(image).stem
        things = []
        for mask in masks:
            name = Path(mask).stem.removeprefix(f"{stem}_").rsplit("_", 1)[0]
            file = next(
                (f for f in (job.source / mask, job.source / mask.removeprefix("data_demo/")) if f.exists()), None
            )
            box = mask_box(job, file or job.source / mask, size)
            if box is not None:
                things.append(Thing(name.replace("_", " "), box))
        facts = {"patient": stem.rsplit("_", 1)[0]}
        yield from (("train", r) for r in _questions(job, stem, path, size, things, tasks, "train", facts))


SA_MED2D = DATASETS.add(
    "sa-med2d-20m",
    Converter(
        name="sa-med2d-20m",
        title="SA-Med2D-20M (Ye et al., 2023)",
        license="CC BY-NC-SA 4.0.",
        homepage="https://huggingface.co/datasets/OpenGVLab/SA-Med2D-20M (join the parts with `zip -s 0` before unzipping)",
        layout=f"SAMed2Dv1/{INDEX}, {CLASSES}, images/ and masks/; or Uni-Med's images_small_*/ and regions_small_*/.",
        run=run,
        options=SaMed2dOptions,
    ),
)
