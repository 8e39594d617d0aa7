"""Look over a whole data file and list every fault in it at once, before a night of training does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medmvl.data.formats import iter_located, parse_record
from medmvl.data.sample import Sample
from medmvl.errors import DataError
from medmvl.files import PathLike, existing_file, existing_folder, resolve_under

#: Reads a medium and raises a DataError if it cannot.
Reader = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: where it stands, the record's id if it has one, and what is wrong and what to do."""

    where: str
    id: str | None
    message: str

    def __str__(self) -> str:
        return self.message


def check_records(
    path: PathLike,
    image_root: PathLike | None = None,
    volume_root: PathLike | None = None,
    *,
    read_media: bool = False,
    on_record: Callable[[Sample | None], None] | None = None,
) -> list[Fault]:
    """List all faults of a data file; an empty list means that every record can be trained on or asked.

    Checked are the form of each record, that ids are unique, that media exist below their roots, and with
    `read_media` also that every image and volume can be read (each file once).

    Args:
        path: JSON array, JSON Lines or Parquet file.
        image_root: folder of the images; the file's own folder by default.
        volume_root: folder of the volumes; the file's own folder by default.
        read_media: decode the pixels too.
        on_record: called after each record, with what it says or None if it says nothing readable.

    Raises:
        DataError: only if the file itself or a root is missing.
    """
    file = existing_file(path, "data file")
    roots = {
        "image": existing_folder(image_root if image_root is not None else file.parent, "image root"),
        "volume": existing_folder(volume_root if volume_root is not None else file.parent, "volume root"),
    }
    readers = _readers() if read_media else {}
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    verdicts: dict[Path, str | None] = {}
    for located in iter_located(file):
        identifier: str | None = None
        sample: Sample | None = None
        try:
            if located.error is not None:
                raise located.error
            sample = parse_record(located.record, located.where)
            identifier = sample.id
        except DataError as error:
            faults.append(Fault(located.where, _id_of(located.record), str(error)))
        else:
            label = f"{located.where}, record {identifier!r}"
            if identifier in seen:
                faults.append(
                    Fault(located.where, identifier, f"{label}: the id stands already at {seen[identifier]}.")
                )
            seen.setdefault(identifier, located.where)
            found = _media_faults(sample, roots, readers, verdicts)
            faults.extend(Fault(located.where, identifier, f"{label}: {message}") for message in found)
        if on_record is not None:
            on_record(sample)
    return faults


def _id_of(record: object) -> str | None:
    identifier = record.get("id") if isinstance(record, dict) else None
    return str(identifier) if isinstance(identifier, str | int) else None


def _readers() -> dict[str, Reader]:
    from medmvl.imaging import read_image, read_volume

    return {"image": read_image, "volume": read_volume}


def _media_faults(
    sample: Sample, roots: dict[str, Path], readers: dict[str, Reader], verdicts: dict[Path, str | None]
) -> Iterator[str]:
    """Yield what is wrong with the media of one sample; `verdicts` remembers files that were read before."""
    for kind, paths in (("image", sample.images), ("volume", sample.volumes)):
        for relative in paths:
            try:
                path = resolve_under(roots[kind], relative, kind)
            except DataError as error:
                yield str(error)
                continue
            if readers and path not in verdicts:
                verdicts[path] = _verdict(readers[kind], path)
            verdict = verdicts.get(path)
            if verdict is not None:
                yield verdict


def _verdict(read: Reader, path: Path) -> str | None:
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None
