"""Reports, questions and answers about phantoms.

Each sentence has several wordings, drawn at random, so that a model cannot only match strings. Every question that can
be answered by yes or no is asked of every patient about the same findings, each present in half of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medmvl.phantoms.findings import FINDINGS, SIDED, Finding

# What a radiograph shows.
ON_RADIOGRAPH = ("pleural effusion", "consolidation", "lung nodule", "cardiomegaly", "emphysema", "pacemaker")
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
# Questions that are answered by yes or no: a form, and words that may precede or follow it. With one form for all, a model
# learns the form instead of the finding's name. The new forms are for held-out patients only.
_YES_NO = (
    "is there {finding}{where}?",
    "is there any sign of {finding}{where}?",
    "is there evidence of {finding}{where}?",
    "is {finding} present{where}?",
    "is {finding} seen{where}?",
    "is any {name} visible?",
    "can {finding} be seen{where}?",
    "can you see {finding}{where}?",
    "do you see {finding}{where}?",
    "do you find {finding}{where}?",
    "does this {picture} show {finding}?",
    "does the {picture} contain {finding}?",
    "does it show {finding}?",
    "any {name}{where}?",
    "{name}?",
)
_PLAIN_FORM = "is there {finding}?"
_WHERE = ("", "", "", " here", " on this {picture}", " on the {picture}", " in this patient", " in the chest")
_BEFORE = ("", "", "", "", "please answer: ", "tell me, ", "yes or no: ")
_NEW_YES_NO = ("Does the patient have {finding}?", "Is {finding} visible on this {picture}?")
_OWN_YES_NO = {
    "lung nodule": ("Is there a nodule in the lungs?",),
    "cardiomegaly": ("Is the heart enlarged?",),
    "arterial wall calcification": ("Is the wall of the aorta calcified?",),
    "coronary artery calcification": ("Are the coronary arteries calcified?",),
}
#: Share of questions in the finding's own forms, and in new ones, where there are any; and of the others, share of the plain form.
_SPECIAL, _PLAIN = 0.4, 0.35
_COUNTED = ("pleural effusion", "consolidation", "lung nodule", "pacemaker")  # take an article
_WHICH_SIDE = (
    "Is the {name} on the {first} or the {second} side?",
    "On which side is the {name}, {first} or {second}?",
)
_CHINESE = {
    "pleural effusion": "胸腔积液",
    "consolidation": "肺实变",
    "lung nodule": "肺结节",
    "cardiomegaly": "心脏增大",
    "emphysema": "肺气肿",
    "pacemaker": "心脏起搏器",
}
_CHINESE_YES_NO = ("图中有{name}吗？", "是否有{name}？")
#: Share of the yes-or-no questions about radiographs that are in Chinese.
CHINESE_SHARE = 0.2
REPORT_REQUESTS = (
    "Generate radiology report for the CT.",
    "Write the report of this examination.",
    "What are the findings and the impression of this CT?",
)


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


def _common_form(rng: np.random.Generator) -> str:
    return _PLAIN_FORM if rng.random() < _PLAIN else _pick(rng, _BEFORE) + _pick(rng, _YES_NO)


def yes_no(
    findings: dict[str, Finding],
    names: Sequence[str],
    picture: str,
    rng: np.random.Generator,
    *,
    new_wordings: bool = False,
    chinese: Collection[str] = (),
) -> list[Question]:
    """Return one closed question about each of `names`.

    Args:
        findings: of the patient.
        names: findings to ask about.
        picture: the word for the image.
        rng: draws wordings and languages.
        new_wordings: also use the wordings that no training patient has.
        chinese: the findings that are asked about in Chinese.
    """
    questions = []
    for name in names:
        present = name in findings
        if name in chinese:
            text = _pick(rng, _CHINESE_YES_NO).format(name=_CHINESE[name])
            questions.append(Question(text, "是" if present else "否", True, "Abnormality", name, "zh"))
            continue
        forms = (*_OWN_YES_NO.get(name, ()), *(_NEW_YES_NO if new_wordings else ()))
        form = _pick(rng, forms) if forms and rng.random() < _SPECIAL else _common_form(rng)
        finding = f"a {name}" if name in _COUNTED else name
        where = _pick(rng, _WHERE).format(picture=picture)
        text = form.format(finding=finding, name=name, picture=picture, where=where)
        text = text[0].upper() + text[1:]
        questions.append(Question(text, "Yes" if present else "No", True, "Abnormality", name))
    return questions


def finding_asked(question: str) -> str | None:
    """Return the finding that a question about a phantom names, in any of its wordings; None if it names none."""
    asked = question.lower()
    for name in FINDINGS:
        own = (form.lower() for form in _OWN_YES_NO.get(name, ()))
        if name in asked or _CHINESE.get(name, name) in asked or any(form in asked for form in own):
            return name
    return None


_NEW_WORDING = re.compile(
    "|".join(re.escape(form).replace(r"\{finding\}", ".+").replace(r"\{picture\}", r"\w+") for form in _NEW_YES_NO)
)


def is_new_wording(question: str) -> bool:
    """Whether a question has one of the wordings that are kept for held-out patients (`new_wordings` of `yes_no`)."""
    return _NEW_WORDING.search(question) is not None


def which_side(findings: dict[str, Finding], names: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Return a closed left-or-right question about each sided finding that is present."""
    questions = []
    for name in names:
        if name not in SIDED or name not in findings:
            continue
        first, second = ("left", "right") if rng.random() < 0.5 else ("right", "left")
        text = _pick(rng, _WHICH_SIDE).format(name=name, first=first, second=second)
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
    """Return a structured report: each of `names`, present or absent, in their order.

    "Pleural effusion: right. Consolidation: no. Cardiomegaly: yes.": the name comes before its state, as in a question
    with its answer.
    """
    said = {name: "no" if (found := findings.get(name)) is None else found.place or "yes" for name in names}
    return " ".join(f"{name.capitalize()}: {answer}." for name, answer in said.items())


def list_abnormalities(findings: dict[str, Finding], names: Sequence[str]) -> Question:
    """Return the open question about all abnormal findings."""
    seen = [name for name in names if name in findings]
    return Question("What abnormalities are seen?", ", ".join(seen).capitalize() or "None", False, "Abnormality")


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
