"""One synthetic patient: everything that is known about it, drawn when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medmvl.data.phantoms.anatomy import Body, build_anatomy, draw_body
from medmvl.data.phantoms.findings import Finding, build_findings, ct_rate_labels, decide
from medmvl.data.phantoms.radiograph import Film, expose, scan
from medmvl.data.phantoms.shapes import Piece
from medmvl.data.phantoms.texts import Report, write_report
from medmvl.errors import DataError

DEFAULT_SIZE = (32, 96, 96)
DEFAULT_FILM = 128

# One stream of random numbers per purpose, so that asking for one thing never changes another.
_BODY, _SCAN, _FILM, _PERSON, _REPORT, _TEXT = range(2, 8)


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient; equal (seed, index, size, film_size) give equal bytes.

    Attributes:
        seed, index: which patient of which cohort.
        size: shape (D, H, W) of the CT.
        film_size: side of the radiograph in pixels.
    """

    seed: int
    index: int
    size: tuple[int, int, int] = DEFAULT_SIZE
    film_size: int = DEFAULT_FILM

    orientation = "SPL"  # axes of `volume` grow to Superior, Posterior, Left
    units = "HU"

    @property
    def patient(self) -> str:
        """Return a name that says it is nobody: "phantom-0-00012"."""
        return f"phantom-{self.seed}-{self.index:05d}"

    @cached_property
    def findings(self) -> dict[str, Finding]:
        """Return what is wrong, by name; an absent finding is missing."""
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
    def film(self) -> Film:
        """Return the radiograph with its boxes and silhouettes."""
        return expose(self._anatomy, self._lesions, self.film_size, self.rng(_FILM))

    @property
    def radiograph(self) -> NDArray[np.uint8]:
        """Return the radiograph (H, W) uint8: the patient's left is on the right of the picture."""
        return self.film.pixels

    @property
    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return name -> (x, y, w, h) in pixels of the radiograph, for organs and findings."""
        return self.film.boxes

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

    def rng(self, purpose: int) -> np.random.Generator:
        """Return a fresh random stream of this patient for one purpose."""
        return np.random.default_rng([self.seed, self.index, purpose])

    @cached_property
    def _body(self) -> Body:
        present = self.findings
        return draw_body(self.rng(_BODY), enlarged_heart="cardiomegaly" in present, emphysema="emphysema" in present)

    @cached_property
    def _scene(self) -> tuple[list[Piece], list[Piece]]:
        rng = np.random.default_rng([self.seed, self.index, _BODY, 1])
        return build_anatomy(self._body, rng), build_findings(self._body, self.findings, rng)

    @property
    def _anatomy(self) -> list[Piece]:
        return self._scene[0]

    @property
    def _lesions(self) -> list[Piece]:
        return self._scene[1]

    @cached_property
    def _scan(self) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
        rng = self.rng(_SCAN)
        return scan([*self._anatomy, *self._lesions], self.size, noise=float(rng.uniform(12, 28)), rng=rng)


def draw_patient(
    seed: int, index: int, size: tuple[int, int, int] = DEFAULT_SIZE, film_size: int = DEFAULT_FILM
) -> Phantom:
    """Return the patient number `index` of the cohort `seed`.

    Nothing is rendered until it is asked for: `volume` and `radiograph` cost about 30 ms each at the default size.

    Raises:
        DataError: if an index or a size is not usable.
    """
    if seed < 0 or index < 0:
        raise DataError(f"A phantom needs a seed and an index of 0 or more, not {seed} and {index}.")
    if len(size) != 3 or min(size) < 8 or film_size < 32:
        raise DataError(f"A phantom needs at least 8 voxels per axis and a 32 pixel film, not {size} and {film_size}.")
    depth, height, width = (int(n) for n in size)
    return Phantom(seed, index, (depth, height, width), film_size)


def split_patients(
    seed: int, counts: dict[str, int], size: tuple[int, int, int] = DEFAULT_SIZE, film_size: int = DEFAULT_FILM
) -> dict[str, list[Phantom]]:
    """Return disjoint patients for each named split, e.g. `{"train": 300, "val": 40, "test": 60}`.

    Even counts keep every finding at exactly one half of each split (see `findings.decide`).
    """
    splits: dict[str, list[Phantom]] = {}
    start = 0
    for name, count in counts.items():
        splits[name] = [draw_patient(seed, index, size, film_size) for index in range(start, start + count)]
        start += count + count % 2  # a pair of opposite patients is never shared between two splits
    return splits
