"""Contact sheet of a data file: its images and volumes as stored and as the model sees them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jinja2 import Environment, PackageLoader

from medmvl.data.dataset import SampleDataset
from medmvl.data.read_options import reading_of
from medmvl.data.roots import MediaRoots
from medmvl.data.sample import Sample
from medmvl.errors import DataError
from medmvl.files import PathLike, write_text
from medmvl.imaging import Geometry, Volume, Window, read_image, read_volume
from medmvl.imaging.preprocessing.geometry import Prepared
from medmvl.imaging.preprocessing.rendering import Plane, PlanePicture, display_windows, draw_plane, histogram

#: positions of the drawn slices, as fractions of the stack
_POSITIONS = {"axial": (0.15, 0.32, 0.5, 0.68, 0.85), "coronal": (0.35, 0.5, 0.65), "sagittal": (0.3, 0.5, 0.7)}
_SEEN_SLICES = 8
_HISTOGRAM = (360, 90)
#: Turns of a conversation that are shown at once, beside a picture and above slices; the others unfold.
_TURNS_BESIDE, _TURNS_ABOVE = 8, 2


@dataclass
class Card:
    """One image or volume of a record, or the reason why it cannot be shown."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    histogram: str = ""
    fault: str = ""


@dataclass
class Entry:
    """A record with its cards.

    Attributes:
        beside: whether the conversation has room beside the cards: pictures, no slices.
    """

    id: str
    turns: list[tuple[str, str]]
    cards: list[Card]
    beside: bool = False

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The turns that are shown at once."""
        return self.turns[: _TURNS_BESIDE if self.beside else _TURNS_ABOVE]

    @property
    def folded(self) -> list[tuple[str, str]]:
        """The turns that unfold."""
        return self.turns[len(self.shown) :]


def write_contact_sheet(
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    geometry: Geometry | None = None,
    records: int = 12,
    on_record: Callable[[int], None] = lambda total: None,
) -> int:
    """Write a self-contained HTML page about the first `records` records of `data`.

    Args:
        roots: folders of the images and volumes; the data file's own by default.
        geometry: also show what it makes of each volume.
        on_record: called after each record with the number of records shown.

    Returns:
        the number of records, images and volumes that could not be shown; the page says why.

    Raises:
        DataError: if the data file cannot be read at all.
    """
    dataset = SampleDataset(data, roots)
    count = min(records, len(dataset))
    entries = []
    for index in range(count):
        entries.append(_entry(dataset, index, geometry))
        on_record(count)
    faults = sum(bool(card.fault) for entry in entries for card in entry.cards)
    environment = Environment(loader=PackageLoader("medmvl.processing", "pages"), autoescape=True)
    page = environment.get_template("contact_sheet.html.j2").render(
        name=dataset.path.name, entries=entries, shown=count, total=len(dataset), faults=faults, geometry=geometry
    )
    write_text(out, page)
    return faults


def _entry(dataset: SampleDataset, index: int, geometry: Geometry | None) -> Entry:
    try:
        sample = dataset[index]
    except DataError as error:
        return Entry(f"record {index}", [], [Card("record", fault=str(error))])
    cards = [_guarded(path, "image", _image_card) for path in sample.images]
    cards += [_guarded(path, "volume", lambda p: _volume_card(p, geometry)) for path in sample.volumes]
    return Entry(sample.id, _turns(sample), cards, bool(sample.images) and not sample.volumes)


def _turns(sample: Sample) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = [(message.role, message.text) for message in sample.messages]
    return turns if sample.answer is None else [*turns, ("reference answer", sample.answer)]


def _guarded(path: str, kind: str, draw: Callable[[str], Card]) -> Card:
    try:
        return draw(path)
    except DataError as error:
        return Card(f"{kind} {Path(path).name}", fault=str(error))


def _image_card(path: str) -> Card:
    image = read_image(path, **reading_of(path).for_image())
    picture = image.to_pil()
    picture.thumbnail((384, 384))
    card = Card(f"image {Path(path).name}", history=list(image.history))
    spacing = "unknown" if image.spacing is None else "{:.3g} x {:.3g} mm".format(*image.spacing)
    card.facts = [
        ("size", " x ".join(map(str, image.shape))), ("type", str(image.array.dtype)),
        ("units", image.units), ("spacing", spacing),
    ]  # fmt: skip
    card.rows = [("", [{"uri": _uri(np.asarray(picture)), "caption": ""}])]
    return card


def _volume_card(path: str, geometry: Geometry | None) -> Card:
    volume = read_volume(path, **reading_of(path).for_volume())
    card = Card(f"volume {Path(path).name}", history=list(volume.history), warnings=list(volume.warnings))
    spacing = "unknown" if volume.spacing is None else " x ".join(f"{mm:.3g}" for mm in volume.spacing) + " mm"
    card.facts = [
        ("size", " x ".join(map(str, volume.shape))), ("type", str(volume.array.dtype)), ("units", volume.units),
        ("spacing (z, y, x)", spacing), ("orientation", volume.orientation), ("from", volume.source),
    ]  # fmt: skip
    if volume.spacing is None:
        card.warnings.append("spacing unknown: the aspect ratio below is a guess")
    windows = display_windows(volume)
    for name, window in windows.items():
        low, high = window.bounds
        pictures = [draw_plane(volume, "axial", at, window) for at in _POSITIONS["axial"]]
        label = f"{name} window [{low:g}, {high:g}] {volume.units}"
        card.rows.append((f"axial, {label}", [_figure(picture) for picture in pictures]))
    others: tuple[Plane, Plane] = ("coronal", "sagittal")
    pictures = [draw_plane(volume, plane, at, window, longest=200) for plane in others for at in _POSITIONS[plane]]
    card.rows.append((f"coronal and sagittal, {label}", [_figure(picture) for picture in pictures]))
    card.histogram = _histogram_svg(volume)
    if geometry is not None:
        _add_seen(card, volume, geometry)
    return card


def _add_seen(card: Card, volume: Volume, geometry: Geometry) -> None:
    try:
        prepared = geometry.prepare(volume)
    except DataError as error:
        card.fault = str(error)
        return
    card.history = list(prepared.history)
    for channel in range(geometry.channels):
        window = f" (channel {channel}, window {list(geometry.windows[channel])})" if geometry.channels > 1 else ""
        label = f"what the model sees, {geometry.name} {tuple(prepared.tensor.shape)}{window}"
        card.rows.append((label, _seen(prepared, channel, geometry)))


def _seen(prepared: Prepared, channel: int, geometry: Geometry) -> list[dict[str, Any]]:
    """Slices of a prepared tensor, drawn like a volume of its orientation and spacing."""
    values = prepared.tensor[channel].numpy()
    volume = Volume.from_array(
        values, units="arbitrary", spacing=prepared.spacing, orientation=geometry.orientation, source="tensor"
    )
    low, high = geometry.value_range or (float(values.min()), float(values.max()))
    window = Window((low + high) / 2, max(high - low, 1e-6))
    positions = (np.arange(_SEEN_SLICES) + 0.5) / _SEEN_SLICES
    return [_figure(draw_plane(volume, "axial", float(at), window, longest=150)) for at in positions]


def _figure(picture: PlanePicture) -> dict[str, Any]:
    return {
        "uri": _uri(picture.pixels),
        "caption": f"{picture.index + 1} / {picture.count}",
        "left": picture.left, "right": picture.right, "top": picture.top, "bottom": picture.bottom,
    }  # fmt: skip


def _histogram_svg(volume: Volume) -> str:
    """An inline SVG of the value histogram (logarithmic counts) with the display windows as bands."""
    counts, edges = histogram(volume)
    width, height = _HISTOGRAM
    heights = np.log1p(counts) / max(float(np.log1p(counts).max()), 1e-9) * (height - 18)
    low, high = float(edges[0]), float(edges[-1])
    bar = width / len(counts)

    def at(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low) * width

    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="histogram">'
    ]
    for number, window in enumerate(display_windows(volume).values()):
        start, stop = (at(value) for value in window.bounds)
        parts.append(
            f'<rect class="band{number}" x="{start:.1f}" y="0" width="{stop - start:.1f}" height="{height - 14}"/>'
        )
    for index, value in enumerate(heights):
        top = height - 14 - value
        parts.append(
            f'<rect class="bar" x="{index * bar:.2f}" y="{top:.1f}" width="{bar * 0.9:.2f}" height="{value:.1f}"/>'
        )
    parts.append(f'<text x="0" y="{height - 2}">{low:g}</text>')
    parts.append(f'<text x="{width}" y="{height - 2}" text-anchor="end">{high:g} {volume.units}</text></svg>')
    return "".join(parts)


def _uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
