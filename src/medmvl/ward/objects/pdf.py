"""Encapsulated PDF: the same content as a document."""

from __future__ import annotations

import io
from collections.abc import Sequence
from xml.sax.saxutils import escape

import PIL.Image
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from medmvl.ward.key_images import KeyImage
from medmvl.ward.objects.common import new_object
from medmvl.ward.objects.content import ResultContent

#: a font of every PDF viewer, for Chinese text; it is named in the file, not embedded
_CHINESE, _LATIN = "STSong-Light", "Helvetica"


def build_pdf(content: ResultContent, pictures: Sequence[KeyImage], number: int) -> list[Dataset]:
    """Return one Encapsulated PDF object."""
    document = render_pdf(content, [picture.picture for picture in pictures])
    data = new_object(content, EncapsulatedPDFStorage, "DOC", "document", number, 1)
    data.ConversionType = "WSD"
    data.BurnedInAnnotation = "NO"
    data.AcquisitionDateTime = None
    data.DocumentTitle = f"AI-generated, research use: {content.protocol.name}"[:1024]
    data.ConceptNameCodeSequence = []
    data.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data.EncapsulatedDocumentLength = len(document)
    data.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return [data]


def render_pdf(content: ResultContent, pictures: Sequence[PIL.Image.Image]) -> bytes:
    """Return the document; it holds no patient data beyond what the answers say."""
    plain, small, notice = _styles(content)
    rows = [[Paragraph(escape(cell), plain) for cell in row] for row in content.table()]
    table = Table(rows, colWidths=[52 * mm, 86 * mm, 32 * mm], repeatRows=1, splitInRow=1)
    table.setStyle(TableStyle([("GRID", (0, 0), (-1, -1), 0.4, colors.grey), ("VALIGN", (0, 0), (-1, -1), "TOP")]))
    story: list[Flowable] = [Paragraph(escape(content.words.notice), notice), Spacer(1, 4 * mm), table]
    if pictures:
        story += [Spacer(1, 4 * mm), _picture_table(pictures), Paragraph(escape(content.words.slices_shown), small)]
    story += [Spacer(1, 4 * mm), *(Paragraph(escape(line), small) for line in (*content.notes, *content.algorithm))]
    stream = io.BytesIO()
    title = f"AI-generated, research use: {content.protocol.name}"
    frame = SimpleDocTemplate(stream, pagesize=A4, margins=20 * mm, title=title, author="MedM-VL", invariant=1)
    frame.build(story)
    return stream.getvalue()


def _styles(content: ResultContent) -> tuple[ParagraphStyle, ParagraphStyle, ParagraphStyle]:
    """Return the styles of answers, notes and the notice, in a font that has the characters of the text."""
    everything = "".join((*content.notes, *content.algorithm, *(cell for row in content.table() for cell in row)))
    latin = content.words.language[0] == "en" and all(ord(char) < 256 for char in everything)
    if not latin:
        pdfmetrics.registerFont(UnicodeCIDFont(_CHINESE))
    font, wrap = (_LATIN, None) if latin else (_CHINESE, "CJK")
    plain = ParagraphStyle("plain", fontName=font, fontSize=10, leading=14, wordWrap=wrap)
    small = ParagraphStyle("small", parent=plain, fontSize=8, leading=11, textColor=colors.dimgrey)
    notice = ParagraphStyle("notice", parent=plain, fontSize=11, leading=15, textColor=colors.firebrick)
    return plain, small, notice


def _picture_table(pictures: Sequence[PIL.Image.Image]) -> Table:
    width = 170 / min(len(pictures), 3) - 2
    cells = [_image(picture, width) for picture in pictures]
    return Table([cells[start : start + 3] for start in range(0, len(cells), 3)])


def _image(picture: PIL.Image.Image, width: float) -> Image:
    """Return a picture `width` mm wide, or narrower if it would be higher than 110 mm."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    scale = min(width / picture.width, 110 / picture.height)
    return Image(stream, width=picture.width * scale * mm, height=picture.height * scale * mm)
