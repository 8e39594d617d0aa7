"""Pages of text and pictures for the secondary capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from medmvl.ward.key_images import KeyImage
from medmvl.ward.objects.content import ResultContent

WIDTH, HEIGHT = 1024, 1024
_MARGIN, _GAP, _PICTURE_HEIGHT = 32, 12, 420
_BLACK, _WHITE, _GRAY, _AMBER = (0, 0, 0), (255, 255, 255), (170, 170, 170), (255, 190, 60)
#: fonts of text that they cannot draw show these instead
_REPLACEMENT = "?"


@dataclass(frozen=True)
class _Line:
    """One line of text.

    Attributes:
        size: font size in pixels.
    """

    text: str
    size: int
    color: tuple[int, int, int]


class _Fonts:
    """The protocol's font, or Pillow's own for Latin text, in several sizes."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._known: dict[int, PIL.ImageFont.FreeTypeFont] = {}

    def __getitem__(self, size: int) -> PIL.ImageFont.FreeTypeFont:
        if size not in self._known:
            font = PIL.ImageFont.truetype(self._path, size) if self._path else PIL.ImageFont.load_default(size)
            assert isinstance(font, PIL.ImageFont.FreeTypeFont)
            self._known[size] = font
        return self._known[size]

    def drawable(self, text: str) -> str:
        """Return the text with characters that the font lacks replaced."""
        unknown = _shape(self[20], "\uffff")  # no character: fonts draw their sign for a missing glyph
        lacks = {char for char in set(text) if not char.isspace() and _shape(self[20], char) == unknown}
        return "".join(_REPLACEMENT if char in lacks else char for char in text)


def _shape(font: PIL.ImageFont.FreeTypeFont, char: str) -> bytes:
    mask = font.getmask(char)
    return bytes(mask) + repr(mask.size).encode()


def draw_pages(content: ResultContent, pictures: Sequence[KeyImage]) -> list[PIL.Image.Image]:
    """Return the pages, RGB 1024x1024: the pictures, with their numbers and the patient's sides, and the beginning of the text, then the rest of the text.

    Every page carries the notice "AI-generated, research use".
    """
    fonts = _Fonts(content.protocol.results.font)
    lines = _lines(content, fonts)
    pages: list[PIL.Image.Image] = []
    while lines or not pages:
        page = PIL.Image.new("RGB", (WIDTH, HEIGHT), _BLACK)
        draw = PIL.ImageDraw.Draw(page)
        top = _draw_line(draw, fonts, _MARGIN, _notice(content, fonts))
        if not pages:
            top = _paste(page, fonts, pictures, top)
        while lines and top + lines[0].size + _GAP < HEIGHT - _MARGIN:
            top = _draw_line(draw, fonts, top, lines.pop(0))
        pages.append(page)
    return pages


def _notice(content: ResultContent, fonts: _Fonts) -> _Line:
    notice = fonts.drawable(content.words.notice)
    size = 26
    while size > 12 and fonts[size].getlength(notice) > WIDTH - 2 * _MARGIN:
        size -= 1
    return _Line(notice, size, _AMBER)


def _draw_line(draw: PIL.ImageDraw.ImageDraw, fonts: _Fonts, top: int, line: _Line) -> int:
    draw.text((_MARGIN, top), line.text, font=fonts[line.size], fill=line.color)
    return top + line.size + _GAP


def _paste(page: PIL.Image.Image, fonts: _Fonts, pictures: Sequence[KeyImage], top: int) -> int:
    """Paste the pictures in rows of at most three and return the top of what follows."""
    columns = min(len(pictures), 3)
    rows = -(-len(pictures) // columns)
    width = (WIDTH - 2 * _MARGIN - _GAP * (columns - 1)) // columns
    height = (_PICTURE_HEIGHT - _GAP * (rows - 1)) // rows
    bottom = top
    for index, key in enumerate(pictures):
        picture = key.picture
        scale = min(width / picture.width, height / picture.height)
        fitted = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        row, column = divmod(index, columns)
        left, upper = _MARGIN + column * (width + _GAP), top + row * (height + _GAP)
        _mark(fitted, key, fonts[18])
        page.paste(fitted, (left, upper))
        bottom = max(bottom, upper + fitted.height)
    return bottom + _GAP


def _mark(picture: PIL.Image.Image, key: KeyImage, font: PIL.ImageFont.FreeTypeFont) -> None:
    """Draw the number above left, and R and L at the middle of the edges, if the picture has room for them."""
    if picture.width < 90 or picture.height < 60:
        return
    draw = PIL.ImageDraw.Draw(picture)
    left, right = key.sides
    middle = picture.height // 2
    for place, anchor, mark in (
        ((5, 4), "la", key.label),
        ((5, middle), "lm", left),
        ((picture.width - 5, middle), "rm", right),
    ):
        draw.text(place, mark, font=font, fill=_WHITE, anchor=anchor, stroke_width=2, stroke_fill=_BLACK)


def _lines(content: ResultContent, fonts: _Fonts) -> list[_Line]:
    paragraphs = [(line, 24, _WHITE) for line in content.lines()]
    grays = (content.words.slices_shown, *content.notes, *content.algorithm)
    paragraphs += [(line, 16, _GRAY) for line in grays]
    drawable = [(fonts.drawable(text), size, color) for text, size, color in paragraphs]
    if any(shown != text for (shown, *_), (text, *_) in zip(drawable, paragraphs, strict=True)):
        drawable.insert(0, (fonts.drawable(content.words.left_out), 20, _AMBER))
    return [
        _Line(piece, size, color)
        for text, size, color in drawable
        for piece in _wrap(text, fonts[size], WIDTH - 2 * _MARGIN)
    ]


def _wrap(text: str, font: PIL.ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """Yield lines that fit `width`, broken at blanks where there are any, else between characters."""
    advance = {char: font.getlength(char) for char in set(text)}
    for paragraph in text.splitlines() or [""]:
        line, used = "", 0.0
        for char in paragraph:
            if used + advance[char] > width:
                cut = line.rfind(" ")
                head, line = (line[:cut], line[cut + 1 :]) if cut > 0 else (line, "")
                yield head
                used = sum(advance[left] for left in line)
            line, used = line + char, used + advance[char]
        yield line
