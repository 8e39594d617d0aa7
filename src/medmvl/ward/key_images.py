"""Pictures of the slices that results show and reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw

from medmvl.imaging import WINDOWS, read_image
from medmvl.ward.study import Instance, Series, patient_side, text

Box = tuple[float, float, float, float]
_BOX_COLOR = (255, 220, 0)


@dataclass(frozen=True, eq=False)
class KeyImage:
    """A slice with its picture.

    Attributes:
        frame: frame number from 1 in a multi-frame object, else None.
        picture: RGB, windowed, at a true aspect ratio if the pixel spacing is known, boxes drawn.
        number: position in the series, from 1.
    """

    instance: Instance
    frame: int | None
    picture: PIL.Image.Image
    number: int

    @property
    def label(self) -> str:
        """The number under which viewers show it, "Im 57", or "Fr 5" of a multi-frame object; "" if not stated."""
        if self.frame is not None:
            return f"Fr {self.frame}"
        stated = text(self.instance.header, "InstanceNumber")
        return f"Im {stated}" if stated.isdecimal() else ""

    @property
    def sides(self) -> tuple[str, str]:
        """The patient's side at the left and at the right edge, R or L; ("", "") if the edges are not such sides."""
        right = patient_side(self.instance.header) if self.frame is None else ""
        return {"L": ("R", "L"), "R": ("L", "R")}.get(right, ("", ""))


def key_images(series: Series, count: int, window: str | None, boxes: Sequence[Box]) -> list[KeyImage]:
    """Return `count` slices at even steps through a series, or all if it has fewer.

    Args:
        window: name of a display window for slices in HU; None: the window stored in the file.
        boxes: (x1, y1, x2, y2) as shares of width and height, drawn into every picture.
    """
    places = [
        (instance, frame if instance.frames > 1 else None)
        for instance in series.instances
        for frame in range(1, instance.frames + 1)
    ]
    count = min(count, len(places))
    chosen = [int((step + 0.5) * len(places) / count) for step in range(count)]
    return [KeyImage(*places[index], _picture(*places[index], window, boxes), index + 1) for index in chosen]


def _picture(instance: Instance, frame: int | None, window: str | None, boxes: Sequence[Box]) -> PIL.Image.Image:
    image = read_image(instance.path, frame=None if frame is None else frame - 1)
    picture = image.to_pil(WINDOWS[window] if window is not None and image.units == "HU" else None)
    if image.spacing is not None:
        row, column = image.spacing
        picture = picture.resize((picture.width, max(1, round(picture.height * row / column))))
    draw = PIL.ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in boxes:
        corners = (x1 * picture.width, y1 * picture.height, x2 * picture.width - 1, y2 * picture.height - 1)
        draw.rectangle(corners, outline=_BOX_COLOR, width=max(1, picture.width // 200))
    return picture
