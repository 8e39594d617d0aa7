"""The volumes of data sets that annotate CT-RATE and name its volumes: where they are, and in which release."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medmvl.data.converters.converter import Job, Options
from medmvl.data.converters.ct_rate_release import Release, find_release
from medmvl.data.converters.ct_rate_volumes import Volumes
from medmvl.errors import DataError

SPLITS = ("train", "valid")
_BASES = ("dataset", "", "CT-RATE/dataset", "CT-RATE")


class CtRateVolumeOptions(Options):
    """Settings that say which of CT-RATE's volumes to use, shared by the data sets that annotate it."""

    volumes: Literal["auto", "fixed", "original"] = Field("auto", description="which release; auto prefers *_fixed")
    folder: str | None = Field(None, description="ready volumes instead, e.g. preprocessed_npy/{split} below dataset/")
    reconstructions: Literal["all", "first"] = Field("all", description="all volumes of a scan, or its first")


def open_volumes(job: Job, layout: str) -> dict[str, Volumes]:
    """Return CT-RATE's split ("train", "valid") -> its volumes, for the splits that are there.

    RadGenome-ChestCT's own copies (`train_preprocessed/`, in HU) are preferred unless the options name another release.

    Args:
        job: the running conversion; its options are a `CtRateVolumeOptions`.
        layout: what the source must hold, for the message.

    Raises:
        DataError: if there are no volumes at all.
    """
    base = next((base for base in (job.source / name for name in _BASES) if _has_volumes(job, base)), None)
    releases: dict[str, Release] = {}
    for split in SPLITS if base is not None else ():
        release = _release(job, base, split)  # type: ignore[arg-type]
        if release is not None:
            releases[split] = release
    if base is None or not releases:
        raise DataError(
            f"{job.source} holds no volumes of CT-RATE: put or link its train_fixed/ and valid_fixed/ there, or below "
            f"dataset/ or CT-RATE/dataset/. Expected: {layout}"
        )
    export = any(release.kind != "ready" for release in releases.values())
    return {split: Volumes(job, base, split, release, export=export) for split, release in releases.items()}


def _has_volumes(job: Job, base: Path) -> bool:
    """Return whether a folder holds volumes; a `train/` of tables (3D-RAD) does not count."""
    if job.options.folder:
        return any((base / job.options.folder.format(split=split)).is_dir() for split in SPLITS)
    return any(
        (base / f"{split}_fixed").is_dir()
        or (base / f"{split}_preprocessed").is_dir()
        or next((base / split).glob(f"{split}_*"), None) is not None
        for split in SPLITS
    )


def _release(job: Job, base: Path, split: str) -> Release | None:
    preprocessed = base / f"{split}_preprocessed"
    if job.options.folder is None and job.options.volumes == "auto" and preprocessed.is_dir():
        return Release(preprocessed, "ready")
    return find_release(job, base, split)
