"""Facts stated in JPEG and JPEG 2000 codestreams that a DICOM header may contradict: color space, precision, size."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.pixels.utils import get_j2k_parameters
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

#: start-of-frame markers of JPEG (ITU-T T.81 table B.1); 0xF7 is that of JPEG-LS
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
#: those of them that are coded by a cosine transform, for which libjpeg's color rules hold
_COSINE = {0xC0, 0xC1, 0xC2}
#: markers without a length field
_BARE = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True)
class Codestream:
    """Header of an encoded frame.

    Attributes:
        precision: bits per sample, or None if unknown.
        signed: whether samples are signed; None if the format does not say.
        size: (rows, columns), or None if unknown.
        color: "RGB" or "YBR_FULL" if the stream determines its color space, else None.
    """

    precision: int | None = None
    signed: bool | None = None
    size: tuple[int, int] | None = None
    color: str | None = None


def read_codestream(frame: bytes, syntax: str) -> Codestream:
    """Return the header of an encoded frame; unknown facts are None."""
    if syntax in JPEG2000TransferSyntaxes:
        found = get_j2k_parameters(frame)
        return Codestream(found.get("precision"), found.get("is_signed"))
    if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        return _read_jpeg(frame)
    return Codestream()


def _read_jpeg(frame: bytes) -> Codestream:
    """Parse the markers of a JPEG or JPEG-LS stream up to its start of frame."""
    jfif, adobe, at = False, None, 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in _BARE:  # fill byte, or a marker without content
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        content = frame[at + 4 : at + 2 + length]
        if marker == 0xE0 and content.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        elif marker in _FRAMES and len(content) >= 6:
            components = [content[i : i + 3] for i in range(6, 6 + 3 * content[5], 3)]
            color = _color(components, jfif, adobe) if marker in _COSINE else None
            size = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            return Codestream(content[0], None, size, color)
        at += 2 + length
    return Codestream()


def _color(components: list[bytes], jfif: bool, adobe: int | None) -> str | None:
    """Return the color space of a three-component stream by libjpeg's rules, or None if they leave it open.

    Chroma components with fewer samples than the first cannot be green and blue.
    """
    if len(components) != 3 or any(len(component) < 3 for component in components):
        return None
    ids = bytes(component[0] for component in components)
    if ids in (b"RGB", b"rgb"):
        return "RGB"
    if jfif:
        return "YBR_FULL"
    if adobe in (0, 1):
        return "RGB" if adobe == 0 else "YBR_FULL"
    subsampled = any(component[1] != components[0][1] for component in components)
    return "YBR_FULL" if subsampled or ids == b"\x01\x02\x03" else None
