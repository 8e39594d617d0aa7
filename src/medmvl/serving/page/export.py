"""Export of a conversation with its key images as PDF, Markdown or JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from xml.sax.saxutils import escape

from medmvl import __version__
from medmvl.errors import require
from medmvl.inference.confidence import percent
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.key_images import KeyImage, key_image
from medmvl.serving.page.sessions import Session
from medmvl.serving.page.wording import withheld, words

_MOST_IMAGES = 12
#: A font of every PDF viewer, for Chinese text; it is named in the file, not embedded.
_CHINESE, _LATIN = "STSong-Light", "Helvetica"


def export(session: Session, names: Sequence[str], request: Mapping[str, Any]) -> tuple[bytes, str, str]:
    """Return the bytes, the media type and the suffix of an export.

    Args:
        names: of the models.
        request: `format` (pdf, markdown or json), `language`, and `images`: the key images, see `key_image`.

    Raises:
        PageError: for an unknown format or a key image that does not exist.
    """
    session.check(request.get("version"))
    known = words(str(request.get("language")))
    wanted = request.get("images") or []
    if not isinstance(wanted, list) or len(wanted) > _MOST_IMAGES:
        raise PageError(400, f"At most {_MOST_IMAGES} key images can be exported.")
    images = [key_image(session, one, known) for one in wanted]
    content = _content(session, names)
    if request.get("format") == "json":
        return _json(content, images), "application/json", "json"
    if request.get("format") == "markdown":
        return _markdown(content, images, known).encode(), "text/markdown; charset=utf-8", "md"
    if request.get("format") == "pdf":
        return _pdf(content, images, known), "application/pdf", "pdf"
    raise PageError(400, "An export is pdf, markdown or json.")


def _content(session: Session, names: Sequence[str]) -> dict[str, Any]:
    turns = []
    for turn in session.turns:
        facts = turn.facts()
        blind = turn.order != (0,) and turn.preferred is None
        facts["models"] = ["A", "B"] if blind else [names[place] for place in turn.order]
        turns.append({**facts, "preferred": turn.preferred})
    return {
        "notice": "Research use only. Not a medical device. The answers are not a diagnosis.",
        "written": datetime.now().astimezone().isoformat(timespec="seconds"),
        "medmvl": __version__,
        "models": list(names),
        "studies": [{key: value for key, value in study.facts.items() if key != "name"} for study in session.studies],
        "turns": turns,
    }


def _json(content: dict[str, Any], images: Sequence[KeyImage]) -> bytes:
    pictures = [{**image.where, "png_base64": base64.b64encode(image.png()).decode()} for image in images]
    return json.dumps({**content, "key_images": pictures}, ensure_ascii=False, indent=2).encode()


def _lines(content: dict[str, Any], known: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the conversation as (kind, text): question, answer, chances, preference."""
    lines: list[tuple[str, str]] = []
    for turn in content["turns"]:
        lines.append(("question", turn["text"]))
        keys = ("models", "answers", "confidences", "confidence_shown", "withheld")
        for name, answer, confidence, shown, threshold in zip(*(turn[key] for key in keys), strict=True):
            label = f"{name}: " if len(turn["models"]) > 1 else ""
            if threshold is not None:
                lines.append(("answer", label + withheld(confidence, threshold, known)))
                continue
            lines.append(("answer", label + (answer or known["empty_answer"])))
            if confidence is not None and shown and not turn["chances"]:
                number = known["confidence_of"].format(percent=percent(confidence))
                lines.append(("note", f"{number} ({known['confidence_means']})"))
        if turn["follow_up"]:
            lines.append(("note", known["followed"]))
        if turn["stopped"]:
            lines.append(("note", known["stopped"]))
        if turn["chances"]:
            lines.append(
                ("note", ", ".join(f"{option}: {percent(chance)}" for option, chance in turn["chances"].items()))
            )
        if turn["preferred"]:
            lines.append(("note", f"{known['preferred']}: {known['prefer_' + turn['preferred']]}"))
    return lines


def _markdown(content: dict[str, Any], images: Sequence[KeyImage], known: Mapping[str, str]) -> str:
    parts = [f"# MedM-VL: {', '.join(content['models'])}", f"> {known['banner']}", content["written"]]
    for kind, text in _lines(content, known):
        plain = _literal(text)
        parts.append({"question": f"**{known['question']}** {plain}", "note": f"*{plain}*"}.get(kind, plain))
    for image in images:
        data = base64.b64encode(image.png()).decode()
        parts.append(f"![{_literal(image.caption)}](data:image/png;base64,{data})")
        parts += [_literal(text) for text in (image.caption, *image.notes)]
    return "\n\n".join(parts) + "\n"


def _literal(text: str) -> str:
    """Return text that Markdown shows as it is, so that an answer cannot hold a link or a picture."""
    for mark in "\\`*_{}[]<>#|!~":
        text = text.replace(mark, "\\" + mark)
    return text


def _pdf(content: dict[str, Any], images: Sequence[KeyImage], known: Mapping[str, str]) -> bytes:
    platypus = require("reportlab.platypus", "demo")
    unit = require("reportlab.lib.units", "demo").mm
    lines = _lines(content, known)
    everything = "".join(
        (
            known["banner"],
            *(text for _, text in lines),
            *(text for image in images for text in (image.caption, *image.notes)),
        )
    )
    styles = _styles(all(ord(character) < 256 for character in everything))
    story: list[Any] = [
        platypus.Paragraph(escape(known["banner"]), styles["notice"]),
        platypus.Paragraph(escape(f"{', '.join(content['models'])}; {content['written']}"), styles["note"]),
        platypus.Spacer(1, 4 * unit),
    ]
    story += [platypus.Paragraph(escape(text).replace("\n", "<br/>"), styles[kind]) for kind, text in lines]
    for image in images:
        scale = min(150 / image.picture.width, 110 / image.picture.height) * unit
        size = {"width": image.picture.width * scale, "height": image.picture.height * scale}
        below = [platypus.Paragraph(escape(text), styles["note"]) for text in (image.caption, *image.notes)]
        picture = platypus.Image(io.BytesIO(image.png()), **size)
        story.append(platypus.KeepTogether([platypus.Spacer(1, 4 * unit), picture, *below]))
    stream = io.BytesIO()
    platypus.SimpleDocTemplate(stream, title="MedM-VL", author="MedM-VL").build(story)
    return stream.getvalue()


def _styles(latin: bool) -> dict[str, Any]:
    style = require("reportlab.lib.styles", "demo").ParagraphStyle
    colors = require("reportlab.lib.colors", "demo")
    if not latin:
        fonts = require("reportlab.pdfbase.cidfonts", "demo")
        require("reportlab.pdfbase.pdfmetrics", "demo").registerFont(fonts.UnicodeCIDFont(_CHINESE))
    font, wrap = (_LATIN, None) if latin else (_CHINESE, "CJK")
    answer = style("answer", fontName=font, fontSize=10, leading=14, wordWrap=wrap, leftIndent=12)
    return {
        "answer": answer,
        "question": style("question", parent=answer, leftIndent=0, spaceBefore=8, textColor=colors.darkblue),
        "note": style("note", parent=answer, fontSize=8, leading=11, textColor=colors.dimgrey),
        "notice": style("notice", parent=answer, leftIndent=0, fontSize=11, leading=15, textColor=colors.firebrick),
    }
