"""A protocol: which series of a study to read, what to ask about it, and what to send where."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from medmvl.ward.network_settings import Destination, NodeSettings
from medmvl.ward.section import Name, Section

ResultKind = Literal["sr", "capture", "pdf", "key-objects"]
Preference = Literal["kernel", "thinnest", "thickest", "most-slices", "newest"]
Plane = Literal["axial", "coronal", "sagittal"]

#: modalities whose series are read as volumes unless the protocol says otherwise
VOLUME_MODALITIES = ("CT", "MR", "PT", "NM")


class Range(Section):
    """Limits in mm, both included.

    Attributes:
        min, max: None for no limit.
    """

    min: float | None = None
    max: float | None = None

    def __contains__(self, value: float) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class SeriesRule(Section):
    """Rule that selects the series of a study to read.

    Attributes:
        modality: such as CT; one of them must match.
        body_part: values of BodyPartExamined; empty: any, and series that do not state it.
        description: patterns (`*`, `?`; case does not matter) of which one must match SeriesDescription.
        exclude_description: patterns of which none may match.
        kernel: patterns of ConvolutionKernel in order of preference; empty: any.
        orientation: plane of the slices; None: any.
        slice_thickness: limits in mm.
        min_slices: least number of slices.
        prefer: how to choose between several series that fit, most important first.
        read_as: None: volume for CT, MR, PT and NM, image for the rest.
        gaps: missing slices of a volume, see `medmvl.read_volume`.
        units, spacing: of volumes whose files do not state them, or not credibly; spacing (z, y, x) in mm.
    """

    modality: list[str] = Field(min_length=1)
    body_part: list[str] = []
    description: list[str] = []
    exclude_description: list[str] = []
    kernel: list[str] = []
    orientation: Plane | None = None
    slice_thickness: Range | None = None
    min_slices: int = Field(default=1, ge=1)
    prefer: list[Preference] = ["kernel", "thinnest", "most-slices", "newest"]
    read_as: Literal["volume", "image"] | None = None
    gaps: Literal["refuse", "fill", "keep"] = "refuse"
    units: Literal["HU", "arbitrary"] | None = None
    spacing: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] | None = None

    def reading(self) -> dict[str, Any]:
        """Return the arguments of `read_volume`."""
        given = {"units": self.units, "spacing": None if self.spacing is None else tuple(self.spacing)}
        return {"gaps": self.gaps, **{name: value for name, value in given.items() if value is not None}}

    @field_validator("modality", "body_part", "description", "exclude_description", "kernel", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class CodeSpec(Section):
    """A code of a terminology: RadLex, SNOMED CT, DICOM, or a private scheme that begins with 99."""

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Question(Section):
    """One question to the model.

    Attributes:
        id: unique in the protocol.
        ask: the question as the model reads it.
        kind: yes-no and choice are scored over their options and have probabilities; text is generated; box is
            generated and drawn into the picture of an image.
        options: of a choice; of yes-no: the two words for yes and no.
        finding: what a "yes" means: a name that `medmvl.ward.codes` knows, or a code.
        site: anatomical site: a known name or a code.
        title: label in the results; default: the finding's name, else the question.
        threshold: probability from which a yes, or the most likely option, counts as positive. Default: 0.5 for yes-no,
            0 for choice.
        send: always, or only a positive answer.
        max_new_tokens: longest answer of kind text or box.
    """

    id: Name
    ask: str = Field(min_length=1)
    kind: Literal["yes-no", "choice", "text", "box"] = "text"
    options: list[str] | None = None
    finding: str | CodeSpec | None = None
    site: str | CodeSpec | None = None
    title: str | None = Field(default=None, min_length=1, max_length=64)
    threshold: float | None = Field(default=None, ge=0, le=1)
    send: Literal["always", "positive"] = "always"
    max_new_tokens: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _options_fit_kind(self) -> Question:
        count = len(set(self.options or []))
        if self.kind == "choice" and count < 2:
            raise ValueError("a question of kind choice needs at least two different options")
        if self.kind == "yes-no" and self.options is not None and (count != 2 or len(self.options) != 2):
            raise ValueError("options of a yes-no question are two words, the one for yes first")
        if self.kind in ("text", "box") and self.options is not None:
            raise ValueError(f"a question of kind {self.kind} has no options; use kind choice")
        if self.kind in ("text", "box") and (self.threshold is not None or self.send == "positive"):
            raise ValueError(
                f"threshold and send: positive need a probability, which kind {self.kind} has not; use yes-no or choice"
            )
        return self

    @property
    def choices(self) -> list[str] | None:
        """The options that are scored; None if the answer is generated."""
        return ["Yes", "No"] if self.kind == "yes-no" and self.options is None else self.options

    @property
    def positive_from(self) -> float:
        """Probability from which an answer counts as positive."""
        return self.threshold if self.threshold is not None else 0.5 if self.kind == "yes-no" else 0.0

    @property
    def label(self) -> str:
        """Short name in the results, at most 64 characters."""
        name = self.finding if isinstance(self.finding, str) else self.finding.meaning if self.finding else self.ask
        return (self.title or name)[:64]


class Results(Section):
    """The result objects that are made of the answers.

    Attributes:
        send: kinds of objects: sr (Comprehensive 3D SR), capture (secondary capture), pdf, key-objects.
        send_when: always, or only if a yes-no or choice question has a positive answer.
        language: of the fixed texts: en or zh. The model's answers stay as they are.
        series_number: of the first result series; more follow by one. A number that the study uses already is
            passed over in steps of 100.
        key_slices: number of slices that are shown and referenced.
        window: name of the display window of CT slices; None: the window stored in the file.
        font: TrueType font file for the text of the secondary capture; needed for zh.
    """

    send: list[ResultKind] = Field(default=["sr", "capture"], min_length=1)
    send_when: Literal["always", "finding"] = "always"
    language: Literal["en", "zh"] = "en"
    series_number: int = Field(default=9100, ge=1, le=99_999_999)
    key_slices: int = Field(default=3, ge=1, le=12)
    window: str | None = None
    font: str | None = None

    @model_validator(mode="after")
    def _chinese_needs_a_font(self) -> Results:
        if self.language == "zh" and "capture" in self.send and self.font is None:
            raise ValueError(
                "a secondary capture in Chinese needs font: a TrueType file with Chinese characters; or send pdf instead"
            )
        return self


class Protocol(Section):
    """A whole protocol file.

    Attributes:
        name: shown in the results.
        model: checkpoint folder; the command line's --model takes precedence.
    """

    name: Name
    model: str | None = None
    series: SeriesRule
    questions: list[Question] = Field(min_length=1)
    results: Results = Results()
    destinations: list[Destination] = []
    node: NodeSettings | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Protocol:
        for what, names in (
            ("questions", [question.id for question in self.questions]),
            ("destinations", [destination.name for destination in self.destinations]),
        ):
            if twice := sorted(name for name, count in Counter(names).items() if count > 1):
                raise ValueError(f"two {what} have the same name: {', '.join(twice)}")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides what the results say; not of where they go."""
        deciding = self.model_dump(mode="json", include={"name", "series", "questions", "results"})
        for later in (
            "units",
            "spacing",
        ):  # protocols without them keep the hash that they had before there were these keys
            if deciding["series"][later] is None:
                del deciding["series"][later]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
