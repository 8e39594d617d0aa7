"""Codes of findings and sites for structured reports: SNOMED CT and DICOM where known, else private codes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from medmvl.errors import WardError, did_you_mean
from medmvl.ward.protocol import CodeSpec

#: scheme designator of codes that no public terminology has; PS3.16, section 8: private designators begin with 99
PRIVATE_SCHEME = "99MEDMVL"


@dataclass(frozen=True)
class Code:
    """A coded concept: at most 16 characters of value, 64 of meaning (VR SH and LO)."""

    value: str
    scheme: str
    meaning: str


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


LUNG, HEART, PLEURA, CHEST = (
    _sct("39607008", "Lung"),
    _sct("80891009", "Heart"),
    _sct("3120008", "Pleura"),
    _sct("816094009", "Chest"),
)
SITES = {"lung": LUNG, "heart": HEART, "pleura": PLEURA, "chest": CHEST}

#: name -> (code, usual site)
FINDINGS: dict[str, tuple[Code, Code]] = {
    "arterial wall calcification": (_sct("237897009", "Vascular calcification"), CHEST),
    "atelectasis": (_sct("46621007", "Atelectasis"), LUNG),
    "bronchiectasis": (_sct("12295008", "Bronchiectasis"), LUNG),
    "cardiomegaly": (_sct("8186001", "Cardiomegaly"), HEART),
    "consolidation": (_sct("95436008", "Lung consolidation"), LUNG),
    "emphysema": (_sct("87433001", "Pulmonary emphysema"), LUNG),
    "ground glass opacity": (Code("112120", "DCM", "Ground glass opacity"), LUNG),
    "hiatal hernia": (_sct("84089009", "Hiatal hernia"), CHEST),
    "lung nodule": (_sct("27925004", "Nodule"), LUNG),
    "lung opacity": (Code("112001", "DCM", "Opacity"), LUNG),
    "lymphadenopathy": (_sct("30746006", "Lymphadenopathy"), CHEST),
    "pacemaker": (_sct("14106009", "Cardiac pacemaker"), CHEST),
    "pericardial effusion": (_sct("373945007", "Pericardial effusion"), HEART),
    "pleural effusion": (_sct("60046008", "Pleural effusion"), PLEURA),
    "pneumonia": (_sct("233604007", "Pneumonia"), LUNG),
    "pneumothorax": (_sct("36118008", "Pneumothorax"), PLEURA),
}

YES, NO = _sct("373066001", "Yes"), _sct("373067005", "No")
PROCEDURES = {
    "CT": _sct("77477000", "Computed tomography"),
    "MR": _sct("113091000", "Magnetic resonance imaging"),
    "CR": _sct("168537006", "Plain radiography"),
    "DX": _sct("168537006", "Plain radiography"),
}
IMAGING = _sct("363679005", "Imaging")


def finding_code(finding: str | CodeSpec | None, label: str) -> Code:
    """Return the code of a finding; a private one for a name that no terminology here has.

    Args:
        finding: a name, a code, or None.
        label: meaning of the private code where `finding` is None.
    """
    if isinstance(finding, CodeSpec):
        return Code(finding.value, finding.scheme, finding.meaning)
    known = FINDINGS.get((finding or "").lower())
    return known[0] if known else private_code(finding or label)


def site_code(site: str | CodeSpec | None, finding: str | CodeSpec | None) -> Code | None:
    """Return the code of a site; without one, the usual site of a known finding, else None.

    Raises:
        WardError: for an unknown name of a site.
    """
    if isinstance(site, CodeSpec):
        return Code(site.value, site.scheme, site.meaning)
    if site is not None:
        if site.lower() not in SITES:
            raise WardError(
                f"Unknown site {site!r}. {did_you_mean(site, SITES)} For others give a code: value, scheme, meaning."
            )
        return SITES[site.lower()]
    known = FINDINGS.get(finding.lower()) if isinstance(finding, str) else None
    return known[1] if known else None


def private_code(meaning: str) -> Code:
    """Return a private code whose value depends on its meaning only."""
    short = " ".join(meaning.split())[:64]
    return Code(hashlib.sha256(short.encode()).hexdigest()[:12].upper(), PRIVATE_SCHEME, short)
