"""Export of a conversation with its key images as PDF, Markdown or JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any
from xml.sax.saxutils import escape

import nibabel
import numpy as np
import PIL.Image
import PIL.ImageDraw

from medmvl import __version__
from medmvl.errors import require
from medmvl.imaging import Volume
from medmvl.imaging.formats.pictures import open_picture
from medmvl.imaging.preprocessing.rendering import PLANES, draw_plane
from medmvl.imaging.preprocessing.windows import Window
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.sessions import OpenStudy, Session
from medmvl.serving.page.settings import LANGUAGES
from medmvl.serving.page.study import VIEW_IMAGE, VIEW_VOLUME

_MOST_IMAGES = 12
_LONGEST_SIDE = 640
_BOX_COLOR, _TEXT_COLOR = (255, 214, 10), (235, 235, 235)
#: A font of every PDF viewer, for Chinese text; it is named in the file, not embedded.
_CHINESE, _LATIN = "STSong-Light", "Helvetica"


@dataclass(frozen=True, eq=False)
class KeyImage:
    """A picture of an export.

    Attributes:
        picture: RGB, with side letters and boxes.
        caption: plane, slice number and window.
        where: the same for programs.
    """

    picture: PIL.Image.Image
    caption: str
    where: dict[str, Any]

    def png(self) -> bytes:
        """Return the picture as PNG."""
        stream = io.BytesIO()
        self.picture.save(stream, format="PNG")
        return stream.getvalue()


@cache
def words(language: str) -> dict[str, str]:
    """Return the words of the page in a language, English if it is not known."""
    name = language if language in LANGUAGES else LANGUAGES[0]
    text = (resources.files("medmvl.serving.page") / "static" / "words" / f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def export(session: Session, names: Sequence[str], request: Mapping[str, Any]) -> tuple[bytes, str, str]:
    """Return the bytes, the media type and the suffix of an export.

    Args:
        names: of the models.
        request: `format` (pdf, markdown or json), `language`, and `images`: the key images, each with `study`, and for a
            volume `plane`, `index` and `window`, and for an image `boxes`.

    Raises:
        PageError: for an unknown format or a key image that does not exist.
    """
    session.check(request.get("version"))
    known = words(str(request.get("language")))
    wanted = request.get("images") or []
    if not isinstance(wanted, list) or len(wanted) > _MOST_IMAGES:
        raise PageError(400, f"At most {_MOST_IMAGES} key images can be exported.")
    images = [key_image(session.studies, one, known) for one in wanted]
    content = _content(session, names)
    if request.get("format") == "json":
        return _json(content, images), "application/json", "json"
    if request.get("format") == "markdown":
        return _markdown(content, images, known).encode(), "text/markdown; charset=utf-8", "md"
    if request.get("format") == "pdf":
        return _pdf(content, images, known), "application/pdf", "pdf"
    raise PageError(400, "An export is pdf, markdown or json.")


def key_image(studies: Sequence[OpenStudy], wanted: Any, known: Mapping[str, str]) -> KeyImage:
    """Return a picture that the visitor marked.

    Raises:
        PageError: if there is no such picture.
    """
    try:
        study = studies[int(wanted["study"])]
        if study.kind == "image":
            return _marked_image(study, wanted, known)
        return _slice(study, wanted, known)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise PageError(400, "A key image does not belong to an open study.") from None


def _marked_image(study: OpenStudy, wanted: Mapping[str, Any], known: Mapping[str, str]) -> KeyImage:
    picture = open_picture(study.folder / VIEW_IMAGE).convert("RGB")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    draw = PIL.ImageDraw.Draw(picture)
    boxes = [[min(max(float(value), 0.0), 1.0) for value in box] for box in wanted.get("boxes") or []][:20]
    for x1, y1, x2, y2 in boxes:
        corners = (x1 * picture.width, y1 * picture.height, x2 * picture.width - 1, y2 * picture.height - 1)
        draw.rectangle(corners, outline=_BOX_COLOR, width=max(1, picture.width // 200))
    if sides := study.facts["sides"]:
        _letter(picture, sides)
    number = int(wanted["study"])
    return KeyImage(picture, f"{known['image']} {number + 1}", {"study": number, "boxes": boxes})


def _slice(study: OpenStudy, wanted: Mapping[str, Any], known: Mapping[str, str]) -> KeyImage:
    plane, index = wanted["plane"], int(wanted["index"])
    if plane not in PLANES or index < 0:
        raise ValueError
    low, high = (float(value) for value in wanted["window"])
    window = Window((low + high) / 2, max(high - low, 1e-6))
    file: Any = nibabel.load(study.folder / VIEW_VOLUME)
    volume = Volume(array=np.asanyarray(file.dataobj), units=study.facts["units"], affine=file.affine)
    drawn = draw_plane(volume, plane, index, window, longest=_LONGEST_SIDE)
    picture = PIL.Image.fromarray(drawn.pixels).convert("RGB")
    doubt = "" if study.facts["sides_known"] else "?"
    _letter(picture, [letter + doubt for letter in (drawn.left, drawn.right, drawn.top, drawn.bottom)])
    unit = f" {study.facts['units']}" if study.facts["units"] == "HU" else ""
    caption = f"{known[plane]} {drawn.index + 1}/{drawn.count}, {low:g} … {high:g}{unit}"
    where = {"study": int(wanted["study"]), "plane": plane, "slice": drawn.index + 1, "of": drawn.count}
    return KeyImage(picture, caption, {**where, "window": [low, high]})


def _letter(picture: PIL.Image.Image, letters: Sequence[str]) -> None:
    """Write the patient's sides at the left, right, top and bottom edge of a picture."""
    draw = PIL.ImageDraw.Draw(picture)
    across, down = picture.width // 2, picture.height // 2
    places = {"lm": (4, down), "rm": (picture.width - 4, down), "ma": (across, 4), "md": (across, picture.height - 4)}
    for (anchor, place), letter in zip(places.items(), letters, strict=True):
        # A dark edge: a radiograph is bright at its edges.
        draw.text(place, letter, fill=_TEXT_COLOR, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


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
        answers = zip(turn["models"], turn["answers"], turn["confidences"], turn["withheld"], strict=True)
        for name, answer, confidence, threshold in answers:
            label = f"{name}: " if len(turn["models"]) > 1 else ""
            if threshold is not None:
                lines.append(("answer", label + _withheld(confidence, threshold, known)))
                continue
            lines.append(("answer", label + (answer or known["empty_answer"])))
            if confidence is not None and not turn["chances"]:
                lines.append(("note", f"{known['confidence']}: {confidence:.3g}"))
        if turn["stopped"]:
            lines.append(("note", known["stopped"]))
        if turn["chances"]:
            lines.append(
                ("note", ", ".join(f"{option}: {_percent(chance)}" for option, chance in turn["chances"].items()))
            )
        if turn["preferred"]:
            lines.append(("note", f"{known['preferred']}: {known['prefer_' + turn['preferred']]}"))
    return lines


def _percent(share: float) -> str:
    """Return a probability as text; rounding must not make it impossible or certain."""
    if share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def _withheld(confidence: float, threshold: float, known: Mapping[str, str]) -> str:
    """Return what is written in place of an answer below the threshold."""
    shown = "< 0.1 %" if confidence < 0.001 else f"{math.floor(1000 * confidence) / 10:.1f} %"
    limit = f"{100 * threshold:.4g} %" if threshold <= 1 else "> 100 %"
    return known["withheld"].format(confidence=shown, threshold=limit)


def _markdown(content: dict[str, Any], images: Sequence[KeyImage], known: Mapping[str, str]) -> str:
    parts = [f"# MedM-VL: {', '.join(content['models'])}", f"> {known['banner']}", content["written"]]
    for kind, text in _lines(content, known):
        plain = _literal(text)
        parts.append({"question": f"**{known['question']}** {plain}", "note": f"*{plain}*"}.get(kind, plain))
    for image in images:
        data = base64.b64encode(image.png()).decode()
        parts.append(f"![{_literal(image.caption)}](data:image/png;base64,{data})\n\n{_literal(image.caption)}")
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
    everything = "".join((known["banner"], *(text for _, text in lines), *(image.caption for image in images)))
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
        caption = platypus.Paragraph(escape(image.caption), styles["note"])
        picture = platypus.Image(io.BytesIO(image.png()), **size)
        story.append(platypus.KeepTogether([platypus.Spacer(1, 4 * unit), picture, caption]))
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
