"""Uni-Med's prepared part of SA-Med2D: `regions_small_{train,test}/{modality}/{id}.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medmvl.data.converters.converter import Job
from medmvl.data.converters.media import relative_media
from medmvl.files import read_json

Entries = list[tuple[str, tuple[int, int, int, int]]]


def iter_regions(job: Job) -> Iterator[tuple[str, str, str, Entries]]:
    """Yield (split, stem, image path, [(object, (x, y, w, h))]) of every region file."""
    for split in ("train", "test"):
        root = job.source / f"regions_small_{split}"
        for file in sorted(root.glob("*/*.json")):
            modality = file.parent.name
            image = relative_media(job, job.source / f"images_small_{split}" / modality / f"{file.stem}.png")
            if image is None:
                continue
            entries = [entry for region in read_json(file) for entry in _entries(job, file.stem, region)]
            yield split, f"{modality}--{file.stem}", image, entries


def _entries(job: Job, stem: str, region: Any) -> Entries:
    """Return the entries of a one-key dictionary {name: [x, y, w, h]}."""
    found: Entries = []
    for name, box in region.items() if isinstance(region, dict) else ():
        if isinstance(box, list) and len(box) == 4 and box[2] > 0 and box[3] > 0:
            x, y, w, h = (int(side) for side in box)
            found.append((str(name), (x, y, w, h)))
        else:
            job.report.fault("box is not [x, y, w, h] with a size", f"{stem}: {name}")
    return found
