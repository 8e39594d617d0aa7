"""Folders of the images and volumes of records, and the options they are read with."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from medmvl.data.read_options import DEFAULT_READING, ReadOptions
from medmvl.errors import DataError
from medmvl.files import PathLike, read_json
from medmvl.remote import RemotePath, as_root, exists, join, local_copy, moved, parent

REPORT = "report.json"
#: Key of the folders in the note next to a predictions file; they are no part of what the rows depend on.
NOTED_ROOTS = "media_roots"

Root = Path | RemotePath
"""A folder, or the URL of one."""


@dataclass(frozen=True, slots=True)
class MediaRoots:
    """Folders that the paths in records are relative to, and options for reading the files.

    Attributes:
        image: folder or URL of the images; None means the default of the caller, usually the data file's own folder.
        volume: the same for volumes.
        reading: options for all files; a record's own `read` wins.
    """

    image: PathLike | None = None
    volume: PathLike | None = None
    reading: ReadOptions = DEFAULT_READING

    @classmethod
    def of(cls, roots: object) -> MediaRoots:
        """Return roots given as an argument; None means the defaults.

        Raises:
            DataError: for anything else, such as a path.
        """
        if roots is not None and not isinstance(roots, MediaRoots):
            raise DataError(f"roots must be MediaRoots(image=..., volume=...), not a {type(roots).__name__}.")
        return roots or cls()

    def image_or(self, default: PathLike) -> Root:
        """Return the folder of the images, or `default` if none is set."""
        return as_root(default if self.image is None else self.image)

    def volume_or(self, default: PathLike) -> Root:
        """Return the folder of the volumes, or `default` if none is set."""
        return as_root(default if self.volume is None else self.volume)

    def with_default(self, default: PathLike) -> MediaRoots:
        """Return the roots with `default` in place of folders that are not set."""
        return MediaRoots(self.image_or(default), self.volume_or(default), self.reading)

    def of_file(self, file: Root) -> tuple[Root, Root]:
        """Return the folders of the images and of the volumes of a records file.

        A folder that is not set is `media_root_of(file)`.
        """
        unused = self.image is not None and self.volume is not None
        default: Root = Path() if unused else media_root_of(file)
        return self.image_or(default), self.volume_or(default)


def conversion_report(file: Root) -> dict[str, object]:
    """Return the report that `medmvl data convert` wrote next to a records file; empty without one, or if it is another file."""
    if isinstance(file, RemotePath):
        url = join(parent(file), REPORT)
        content = read_json(local_copy(url, keep=True)) if exists(url) else {}
    else:
        path = file.parent / REPORT
        content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) and "dataset" in content else {}


def records_files(place: Root) -> list[Root]:
    """Return the records files of a conversion's folder by its report, the training data first; a file stands for itself.

    Raises:
        DataError: if a folder holds no report of a conversion, or lacks a file that its report names.
    """
    if isinstance(place, RemotePath) or not place.is_dir():
        return [place]
    splits = conversion_report(place / REPORT).get("records")
    if not isinstance(splits, dict) or not splits:
        raise DataError(
            f"{place} is a folder without the {REPORT} of `medmvl data convert`. Give the folder of a conversion, or name the "
            "files of records."
        )
    found = [place / f"{split}.jsonl" for split in sorted(splits, key=lambda split: (split != "train", split))]
    for file in found:
        if not file.is_file():
            raise DataError(
                f"{file} is missing, and {place / REPORT} names it. Convert again, or name the files to use."
            )
    return list(found)


def media_root_of(file: Root) -> Root:
    """Return the media root of a records file: `media_root` of its conversion report, else the file's own folder."""
    noted = str(conversion_report(file).get("media_root", "."))
    return moved(parent(file), noted) if isinstance(file, RemotePath) else file.parent / noted


def run_note(predictions: Path) -> Path:
    """Return the path of the note about how a predictions file was made."""
    return predictions.with_name(f"{predictions.name}.run.json")


def relative_roots(predictions: Path, image: Root, volume: Root) -> dict[str, str]:
    """Return the local folders of the images and volumes as the note holds them: relative to the folder of the predictions.

    URLs are left out: only those that the user writes are read.
    """
    folder = predictions.resolve().parent
    roots = {"image": image, "volume": volume}
    return {
        what: Path(os.path.relpath(root.resolve(), folder)).as_posix()
        for what, root in roots.items()
        if not isinstance(root, RemotePath)
    }


def roots_of_predictions(predictions: PathLike, roots: MediaRoots) -> MediaRoots:
    """Return the roots, with those that were noted when the predictions were made in place of folders that are not set.

    A folder that is not there any more, or a note that cannot be read, counts for nothing: scoring needs no picture.

    Args:
        predictions: a file of rows that this toolkit wrote, or of another tool.
        roots: as given by the user.
    """
    file = Path(predictions).resolve()
    try:
        noted = read_json(run_note(file)) if run_note(file).is_file() else {}
    except DataError:
        return roots
    given = noted.get(NOTED_ROOTS) if isinstance(noted, dict) else None
    found = given if isinstance(given, dict) else {}
    folders = {what: file.parent / found[what] for what in ("image", "volume") if isinstance(found.get(what), str)}
    folders = {what: folder for what, folder in folders.items() if folder.is_dir()}
    image, volume = folders.get("image"), folders.get("volume")
    return replace(
        roots,
        image=image if roots.image is None else roots.image,
        volume=volume if roots.volume is None else roots.volume,
    )
