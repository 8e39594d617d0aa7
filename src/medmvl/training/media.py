"""Reading of the images and volumes of a recipe's data in a dry run, within a bounded time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from medmvl.data.dataset import SampleDataset
from medmvl.data.faults import Fault, fault_lines, warning_lines
from medmvl.data.media_check import MediaCheck
from medmvl.data.origins import Origins, origins_of
from medmvl.data.read_options import ReadOptions
from medmvl.data.roots import Root
from medmvl.errors import DataError
from medmvl.progress_bar import track
from medmvl.remote import RemotePath
from medmvl.training.context import StageContext

#: Seconds after which no further file is read.
SECONDS = 60.0

#: A file: "image" or "volume", its root, its path below the root, and the options that it is read with.
MediaFile = tuple[str, Root, str, ReadOptions]


@dataclass
class MediaReport:
    """What was found of images and volumes.

    Attributes:
        files: number of files that are to be read.
        read: number of files that were read in the time.
        skipped: reason -> number of files that are not to be read for it.
        faults: a line for each data set and file that cannot be read.
        warnings: lines about files that could be read.
    """

    files: int = 0
    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return how many of how many files were read; "" if there are none."""
        parts = [f"{self.read:,} of {self.files:,} read"] if self.files else []
        if self.read < self.files:
            parts[0] += " (a random sample, for more would take too long here; `medmvl data check` reads all)"
        parts += [f"{count:,} not read, since {reason}" for reason, count in self.skipped.items()]
        return f"Images and volumes: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class _Users:
    """The files of a data set, with the ids of the records that use each."""

    title: str
    files: dict[MediaFile, list[str]]
    origins: Origins | None

    def fault_lines(self, file: MediaFile, reason: str) -> list[str]:
        """Return the line about a file that cannot be read."""
        faults = [Fault(self.title, one, "", file[2], reason) for one in self.files[file]]
        return fault_lines(faults, self.title, self.origins)

    def warning(self, file: MediaFile, text: str) -> Fault:
        """Return a reader's warning about a file that could be read."""
        first = self.files[file][0]
        return Fault(self.title, first, f"{self.title}, record {first!r}: {file[2]}: {text}")


def read_media(contexts: Sequence[StageContext], seconds: float = SECONDS) -> MediaReport:
    """Read the images and volumes that stages train on and are evaluated on, each once, as `medmvl data check` does.

    The data sets take turns, with their files in random order, until the time is over; one file of each is read in any case.

    Args:
        contexts: the stages.
        seconds: time after which no further file is read.
    """
    report, warnings = MediaReport(), list[Fault]()
    users = list(_users(contexts, report))
    turns = list(_turns(users))
    report.files = len({file for _, file in turns})
    check, seen, end = MediaCheck(read=True), set[MediaFile](), time.monotonic() + seconds
    for number, (used, file) in enumerate(track(turns, "images and volumes")):
        if number >= len(users) and time.monotonic() > end:
            break
        seen.add(file)
        verdict, first = check.look(*file)
        if verdict.fault:
            report.faults += used.fault_lines(file, verdict.fault)
        if first:
            warnings += [used.warning(file, text) for text in verdict.warnings]
    report.read, report.warnings = len(seen), list(warning_lines(warnings))
    return report


def _users(contexts: Sequence[StageContext], report: MediaReport) -> Iterator[_Users]:
    """Yield the data sets of all stages with the files to read; the others are counted in the report."""
    prepared = any(context.recipe.run.volume_cache is not None for context in contexts)
    for name, (dataset, count) in _records_used(contexts).items():
        files: dict[MediaFile, list[str]] = {}
        skipped: dict[MediaFile, str] = {}
        for index in range(count):
            try:
                sample = dataset.sample(index)
            except DataError:  # the dry run lists such records before
                continue
            for kind, root, paths in (
                ("image", dataset.image_root, sample.images),
                ("volume", dataset.volume_root, sample.volumes),
            ):
                for file in ((kind, root, path, sample.reading) for path in paths):
                    if isinstance(root, RemotePath):
                        skipped[file] = "they are in an object store"
                    elif kind == "volume" and prepared:
                        skipped[file] = "run.volume_cache holds prepared volumes"
                    else:
                        files.setdefault(file, []).append(sample.id)
        report.skipped.update(skipped.values())
        yield _Users(f"data set {name!r} ({dataset.path.name})", files, origins_of(dataset.path))


def _records_used(contexts: Iterable[StageContext]) -> dict[str, tuple[SampleDataset, int]]:
    """Return name -> data set and number of its first records in use: all for training, `evaluate.samples` for evaluation."""
    used: dict[str, tuple[SampleDataset, int]] = {}
    for context in contexts:
        for name, dataset in context.training_data().items():
            used[name] = dataset, len(dataset)
        for name, dataset in context.held_out().items():
            used[name] = dataset, max(used.get(name, (dataset, 0))[1], context.evaluated(dataset))
    return used


def _turns(users: Sequence[_Users]) -> Iterator[tuple[_Users, MediaFile]]:
    """Yield the files of the data sets in turn, those of each in a random order that is the same each time."""
    queues = []
    for used in users:
        files = [(used, file) for file in used.files]
        random.Random(0).shuffle(files)
        queues.append(files)
    yield from (entry for entry in chain.from_iterable(zip_longest(*queues)) if entry is not None)
