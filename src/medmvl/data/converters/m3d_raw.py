"""M3D-Cap as it is downloaded: a folder per case with a text and a folder of numbered slices per series."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medmvl.data.converters.converter import Job
from medmvl.files import atomic
from medmvl.imaging.formats.pictures import open_picture

_SLICES = (".jpeg", ".jpg", ".png")


def iter_raw(job: Job) -> Iterator[tuple[str, str, str]]:
    """Yield (case, volume path relative to `out`, text) of every series; slices are stacked to uint8 .npy files."""
    for root in _roots(job):
        for case in sorted(root.glob("*/")):
            text = case / "text.txt"
            if not text.is_file():
                job.report.fault("case without text.txt", case.name)
                continue
            words = text.read_text(encoding="utf-8", errors="replace")
            for series in sorted(path for path in case.iterdir() if path.is_dir()):
                path = _stack(job, series, f"volumes/{root.name}/{case.name}/{series.name}.npy")
                if path is not None:
                    yield f"{root.name}/{case.name}", path, words


def has_raw(job: Job) -> bool:
    """Return whether the source is in this layout."""
    return bool(_roots(job))


def _roots(job: Job) -> list[Path]:
    """Return the folders of cases that are there."""
    bases = (job.source, job.source / "M3D_Cap")
    return [base / name for base in bases for name in ("ct_case", "ct_quizze") if (base / name).is_dir()]


def _stack(job: Job, series: Path, target: str) -> str | None:
    """Stack the slices of the commonest size, in the order of their numbers, to (D, H, W) uint8."""
    job.report.exported = True
    if (job.out / target).is_file():
        return target
    slices = []
    files = sorted((p for p in series.iterdir() if p.suffix.lower() in _SLICES), key=_number)
    for file in files:
        try:
            with open_picture(file) as picture:
                slices.append(np.asarray(picture.convert("L")))
        except OSError:  # also Pillow's for an unknown format
            job.report.fault("slice is not readable", f"{series.parent.name}/{series.name}/{file.name}")
    if not slices:
        job.report.fault("series without slices", f"{series.parent.name}/{series.name}")
        return None
    common, count = Counter(s.shape for s in slices).most_common(1)[0]
    if count < len(slices):
        job.report.skip("slice of another size than most of its series", len(slices) - count)
    volume = np.stack([s for s in slices if s.shape == common])
    with atomic(job.out / target) as temporary:
        np.save(temporary, volume, allow_pickle=False)
    return target


def _number(file: Path) -> tuple[int, str]:
    """Return the number in a slice's name, so that 10 comes after 9."""
    digits = re.findall(r"\d+", file.stem)
    return (int(digits[-1]) if digits else -1), file.stem
