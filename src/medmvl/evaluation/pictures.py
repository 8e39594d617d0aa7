"""Pictures for a report: an image with its boxes, or slices of a volume, as data URIs (a report is one file)."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation.items import Item, media_paths
from medmvl.evaluation.metrics.boxes import Box, image_size, is_located, parse_boxes, reference_boxes
from medmvl.files import resolve_under
from medmvl.imaging import WINDOWS, Volume, read_image, read_volume

IMAGE_SIDE = 360  # longest side of a drawn image, pixels
SLICE_SIDE = 200  # width of one drawn slice
SLICE_PLACES = (0.25, 0.5, 0.75)  # fractions of the scan from its lower to its upper end
SLICE_WINDOWS = ("lung", "mediastinum")
TRUTH_COLOUR, PREDICTED_COLOUR = (52, 199, 89), (255, 149, 0)
_AXIAL = "SPL"  # slices upwards, rows to the back, columns to the patient's left: the radiological view


@dataclass(frozen=True, slots=True)
class MediaRoots:
    """Folders below which the records' image and volume paths lie; None takes the paths as they are."""

    image: Path | None = None
    volume: Path | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn case: a data URI, or the reason why there is none."""

    uri: str | None
    note: str


def draw_case(item: Item, roots: MediaRoots) -> Picture:
    """Draw the first image or volume of an item; a file that cannot be read gives a note, not an error."""
    images, volumes = media_paths(item.record, "image"), media_paths(item.record, "image3d", "volume")
    try:
        if images:
            return _draw_image(item, _locate(images[0], roots.image, "image"), more=len(images) - 1)
        if volumes:
            return _draw_volume(_locate(volumes[0], roots.volume, "volume"))
    except DataError as error:
        return Picture(None, f"no picture: {error}")
    return Picture(None, "text only")


def _locate(path: str, root: Path | None, what: str) -> Path:
    if root is not None:
        return resolve_under(root, path, what)
    if not Path(path).exists():
        raise DataError(f"the {what} {path!r} does not exist here; give --{what}-root")
    return Path(path)


def _draw_image(item: Item, path: Path, more: int) -> Picture:
    picture = read_image(path).to_pil().convert("RGB")
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
    for colour, boxes in ((TRUTH_COLOUR, true), (PREDICTED_COLOUR, parse_boxes(item.prediction, size))):
        for box in boxes:
            canvas.rectangle(_on_canvas(box, size, drawn.size), outline=colour, width=2)


def _on_canvas(box: Box, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[float, float, float, float]:
    across, down = canvas[0] / size[0], canvas[1] / size[1]
    left, right = sorted((box[0] * across, box[2] * across))
    top, bottom = sorted((box[1] * down, box[3] * down))
    return left, top, right, bottom


def _draw_volume(path: Path) -> Picture:
    """Draw axial slices from the lower to the upper end, one row per window, patient's left on the right."""
    volume = read_volume(path)
    if volume.sides_known:
        volume = volume.to_orientation(_AXIAL)
    places = [min(volume.shape[0] - 1, int(place * volume.shape[0])) for place in SLICE_PLACES]
    slices = np.stack([np.asarray(volume.array[place], dtype=np.float32) for place in places])
    rows = [np.concatenate(list(levels), axis=1) for levels in _grey_levels(slices, volume)]
    sheet = PILImage.fromarray((np.concatenate(rows, axis=0) * 255).astype(np.uint8))
    width = SLICE_SIDE * len(places)
    _, row_mm, column_mm = volume.spacing or (1.0, 1.0, 1.0)
    height = round(width * sheet.height / sheet.width * row_mm / column_mm)
    windows = " and ".join(SLICE_WINDOWS) + " window" if volume.units == "HU" else "arbitrary units"
    return Picture(_uri(sheet.resize((width, max(1, height)))), f"axial, lower to upper, {windows}")


def _grey_levels(slices: np.ndarray, volume: Volume) -> list[np.ndarray]:
    """Return (N, H, W) in [0, 1] per window; without Hounsfield units one window of the 1st to 99th percentile."""
    if volume.units == "HU":
        return [WINDOWS[name].unit(slices) for name in SLICE_WINDOWS]
    low, high = np.percentile(slices, [1, 99])
    return [np.clip((slices - low) / max(float(high - low), 1e-6), 0, 1)]


def _uri(picture: PILImage.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
