"""Images and series of an own export that no row of its table names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from medmvl.data.converters.converter import Job
from medmvl.data.converters.own_identity import IdentityFinder
from medmvl.data.converters.own_media import MediaWriter
from medmvl.data.converters.own_tree import MOST_ENTRIES
from medmvl.errors import counted
from medmvl.files import check_output, write_text

#: Section of report.json.
SECTION = "named_by_no_row"
#: Longer cells are texts, not paths.
_LONGEST_PATH = 500


def note_unnamed(job: Job, media: MediaWriter, finder: IdentityFinder, cells: Iterable[Any] = ()) -> None:
    """Note images and series of the source that no row names, and list them in the report as far as no path tells a patient.

    Args:
        job: the conversion; its option `unnamed` is a file for all of their paths.
        media: the files of the rows.
        finder: reads the headers of DICOM files.
        cells: further cells that may name files, of columns that are not in use.
    """
    if media.source_is_too_large:
        job.report.note(
            f"The source has more than {MOST_ENTRIES:,} files and folders and was not searched for images and series "
            "that no row names; --unnamed FILE searches it and lists them in FILE."
        )
        return
    found = media.unnamed(cell for cell in cells if not isinstance(cell, str) or len(cell) < _LONGEST_PATH)
    if job.options.unnamed is not None:
        check_output(job.options.unnamed)
        write_text(job.options.unnamed, "".join(f"{path}\n" for _, path in found))
    if not found:
        return
    listed = [path for _, path in found if _may_be_listed(job, media, finder, path)]
    counts = Counter(what for what, _ in found)
    job.report.sections[SECTION] = {"counts": dict(counts), "paths": listed}
    words = " and ".join(counted(count, what) for what, count in counts.items())
    where = (
        [f"report.json lists {'them' if len(listed) == len(found) else len(listed)} under {SECTION!r}"]
        if listed
        else []
    )
    if job.options.unnamed is not None:
        where = [f"see {job.options.unnamed}"]
    elif len(listed) < len(found):
        where.append("--unnamed FILE writes all of their paths, which may name patients, to a file of yours")
    job.report.note(f"{words} in the source {'are' if len(found) > 1 else 'is'} named by no row: {'; '.join(where)}.")


def _may_be_listed(job: Job, media: MediaWriter, finder: IdentityFinder, path: str) -> bool:
    if job.options.paths == "keep":
        return True
    return not media.exports and not media.tells_patient(path, finder.of_file(job.source / path))
