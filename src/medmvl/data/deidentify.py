"""De-identified copies of DICOM files by the Basic Application Level Confidentiality Profile (DICOM PS3.15, E.1).

The action table is that of the package `dicom-anonymizer`. It is applied at every depth of a data set. UIDs and patients get
keyed pseudonyms, so that copies made on different days fit together, and nobody without the key can link them to the originals.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import DataElement, Dataset, Sequence
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage

from medmvl.data.pseudonyms import Pseudonyms, holds
from medmvl.errors import DataError, MedMVLError, require
from medmvl.files import PathLike, atomic_directory, existing
from medmvl.imaging.dicom.dataset import looks_like_dicom, open_dicom, translate_pydicom_errors

#: Edition of the action table (PS3.15 table E.1-1) in dicom-anonymizer.
TABLE = "dicomfields_2026c"
#: UIDs that name kinds of things, not instances: they stay. All UIDs of the standard begin with its root.
_CLASS_UIDS = (
    "SOPClass",
    "TransferSyntax",
    "CodingScheme",
    "ContextUID",
    "MappingResource",
    "ContextGroupExtensionCreator",
)
_STANDARD_ROOT = "1.2.840.10008."
#: Value representations of text, in which an identifier may stand although the table does not list the attribute.
_TEXT = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"}
#: Modalities whose pictures often show the patient's name: ultrasound, captures, endoscopy, photographs, scanned documents.
_OFTEN_BURNED_IN = {"US", "SC", "OT", "ES", "XC", "GM", "DOC", "IVUS", "XA", "RF", "SM", "OP"}
#: Values of VRs for which the library writes the year 1, which validators refuse, or the number 0 where nothing may stand.
_DUMMIES = {"DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y"}
#: VRs for which the library has no dummy value.
_NO_DUMMY = {"AT", "OD", "OF", "OL", "OV", "OW", "SV", "UV", "UN", "OB"}
_REMOVABLE_GROUPS = (
    0x5000,
    0x6000,
)  # curves and overlays: the profile removes their data, so their description goes too

_PIXELS = {Tag(keyword) for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")}

Action = Callable[[Dataset, tuple[int, int]], None]
Profile = dict[tuple[int, int], Action]


@dataclass
class Deidentification:
    """What became of the files of a tree.

    Attributes:
        written: number of copies.
        patients: number of patients, by their pseudonyms.
        left_out: reason -> number of files that were not copied because they are no DICOM data sets of a patient.
        faults: (number of the file in the sorted tree from 1, reason without names) of files that could not be copied.
        burned_in: pseudonymous folders of series whose pixels may show the patient's name.
    """

    written: int = 0
    patients: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    burned_in: list[str] = field(default_factory=list)


def deidentify(
    source: PathLike, out: PathLike, pseudonyms: Pseudonyms, on_file: Callable[[int], None] = lambda total: None
) -> Deidentification:
    """Copy the DICOM files below `source` to `out/<patient>/<series>/<instance>.dcm` without identifiers.

    Files keep their pixel data as they are stored. The folder is written completely or not at all, with mode 0700.

    Args:
        source: a folder, searched at every depth, or a file.
        out: a folder that is absent or empty, outside of `source`.
        pseudonyms: of patients and UIDs; the same key as for `data convert folder` gives the same patients.
        on_file: called after each file with the number of all files.

    Raises:
        MissingExtraError: if dicom-anonymizer is not installed.
        DataError: if `out` is below `source`, or no file could be copied.
    """
    root = existing(source, "source").resolve()
    if Path(out).resolve().is_relative_to(root):
        raise DataError(f"{out} is inside of {source}. Choose a folder outside of it.")
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    profile, result, patients = _profile(pseudonyms), Deidentification(), set()
    with atomic_directory(out, private=True) as folder:
        for number, file in enumerate(files, start=1):
            try:
                reason = _copy(file, folder, profile, pseudonyms, result)
            except MedMVLError as error:
                result.faults.append((number, _without_path(str(error), file)))
            else:
                if reason:
                    result.left_out[reason] += 1
            on_file(len(files))
        patients = {path.name for path in folder.iterdir()}
        if not patients:
            raise DataError(f"No file of {source} could be copied: {_account(result) or 'there is none'}.")
    result.patients = len(patients)
    return result


def _account(result: Deidentification) -> str:
    reasons = result.left_out + Counter(reason for _, reason in result.faults)
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.items())


def _without_path(message: str, file: Path) -> str:
    """Return a message without the file's path, which may name the patient."""
    return message.replace(str(file), "the file").replace(file.name, "the file")


