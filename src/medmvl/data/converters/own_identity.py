"""Identifiers of patients in own tables: which columns and DICOM headers hold them, and their removal from texts and paths."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydicom import dcmread

from medmvl.data.converters.converter import Job
from medmvl.data.converters.own_tree import is_dicom
from medmvl.data.pseudonyms import Pseudonyms, mask, mask_words
from medmvl.errors import DataError, did_you_mean

#: Columns that name a person; words of their values are looked for one by one as well.
_NAME_COLUMNS = re.compile(
    r"(patient|pat|subject|full|family|first|last|given|maiden|birth|mother)? ?s? ?(name|names)|(sur|fore|nach|vor|familien)name"
    r"|nom|prenom|referring physician( name)?|physician( name)?|operator( name)?|radiologist"
)
#: Further columns that identify a patient, without accents and separators.
_IDENTIFIER_COLUMNS = re.compile(
    r"mrn|medical record( number| no| id)?|(patient|pat|subject|person)( ?id| number| nr| no| key| code)?|pid"
    r"|patienten ?(id|nummer|nr)|fall ?(nummer|nr|id)|(case|visit|encounter|admission|hospital)( number| no| id)"
    r"|accession( ?number| no| id| nr)?|acc( no| nr| number)?|(date of )?birth ?(date|day)?|dob|patient birth ?date|geburts ?datum"
    r"|geb( datum)?|date de naissance|naissance|institution( name)?|hospital( name)?|clinic|klinik|ssn|social security( number)?"
    r"|nhs( number)?|insurance( number| no| id)?|versicherten ?(nummer|nr)|(tele)?phone( number)?|mobile|e ?mail|address|street"
    r"|adresse|zip( code)?|post ?code|plz"
)
#: Attributes of a DICOM file that identify its patient: numbers and dates, then names.
_HEADER = (
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "AccessionNumber",
    "InstitutionName",
    "MedicalRecordLocator",
)
_HEADER_NAMES = (
    "PatientName",
    "PatientBirthName",
    "PatientMotherBirthName",
    "OtherPatientNames",
    "ReferringPhysicianName",
)
#: Files of a folder that are tried until one is a DICOM file.
_TRIED = 5


@dataclass(frozen=True)
class Identity:
    """What identifies the patient of a row.

    Attributes:
        patient: name or number that tells patients apart; "" if nothing does.
        identifiers: everything else that identifies the patient or the examination.
        names: those of them that are names of persons.
    """

    patient: str = ""
    identifiers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All identifiers, the patient's first."""
        return (self.patient, *self.identifiers) if self.patient else self.identifiers


