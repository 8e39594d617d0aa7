"""Sections of free-text radiology reports, found by their headings the way MIMIC-CXR's own tool finds them."""

from __future__ import annotations

import re

# A heading opens a line: capitals, spaces and a few marks, then a colon (MIT-LCP/mimic-cxr, txt/section_parser.py).
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]+?):", re.MULTILINE)
#: headings that mean the same, by what they are normalised to; the commonest of the official list
SAME = {
    "conclusion": "impression",
    "conclusions": "impression",
    "impressions": "impression",
    "impression and plan": "impression",
    "finding": "findings",
    "chest": "findings",
    "chest two views": "findings",
    "chest pa and lateral": "findings",
    "pa and lateral chest": "findings",
    "frontal and lateral chest": "findings",
    "findings and impression": "findings",
    "findings/impression": "findings",
    "comparisons": "comparison",
    "comparison studies": "comparison",
    "reason for exam": "indication",
    "reason for examination": "indication",
    "clinical information": "indication",
    "clinical history": "indication",
    "history": "indication",
    "exam": "examination",
    "study": "examination",
    "procedure": "examination",
    "technique and findings": "technique",
}


def normalise(heading: str) -> str:
    """Return the common name of a section heading."""
    plain = re.sub(r"[^a-z/ ]", "", heading.lower().replace(",", "")).strip()
    return SAME.get(plain, plain)


def tidy(text: str) -> str:
    """Return a section's text on one line: hard wraps and rules of underscores undone, de-identified `___` kept."""
    without_rules = re.sub(r"^[ \t]*_{10,}[ \t]*$", " ", text, flags=re.MULTILINE)
    return " ".join(without_rules.split())


def split_sections(report: str) -> dict[str, str]:
    """Return section name -> text; of several sections with one name the last that has text wins.

    If there is neither findings nor impression, the text after the first blank line of the last section is given as
    `last_paragraph`.
    """
    headings = list(_HEADING.finditer(report))
    sections: dict[str, str] = {}
    last = report
    for number, heading in enumerate(headings):
        end = headings[number + 1].start() if number + 1 < len(headings) else len(report)
        last = report[heading.end() : end]
        text = tidy(last)
        if text:
            sections[normalise(heading.group(1))] = text
    if "findings" not in sections and "impression" not in sections:
        _, _, paragraph = last.strip().partition("\n\n") if "\n\n" in last else ("", "", re.split(r"\n\s*\n", last)[-1])
        if tidy(paragraph):
            sections["last_paragraph"] = tidy(paragraph)
    return sections


def report_text(sections: dict[str, str], target: str) -> str:
    """Return the text a model is to write.

    Args:
        sections: of `split_sections`.
        target: "findings", "impression", or "both" ("Findings: ... Impression: ...", whichever are there).
    """
    if target != "both":
        return sections.get(target, "")
    parts = [f"{name.capitalize()}: {sections[name]}" for name in ("findings", "impression") if sections.get(name)]
    return " ".join(parts) or sections.get("last_paragraph", "")
