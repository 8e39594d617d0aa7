"""Check of a whole data file, with a list of all its faults."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medmvl.data.dataset import resolve_below
from medmvl.data.formats import Located, iter_located, local_records
from medmvl.data.read_options import reading_of, with_reading
from medmvl.data.record import parse_record
from medmvl.data.roots import MediaRoots, Root
from medmvl.data.sample import Sample
from medmvl.errors import DataError, MedMVLError, shown
from medmvl.files import PathLike, existing_folder
from medmvl.remote import RemotePath, as_root, exists


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault or warning: its place, the record's id if it has one, and the message."""

    where: str
    id: str | None
    message: str

    def __str__(self) -> str:
        return self.message


def check_records(
    path: PathLike,
    roots: MediaRoots | None = None,
    *,
    read_media: bool = False,
    on_record: Callable[[Sample | None], None] | None = None,
    on_warning: Callable[[Fault], None] | None = None,
) -> list[Fault]:
    """List all faults of a data file; an empty list means that every record can be trained on or asked.

    Checked are the form of each record, that ids are unique, that files exist below their roots, and with `read_media`
    also that every image and volume can be read (each file once).

    Args:
        path: JSON array, JSON Lines or Parquet file.
        roots: folders of the images and volumes, and reading options; default as for `SampleDataset`.
        read_media: decode the pixels too.
        on_record: called after each record, with the sample or None if the record cannot be parsed.
        on_warning: called with each doubt of a reader about a file that it could read (with `read_media`).

    Raises:
        DataError: only if the file itself or a root is missing.
    """
    source, roots = as_root(path, "data file"), MediaRoots.of(roots)
    file = local_records(source)
    images, volumes = roots.of_file(source)
    folders = {"image": _root(images, "image root"), "volume": _root(volumes, "volume root")}
    check = _Check(roots, folders, _readers() if read_media else {}, on_warning)
    for located in iter_located(file):
        sample = check.add(located)
        if on_record is not None:
            on_record(sample)
    return check.faults


def _root(root: Root, what: str) -> Root:
    return root if isinstance(root, RemotePath) else existing_folder(root, what)


@dataclass(slots=True)
class _Verdict:
    """What reading one file gave: a fault or "", and warnings."""

    fault: str = ""
    warnings: list[str] = field(default_factory=list)


#: Reads a file and returns the reader's warnings; raises if the file cannot be read.
Reader = Callable[[str], list[str]]


@dataclass
class _Check:
    """The state of a check: roots, readers, and what was found so far."""

    roots: MediaRoots
    folders: dict[str, Root]
    readers: dict[str, Reader]
    on_warning: Callable[[Fault], None] | None
    faults: list[Fault] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], _Verdict] = field(default_factory=dict)

    def add(self, located: Located) -> Sample | None:
        """Check one record; return its sample, or None if it cannot be parsed."""
        where = located.where
        try:
            if located.error is not None:
                raise located.error
            sample = parse_record(located.record, where)
        except DataError as error:
            self.faults.append(Fault(where, _id_of(located.record), str(error)))
            return None
        label = f"{where}, record {shown(sample.id)}"
        if sample.id in self.seen:
            message = f"{label}: the id stands already at {self.seen[sample.id]}."
            self.faults.append(Fault(where, sample.id, message))
        self.seen.setdefault(sample.id, where)
        for message, is_warning in self._media(sample):
            finding = Fault(where, sample.id, f"{label}: {message}")
            if not is_warning:
                self.faults.append(finding)
            elif self.on_warning is not None:
                self.on_warning(finding)
        return sample

    def _media(self, sample: Sample) -> Iterator[tuple[str, bool]]:
        """Yield (message, whether it is a warning) about the files of one sample."""
        reading = sample.reading.over(self.roots.reading)
        for kind, paths in (("image", sample.images), ("volume", sample.volumes)):
            for relative in paths:
                try:
                    path = resolve_below(self.folders[kind], relative, kind)
                    if isinstance(path, RemotePath) and not exists(path):
                        raise DataError(f"The {kind} {shown(relative, 200)} does not exist below {self.folders[kind]}.")
                except DataError as error:
                    yield str(error), False
                    continue
                if not self.readers:
                    continue
                (path,) = with_reading([path], reading)
                first = (kind, path) not in self.verdicts
                if first:
                    self.verdicts[kind, path] = _verdict(self.readers[kind], path, relative)
                verdict = self.verdicts[kind, path]
                if verdict.fault:
                    yield verdict.fault, False
                for warning in verdict.warnings if first else ():
                    yield f"{Path(relative).name}: {warning}", True


def _id_of(record: object) -> str | None:
    identifier = record.get("id") if isinstance(record, dict) else None
    return str(identifier) if isinstance(identifier, str) else None


def _readers() -> dict[str, Reader]:
    return {"image": functools.partial(_read, "image"), "volume": functools.partial(_read, "volume")}


def _read(kind: str, path: str) -> list[str]:
    from medmvl.imaging import read_image, read_volume

    options = reading_of(path)
    plain = RemotePath(path) if isinstance(path, RemotePath) else str(path)
    if kind == "image":
        return list(read_image(plain, **options.for_image()).warnings)
    return list(read_volume(plain, **options.for_volume()).warnings)


def _verdict(read: Reader, path: str, relative: str) -> _Verdict:
    """Read one file; an exception of any library is a fault of that file, so that the check continues."""
    try:
        return _Verdict(warnings=read(path))
    except MedMVLError as error:
        message = str(error)
        name = Path(relative).name
        return _Verdict(fault=message if name in message else f"{name}: {message}")
    except (Exception, RecursionError, MemoryError) as error:
        # Texts of foreign libraries may quote what the file holds.
        return _Verdict(fault=f"{Path(relative).name} cannot be read ({type(error).__name__}).")