class IdentityFinder:
    """Finds the identifiers in the rows of a table and in the DICOM files that they name.

    Args:
        job: the conversion; its options name columns.
        columns: the table's columns.
        root: folder that paths are relative to.
    """

    def __init__(self, job: Job, columns: Iterable[str], root: Path) -> None:
        self._options, self._root = job.options, root
        columns = list(columns)
        contents = {job.options.image, job.options.volume, job.options.question, job.options.answer, job.options.split}
        candidates = [column for column in columns if column not in contents]
        self.columns = _identifier_columns(job.options.identifiers, candidates, columns)
        self._name_columns = [column for column in self.columns if _NAME_COLUMNS.fullmatch(_plain(column))]
        self._headers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        further = [column for column in self.columns if column not in (job.options.patient, job.options.id)]
        if further and job.options.identifiers == "auto":
            job.report.note(
                f"The columns {', '.join(further)} count as identifiers of patients by their names: their values are removed "
                "from texts, ids and paths. --set identifiers=COLUMN,... names others, identifiers=none none."
            )

    def of(self, cells: Mapping[str, Any], files: Iterable[str] = ()) -> Identity:
        """Return the identity of a row; `files` are its images and volumes."""
        patient = cell_text(cells.get(self._options.patient)) if self._options.patient else ""
        found = [cell_text(cells.get(column)) for column in self.columns]
        names = [cell_text(cells.get(column)) for column in self._name_columns]
        for file in files:
            numbers, persons = self._header(file)
            patient = patient or (numbers[0] if numbers else "")
            found += [*numbers, *persons]
            names += persons
        others = dict.fromkeys(value for value in found if value and value != patient)
        return Identity(patient, tuple(others), tuple(dict.fromkeys(name for name in names if name)))

    def of_file(self, file: Path) -> Identity:
        """Return the identity in the header of a file or folder that no row names."""
        return self.of({}, [str(file.absolute())])

    def _header(self, file: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the numbers (the patient's first) and the names in the header of a DICOM file or of a folder's first one."""
        if file not in self._headers:
            self._headers[file] = _header_identifiers(self._root / file)
        return self._headers[file]


def _identifier_columns(chosen: str, candidates: list[str], columns: list[str]) -> list[str]:
    """Return the columns with identifiers, chosen or known by their names.

    Raises:
        DataError: for a chosen column that is not there, or holds a file, a text or the split.
    """
    if chosen == "none":
        return []
    if chosen != "auto":
        wanted = [name.strip() for name in chosen.split(",") if name.strip()]
        if columns and (missing := [name for name in wanted if name not in columns]):
            raise DataError(f"identifiers: there is no column {missing[0]!r}. {did_you_mean(missing[0], columns)}")
        if used := [name for name in wanted if name in columns and name not in candidates]:
            raise DataError(
                f"identifiers: the column {used[0]!r} holds files, texts or the split of the records. Leave it out."
            )
        return wanted
    plain = {column: _plain(column) for column in candidates}
    return [c for c, name in plain.items() if _NAME_COLUMNS.fullmatch(name) or _IDENTIFIER_COLUMNS.fullmatch(name)]


def _plain(column: str) -> str:
    """Return a column's name in lower-case words: "PatientBirthDate" and "patient_birth_date" alike."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    return " ".join(re.findall(r"[^\W_]+", spaced.replace("é", "e").lower()))


def cell_text(value: Any) -> str:
    """Return a cell as text, without blanks around it; dates without their time of day.

    A column of whole numbers with blank cells arrives as floats with NaN.
    """
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    text = "" if value is None else str(value).strip()
    return re.sub(r"^(\d{4}-\d\d-\d\d)[ T]00:00:00$", r"\1", text)


def _header_identifiers(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    file = _first_dicom(path)
    if file is None:
        return (), ()
    try:
        data = dcmread(file, stop_before_pixels=True, specific_tags=[*_HEADER, *_HEADER_NAMES])
        numbers = tuple(value for keyword in _HEADER for value in _values(data.get(keyword)))
        return numbers, tuple(value for keyword in _HEADER_NAMES for value in _values(data.get(keyword)))
    except Exception:  # a damaged file has no identity here; `data check` names its fault
        return (), ()


def _values(value: Any) -> list[str]:
    several = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    return [text for one in several if (text := cell_text(one).strip("^"))]


def _first_dicom(path: Path) -> Path | None:
    try:
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())[:_TRIED] if path.is_dir() else [path]
        for file in files:
            if file.is_file() and is_dicom(file):
                return file
    except (OSError, ValueError):
        pass
    return None


class Masker:
    """Replaces identifiers in texts by pseudonyms.

    Args:
        make: gives the pseudonyms; called when the first one is needed.
    """

    def __init__(self, make: Callable[[], Pseudonyms]) -> None:
        self._make = make

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """The pseudonyms; their key file is written when they are first asked for."""
        return self._make()

    def patient(self, identity: Identity) -> str | None:
        """Return the pseudonym of a row's patient; None if the patient is not known."""
        return self.pseudonyms.of(identity.patient) if identity.patient else None

    def text(self, text: str, identity: Identity) -> str:
        """Return a text without the identifiers of its row: the patient's pseudonym, or one for each other identifier."""
        if not identity.known:
            return text
        text = mask(text, [identity.patient], self.pseudonyms.of(identity.patient)) if identity.patient else text
        for name in identity.names:
            person = self.pseudonyms.of(identity.patient or name)
            text = mask_words(mask(text, [name], person), name, person)
        for other in identity.identifiers:
            text = mask(text, [other], self.pseudonyms.of(other))
        return text

    def value(self, value: Any, identity: Identity) -> Any:
        """Return a cell without identifiers; a number or date that is an identifier becomes a pseudonym as well."""
        if isinstance(value, list):
            return [self.value(one, identity) for one in value]
        if isinstance(value, dict):
            return {key: self.value(one, identity) for key, one in value.items()}
        if value is None or isinstance(value, bytes | bool):
            return value
        text = cell_text(value)
        if text in identity.identifiers:
            return self.pseudonyms.of(text)
        masked = self.text(text, identity)
        return value if masked == text else masked