def _copy(file: Path, folder: Path, profile: Profile, pseudonyms: Pseudonyms, result: Deidentification) -> str:
    """Copy a file; return why it is left out, or ""."""
    try:
        with file.open("rb") as handle:
            if not looks_like_dicom(handle.read(132)):
                return "not a DICOM file"
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}") from error
    data = open_dicom(file)
    assert isinstance(data, FileDataset)  # what dcmread returns
    with translate_pydicom_errors(file):
        if data.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return "a DICOMDIR, which lists names and files"
        if not (data.get("SOPInstanceUID") and data.get("SOPClassUID")):
            return "without SOP class or instance UID"
        if data.SOPClassUID.name.endswith("Image Storage") and not _PIXELS & set(data.keys()):
            raise DataError("the file is cut off: it is an image without pixels")
        burned_in = may_show_text(data)
        deidentify_dataset(data, profile, pseudonyms)
        series = f"{data.PatientID}/{short_name(data.get('SeriesInstanceUID') or data.SOPInstanceUID)}"
        target = folder / series / f"{short_name(data.SOPInstanceUID)}.dcm"
        if target.exists():
            return "another copy of an instance that is already there"
        copy = io.BytesIO()  # a full disk is no fault of this file, so the copy is written below
        data.save_as(copy, enforce_file_format=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(copy.getbuffer())
    result.written += 1
    if burned_in and series not in result.burned_in:
        result.burned_in.append(series)
    return ""


def short_name(uid: str) -> str:
    """Return a file name for a pseudonymous UID: 16 hex digits."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def may_show_text(data: Dataset) -> bool:
    """Return whether an image's pixels may show the patient's name, by BurnedInAnnotation, else by its modality."""
    declared = str(data.get("BurnedInAnnotation") or "").strip().upper()
    if declared in ("YES", "NO"):
        return declared == "YES"
    return str(data.get("Modality") or "").strip().upper() in _OFTEN_BURNED_IN or "ConversionType" in data


def deidentify_dataset(data: FileDataset, profile: Profile, pseudonyms: Pseudonyms) -> None:
    """Apply the profile to a data set in place, and give it the patient's pseudonym.

    Beyond the table, text attributes that hold the patient's name or number are emptied, and elements of unknown VR removed.
    """
    data.decode()
    identity = _identity(data)
    identifiers = {str(data.get(name) or "").strip() for name in ("PatientID", "PatientName")} - {""}
    for part in [data, *_items(data)]:
        _apply(part, profile)
    for part in [data, *_items(data)]:
        for element in list(part):
            _clean(part, element, identifiers, pseudonyms)
    data.PatientID = data.PatientName = pseudonyms.of(identity)
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "DICOM PS3.15 Basic Profile, table E.1-1 of dicom-anonymizer"
    data.DeidentificationMethodCodeSequence = Sequence([_basic_profile_code()])
    data.preamble = b"\0" * 128
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    data.file_meta = meta


def _identity(data: Dataset) -> str:
    """Return what tells patients apart: the number, else the name, else the study."""
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SOPInstanceUID"):
        if value := str(data.get(keyword) or "").strip():
            return value
    raise DataError("the file has neither a patient nor a study")


def _basic_profile_code() -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    return code


def _items(data: Dataset) -> Iterator[Dataset]:
    """Yield the items of all sequences, at every depth."""
    for element in data:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


def _profile(pseudonyms: Pseudonyms) -> Profile:
    """Return the action of each attribute of the table; UIDs are left to `_clean`, which covers all of them."""
    library: Any = require("dicomanonymizer.simpledicomanonymizer", "deidentify")
    actions = library.initialize_actions(TABLE)
    uids = (library.replace_UID, library.delete_or_empty_or_replace_UID)
    return {tag: _checked(action, library) for tag, action in actions.items() if len(tag) == 2 and action not in uids}


def _checked(action: Action, library: Any) -> Action:
    """Return the action with dates that are valid, and with empty sequences where the library only empties their values."""
    removes = action is library.delete
    empties = action in (library.empty, library.delete_or_empty, library.empty_or_replace)

    def apply(data: Dataset, tag: tuple[int, int]) -> None:
        element = data[tag]
        if removes or element.VR in _NO_DUMMY:
            del data[tag]
        elif element.VR == "SQ" and empties:
            element.value = Sequence()
        elif element.VR in _DUMMIES:
            element.value = None if empties else _DUMMIES[element.VR]
        else:
            action(data, tag)

    return apply


def _apply(data: Dataset, profile: Profile) -> None:
    for tag in list(data.keys()):
        action = profile.get((tag.group, tag.element))
        if action is not None:
            action(data, (tag.group, tag.element))
    data.remove_private_tags()


def _clean(data: Dataset, element: DataElement, identifiers: Iterable[str], pseudonyms: Pseudonyms) -> None:
    """Replace UIDs of instances, remove overlays, curves and unknown elements, and empty texts that name the patient."""
    if element.VR == "UN" or element.tag.group & 0xFF00 in _REMOVABLE_GROUPS:
        del data[element.tag]
    elif element.VR == "UI":
        if not any(name in element.keyword for name in _CLASS_UIDS):
            values = element.value if element.VM > 1 else [element.value]
            replaced = [pseudonymous_uid(str(value), pseudonyms) for value in values]
            element.value = replaced if element.VM > 1 else replaced[0]
    elif element.VR in _TEXT and holds(str(element.value), identifiers):
        element.value = ""


def pseudonymous_uid(uid: str, pseudonyms: Pseudonyms) -> str:
    """Return the keyed replacement of a UID (root 2.25, 122 bits as in a random UUID); UIDs of the standard stay."""
    if not uid or uid.startswith(_STANDARD_ROOT):
        return uid
    return f"2.25.{pseudonyms.number(f'uid {uid}')}"
