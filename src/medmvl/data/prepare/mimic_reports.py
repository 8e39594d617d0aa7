"""Where MIMIC-CXR's reports are: text files, the zip they come in, or the table of sections made from them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from medmvl.data.prepare.base import Job
from medmvl.data.prepare.reports import split_sections
from medmvl.errors import DataError


class Reports:
    """The reports of all studies, read one at a time from wherever they are."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sectioned = _read_sectioned(job)
        self._zip = None
        archive = next(iter(job.find("mimic-cxr-reports.zip")), None)
        if not self._sectioned and archive is not None:
            try:
                self._zip = zipfile.ZipFile(archive)
            except zipfile.BadZipFile as error:
                raise DataError(f"{archive} is damaged: {error}. Download it again.") from error
            self._names = {name.rsplit("/", 1)[-1]: name for name in self._zip.namelist() if name.endswith(".txt")}

    def sections(self, subject: str, study: str) -> dict[str, str] | None:
        """Return the sections of a study's report, or None after accounting for a report that is not there."""
        if self._sectioned:
            found = self._sectioned.get(f"s{study}")
        else:
            text = self._text(subject, study)
            found = None if text is None else split_sections(text)
        if found is None:
            self._job.ledger.fault("report is missing", f"s{study}")
        return found

    def _text(self, subject: str, study: str) -> str | None:
        if self._zip is not None:
            name = self._names.get(f"s{study}.txt")
            return None if name is None else self._zip.read(name).decode("utf-8", errors="replace")
        inside = Path(f"p{subject[:2]}") / f"p{subject}" / f"s{study}.txt"
        for base in ("files", "mimic-cxr-reports/files", "mimic-cxr/files", "mimic-cxr-jpg/files", "."):
            file = self._job.source / base / inside
            if file.is_file():
                return file.read_text(encoding="utf-8", errors="replace")
        return None


def _read_sectioned(job: Job) -> dict[str, dict[str, str]]:
    """Return study -> sections from mimic_cxr_sectioned.csv, {} without it."""
    file = next(iter(job.find("mimic_cxr_sectioned.csv*")), None)
    if file is None:
        return {}
    table = {}
    for row in job.rows(file, ["study", "impression", "findings"]):
        table[row.pop("study")] = {name: " ".join(text.split()) for name, text in row.items() if text}
    return table
