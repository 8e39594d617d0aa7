"""Reports, questions and answers about phantoms.

Each sentence has several wordings, drawn at random, so that a model cannot only match strings. Every question that can
be answered by yes or no is asked of every patient about the same findings, each present in half of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmvl.phantoms.findings import FINDINGS, SIDED, Finding

# What a radiograph shows.
ON_RADIOGRAPH = ("pleural effusion", "consolidation", "lung nodule", "cardiomegaly", "emphysema", "pacemaker")
# What is asked by yes or no. A nodule of 30 mm is 5 of 64 pixels in one of four places, and a small model that starts
# from nothing does not find it in minutes: it is asked about in the harder tasks (choices, boxes, reports) only.
ASKED_ON_CT = tuple(name for name in FINDINGS if name != "lung nodule")
ASKED_ON_RADIOGRAPH = tuple(name for name in ON_RADIOGRAPH if name != "lung nodule")

_PRESENT = {
    "pleural effusion": (
        "There is a {side} pleural effusion.",
        "A {side} pleural effusion is observed.",
        "Pleural effusion is present on the {side}.",
    ),
    "consolidation": (
        "There is a consolidation with air bronchograms in the {side} {lobe} lobe.",
        "Consolidation is observed in the {side} {lobe} lobe.",
        "The {side} {lobe} lobe shows consolidation.",
    ),
    "lung nodule": (
        "A nodule of {size} mm is seen in the {side} {lobe} lobe.",
        "There is a {size} mm lung nodule in the {side} {lobe} lobe.",
        "In the {side} {lobe} lobe, a nodule measuring {size} mm is observed.",
    ),
    "cardiomegaly": (
        "The heart is enlarged, consistent with cardiomegaly.",
        "Cardiomegaly is present.",
        "Heart size is increased (cardiomegaly).",
    ),
    "emphysema": (
        "There is emphysema with bullae in both lungs.",
        "Emphysematous changes are observed in both lungs.",
        "Both lungs show diffuse emphysema.",
    ),
    "pacemaker": (
        "A pacemaker is seen in the {side} chest wall.",
        "There is a cardiac pacemaker on the {side} with a lead in the heart.",
        "Medical material: pacemaker in the {side} anterior chest wall.",
    ),
    "arterial wall calcification": (
        "Calcified atherosclerotic plaques are observed in the aortic wall.",
        "There are arterial wall calcifications in the thoracic aorta.",
        "The wall of the thoracic aorta is calcified.",
    ),
    "coronary artery calcification": (
        "Calcified plaques are observed in the coronary arteries.",
        "There are coronary artery wall calcifications.",
        "The coronary arteries are calcified.",
    ),
}
_ABSENT = {
    "pleural effusion": (
        "No pleural effusion is seen.",
        "There is no pleural effusion.",
        "Pleural effusion was not detected.",
    ),
    "consolidation": ("No consolidation is seen.", "There is no consolidation in the lungs."),
    "lung nodule": ("No lung nodule is detected.", "There is no nodule in either lung."),
    "cardiomegaly": ("Heart size is normal.", "The heart is of normal size."),
    "emphysema": ("No emphysema is seen.", "There is no emphysema."),
    "pacemaker": ("No medical material is seen.", "There is no pacemaker."),
    "arterial wall calcification": (
        "No calcification is seen in the aortic wall.",
        "The thoracic aorta shows no calcification.",
    ),
    "coronary artery calcification": (
        "No coronary artery calcification is seen.",
        "The coronary arteries are not calcified.",
    ),
}
_YES_NO = {
    "pleural effusion": ("Is there a pleural effusion?", "Does this {picture} show pleural effusion?"),
    "consolidation": ("Is there a consolidation?", "Does this {picture} show consolidation?"),
    "lung nodule": ("Is there a lung nodule?", "Does this {picture} show a nodule?"),
    "cardiomegaly": ("Is there cardiomegaly?", "Is the heart enlarged?"),
    "emphysema": ("Is there emphysema?", "Does this {picture} show emphysema?"),
    "pacemaker": ("Is there a pacemaker?", "Does this {picture} show a pacemaker?"),
    "arterial wall calcification": ("Is there arterial wall calcification?", "Is the wall of the aorta calcified?"),
    "coronary artery calcification": (
        "Is there coronary artery calcification?",
        "Are the coronary arteries calcified?",
    ),
}
_CHINESE = {
    "pleural effusion": "图中有胸腔积液吗？",
    "consolidation": "图中有肺实变吗？",
    "lung nodule": "图中有肺结节吗？",
    "cardiomegaly": "图中心脏增大吗？",
    "emphysema": "图中有肺气肿吗？",
    "pacemaker": "图中有心脏起搏器吗？",
}


@dataclass(frozen=True)
class Report:
    """A radiology report in the fields of CT-RATE."""

    clinical: str
    technique: str
    findings: str
    impression: str

    @property
    def text(self) -> str:
        """Return findings and impression the way report models are trained on them."""
        return f"Findings: {self.findings} Impression: {self.impression}"


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        text, answer: as shown to the model.
        closed: the answer is one of two that the question itself names or implies.
        content: SLAKE's content type ("Abnormality", "Position", "Size", ...).
        finding: the finding asked about; None for a question about the picture itself.
        language: "en" or "zh".
    """

    text: str
    answer: str
    closed: bool
    content: str
    finding: str | None = None
    language: str = "en"


def _pick(rng: np.random.Generator, forms: Sequence[str]) -> str:
    return forms[int(rng.integers(len(forms)))]


