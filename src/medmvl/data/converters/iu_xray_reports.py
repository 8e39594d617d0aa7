"""Examinations of IU X-Ray as NLM's XML files or the Kaggle tables describe them: sections, image names, MeSH terms."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from medmvl.data.converters.converter import Job

_IMAGE = re.compile(r"CXR(\d+)_(?:\1_)?(.+)")
_NOTHING = ("", "none", "none.")


@dataclass(frozen=True)
class Examination:
    """One examination.

    Attributes:
        number: the release's running number, as text.
        sections: section name in lower case -> text on one line; without empty ones.
        images: of each image, the paths below the source at which it may be.
        views: "Frontal" or "Lateral" of each image; None where the source does not say.
        mesh: the manual MeSH codes.
    """

    number: str
    sections: dict[str, str]
    images: list[list[Path]]
    views: list[str] | None
    mesh: list[str]


def iter_xml(job: Job, folder: Path) -> Iterator[Examination]:
    """Yield the examinations of NLM's XML files, in the order of their numbers."""
    for file in sorted(folder.glob("*.xml"), key=lambda path: (len(path.stem), path.stem)):
        try:
            root = ElementTree.parse(file).getroot()
        except ElementTree.ParseError:
            job.report.fault("report is not readable XML", file.name)
            continue
        parts = {str(part.get("Label", "")).lower(): "".join(part.itertext()) for part in root.iter("AbstractText")}
        names = [str(image.get("id", "")).strip() for image in root.iter("parentImage")]
        yield Examination(
            number=file.stem,
            sections=_present(parts),
            images=[_places(job.source, name) for name in names if name],
            views=None,
            mesh=[term.text.strip() for term in root.iterfind(".//MeSH/major") if term.text and term.text.strip()],
        )


def _places(source: Path, name: str) -> list[Path]:
    """Return where an image of the release may be: PNG files are in one folder, DICOM files in one per examination."""
    places = [source / folder / f"{name}.png" for folder in ("NLMCXR_png", "images", "images/NLMCXR_png", "")]
    match = _IMAGE.fullmatch(name)
    if match:
        inside = Path(match[1]) / f"{match[1]}_{match[2]}.dcm"
        places += [source / folder / inside for folder in ("NLMCXR_dcm", "images", "")]
    return places


def iter_kaggle(job: Job, reports: Path, projections: Path) -> Iterator[Examination]:
    """Yield the examinations of the Kaggle tables, in the order of the table of reports."""
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in job.rows(projections, ["uid", "filename", "projection"]):
        images[row["uid"]].append((row["filename"], row["projection"]))
    folders = [reports.parent / name for name in ("images/images_normalized", "images_normalized", "images")]
    for row in job.rows(reports, ["uid", "findings", "impression"]):
        own = sorted(images[row["uid"]], key=lambda image: image[1] != "Frontal")
        yield Examination(
            number=row["uid"],
            sections=_present(
                {name: row.get(name, "") for name in ("findings", "impression", "indication", "comparison")}
            ),
            images=[[folder / name for folder in folders] for name, _ in own],
            views=[view for _, view in own],
            mesh=[term.strip() for term in row.get("MeSH", "").split(";") if term.strip()],
        )


def _present(sections: dict[str, str]) -> dict[str, str]:
    """Return the sections that say something, on one line each."""
    plain = {name: " ".join(text.split()) for name, text in sections.items() if name}
    return {name: text for name, text in plain.items() if text.lower() not in _NOTHING}
