"""A rule-based labeller of English report text: keywords, negation cues, one sentence at a time.

It is *not* CheXbert, RadBERT or any published labeller, and scores made with it are named `rule-based`. It is offline,
readable and deterministic, and good enough to tell whether a generated report states a finding. For published label F1
give label files made with the published labeller instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from medmvl.data.prepare.medmnist_info import SUBSETS, spoken
from medmvl.errors import EvaluationError
from medmvl.evaluation.text import normalize_word
from medmvl.registry import Registry

Labeller = Callable[[str], dict[str, int]]
"""Report text -> {finding: 0 or 1} for every finding that the labeller knows."""

LABELLERS: Registry[Labeller] = Registry("labeller", EvaluationError)

# The order is CT-RATE's column order (multi_abnormality_labels/*.csv).
CT_RATE_PATTERNS: Mapping[str, str] = {
    "Medical material": r"medical (?:material|device)s?|catheters?|pacemakers?|stents?|sternotomy|sutures?|port chamber"
    r"|central (?:venous )?line|endotracheal tube|nasogastric tube|chest tube|prosthe(?:sis|tic)|electrodes?|clips?\b"
    r"|implant(?:s|able)?\b|\bdevice\b",
    "Arterial wall calcification": r"(?:aort\w*|(?<!coronary )arter\w*|vascular)\b.{0,40}"
    r"\b(?:calcif\w*|atheroscl\w*|atheromat\w*)"
    r"|(?:calcif\w*|atheroscl\w*|atheromat\w*)\b.{0,60}\b(?:aort\w*|(?<!coronary )arter\w*|vascular)"
    r"|calcified atheroma\w*",
    "Cardiomegaly": r"cardiomegaly|(?:enlarged|enlargement of the|increased) (?:heart|cardiac)"
    r"|(?:heart|cardiac (?:size|silhouette|contour|chambers?))[^.;]{0,30}\b(?:enlarged|increased|dilated)"
    r"|cardiothoracic (?:ratio|index)[^.;]{0,30}increase\w*",
    "Pericardial effusion": r"pericardial (?:effusion|fluid)|(?:effusion|fluid)[^.;]{0,20}pericardi\w*",
    "Coronary artery wall calcification": r"coronary\b.{0,40}\b(?:calcif\w*|atheroscl\w*|atheromat\w*)"
    r"|(?:calcif\w*|atheroscl\w*|atheromat\w*)\b.{0,40}\bcoronary",
    "Hiatal hernia": r"hiat(?:al|us) hernia|hernia[^.;]{0,20}hiat\w*",
    "Lymphadenopathy": r"lymphadenopath\w*|enlarged lymph nodes?|lymph nodes?[^.;]{0,40}\b(?:enlarged|pathological)"
    r"|(?:pathological|enlarged)[^.;]{0,30}lymph nodes?",
    "Emphysema": r"emphysema\w*|bull(?:a|ae|ous)\b",
    "Atelectasis": r"atelecta\w*",
    "Lung nodule": r"nodul\w*",
    "Lung opacity": r"opacit\w*|opacif\w*|ground[- ]?glass|infiltrat\w*",
    "Pulmonary fibrotic sequela": r"fibro(?:tic|sis)\b|sequel(?:a|ae)\b|pleuroparenchymal|scarring",
    "Pleural effusion": r"pleural (?:effusion|fluid)|hydrothorax|(?:effusion|fluid)[^.;]{0,30}pleura\w*"
    r"|(?<!pericardial )\beffusions?\b(?![^.;]{0,20}pericardi)",
    "Mosaic attenuation pattern": r"mosaic",
    "Peribronchial thickening": r"peribronchial|bronchial wall[^.;]{0,20}thicken\w*|thicken\w*[^.;]{0,30}bronch\w*",
    "Consolidation": r"consolidat\w*",
    "Bronchiectasis": r"bronchiecta\w*",
    "Interlobular septal thickening": r"(?:interlobular )?septal thickening|thicken\w*[^.;]{0,30}\bsepta\w*",
}
CHEXPERT_PATTERNS: Mapping[str, str] = {
    "Enlarged Cardiomediastinum": r"(?:mediastin\w*|cardiomediastin\w*)[^.;]{0,30}\b(?:enlarged|widen\w*)"
    r"|widen\w*[^.;]{0,20}mediastin\w*|enlarged[^.;]{0,10}cardiomediastin\w*",
    "Cardiomegaly": CT_RATE_PATTERNS["Cardiomegaly"],
    "Lung Opacity": CT_RATE_PATTERNS["Lung opacity"],
    "Lung Lesion": r"nodul\w*|\bmass(?:es)?\b|lung lesions?|tumou?rs?",
    "Edema": r"edema|oedema|vascular congestion",
    "Consolidation": r"consolidat\w*",
    "Pneumonia": r"pneumonia|infect\w*",
    "Atelectasis": r"atelecta\w*|collapse\b",
    "Pneumothorax": r"pneumothora\w*",
    "Pleural Effusion": CT_RATE_PATTERNS["Pleural effusion"],
    "Pleural Other": r"pleural (?:thicken\w*|plaques?|scarring)|fibrothorax",
    "Fracture": r"fractur\w*",
    "Support Devices": CT_RATE_PATTERNS["Medical material"] + r"|\btubes?\b|\blines?\b(?= (?:tip|in|is|terminat))",
}
NO_FINDING = "No Finding"

_SENTENCE = re.compile(r"(?<=[.;!?])\s+|\n+")
_CUE_BEFORE = re.compile(
    r"\b(?:no(?! change)|not|without|absence of|absent|negative for|free of|neither|nor|denies|ruled? out|excluded?)\b"
)
_CUE_AFTER = re.compile(
    r"^[^.;]{0,60}?\b(?:(?:was|were|is|are|has been|have been) (?:not|absent|excluded|ruled out)|not (?:detected|observed"
    r"|seen|present|identified|found)|cannot be (?:seen|identified)|is unremarkable|(?:is|are|has|have) resolved)\b"
)
# A negation does not reach over these: "no effusion, but a nodule", "no effusion. There is ...".
_SCOPE_END = re.compile(
    r"\b(?:but|however|although|though|except|apart from|aside from|other than|whereas|while|there (?:is|are|was|were)"
    r"|and (?:an?|there|the) |with an? |showing|is (?:seen|present|noted)|are (?:seen|present|noted))"
)


def _stated(sentence: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a lower-cased sentence states the finding at least once without negating it."""
    return any(not _negated(sentence, match) for match in pattern.finditer(sentence))


