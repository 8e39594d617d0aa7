"""Rule-based labeler of English report text: keywords and negation cues, one sentence at a time.

It is *not* CheXbert, RadBERT or any published labeler, and scores made with it are named `rule-based`. It runs offline and is
deterministic. For published label F1, give label files made with the published labeler instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from medmvl.data.converters.medmnist_subsets import SUBSETS, spoken
from medmvl.errors import EvaluationError
from medmvl.evaluation.text import normalize_word
from medmvl.registry import Registry

Labeler = Callable[[str], dict[str, int]]
"""Report text -> {finding: 0 or 1} for every finding that the labeler knows."""

LABELERS: Registry[Labeler] = Registry("labeler", EvaluationError)

_CORONARY = r"(?:coronar(?:y|ies)|(?:left )?anterior descending|circumflex|\b(?:lad|rca|lmca|lcx)\b)"
_ARTERY = r"(?:aort\w*\b(?! valv)|(?<!coronary )(?<!descending )(?<!circumflex )arter\w*\b|(?<!coronary )vascular|supraaortic)"
_CALCIFIED = r"(?:calcif\w*|atheroscl\w*|atherom\w*)\b"

# The order is CT-RATE's column order (multi_abnormality_labels/*.csv).
CT_RATE_PATTERNS: Mapping[str, str] = {
    "Medical material": r"medical (?:material|device)s?|catheters?|cannulas?|pacemakers?|stents?|sternotomy|sutures?|port chamber"
    r"|central (?:venous )?line|endotracheal tube|nasogastric tube|chest tube|prosthe(?:sis|tic)|electrodes?|clips?\b"
    r"|implant(?:s|able)?\b|\bdevice\b",
    "Arterial wall calcification": rf"{_ARTERY}[^.;]{{0,80}}?\b{_CALCIFIED}|{_CALCIFIED}[^.;]{{0,80}}?\b{_ARTERY}"
    r"|calcified atheroma\w*",
    "Cardiomegaly": r"cardiomegaly|(?:enlarged|enlargement of the|increased) (?:heart|cardiac)"
    r"|(?:heart|cardiac (?:size|silhouette|contour|chambers?|dimensions))[^.;]{0,30}\b(?:enlarged|increased|dilated|larger than)"
    r"|cardiothoracic (?:ratio|index)[^.;]{0,30}increase\w*",
    "Pericardial effusion": r"pericardial (?:effusion|fluid)|(?:effusion|fluid)[^.;]{0,20}pericardi\w*",
    "Coronary artery wall calcification": rf"{_CORONARY}[^.;]{{0,80}}?\b{_CALCIFIED}|{_CALCIFIED}[^.;]{{0,80}}?{_CORONARY}",
    "Hiatal hernia": r"hiat(?:al|us) hernia|hernia[^.;]{0,20}hiat\w*",
    "Lymphadenopathy": r"lymphadenopath\w*|lymphadenomegal\w*|\blaps?\b|(?:enlarged|prominent) (?:\w+ ){0,3}?lymph nodes?"
    r"|lymph nodes?[^.;]{0,80}?\b(?:enlarged|(?<!non-)pathological)|(?:(?<!non-)pathological|enlarged)[^.;]{0,30}lymph nodes?",
    "Emphysema": r"emphysema\w*|bull(?:a|ae|ous)\b",
    "Atelectasis": r"atelecta\w*",
    "Lung nodule": r"nodul\w*",
    "Lung opacity": r"opacit\w*|opacif\w*|(?:ground|frosted)[- ]?glass|infiltrat\w*|density increases?|increased density",
    "Pulmonary fibrotic sequela": r"fibro(?:tic|sis)\b|sequel(?:a|ae)\b|pleuroparenchymal|scarring",
    "Pleural effusion": r"pleural (?:effusion|fluid)|hydrothorax|(?:effusion|fluid)[^.;]{0,30}pleura\w*"
    r"|(?<!pericardial )\beffusions?\b(?![^.;]{0,20}pericardi)",
    "Mosaic attenuation pattern": r"mosaic",
    "Peribronchial thickening": r"peribronchial|bronchial wall[^.;]{0,20}thicken\w*"
    r"|thicken\w*[^.;]{0,30}(?:peri)?bronch\w*",
    "Consolidation": r"consolidat\w*",
    "Bronchiectasis": r"bronchiecta\w*",
    "Interlobular septal thickening": r"(?:interlobular )?septal thickening|thicken\w*[^.;]{0,30}\bsepta\w*"
    r"|\bsepta\b[^.;]{0,30}thicken\w*",
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
# Words that end the scope of a negation: "no effusion, but a nodule".
_SCOPE_END = re.compile(
    r"\b(?:but|however|although|though|except|apart from|aside from|other than|whereas|while|there (?:is|are|was|were)"
    r"|and (?:an?|there|the) |with an? |showing|is (?:seen|present|noted)|are (?:seen|present|noted))"
)


#: Nodules of other organs are no lung nodules, unless the sentence also names the lung.
_OTHER_ORGAN = re.compile(r"\b(?:thyroid|adrenal|surrenal|breast|liver|hepatic|kidney|renal|spleen|splenic)\b")
_LUNG = re.compile(r"\b(?:lungs?|pulmonary|parenchym\w*|(?:upper|middle|lower) lobes?)\b")
_LYMPH_NODE = re.compile(r"\blymph nodes?\b")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:\s*x\s*(\d+(?:\.\d+)?))?\s*(mm|cm)\b")
_BELOW = re.compile(r"(?:smaller|less|lower|shorter|under|below|not exceed\w*|up to)\s*(?:than\s*)?(?:a\s*)?$|<\s*$")
#: A lymph node counts as enlarged from this size on (short axis, mm).
_ENLARGED_MM = 10.0
#: Characters before and after a finding in which a negation is searched.
_SCOPE = 300


def _stated(name: str, sentence: str, pattern: re.Pattern[str]) -> bool:
    """Whether a lower-cased sentence states the finding at least once without negating it."""
    if name == "Lung nodule" and _OTHER_ORGAN.search(sentence) and not _LUNG.search(sentence):
        return False
    if any(not _negated(sentence, match) for match in pattern.finditer(sentence)):
        return True
    return name == "Lymphadenopathy" and _large_lymph_node(sentence)


def _large_lymph_node(sentence: str) -> bool:
    """Whether a sentence gives lymph nodes a size of at least 10 mm and does not negate them or call the size a bound."""
    node = _LYMPH_NODE.search(sentence)
    if node is None or _negated(sentence, node) or _CUE_BEFORE.search(sentence):
        return False
    for size in _SIZE.finditer(sentence):
        largest = max(float(number) for number in size.groups()[:2] if number) * (10 if size.group(3) == "cm" else 1)
        bound = _BELOW.search(sentence[max(0, size.start() - 25) : size.start()])
        if largest >= _ENLARGED_MM and (
            bound is None or (bound.group().startswith("up to") and largest > _ENLARGED_MM)
        ):
            return True
    return False


def _negated(sentence: str, match: re.Match[str]) -> bool:
    scope = sentence[max(0, match.start() - _SCOPE) : match.start()]
    for end in reversed(list(_SCOPE_END.finditer(scope))):
        # "there is no ..." opens a clause and negates inside it: keep what follows the clause opener.
        scope = scope[end.end() :]
        break
    # A pattern may span its own negation: "the coronary arteries are not calcified".
    if _CUE_BEFORE.search(scope) or _CUE_BEFORE.search(match.group()):
        return True
    rest = sentence[match.end() : match.end() + _SCOPE]
    clause = _SCOPE_END.split(rest, maxsplit=1)[0] if not _CUE_AFTER.match(rest) else rest
    return _CUE_AFTER.match(clause) is not None


def rule_labels(text: str, patterns: Mapping[str, re.Pattern[str]]) -> dict[str, int]:
    """Label a report: 1 for every finding that some sentence states (uncertain counts as stated), else 0."""
    sentences = [sentence for sentence in _SENTENCE.split(text.lower()) if sentence]
    return {
        name: int(any(_stated(name, sentence, pattern) for sentence in sentences)) for name, pattern in patterns.items()
    }


@lru_cache(maxsize=1 << 14)
def finding_sides(text: str) -> dict[str, frozenset[str]]:
    """Return {finding: sides} of the findings that a report states; a side is "left" or "right", both for "bilateral"."""
    found: dict[str, set[str]] = {}
    for sentence in _SENTENCE.split(text.lower()):
        words = set(re.findall(r"\b(?:left|right|bilateral|bilaterally|both)\b", sentence))
        sides = {"left", "right"} if words - {"left", "right"} else words
        if not sides:
            continue
        for name, pattern in _SIDED.items():
            if _stated(name, sentence, pattern):
                found.setdefault(name, set()).update(sides)
    return {name: frozenset(sides) for name, sides in found.items()}


def _compiled(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(rf"\b(?:{pattern})") for name, pattern in patterns.items()}


_CT_RATE = _compiled(CT_RATE_PATTERNS)
_CHEXPERT = _compiled(CHEXPERT_PATTERNS)
_NAMES = {name.lower() for name in _CT_RATE}
#: The findings of both lists, each once, that `finding_sides` searches for.
_SIDED = _CT_RATE | {name: pattern for name, pattern in _CHEXPERT.items() if name.lower() not in _NAMES}


@LABELERS.register("rule-based-ct-rate")
@lru_cache(maxsize=1 << 16)  # macro, micro and the table by finding ask for the same labels
def label_ct_rate(text: str) -> dict[str, int]:
    """Label the 18 CT-RATE findings by rules."""
    return rule_labels(text, _CT_RATE)


@LABELERS.register("rule-based-chexpert")
@lru_cache(maxsize=1 << 16)
def label_chexpert(text: str) -> dict[str, int]:
    """Label the 14 CheXpert observations by rules; "No Finding" is 1 when no other but support devices is stated."""
    labels = rule_labels(text, _CHEXPERT)
    labels[NO_FINDING] = int(not any(value for name, value in labels.items() if name != "Support Devices"))
    return labels


def _listed(classes: tuple[str, ...]) -> Labeler:
    """Make a labeler of answers that list class names: a class is stated if it is one of the parts between commas or semicolons."""

    def label(text: str) -> dict[str, int]:
        parts = {normalize_word(part) for part in re.split("[,;]", text)}
        return {name: int(normalize_word(spoken(name)) in parts) for name in classes}

    return label


for _flag, _subset in SUBSETS.items():
    if _subset.multi_label:
        LABELERS.add(f"listed-{_flag}", _listed(_subset.classes))
