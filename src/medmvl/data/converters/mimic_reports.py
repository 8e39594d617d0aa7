"""MIMIC-CXR's reports from text files, their zip archive, or the table of sections."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from medmvl.data.converters.converter import Job
from medmvl.data.converters.reports import split_sections
from medmvl.errors import DataError


def places(job: Job) -> list[Path]:
    """Return the folders that may hold tables, images or reports.

    They are the source, its folders, and the versions below mimic-cxr-jpg/ and mimic-cxr/, as `wget -r` leaves them in
    physionet.org/files/. A folder of reports that the user named comes first.
    """
    named = [Path(job.options.reports)] if job.options.reports and Path(job.options.reports).is_dir() else []
    names = ("mimic-cxr-jpg", "mimic-cxr")
    tops = [job.source / top for top in (".", "files", "physionet.org/files")]
    versions = [
        version
        for top in tops
        for name in names
        for version in (top / name, *sorted((top / name).glob("[0-9]*"), reverse=True))
    ]
    found = [*named, job.source, *(version for version in versions if version.is_dir())]
    return list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in found))


class Reports:
    """The reports of all studies, read one at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sectioned = _read_sectioned(job)
        self._zip = None
        given = Path(job.options.reports) if job.options.reports else None
        archives = [given] if given is not None else [place / "mimic-cxr-reports.zip" for place in places(job)]
        archive = next((file for file in archives if file.is_file() and file.suffix == ".zip"), None)
        if not self._sectioned and archive is not None:
            try:
                self._zip = zipfile.ZipFile(archive)
            except zipfile.BadZipFile as error:
                raise DataError(f"{archive} is damaged: {error}. Download it again.") from error
            self._names = {name.rsplit("/", 1)[-1]: name for name in self._zip.namelist() if name.endswith(".txt")}

    def sections(self, subject: str, study: str) -> dict[str, str] | None:
        """Return the sections of a study's report, or None after counting a missing report as faulty."""
        if self._sectioned:
            found = self._sectioned.get(f"s{study}")
        else:
            text = self._text(subject, study)
            found = None if text is None else split_sections(text, f"s{study}")
        if found is None:
            self._job.report.fault("report is missing", f"s{study}")
        return found

    def _text(self, subject: str, study: str) -> str | None:
        if self._zip is not None:
            name = self._names.get(f"s{study}.txt")
            return None if name is None else self._zip.read(name).decode("utf-8", errors="replace")
        inside = Path(f"p{subject[:2]}") / f"p{subject}" / f"s{study}.txt"
        for place in places(self._job):
            for base in ("files", "mimic-cxr-reports/files", "."):
                file = place / base / inside
                if file.is_file():
                    return file.read_text(encoding="utf-8", errors="replace")
        return None


def _read_sectioned(job: Job) -> dict[str, dict[str, str]]:
    """Return study -> sections from mimic_cxr_sectioned.csv, {} without it."""
    given = Path(job.options.reports) if job.options.reports else None
    if given is not None and not given.exists():
        raise DataError(
            f"The reports {given} do not exist. Give a folder, mimic-cxr-reports.zip or mimic_cxr_sectioned.csv."
        )
    found = [given] if given is not None and ".csv" in given.name else []
    found += [file for place in places(job) for file in sorted(place.glob("mimic_cxr_sectioned.csv*"))]
    file = next(iter(found), None)
    if file is None:
        return {}
    table = {}
    for row in job.rows(file, ["study", "impression", "findings"]):
        table[row.pop("study")] = {name: " ".join(text.split()) for name, text in row.items() if text}
    return table