def _negated(sentence: str, match: re.Match[str]) -> bool:
    scope = sentence[: match.start()]
    for end in _SCOPE_END.finditer(scope):
        # "there is no ..." opens a clause and negates inside it: keep what follows the clause opener.
        scope = sentence[end.end() : match.start()]
    # A pattern may span its own negation: "the coronary arteries are not calcified".
    if _CUE_BEFORE.search(scope) or _CUE_BEFORE.search(match.group()):
        return True
    rest = sentence[match.end() :]
    clause = _SCOPE_END.split(rest, maxsplit=1)[0] if not _CUE_AFTER.match(rest) else rest
    return _CUE_AFTER.match(clause) is not None


def rule_labels(text: str, patterns: Mapping[str, re.Pattern[str]]) -> dict[str, int]:
    """Label a report: 1 for every finding that some sentence states (uncertain counts as stated), else 0."""
    sentences = [sentence for sentence in _SENTENCE.split(text.lower()) if sentence]
    return {name: int(any(_stated(sentence, pattern) for sentence in sentences)) for name, pattern in patterns.items()}


def _compiled(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(rf"\b(?:{pattern})") for name, pattern in patterns.items()}


_CT_RATE = _compiled(CT_RATE_PATTERNS)
_CHEXPERT = _compiled(CHEXPERT_PATTERNS)


@LABELLERS.register("rule-based-ct-rate")
@lru_cache(maxsize=1 << 16)  # macro, micro and the table by finding ask for the same labels
def label_ct_rate(text: str) -> dict[str, int]:
    """Label the 18 CT-RATE findings by rules."""
    return rule_labels(text, _CT_RATE)


@LABELLERS.register("rule-based-chexpert")
@lru_cache(maxsize=1 << 16)
def label_chexpert(text: str) -> dict[str, int]:
    """Label the 14 CheXpert observations by rules; "No Finding" is 1 when no other but support devices is stated."""
    labels = rule_labels(text, _CHEXPERT)
    labels[NO_FINDING] = int(not any(value for name, value in labels.items() if name != "Support Devices"))
    return labels


def _listed(classes: tuple[str, ...]) -> Labeller:
    """Make a labeller of answers that list class names: a class is stated if it is one of the parts between commas or semicolons."""

    def label(text: str) -> dict[str, int]:
        parts = {normalize_word(part) for part in re.split("[,;]", text)}
        return {name: int(normalize_word(spoken(name)) in parts) for name in classes}

    return label


for _flag, _subset in SUBSETS.items():
    if _subset.multi_label:
        LABELLERS.add(f"listed-{_flag}", _listed(_subset.classes))
