"""Evidence as files: the heat map as NIfTI, a picture with the heat laid over it, and the numbers as JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from medmvl.errors import DataError
from medmvl.files import PathLike, atomic, write_json
from medmvl.imaging import Volume
from medmvl.imaging.preprocessing.rendering import PLANES, display_windows, draw_plane, to_view
from medmvl.imaging.preprocessing.windows import Window
from medmvl.inference.evidence.legend import label, readable, scale_bar, with_text
from medmvl.inference.evidence.result import Evidence

#: Longer edge of a drawn slice, and height of the bars below, in pixels.
_SIDE, _BARS = 360, 70
#: Colors of the lowest and the highest heat, and the opacity of the highest.
_COOL, _HOT, _OPACITY = (160, 0, 60), (255, 225, 60), 0.65


def save_evidence(evidence: Evidence, folder: PathLike) -> list[Path]:
    """Write evidence.json, evidence.png and, for a volume, heat.nii.gz into `folder`; return their paths.

    Raises:
        DataError: for evidence about a prepared tensor, which has no picture.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths = [place / "evidence.json", place / "evidence.png"]
    picture = overlay(evidence)
    if isinstance(evidence.picture, Volume):
        paths.append(place / "heat.nii.gz")
        with atomic(paths[-1]) as temporary:
            nibabel.save(heat_nifti(evidence), temporary)
    with atomic(paths[1]) as temporary:
        picture.save(temporary, format="PNG")
    write_json(paths[0], evidence.to_dict())
    return paths


def heat_nifti(evidence: Evidence) -> nibabel.Nifti1Image:
    """Return the heat map of a volume as NIfTI, float32, in the place of the volume: the same affine in RAS+ mm.

    Raises:
        DataError: if the evidence is not about a volume.
    """
    if not isinstance(evidence.picture, Volume):
        raise DataError("Only evidence about a volume with its own grid can be written as NIfTI.")
    # NIfTI's first axis is ours last (columns), as in files that scanners' converters write.
    affine = evidence.picture.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(evidence.heat.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"medmvl {evidence.method}, nats".encode()[:80]
    return image


def overlay(evidence: Evidence) -> PILImage.Image:
    """Return the picture with the heat laid over it: an image, or three slices of a volume, with bars.

    The slices meet at the peak, or in the middle if no place matters.

    Warnings, the scale of the heat, the question, the sentence and its probabilities stand below it.

    Raises:
        DataError: for evidence about a prepared tensor.
    """
    if evidence.picture is None:
        raise DataError("Evidence about a prepared tensor has no picture. Give the volume's file, or a Volume.")
    if isinstance(evidence.picture, Volume):
        drawn = _slices(evidence, evidence.picture)
    else:
        blended = PILImage.fromarray(lay_over(np.asarray(evidence.picture), evidence.share))
        scale = max(1, round(2 * _SIDE / max(blended.size)))
        drawn = blended.resize((blended.width * scale, blended.height * scale))
    if evidence.is_preview:
        label(ImageDraw.Draw(drawn), (6, 20), "ATTENTION PREVIEW, NO EVIDENCE", "lm")
    drawn = with_text(drawn, evidence.warnings, color=_HOT)
    unit = "share of the attention" if evidence.is_preview else "nats: drop of the log-probability"
    ends = ("0", f"{evidence.scale:.2g} {unit}")
    ramp = lay_over(np.full((1, 100), 90, dtype=np.uint8), np.linspace(0, 1, 100, dtype=np.float32)[None])
    drawn = scale_bar(drawn, PILImage.fromarray(ramp), ends)
    words = {"Question": evidence.question, "Sentence": evidence.sentence}
    texts = [f"{name}: {readable(text)}" for name, text in words.items()]
    return with_text(drawn, [*texts, evidence.numbers], color=(255, 255, 255))


def lay_over(picture: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture with a heat map over it.

    Args:
        picture: (H, W) or (H, W, 3) uint8.
        share: (H, W) heat from 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    base = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    color = np.array(_COOL) + share[..., None] * (np.array(_HOT) - np.array(_COOL))
    opacity = _OPACITY * share[..., None]
    return np.rint(base * (1 - opacity) + color * opacity).astype(np.uint8)


def _slices(evidence: Evidence, volume: Volume) -> PILImage.Image:
    window = next(iter(display_windows(volume).values()))
    heat = replace(volume, array=evidence.heat, units="arbitrary")
    world = volume.affine @ [*evidence.focus, 1]
    panels = []
    for plane in PLANES:
        index = round(float((np.linalg.inv(to_view(volume, plane).affine) @ world)[0]))
        gray = draw_plane(volume, plane, index, window, _SIDE)
        share = draw_plane(heat, plane, index, Window(evidence.scale / 2, evidence.scale), _SIDE).pixels.astype(
            np.float32
        )
        panel = PILImage.fromarray(lay_over(gray.pixels, share / np.float32(255)))
        pen, middle = ImageDraw.Draw(panel), (panel.width // 2, panel.height // 2)
        right, bottom = panel.width - 4, panel.height - 4
        label(pen, (4, middle[1]), gray.left, "lm")
        label(pen, (right, middle[1]), gray.right, "rm")
        label(pen, (middle[0], 4), gray.top, "mt")
        label(pen, (middle[0], bottom - 18), gray.bottom, "mb")
        label(pen, (4, bottom), f"{plane} {index + 1}/{gray.count}", "lb")
        panels.append(panel)
    height = max(panel.height for panel in panels)
    sheet = PILImage.new("RGB", (sum(panel.width for panel in panels), height + _BARS))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width
    _draw_bars(ImageDraw.Draw(sheet), evidence, sheet.width, height)
    return sheet


def _draw_bars(pen: ImageDraw.ImageDraw, evidence: Evidence, width: int, top: int) -> None:
    """Draw the values of the slices from the first (left) to the last; below the line they speak against the sentence."""
    values = evidence.slices
    largest = max(evidence.scale, float(np.abs(values).max(initial=0)))
    base = top + _BARS * 3 // 4
    peak = None if "none" in evidence.doubts else evidence.peak[evidence.slice_axis]
    pen.line((0, base, width, base), fill=(90, 90, 90))
    for number, value in enumerate(values):
        left, right = number * width // len(values), max(0, (number + 1) * width // len(values) - 2)
        reach = base - round(float(value) / largest * (_BARS * 3 // 4 - 6))
        color = _HOT if number == peak else (200, 120, 60)
        pen.rectangle((left, min(base, reach), max(left, right), max(base, reach)), fill=color)
