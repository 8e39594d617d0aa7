"""Key images of an export: a picture as the visitor saw it, with side letters, boxes and the heat map that lay over it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from medmvl.imaging import Volume
from medmvl.imaging.formats.pictures import open_picture
from medmvl.imaging.preprocessing.rendering import PLANES, draw_plane
from medmvl.imaging.preprocessing.windows import Window
from medmvl.inference.confidence import percent
from medmvl.inference.evidence import lay_over
from medmvl.serving.page.conversation import box_in_text
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.explaining import finer
from medmvl.serving.page.sessions import HeatMap, OpenStudy, Session
from medmvl.serving.page.study import VIEW_IMAGE, VIEW_VOLUME

_LONGEST_SIDE = 640
#: Boxes of a picture, and the highest number of one in a conversation.
_MOST_BOXES, _HIGHEST_NUMBER = 20, 9999
_BOX_COLOR, _TEXT_COLOR = (255, 214, 10), (235, 235, 235)


@dataclass(frozen=True, eq=False)
class KeyImage:
    """A picture of an export.

    Attributes:
        picture: RGB, with side letters, boxes and heat map.
        caption: plane, slice number and window.
        notes: what the heat map shows, and why to distrust it, a sentence each; empty without a heat map.
        where: the same for programs.
    """

    picture: PIL.Image.Image
    caption: str
    notes: tuple[str, ...]
    where: dict[str, Any]

    def png(self) -> bytes:
        """Return the picture as PNG."""
        stream = io.BytesIO()
        self.picture.save(stream, format="PNG")
        return stream.getvalue()


def key_image(session: Session, wanted: Any, known: Mapping[str, str]) -> KeyImage:
    """Return a picture that the visitor marked.

    Args:
        session: of the visitor.
        wanted: `study`; for a volume `plane`, `index` and `window`; for an image `boxes`, each with `box` and its `number` on the
            page; `evidence`: id of the heat map over it.
        known: words of the page.

    Raises:
        PageError: if there is no such picture.
    """
    try:
        study = session.studies[int(wanted["study"])]
        draw = _image if study.kind == "image" else _slice
        heat, gone = _heat_of(session, study, wanted.get("evidence"))
        found = draw(study, wanted, known, heat)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise PageError(400, "A key image does not belong to an open study.") from None
    if gone:
        return KeyImage(found.picture, found.caption, (known["heat_gone"],), found.where)
    return found


def _heat_of(session: Session, study: OpenStudy, name: Any) -> tuple[HeatMap | None, bool]:
    """Return the map that lay over a picture, and whether it is no longer kept.

    Raises:
        ValueError: if it is the map of another study.
    """
    if name is None:
        return None, False
    heat = session.evidence.get(str(name))
    if heat is not None and heat.study is not study:
        raise ValueError
    return heat, heat is None


def _image(study: OpenStudy, wanted: Mapping[str, Any], known: Mapping[str, str], heat: HeatMap | None) -> KeyImage:
    picture = open_picture(study.folder / VIEW_IMAGE).convert("RGB")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    if heat is not None:
        share = open_picture(heat.path).convert("L").resize(picture.size, PIL.Image.Resampling.BILINEAR)
        picture = _heated(np.asarray(picture), np.asarray(share))
    draw = PIL.ImageDraw.Draw(picture)
    boxes = [_box(one) for one in wanted.get("boxes") or []][:_MOST_BOXES]
    for box in boxes:
        x1, y1, x2, y2 = box["box"]
        corners = (x1 * picture.width, y1 * picture.height, x2 * picture.width - 1, y2 * picture.height - 1)
        draw.rectangle(corners, outline=_BOX_COLOR, width=max(1, picture.width // 200))
        _write(draw, (corners[0] + 4, corners[1] + 4), str(box["number"]), _BOX_COLOR, "la")
    if sides := study.facts["sides"]:
        _letter(picture, sides)
    number = int(wanted["study"])
    where = {"study": number, "boxes": boxes, **_heat_facts(heat)}
    caption = f"{known['image']} {number + 1}"
    if boxes:
        caption += "; " + known["boxes"].format(
            boxes=", ".join(f"{box['number']}: {box_in_text(box['box'])}" for box in boxes)
        )
    return KeyImage(picture, caption, _notes(heat, known), where)


def _box(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return `box`, (x1, y1, x2, y2) as shares of width and height, and `number` of a box."""
    x1, y1, x2, y2 = (min(max(float(value), 0.0), 1.0) for value in wanted["box"])
    number = int(wanted["number"])
    if not 1 <= number <= _HIGHEST_NUMBER:
        raise ValueError
    return {"box": [x1, y1, x2, y2], "number": number}


