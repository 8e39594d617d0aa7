"""Check of a whole data file, with a list of all its faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from medmvl.data.faults import Fault
from medmvl.data.formats import Located, iter_located, local_records
from medmvl.data.media_check import MediaCheck
from medmvl.data.record import parse_record
from medmvl.data.roots import MediaRoots, Root
from medmvl.data.sample import Sample
from medmvl.errors import DataError, shown
from medmvl.files import PathLike, existing_folder
from medmvl.remote import RemotePath, as_root


def check_records(
    path: PathLike,
    roots: MediaRoots | None = None,
    *,
    read_media: bool = False,
    media: MediaCheck | None = None,
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
        media: looks at the files instead; several data files that share one read each image and volume once.
        on_record: called after each record, with the sample or None if the record cannot be parsed.
        on_warning: called with each doubt of a reader about a file that it could read (with `read_media`).

    Raises:
        DataError: only if the file itself or a root is missing.
    """
    source, roots = as_root(path, "data file"), MediaRoots.of(roots)
    file = local_records(source)
    images, volumes = roots.of_file(source)
    folders = {"image": _root(images, "image root"), "volume": _root(volumes, "volume root")}
    check = _Check(roots, folders, media or MediaCheck(read_media), on_warning)
    for located in iter_located(file):
        sample = check.add(located)
        if on_record is not None:
            on_record(sample)
    return check.faults


def _root(root: Root, what: str) -> Root:
    return root if isinstance(root, RemotePath) else existing_folder(root, what)


@dataclass
class _Check:
    """The state of a check: roots, what looks at files, and what was found so far."""

    roots: MediaRoots
    folders: dict[str, Root]
    media: MediaCheck
    on_warning: Callable[[Fault], None] | None
    faults: list[Fault] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)

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
        for file, message, is_warning in self._media(sample):
            finding = Fault(where, sample.id, f"{label}: {message}", file, message)
            if not is_warning:
                self.faults.append(finding)
            elif self.on_warning is not None:
                self.on_warning(finding)
        return sample

    def _media(self, sample: Sample) -> Iterator[tuple[str, str, bool]]:
        """Yield (file, message, whether it is a warning) about the files of one sample."""
        reading = sample.reading.over(self.roots.reading)
        for kind, paths in (("image", sample.images), ("volume", sample.volumes)):
            for relative in paths:
                verdict, first = self.media.look(kind, self.folders[kind], relative, reading)
                if verdict.fault:
                    yield relative, verdict.fault, False
                for warning in verdict.warnings if first else ():
                    yield relative, f"{relative}: {warning}", True


def _id_of(record: object) -> str | None:
    identifier = record.get("id") if isinstance(record, dict) else None
    return str(identifier) if isinstance(identifier, str) else None
