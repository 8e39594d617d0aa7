"""The run folder of a quickstart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmvl.data.roots import MediaRoots


@dataclass(frozen=True)
class Quickstart:
    """Paths of a quickstart.

    Attributes:
        root: the run folder.
    """

    root: Path

    @property
    def raw(self) -> Path:
        """The drawn data sets, as if downloaded."""
        return self.root / "raw"

    @property
    def data(self) -> Path:
        """The records."""
        return self.root / "data"

    @property
    def prepared(self) -> Path:
        """The training volumes as the model sees them."""
        return self.root / "prepared-volumes"

    @property
    def llm(self) -> Path:
        """The pretrained LLM, copied from the package: a run does not depend on where that is installed."""
        return self.root / "llm"

    @property
    def model(self) -> Path:
        """The finished checkpoint."""
        return self.root / "model"

    @property
    def results(self) -> Path:
        """Seed, scale and minutes of a finished quickstart; written last."""
        return self.root / "quickstart.json"

    @property
    def media(self) -> MediaRoots:
        """The folders of the drawn pictures and scans."""
        return MediaRoots(self.raw / "slake", self.raw / "ct-rate")

    @property
    def dicom(self) -> Path:
        """The CT of a held-out patient as a DICOM series, to try `medmvl ask` on."""
        return self.root / "example-dicom"

    @property
    def radiograph(self) -> Path:
        """The radiograph of the same patient."""
        return self.root / "example-radiograph.png"

    @property
    def report(self) -> Path:
        """The true report of the same patient."""
        return self.root / "example-report.txt"

    def encoder(self, modality: str) -> Path:
        """Return the run folder in which the encoder of "image" or "volume" is pretrained."""
        return self.root / f"{modality}-encoder"


def line_count(file: Path) -> int:
    """Return the number of lines of a file; 0 if there is none."""
    if not file.is_file():
        return 0
    with file.open("rb") as handle:
        return sum(1 for _ in handle)