def sentence(name: str, finding: Finding | None, rng: np.random.Generator) -> str:
    """Return one sentence that states whether the finding `name` is present, and where."""
    if finding is None:
        return _pick(rng, _ABSENT[name])
    return _pick(rng, _PRESENT[name]).format(side=finding.side, lobe=finding.lobe, size=finding.size)


def short_name(finding: Finding) -> str:
    """Return a finding's name in an impression: "Right pleural effusion", "Nodule in the left upper lobe"."""
    if finding.lobe:
        name = "nodule" if finding.name == "lung nodule" else finding.name
        return f"{name} in the {finding.place}".capitalize()
    return f"{finding.side} {finding.name}".capitalize() if finding.side else finding.name.capitalize()


def write_report(
    findings: dict[str, Finding], rng: np.random.Generator, names: Sequence[str] = tuple(FINDINGS)
) -> Report:
    """Write a report with one sentence about each of `names`, in their order."""
    body = ["Trachea and both main bronchi are open.", *(sentence(name, findings.get(name), rng) for name in names)]
    seen = [short_name(findings[name]) for name in names if name in findings]
    normal = _pick(rng, ("No abnormality.", "Findings within normal limits."))
    return Report(
        clinical=_pick(rng, ("Dyspnea.", "Cough.", "Chest pain.", "Not given.")),
        technique="Synthetic phantom, drawn and not scanned.",
        findings=" ".join(body),
        impression=". ".join(seen) + "." if seen else normal,
    )


def yes_no(
    findings: dict[str, Finding], names: Sequence[str], picture: str, rng: np.random.Generator
) -> list[Question]:
    """Return one closed question about each of `names`; `picture` is the word for the image."""
    return [
        Question(
            _pick(rng, _YES_NO[name]).format(picture=picture),
            "Yes" if name in findings else "No",
            True,
            "Abnormality",
            name,
        )
        for name in names
    ]


def which_side(findings: dict[str, Finding], names: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Return a closed left-or-right question about each sided finding that is present."""
    questions = []
    for name in names:
        if name not in SIDED or name not in findings:
            continue
        first, second = ("left", "right") if rng.random() < 0.5 else ("right", "left")
        text = f"Is the {name} on the {first} or the {second} side?"
        questions.append(Question(text, str(findings[name].side).capitalize(), True, "Position", name))
    return questions


def where(findings: dict[str, Finding], names: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Return an open question about the place of each sided finding that is present."""
    forms = ("Where is the {name}?", "Where is the {name} located?")
    return [
        Question(_pick(rng, forms).format(name=name), _place_words(findings[name]), False, "Position", name)
        for name in names
        if name in findings and name in SIDED
    ]


def _place_words(finding: Finding) -> str:
    if finding.lobe:
        return f"{finding.place}".capitalize()
    return (
        f"{finding.side} chest wall".capitalize()
        if finding.name == "pacemaker"
        else f"{finding.side} lung".capitalize()
    )


def about_picture(modality: str, plane: str) -> list[Question]:
    """Return open questions about the picture type; their answers are the same for every patient."""
    return [
        Question("What modality is used to take this image?", modality, False, "Modality"),
        Question("What is the plane of this image?", plane, False, "Plane"),
    ]


def caption(findings: dict[str, Finding], names: Sequence[str]) -> str:
    """Return a structured report: each finding, present or absent, in a fixed order.

    "Pleural effusion: right. Consolidation: no. Cardiomegaly: yes.": the name comes before its state, as in a question
    with its answer.
    """
    said = {name: "no" if (found := findings.get(name)) is None else found.place or "yes" for name in names}
    return " ".join(f"{name.capitalize()}: {answer}." for name, answer in said.items())


def list_abnormalities(findings: dict[str, Finding], names: Sequence[str]) -> Question:
    """Return the open question about all abnormal findings."""
    seen = [name for name in names if name in findings]
    return Question("What abnormalities are seen?", ", ".join(seen).capitalize() or "None", False, "Abnormality")


def chinese(findings: dict[str, Finding], names: Sequence[str]) -> list[Question]:
    """Return closed questions in Chinese, for the bilingual layouts."""
    return [
        Question(_CHINESE[name], "是" if name in findings else "否", True, "Abnormality", name, "zh")
        for name in names
        if name in _CHINESE
    ]


def choices(findings: dict[str, Finding], names: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Return a four-way choice about each sided finding, with the options in random order and a lettered answer."""
    questions = []
    for name in names:
        if name not in SIDED:
            continue
        finding = findings.get(name)
        options = ["Left side", "Right side", "Both sides", "It is not present"]
        truth = options[3] if finding is None else options[0 if finding.side == "left" else 1]
        order = [options[i] for i in rng.permutation(4)]
        listed = " ".join(f"({letter}) {option}" for letter, option in zip("abcd", order, strict=True))
        answer = f"({'abcd'[order.index(truth)]}) {truth}"
        questions.append(Question(f"On which side is the {name}? {listed}", answer, False, "Position", name))
    return questions


def long_answers(findings: dict[str, Finding], rng: np.random.Generator) -> list[Question]:
    """Return questions that ask for sentences."""
    groups = {
        "What can you tell about the lungs?": ("consolidation", "lung nodule", "emphysema"),
        "What is the condition of the pleura?": ("pleural effusion",),
        "What does the scan show about the heart and the great vessels?": (
            "cardiomegaly",
            "arterial wall calcification",
            "coronary artery calcification",
        ),
        "Is any medical material seen?": ("pacemaker",),
    }
    return [
        Question(text, " ".join(sentence(name, findings.get(name), rng) for name in names), False, "Abnormality")
        for text, names in groups.items()
    ]
