"""Rules for stored DICOM values: unused bits, rescale to units, and padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medmvl.imaging.dicom.dataset import MalformedError, decimal, functional_group, integer
from medmvl.imaging.dicom.known_values import HOUNSFIELD_TYPES, known_modality

#: HU that replaces padding of a CT, a little below air
PADDED_HU = -1024


@dataclass(frozen=True)
class PixelFormat:
    """Position of the value bits in a stored word (PS3.5 8.1.1).

    Attributes:
        allocated, stored, high: BitsAllocated, BitsStored and HighBit.
        signed: whether values are two's complement (PixelRepresentation 1).
    """

    allocated: int
    stored: int
    high: int
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value that can be stored."""
        if self.signed:
            return -(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1
        return 0, (1 << self.stored) - 1

    @property
    def shift(self) -> int:
        """Number of unused bits below the value."""
        return self.high + 1 - self.stored

    def sign_corrected(self, value: int) -> int:
        """Return an attribute value whose VR follows PixelRepresentation, reinterpreted if it has the other sign.

        Some writers encode -2000 as the unsigned 63536, or the reverse.
        """
        low, high = self.limits
        if low <= value <= high:
            return value
        for bits in (self.stored, self.allocated):
            other = value - (1 << bits) if value > high else value + (1 << bits)
            if low <= other <= high:
                return other
        return value


def pixel_format(dataset: Dataset) -> PixelFormat:
    """Return the pixel format of a data set.

    Raises:
        MalformedError: if an attribute is missing or the attributes contradict each other.
    """
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    given = decimal(dataset, "HighBit")
    high = stored - 1 if given is None else int(given)
    representation = integer(dataset, "PixelRepresentation")
    if representation not in (0, 1):
        raise MalformedError("PixelRepresentation is neither 0 nor 1")
    if not 1 <= stored <= high + 1 <= allocated or allocated > 64:
        raise MalformedError("BitsAllocated, BitsStored and HighBit contradict each other")
    return PixelFormat(allocated, stored, high, bool(representation))


def significant_bits(words: np.ndarray, bits: PixelFormat, shift: int) -> np.ndarray:
    """Return the values in stored `words` (any shape, any integer dtype) without their unused bits.

    Args:
        shift: unused bits below the value: `bits.shift` for uncompressed words, 0 for decoded ones.

    Returns:
        an array of the same shape and width; signed if the format is signed.
    """
    width = words.dtype.itemsize * 8
    unsigned = words.view(f"u{words.dtype.itemsize}")
    above = max(width - bits.stored - shift, 0)
    if bits.signed:
        return np.right_shift(np.left_shift(unsigned, above).view(f"i{words.dtype.itemsize}"), above + shift)
    return np.right_shift(np.left_shift(unsigned, above), above + shift)


def has_unused_bits(words: np.ndarray, bits: PixelFormat, shift: int) -> bool:
    """Return whether a bit outside of the values is set in stored `words` (any shape, any integer dtype).

    Args:
        shift: as for `significant_bits`.
    """
    unsigned = words.view(f"u{words.dtype.itemsize}")
    inside = ((1 << bits.stored) - 1) << shift
    return bool(np.bitwise_and(unsigned, unsigned.dtype.type(~inside & ((1 << words.dtype.itemsize * 8) - 1))).any())


def extremes_within(values: np.ndarray, bits: PixelFormat) -> tuple[int, int, bool]:
    """Return a lower bound, the maximum of integer `values` (any shape), and whether the format can store them all.

    The lower bound of unsigned values is 0, which saves a pass over the slice.
    """
    low, high = bits.limits
    least = 0 if values.dtype.kind == "u" else int(values.min())
    greatest = int(values.max())
    return least, greatest, low <= least and greatest <= high


#: Values of RescaleType that state other units than Hounsfield's (PS3.3 C.11.1.1.2); "US" leaves them open.
_OTHER_TYPES = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")


@dataclass(frozen=True)
class Rescale:
    """Rescale of stored values to units.

    Attributes:
        slope, intercept: 1 and 0 if the file states none.
        stated: whether the file states slope and intercept.
        has_table: whether the file has a modality lookup table instead.
        is_hu: whether a CT states a rescale to Hounsfield units.
        is_other: whether it states a rescale to other units, such as optical density or atomic numbers.
    """

    slope: float = 1.0
    intercept: float = 0.0
    stated: bool = False
    has_table: bool = False
    is_hu: bool = False
    is_other: bool = False


def rescale_source(dataset: Dataset, index: int) -> Dataset:
    """Return the data set with the rescale of frame `index`: its functional group, or the data set itself."""
    return functional_group(dataset, index, "PixelValueTransformationSequence") or dataset


def rescale_of(dataset: Dataset, index: int = 0) -> Rescale:
    """Return the rescale of frame `index`.

    Raises:
        MalformedError: if one of slope and intercept is missing or malformed, or the slope is 0. A missing value is never
            replaced by a default while the other is there.
    """
    source = rescale_source(dataset, index)
    slope, intercept = decimal(source, "RescaleSlope"), decimal(source, "RescaleIntercept")
    has_table = bool(source.get("ModalityLUTSequence"))
    if slope is None and intercept is None:
        return Rescale(has_table=has_table)
    if slope is None or intercept is None:
        names = ("RescaleIntercept", "RescaleSlope") if slope is None else ("RescaleSlope", "RescaleIntercept")
        raise MalformedError(f"it states {names[0]} without {names[1]}")
    if has_table:
        raise MalformedError("it has both a rescale and a modality table")
    if slope == 0:
        raise MalformedError(f"rescale slope 0 and intercept {intercept:g} cannot be right")
    kind = str(source.get("RescaleType") or "").strip().upper()
    is_hu = known_modality(dataset) == "CT" and kind in HOUNSFIELD_TYPES
    return Rescale(slope, intercept, stated=True, is_hu=is_hu, is_other=kind in _OTHER_TYPES)


@dataclass(frozen=True)
class Padding:
    """Range of stored values that mark pixels without a measurement (PS3.3 C.7.5.1.1.2).

    Attributes:
        low, high: inclusive range.
        whole_words: whether the range applies to whole words, because it does not fit into the stored bits.
    """

    low: float
    high: float
    whole_words: bool = False

    def mask(self, values: np.ndarray, words: np.ndarray | None = None) -> np.ndarray:
        """Return which pixels are padding.

        Args:
            values: (H, W) values without unused bits.
            words: (H, W) stored words with unused bits, if they differ.

        Returns:
            (H, W) booleans.
        """
        compared = words if self.whole_words and words is not None else values
        return (compared >= self.low) & (compared <= self.high)


def padding_of(dataset: Dataset, bits: PixelFormat) -> Padding | None:
    """Return the padding range of a data set, or None.

    Raises:
        MalformedError: if PixelPaddingValue or PixelPaddingRangeLimit is not a number.
    """
    value = decimal(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = decimal(dataset, "PixelPaddingRangeLimit")
    ends = [bits.sign_corrected(int(v)) for v in (value, value if limit is None else limit)]
    low, high = bits.limits
    return Padding(min(ends), max(ends), whole_words=any(not low <= end <= high for end in ends))


@dataclass(frozen=True)
class SliceValues:
    """Rules for reading the stored values of one slice; slices of one series may differ in them.

    Attributes:
        modality, photometric: from the closed lists; "" for an unknown photometric interpretation.
        bits: the pixel format; None for floating-point pixels.
        rescale: slope, intercept and units.
        padding: padding range, or None.
    """

    modality: str
    photometric: str
    bits: PixelFormat | None
    rescale: Rescale
    padding: Padding | None

    @property
    def kind(self) -> tuple[str, str, bool, tuple[bool, bool]]:
        """Properties in which all slices of a volume must agree: modality, photometric, stated rescale, its units."""
        return self.modality, self.photometric, self.rescale.stated, (self.rescale.is_hu, self.rescale.is_other)
