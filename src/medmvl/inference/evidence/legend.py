"""Words on pictures of evidence."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

#: Font size, height of a line, and margin, in pixels.
_SIZE, _LINE, _MARGIN = 13, 18, 6

#: Longest text of a user that is drawn, in characters.
_LONGEST = 400


def label(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str) -> None:
    """Write white text with a black edge, which can be read on bone and on air; `anchor` is Pillow's."""
    font = ImageFont.load_default(_SIZE)
    pen.text(place, text, fill=(255, 255, 255), font=font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def readable(text: str) -> str:
    """Return a text as it can be drawn: cut if long, and for a script that the font lacks, where to read it."""
    text = " ".join(text.split())
    if not all(char.isascii() and char.isprintable() for char in text):
        return "see evidence.json"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..., see evidence.json"


def scale_bar(picture: PILImage.Image, ramp: PILImage.Image, ends: tuple[str, str]) -> PILImage.Image:
    """Return the picture with the colors of the heat below it, from the lowest to the highest, and what both ends mean."""
    sheet = PILImage.new("RGB", (picture.width, picture.height + _LINE + _MARGIN))
    sheet.paste(picture, (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    top = picture.height + _MARGIN
    left = _MARGIN + round(font.getlength(ends[0])) + _MARGIN
    sheet.paste(ramp.resize((ramp.width, _SIZE)), (left, top))
    label(pen, (_MARGIN, top + _SIZE // 2), ends[0], "lm")
    label(pen, (left + ramp.width + _MARGIN, top + _SIZE // 2), ends[1], "lm")
    return sheet


def with_text(picture: PILImage.Image, texts: Sequence[str], color: tuple[int, int, int]) -> PILImage.Image:
    """Return the picture with texts below it on black, each wrapped to the picture's width; the same one without texts."""
    font = ImageFont.load_default(_SIZE)
    lines = [line for text in texts for line in _wrapped(text, font, picture.width - 2 * _MARGIN)]
    if not lines:
        return picture
    sheet = PILImage.new("RGB", (picture.width, picture.height + _LINE * len(lines) + 2 * _MARGIN))
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, picture.height + _MARGIN + _LINE * number), line, fill=color, font=font)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return the lines of a text, none wider than `width` pixels unless a single word is."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
