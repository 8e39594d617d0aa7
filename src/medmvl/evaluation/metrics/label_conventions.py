"""Conventions of label sources: the meaning of a blank cell, of -1 and of a finding that a report does not mention."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medmvl.errors import EvaluationError
from medmvl.registry import Registry

Meaning = Literal["positive", "negative", "ignored"]

CHEXPERT_FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
SHARED_WITH_CT_RATE = frozenset({"Cardiomegaly", "Consolidation", "Atelectasis"})
MERLIN_FINDINGS = (
    "submucosal_edema", "renal_hypodensities", "aortic_valve_calcification", "coronary_calcification", "thrombosis",
    "metastatic_disease", "pancreatic_atrophy", "renal_cyst", "osteopenia", "surgically_absent_gallbladder", "atelectasis",
    "abdominal_aortic_aneurysm", "anasarca", "hiatal_hernia", "lymphadenopathy", "prostatomegaly",
    "biliary_ductal_dilation", "cardiomegaly", "splenomegaly", "hepatomegaly", "atherosclerosis", "ascites",
    "pleural_effusion", "hepatic_steatosis", "appendicitis", "gallstones", "hydronephrosis", "bowel_obstruction", "free_air",
    "fracture",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelConvention:
    """How the values of a label source are read.

    Attributes:
        name: the name in results and under a record's `label_convention`.
        blank: the meaning of an empty cell, null, and of a finding of `findings` that the record does not have.
        minus_one: the meaning of -1.
        about: the source of the convention.
        findings: all findings of the source; empty if each record names its own.
    """

    name: str
    blank: Meaning
    minus_one: Meaning
    about: str
    findings: tuple[str, ...] = ()

    def read(self, labels: Mapping[str, Any]) -> dict[str, int]:
        """Return {finding: 0 or 1} without the ignored ones.

        Raises:
            ValueError: if a value is not a number or empty.
        """
        values = {**dict.fromkeys(self.findings), **labels}
        meanings = {name: self._meaning(value) for name, value in values.items()}
        return {name: int(meaning == "positive") for name, meaning in meanings.items() if meaning != "ignored"}

    def _meaning(self, value: Any) -> Meaning:
        if value is None or value == "":
            return self.blank
        number = float(value)
        if math.isnan(number):  # an empty cell, as pandas writes it
            return self.blank
        if number not in (-1, 0, 1):  # such as CheXbert's codes, in which 2 is negative and 3 uncertain
            raise ValueError(f"{value!r} is none of 1, 0, -1 and empty")
        if number < 0:
            return self.minus_one
        return "positive" if number > 0 else "negative"

    def describe(self) -> str:
        """Return one sentence for tables."""
        return f"{self.name} (blank: {self.blank}, -1: {self.minus_one}): {self.about}"


CONVENTIONS: Registry[LabelConvention] = Registry("label convention", EvaluationError)

CHEXBERT = LabelConvention(
    "chexbert",
    "negative",
    "positive",
    "MIMIC-CXR and CheXpert leave findings that are not mentioned blank; CheXbert's F1 counts them as negative and uncertain "
    "ones as positive",
    CHEXPERT_FINDINGS,
)
MERLIN = LabelConvention(
    "merlin",
    "ignored",
    "ignored",
    "Merlin's -1 means not mentioned; its evaluation uses the findings with 1 and 0 only",
)
PLAIN = LabelConvention(
    "plain", "negative", "positive", "findings that a record does not list are left out; -1 is read as uncertain"
)
for _convention in (CHEXBERT, MERLIN, PLAIN):
    CONVENTIONS.add(_convention.name, _convention)


def convention_of(record: Mapping[str, Any], known: Collection[str] = ()) -> LabelConvention:
    """Return the convention of a record's labels: its `label_convention`, else the source whose findings it uses.

    Args:
        record: the row with its `labels`.
        known: findings of the labeler that it is compared with. CT-RATE and CheXpert share three names; labels with only
            these are CheXpert's if the labeler knows all of CheXpert's findings.

    Raises:
        EvaluationError: for an unknown `label_convention`.
    """
    stated = record.get("label_convention")
    if stated:
        return CONVENTIONS[str(stated)]
    names = set(record.get("labels") or ())
    if names and names <= set(CHEXPERT_FINDINGS):
        certain = set(CHEXPERT_FINDINGS) <= set(known) if known else not names <= SHARED_WITH_CT_RATE
        return CHEXBERT if certain else PLAIN
    return MERLIN if names and names <= set(MERLIN_FINDINGS) else PLAIN