def _slice(study: OpenStudy, wanted: Mapping[str, Any], known: Mapping[str, str], heat: HeatMap | None) -> KeyImage:
    plane, index = wanted["plane"], int(wanted["index"])
    if plane not in PLANES or index < 0:
        raise ValueError
    low, high = (float(value) for value in wanted["window"])
    window = Window((low + high) / 2, max(high - low, 1e-6))
    file: Any = nibabel.load(study.folder / VIEW_VOLUME)
    volume = Volume(array=np.asanyarray(file.dataobj), units=study.facts["units"], affine=file.affine)
    drawn = draw_plane(volume, plane, index, window, longest=_LONGEST_SIDE)
    picture = PIL.Image.fromarray(drawn.pixels).convert("RGB")
    if heat is not None:
        coarse: Any = nibabel.load(heat.path)
        share = np.rint(np.clip(np.asanyarray(coarse.dataobj), 0, 1) * 255).astype(np.uint8)
        over = Volume(array=finer(share, volume.shape), units="arbitrary", affine=file.affine)
        picture = _heated(drawn.pixels, draw_plane(over, plane, index, Window(127.5, 255), _LONGEST_SIDE).pixels)
    doubt = "" if study.facts["sides_known"] else "?"
    _letter(picture, [letter + doubt for letter in (drawn.left, drawn.right, drawn.top, drawn.bottom)])
    unit = f" {study.facts['units']}" if study.facts["units"] == "HU" else ""
    caption = f"{known[plane]} {drawn.index + 1}/{drawn.count}, {low:g} … {high:g}{unit}"
    where = {"study": int(wanted["study"]), "plane": plane, "slice": drawn.index + 1, "of": drawn.count}
    return KeyImage(picture, caption, _notes(heat, known), {**where, "window": [low, high], **_heat_facts(heat)})


def _heated(picture: NDArray[np.uint8], share: NDArray[np.uint8]) -> PIL.Image.Image:
    """Return a picture (H, W) or (H, W, 3) with a map (H, W) from 0 to 255 over it."""
    return PIL.Image.fromarray(lay_over(picture, share.astype(np.float32) / np.float32(255)))


def _notes(heat: HeatMap | None, known: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the page says beside a heat map, which must not be taken away without it."""
    if heat is None:
        return ()
    facts = heat.facts
    notes = [
        known["heat_of"].format(sentence=facts["sentence"]),
        known["evidence_preview" if facts["preview"] else "evidence_occlusion"],
    ]
    if facts["factor"] is not None:
        notes.append(known["evidence_factor"].format(factor=facts["factor"]))
    elif facts["neutral"] is not None:
        numbers = {"probability": percent(facts["probability"]), "neutral": percent(facts["neutral"])}
        notes.append(known["evidence_numbers"].format(**numbers))
    return *notes, *(known[f"evidence_{doubt}"] for doubt in facts["doubts"])


def _heat_facts(heat: HeatMap | None) -> dict[str, Any]:
    if heat is None:
        return {}
    keys = ("sentence", "preview", "probability", "neutral", "doubts", "scale")
    return {"heat_map": {key: heat.facts[key] for key in keys}}


def _letter(picture: PIL.Image.Image, letters: Sequence[str]) -> None:
    """Write the patient's sides at the left, right, top and bottom edge of a picture."""
    draw = PIL.ImageDraw.Draw(picture)
    across, down = picture.width // 2, picture.height // 2
    places = {"lm": (4, down), "rm": (picture.width - 4, down), "ma": (across, 4), "md": (across, picture.height - 4)}
    for (anchor, place), letter in zip(places.items(), letters, strict=True):
        _write(draw, place, letter, _TEXT_COLOR, anchor)


def _write(
    draw: PIL.ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int], anchor: str
) -> None:
    """Write text with a dark edge, since a radiograph may be bright below it."""
    draw.text(place, text, fill=color, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
