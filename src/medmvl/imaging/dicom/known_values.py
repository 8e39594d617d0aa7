"""Closed lists of DICOM values that may appear in messages.

A damaged length field can make an attribute swallow its neighbors, so that its value contains a patient's name. Values
are therefore shown only if they are in one of these lists.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

#: Defined terms of Modality (PS3.3 C.7.3.1.1.1) for images and for objects found in the same folders.
MODALITIES = frozenset(
    [
        "AR",
        "ASMT",
        "AU",
        "BDUS",
        "BI",
        "BMD",
        "CFM",
        "CR",
        "CT",
        "CTPROTOCOL",
        "DG",
        "DMS",
        "DOC",
        "DX",
        "ECG",
        "EEG",
        "EMG",
        "EOG",
        "EPS",
        "ES",
        "FID",
        "GM",
        "HC",
        "HD",
        "IO",
        "IOL",
        "IVOCT",
        "IVUS",
        "KER",
        "KO",
        "LEN",
        "LS",
        "MG",
        "MR",
        "M3D",
        "NM",
        "OAM",
        "OCT",
        "OP",
        "OPM",
        "OPR",
        "OPT",
        "OPTBSV",
        "OPTENF",
        "OPV",
        "OSS",
        "OT",
        "PA",
        "PLAN",
        "POS",
        "PR",
        "PT",
        "PX",
        "REG",
        "RESP",
        "RF",
        "RG",
        "RTDOSE",
        "RTIMAGE",
        "RTINTENT",
        "RTPLAN",
        "RTRAD",
        "RTRECORD",
        "RTSEGANN",
        "RTSTRUCT",
        "RWV",
        "SEG",
        "SM",
        "SMR",
        "SR",
        "SRF",
        "STAIN",
        "TG",
        "US",
        "VA",
        "XA",
        "XC",
    ]
)
#: Photometric interpretations that can be decoded (PS3.3 C.7.6.3.1.2).
PHOTOMETRIC = frozenset(
    (
        "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420",
        "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT",
    )
)  # fmt: skip
#: Rescale types that mean Hounsfield units; an absent type of a CT means them too (PS3.3 C.11.1.1.2).
HOUNSFIELD_TYPES = ("", "HU", "HU_MOD")

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def known_modality(dataset: Dataset) -> str:
    """Return the modality of a data set, or "unknown modality" if it is absent or not a defined term."""
    value = str(dataset.get("Modality") or "").strip().upper()
    return value if value in MODALITIES else "unknown modality"


def known_photometric(dataset: Dataset) -> str | None:
    """Return the photometric interpretation of a data set, or None if it is absent or not in the list."""
    value = str(dataset.get("PhotometricInterpretation") or "").strip()
    return value if value in PHOTOMETRIC else None


def known_uid(value: object) -> str:
    """Return a UID that has the form of one (digits and dots, at most 64 characters), else ""."""
    text = str(value or "").strip("\0 ")
    return text if len(text) <= 64 and _UID.fullmatch(text) else ""


def syntax_name(uid: str) -> str:
    """Return the registered name of a transfer syntax, or "unknown transfer syntax"."""
    entry = UID_dictionary.get(uid)
    return entry[0] if entry and entry[1] == "Transfer Syntax" else "unknown transfer syntax"
