"""Pictures for a report: an image with its boxes, or slices of a volume, as data URIs (a report is one file)."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from medmvl.data.dataset import resolve_below
from medmvl.data.read_options import ReadOptions
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.boxes import Box, image_size, is_located, parse_boxes, predicted_boxes, reference_boxes
from medmvl.files import PathLike, existing
from medmvl.imaging import read_image, read_volume
from medmvl.imaging.preprocessing.rendering import display_windows, draw_plane
from medmvl.remote import RemotePath, as_root

IMAGE_SIDE = 360  # longest side of a drawn image, pixels
SLICE_SIDE = 200  # longer edge of one drawn slice, pixels
SLICE_POSITIONS = (0.25, 0.5, 0.75)  # fractions of the scan from its lower to its upper end
TRUTH_COLOR, PREDICTED_COLOR = (52, 199, 89), (255, 149, 0)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn case: a data URI, or the reason why there is none."""

    uri: str | None
    note: str


def draw_case(item: Item, roots: MediaRoots) -> Picture:
    """Draw the first image or volume of an item; a file that cannot be read gives a note, not an error."""
    try:
        reading = ReadOptions.parse(item.record.get("read")).over(roots.reading)
        if item.images:
            return _draw_image(item, _locate(item.images[0], roots.image, "image"), reading, more=len(item.images) - 1)
        if item.volumes:
            return _draw_volume(_locate(item.volumes[0], roots.volume, "volume"), reading)
    except DataError as error:
        return Picture(None, f"no picture: {error}")
    return Picture(None, "text only")


def _locate(path: str, root: PathLike | None, what: str) -> Path | RemotePath:
    """Return where a file is: below the root, or as written without one.

    Raises:
        DataError: naming the flag that says where it is, if it is not there.
    """
    try:
        if root is None:
            return existing(path, what)
        found = resolve_below(as_root(root), path, what)
    except DataError as error:
        raise DataError(
            f"{error} Give --{what}-root FOLDER: the folder that the paths in the data file are relative to (`media_root` in the "
            "report.json next to it, else the folder of the data file)."
        ) from error
    return found if isinstance(found, RemotePath) else Path(found)


def _draw_image(item: Item, path: PathLike, reading: ReadOptions, more: int) -> Picture:
    picture = read_image(path, **reading.for_image()).to_pil().convert("RGB")
    scale = IMAGE_SIDE / max(picture.size)
    drawn = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    _draw_boxes(drawn, item)
    return Picture(_uri(drawn), f"first of {more + 1} images" if more else "")


def _draw_boxes(drawn: PILImage.Image, item: Item) -> None:
    """Draw the box that is asked about, or else the reference boxes (green), and predicted boxes (orange)."""
    try:
        size = image_size(item)
    except EvaluationError:
        return  # not a record with boxes
    canvas = ImageDraw.Draw(drawn)
    true = parse_boxes(item.question, size) or (reference_boxes(item) if is_located(item) else [])
    for color, boxes in ((TRUTH_COLOR, true), (PREDICTED_COLOR, predicted_boxes(item))):
        for box in boxes:
            canvas.rectangle(_on_canvas(box, size, drawn.size), outline=color, width=2)


def _on_canvas(box: Box, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[float, float, float, float]:
    across, down = canvas[0] / size[0], canvas[1] / size[1]
    left, right = sorted((box[0] * across, box[2] * across))
    top, bottom = sorted((box[1] * down, box[3] * down))
    return left, top, right, bottom


def _draw_volume(path: PathLike, reading: ReadOptions) -> Picture:
    """Draw axial slices from the lower to the upper end, one row per display window."""
    volume = read_volume(path, **reading.for_volume())
    windows = display_windows(volume)
    rows = [
        np.concatenate([draw_plane(volume, "axial", at, window, SLICE_SIDE).pixels for at in SLICE_POSITIONS], axis=1)
        for window in windows.values()
    ]
    return Picture(
        _uri(PILImage.fromarray(np.concatenate(rows, axis=0))), f"axial, lower to upper, {' and '.join(windows)} window"
    )


def _uri(picture: PILImage.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
