"""One synthetic patient, whose images and texts are made on first access."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medmvl.errors import DataError
from medmvl.phantoms.anatomy import Body, build_anatomy, draw_body
from medmvl.phantoms.findings import Finding, build_findings, ct_rate_labels, decide
from medmvl.phantoms.radiograph import Radiograph, ScanBox, expose, scan, scan_boxes
from medmvl.phantoms.shapes import Piece
from medmvl.phantoms.texts import Report, write_report

DEFAULT_SIZE = (32, 96, 96)
DEFAULT_RADIOGRAPH = 128

# One stream of random numbers per purpose, so that asking for one thing never changes another.
_BODY, _SCAN, _RADIOGRAPH, _PERSON, _REPORT, _TEXT, _PAIR = range(2, 9)


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient; equal (seed, index, size, radiograph_size) give equal bytes.

    Attributes:
        seed, index: which patient of which cohort.
        size: shape (D, H, W) of the CT.
        radiograph_size: side of the radiograph in pixels.
        erased: names of findings that the patient has and that are not drawn, see `without`.
    """

    seed: int
    index: int
    size: tuple[int, int, int] = DEFAULT_SIZE
    radiograph_size: int = DEFAULT_RADIOGRAPH
    erased: tuple[str, ...] = ()

    orientation = "SPL"  # axes of `volume` grow to Superior, Posterior, Left
    units = "HU"

    @property
    def patient(self) -> str:
        """Return a name that marks the patient as synthetic: "phantom-0-00012"."""
        return f"phantom-{self.seed}-{self.index:05d}"

    @cached_property
    def findings(self) -> dict[str, Finding]:
        """Return the findings by name; an absent or erased finding is missing."""
        return {name: finding for name, finding in self._decided.items() if name not in self.erased}

    def without(self, name: str) -> Phantom:
        """Return the same patient without one finding: all else, the noise included, is drawn as before.

        Cardiomegaly and emphysema change the anatomy itself; without them the noise of the CT is another one.

        Raises:
            DataError: if the patient does not have the finding.
        """
        if name not in self.findings:
            raise DataError(
                f"The patient {self.patient} has no {name!r} to erase. Present: {', '.join(self.findings)}."
            )
        return replace(self, erased=(*self.erased, name))

    @cached_property
    def _decided(self) -> dict[str, Finding]:
        return decide(self.seed, self.index)

    @property
    def labels(self) -> dict[str, int]:
        """Return the 18 labels of CT-RATE as 0/1."""
        return ct_rate_labels(self.findings)

    @property
    def volume(self) -> NDArray[np.int16]:
        """Return the CT (D, H, W) in HU, int16."""
        return self._scan[0]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the spacing (z, y, x) of the CT in mm."""
        return self._scan[1]

    @cached_property
    def projection(self) -> Radiograph:
        """Return the radiograph with its boxes and silhouettes."""
        return expose(self._anatomy, self._lesions, self.radiograph_size, self.rng(_RADIOGRAPH))

    @property
    def radiograph(self) -> NDArray[np.uint8]:
        """Return the radiograph (H, W) uint8: the patient's left is on the right of the picture."""
        return self.projection.pixels

    @property
    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return name -> (x, y, w, h) in pixels of the radiograph, for organs and findings."""
        return self.projection.boxes

    @cached_property
    def scan_boxes(self) -> dict[str, ScanBox]:
        """Return finding -> its box in `volume`: (z, y, x) of the first voxel and of the end."""
        return scan_boxes(self._lesions, self.size)

    @cached_property
    def report(self) -> Report:
        """Return the CT report."""
        return write_report(self.findings, self.rng(_REPORT))

    @property
    def sex(self) -> str:
        """Return "F" or "M"."""
        return "FM"[int(self.rng(_PERSON).integers(2))]

    @property
    def age(self) -> int:
        """Return the age in years."""
        return int(self.rng(_PERSON).integers(25, 85))

    def text_rng(self) -> np.random.Generator:
        """Return a fresh random stream for the wording of questions, the same at every call."""
        return self.rng(_TEXT)

    def pair_rng(self) -> np.random.Generator:
        """Return a fresh random stream that is the same for this patient and its opposite (see `findings.decide`)."""
        return np.random.default_rng([self.seed, self.index // 2, _PAIR])

    def rng(self, purpose: int) -> np.random.Generator:
        """Return a fresh random stream of this patient for one purpose."""
        return np.random.default_rng([self.seed, self.index, purpose])

    @cached_property
    def _body(self) -> Body:
        present = self.findings
        return draw_body(self.rng(_BODY), enlarged_heart="cardiomegaly" in present, emphysema="emphysema" in present)

    @cached_property
    def _scene(self) -> tuple[list[Piece], dict[str, list[Piece]]]:
        rng = np.random.default_rng([self.seed, self.index, _BODY, 1])
        return build_anatomy(self._body, rng), build_findings(self._body, self._decided, rng)

    @property
    def _anatomy(self) -> list[Piece]:
        return self._scene[0]

    @property
    def _lesions(self) -> list[Piece]:
        return [piece for name, pieces in self._scene[1].items() if name not in self.erased for piece in pieces]

    @cached_property
    def _scan(self) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
        rng = self.rng(_SCAN)
        pieces, hidden = list(self._anatomy), set[int]()
        for name, own in self._scene[1].items():
            if name in self.erased:
                hidden |= set(range(len(pieces), len(pieces) + len(own)))
            pieces += own
        return scan(pieces, self.size, noise=float(rng.uniform(12, 28)), rng=rng, hidden=hidden)


def draw_patient(
    seed: int, index: int, size: tuple[int, int, int] = DEFAULT_SIZE, radiograph_size: int = DEFAULT_RADIOGRAPH
) -> Phantom:
    """Return the patient number `index` of the cohort `seed`.

    Nothing is rendered until it is asked for: `volume` and `radiograph` cost about 30 ms each at the default size.

    Raises:
        DataError: if an index or a size is not usable.
    """
    if seed < 0 or index < 0:
        raise DataError(f"A phantom needs a seed and an index of 0 or more, not {seed} and {index}.")
    if len(size) != 3 or min(size) < 8 or radiograph_size < 32:
        raise DataError(
            f"A phantom needs at least 8 voxels per axis and a 32 pixel radiograph, not {size} and {radiograph_size}."
        )
    depth, height, width = (int(n) for n in size)
    return Phantom(seed, index, (depth, height, width), radiograph_size)


def split_patients(
    seed: int,
    counts: dict[str, int],
    size: tuple[int, int, int] = DEFAULT_SIZE,
    radiograph_size: int = DEFAULT_RADIOGRAPH,
) -> dict[str, list[Phantom]]:
    """Return disjoint patients for each named split, e.g. `{"train": 300, "val": 40, "test": 60}`.

    Even counts keep every finding at exactly one half of each split (see `findings.decide`).
    """
    splits: dict[str, list[Phantom]] = {}
    start = 0
    for name, count in counts.items():
        splits[name] = [draw_patient(seed, index, size, radiograph_size) for index in range(start, start + count)]
        start += count + count % 2  # a pair of opposite patients is never shared between two splits
    return splits
