"""Attributes that all result objects share."""

from __future__ import annotations

from typing import Any

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pydicom.valuerep import validate_value

from medmvl.ward.objects.content import ResultContent
from medmvl.ward.study import MANUFACTURER

#: patient and study attributes that a new object of the study takes over (PS3.3 C.7.1 and C.7.2)
_INHERITED = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "TimezoneOffsetFromUTC",
)  # fmt: skip
#: type 2: present, if need be empty
_REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_TEXT = ("PN", "LO", "SH")
#: common values of BodyPartExamined that are not paired (PS3.16, annex L)
_UNPAIRED = (
    "ABDOMEN", "ABDOMENPELVIS", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CSPINE", "HEAD", "HEADNECK",
    "HEART", "LIVER", "LSPINE", "NECK", "PELVIS", "SKULL", "SSPINE", "TSPINE", "WHOLEBODY",
)  # fmt: skip


def inherit(source: Dataset, target: Dataset) -> None:
    """Copy patient and study attributes as decoded text; `target` is then in UTF-8.

    Values that their VR does not allow, such as a date in words, are left out: a result must not fail because of them.
    Text is kept even if it is too long, since an archive finds the patient by it.
    """
    target.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _INHERITED:
        value = _valid_value(source[keyword]) if keyword in source else None
        if value is not None:
            setattr(target, keyword, value)
    for keyword in _REQUIRED:
        if keyword not in target:
            setattr(target, keyword, None)


def _valid_value(element: DataElement) -> Any:
    """Return a value that can be written again: text without control characters; None if the VR does not allow it.

    The VR is the standard's, which a file may not state correctly.
    """
    value, vr = element.value, dictionary_VR(element.tag)
    if value is None:
        return None
    if vr in _TEXT:
        many = isinstance(value, MultiValue)
        texts = ["".join(char for char in str(text) if char.isprintable()) for text in (value if many else [value])]
        if element.keyword == "StudyDescription":
            return " ".join(texts)[:64]  # no archive finds a patient by it
        return texts if many and vr != "PN" else texts[0]  # each of these names has one value
    if element.keyword == "PatientSex" and value not in ("", "M", "F", "O"):
        return None
    try:
        validate_value(vr, str(value), RAISE)
    except ValueError:
        return None
    return value


def new_object(
    content: ResultContent, storage: UID, modality: str, purpose: str, number: int, instance: int
) -> FileDataset:
    """Return a new object of the study without its content.

    Args:
        storage: SOP class.
        purpose: what the object is; its UIDs and the description of its series derive from it.
        number, instance: series and instance number.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = content.uid(f"{purpose} {instance}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    inherit(content.series.header, data)
    data.SOPClassUID, data.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    data.Modality = modality
    data.SeriesInstanceUID = content.uid(f"{purpose} series")
    data.SeriesNumber, data.InstanceNumber = number, instance
    stamp(content, data, purpose)
    if storage == SecondaryCaptureImageStorage:
        _set_body_part(content.series.header, data)
    return data


def _set_body_part(source: Dataset, target: Dataset) -> None:
    """Set BodyPartExamined and Laterality: an image of an unpaired part has no laterality, any other states one."""
    part, side = str(source.get("BodyPartExamined") or "").upper(), str(source.get("Laterality") or "")
    if part in _UNPAIRED:
        target.BodyPartExamined = part
    elif side in ("L", "R"):
        target.BodyPartExamined, target.Laterality = part, side
    else:
        target.Laterality = ""


def stamp(content: ResultContent, data: Dataset, purpose: str) -> None:
    """Set time, origin and the mark "AI-generated, research use"."""
    date, time = content.moment.strftime("%Y%m%d"), content.moment.strftime("%H%M%S")
    data.InstanceCreationDate, data.InstanceCreationTime = date, time
    data.SeriesDate, data.SeriesTime = date, time
    data.ContentDate, data.ContentTime = date, time
    data.Manufacturer, data.ManufacturerModelName = MANUFACTURER, content.model[:64]
    data.SoftwareVersions = content.version
    data.SeriesDescription = f"AI research use: {content.protocol.name} {purpose}"[:64]
