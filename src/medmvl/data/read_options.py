"""Options with which the images and volumes of a record are read: the remedies that reading errors advise.

They may stand in a record (`"read": {"series": "thinnest", "units": "HU"}`), for a whole data set in a recipe, or on the
command line. A record's own option wins over the data set's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from medmvl.errors import DataError, did_you_mean, shown
from medmvl.remote import RemotePath

#: Option -> allowed texts, for options that take one of a few words.
WORDS: dict[str, tuple[str, ...]] = {"units": ("HU", "arbitrary"), "gaps": ("refuse", "fill", "keep")}
_NUMBERS = ("slope", "intercept")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Arguments of `read_image` and `read_volume`; None leaves the reader's default.

    Attributes:
        units: "HU" or "arbitrary", where the file does not say.
        series: which DICOM series of a folder: its UID or the end of it, largest, thinnest, axial, coronal, sagittal.
        gaps: missing DICOM slices: refuse, fill or keep.
        spacing: (z, y, x) in mm, where the file has none or a wrong one.
        orientation: sides of the axes of an array or NIfTI file, such as "SPL".
        slope, intercept: rescale to HU that a NIfTI file lacks.
        already_rescaled: whether values that look rescaled already are.
        frame: frame of a multi-frame image, from 0.
    """

    units: str | None = None
    series: str | None = None
    gaps: str | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    slope: float | None = None
    intercept: float | None = None
    already_rescaled: bool | None = None
    frame: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None, where: str = "'read'") -> ReadOptions:
        """Return checked options; texts such as "0.7,0.7,1.5" are converted, None values count as absent.

        Raises:
            DataError: naming `where`, for an unknown option or a value of the wrong kind.
        """
        if values is None:
            return DEFAULT_READING
        if not isinstance(values, Mapping):
            raise DataError(f'{where} must be an object such as {{"series": "thinnest"}}, not {shown(values)}.')
        for name in values:
            if name not in NAMES:
                raise DataError(f"{where} has no option {shown(name)}. {did_you_mean(str(name), NAMES)}")
        return cls(**{name: _checked(name, value, where) for name, value in values.items() if value is not None})

    def given(self) -> dict[str, Any]:
        """Return the options that are set."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}

    def over(self, default: ReadOptions) -> ReadOptions:
        """Return these options, completed by those of `default`."""
        if self == DEFAULT_READING:
            return default
        return ReadOptions(**(default.given() | self.given()))

    def for_volume(self) -> dict[str, Any]:
        """Return the keyword arguments of `read_volume`."""
        return {name: value for name, value in self.given().items() if name != "frame"}

    def for_image(self) -> dict[str, Any]:
        """Return the keyword arguments of `read_image`."""
        return {} if self.frame is None else {"frame": self.frame}


class MediaPath(str):
    """A path with the options it is read with; a plain string where there are none.

    Two of them are equal if path and options are.
    """

    reading: ReadOptions

    def __new__(cls, path: str, reading: ReadOptions) -> MediaPath:
        """Attach options to a path."""
        self = super().__new__(cls, path)
        self.reading = reading
        return self

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True and reading_of(other) == self.reading

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self.reading))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.reading)


class RemoteMediaPath(MediaPath, RemotePath):
    """A URL below a root of the user with the options that its file is read with."""


def reading_of(path: object) -> ReadOptions:
    """Return the options that a path carries; the defaults for one that carries none."""
    return path.reading if isinstance(path, MediaPath) else DEFAULT_READING


def with_reading(paths: Iterable[str], reading: ReadOptions) -> tuple[str, ...]:
    """Return the paths with the options attached."""
    if reading == DEFAULT_READING:
        return tuple(paths)
    return tuple((RemoteMediaPath if isinstance(path, RemotePath) else MediaPath)(path, reading) for path in paths)


NAMES = tuple(field.name for field in fields(ReadOptions))
DEFAULT_READING = ReadOptions()


def _checked(name: str, value: Any, where: str) -> Any:
    """Return the value of one option in its type."""
    if name == "spacing":
        return _spacing(value, where)
    if name in _NUMBERS:
        return _number(name, value, where)
    if name == "frame":
        return _frame(value, where)
    if name == "already_rescaled":
        if str(value).lower() not in ("true", "false"):
            raise DataError(f"{where}: already_rescaled is true or false, not {shown(value)}.")
        return str(value).lower() == "true"
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} must be a text, not {shown(value)}.")
    words = WORDS.get(name)
    if words and value not in words:
        raise DataError(f"{where}: {name} is one of {', '.join(words)}, not {shown(value)}.")
    return value.strip()


def _frame(value: Any, where: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal():
        raise DataError(f"{where}: frame is a whole number from 0, not {shown(value)}.")
    return int(text)


def _number(name: str, value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} must be a number, not {shown(value)}.")
    return number


def _spacing(value: Any, where: str) -> tuple[float, float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        raise DataError(f"{where}: spacing is three numbers z, y, x in mm, such as 1.5,0.7,0.7, not {shown(value)}.")
    z, y, x = (_number("spacing", part, where) for part in parts)
    if min(z, y, x) <= 0:
        raise DataError(f"{where}: spacing must be above 0 mm, not {shown(value)}.")
    return z, y, x
