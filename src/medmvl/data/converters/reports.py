"""Sections of free-text radiology reports, cut as MIMIC-CXR's own tool does (MIT-LCP/mimic-cxr, txt/section_parser.py).

The rules are the tool's, the code is ours; its tables (misspelled headings, hand-set sections) are in `mimic_sections.json`.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

_RULES: dict[str, Any] = json.loads(files(__package__).joinpath("mimic_sections.json").read_text(encoding="utf-8"))
#: A heading: a line that begins with one blank, capitals and a few marks, then a colon and white space.
_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s")
#: Words of headings that name a section, in the order in which they are tried.
_MAIN = ("impression", "findings", "history", "comparison", "addendum")
#: Paragraphs are separated by lines that hold one blank; other tools strip that blank.
_PARAGRAPH = re.compile(r"\n ?\n")


def normalize(heading: str) -> str:
    """Return the section that a heading names; a heading of views ("PORTABLE CHEST") names the findings."""
    plain = heading.lower().strip()
    if plain in _RULES["kept"]:
        return plain
    if plain in _RULES["headings"]:
        return str(_RULES["headings"][plain])
    main = next((name for name in _MAIN if name in plain), None)
    if main is not None:
        return main
    return "findings" if any(view in plain for view in _RULES["views"]) else plain


def tidy(text: str) -> str:
    """Return a section's text on one line: hard wraps and rules of underscores undone, de-identified `___` kept."""
    without_rules = re.sub(r"^[ \t]*_{10,}[ \t]*$", " ", text, flags=re.MULTILINE)
    return " ".join(without_rules.split())


def split_sections(report: str, study: str = "") -> dict[str, str]:
    """Return section name -> text on one line; of several sections with one name the last wins.

    Findings and impressions without text are dropped. If neither is left, the text after the first paragraph of the last
    section is `last_paragraph`.

    Args:
        report: the text file.
        study: id such as "s50414267"; a few studies have hand-set sections, which become `last_paragraph`.
    """
    if study in _RULES["range_of_study"]:
        begin, end = _RULES["range_of_study"][study]
        return {"last_paragraph": tidy(report[begin:end])} if end else {}
    parts = [(name, text) for name, text in _cut(report) if text.strip() or name not in ("impression", "findings")]
    if study in _RULES["section_of_study"]:
        chosen = [text for name, text in parts if name == _RULES["section_of_study"][study]]
        return {"last_paragraph": tidy(chosen[-1])} if chosen else {}
    names = [name for name, _ in parts]
    if "impression" not in names and "findings" not in names:
        last = parts[-1][1]
        mark = _PARAGRAPH.search(last)
        if mark is not None:
            parts[-1] = (parts[-1][0], last[: mark.start()])
            parts.append(("last_paragraph", last[mark.end() :]))
    return {name: tidy(text) for name, text in parts if tidy(text)}


def _cut(report: str) -> list[tuple[str, str]]:
    """Return (section, raw text) in order; the text before the first heading is the preamble."""
    text = "\n" + report if report.startswith(" ") else report  # a heading may open the file
    found = _HEADING.search(text)
    if found is None:
        return [("full report", text)]
    parts = [("preamble", text[: found.start(1)])]
    while found is not None:
        begin = found.end()
        # The rest of the heading's own line is skipped: a colon in capitals there is no heading.
        line_end = text.find("\n", begin)
        following = _HEADING.search(text, max(line_end, begin))
        parts.append((normalize(found.group(1)), text[begin : following.start() if following else len(text)]))
        found = following
    return parts


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
