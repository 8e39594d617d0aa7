"""Reading of one DICOM frame as an Image: rescale, padding, VOI window or table, palette and spacing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut

from medmvl.errors import ImagingError
from medmvl.imaging.dicom.dataset import (
    MALFORMED,
    MalformedError,
    floats,
    frame_count,
    functional_group,
    integer,
    open_dicom,
    safe_reason,
    translate_pydicom_errors,
)
from medmvl.imaging.dicom.decoding import Frame, decode_frame
from medmvl.imaging.dicom.known_values import known_modality, known_photometric
from medmvl.imaging.dicom.lookup import look_up, table_of
from medmvl.imaging.dicom.sides import sides_of
from medmvl.imaging.dicom.values import (
    PADDED_HU,
    Padding,
    Rescale,
    padding_of,
    pixel_format,
    rescale_of,
    rescale_source,
)
from medmvl.imaging.formats.pictures import choose_frame
from medmvl.imaging.image import Image
from medmvl.imaging.preprocessing.windows import VoiFunction, VoiLut, Window
from medmvl.imaging.rescale import NEGATIVE_SLOPE
from medmvl.imaging.units import UnitsError, doubt_hounsfield

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def read_dicom_image(path: Path, frame: int | None, max_bytes: int | None) -> Image:
    """Read one frame of a DICOM file.

    Raises:
        ImagingError: if the file has no pixels, has several frames and `frame` is None, or cannot be decoded.
    """
    dataset = open_dicom(path)
    with translate_pydicom_errors(path):
        try:
            count = frame_count(dataset)
        except MalformedError as error:
            raise ImagingError(f"{path} cannot be used: {error}.") from None
        index = choose_frame(frame, count, path)
        decoded = decode_frame(dataset, path, index, max_bytes)
        which = f", frame {index} of {count}" if count > 1 else ""
        history = [f"read DICOM {known_modality(dataset)}{which}", *decoded.notes]
        if known_photometric(dataset) == "PALETTE COLOR":
            colors = _palette(decoded.values, dataset, path)
            history.append("palette applied")
            return _color(colors, dataset, index, history, decoded)
        if decoded.values.ndim == 3:
            history.append(f"{known_photometric(dataset)} shown as RGB")
            colors = _eight_bit(decoded.values, dataset)
            return _color(colors, dataset, index, history, decoded)
        return _gray(dataset, path, index, decoded, history)


def _color(colors: np.ndarray, dataset: Dataset, index: int, history: list[str], decoded: Frame) -> Image:
    """Return an image of colors (H, W, 3) uint8."""
    spacing = _spacing(dataset, index)
    return Image(
        colors,
        spacing,
        history=tuple(history),
        warnings=decoded.warnings,
        source="dicom",
        sides=sides_of(dataset, index),
    )


def _gray(dataset: Dataset, path: Path, index: int, decoded: Frame, history: list[str]) -> Image:
    """Return a gray frame in its units, with its window and padding."""
    try:
        rescale = rescale_of(dataset, index)
        padding = padding_of(dataset, pixel_format(dataset)) if "PixelData" in dataset else None
    except MalformedError as error:
        raise ImagingError(f"{path} cannot be used: {error}.") from None
    values = _rescaled(decoded.values, rescale, dataset, index, path, history)
    values, padded = _without_padding(values, decoded, padding, rescale, history)
    inverted = known_photometric(dataset) == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    if inverted:
        history.append("MONOCHROME1: low values are white")
    doubts, is_hu = _doubts(values, dataset, rescale, path)
    return Image(
        values,
        _spacing(dataset, index),
        units="HU" if is_hu else "arbitrary",
        window=_voi(dataset, index, values, history),
        inverted=inverted,
        padding=padded,
        history=tuple(history),
        warnings=(*decoded.warnings, *doubts),
        source="dicom",
        sides=sides_of(dataset, index),
    )


def _doubts(values: np.ndarray, dataset: Dataset, rescale: Rescale, path: Path) -> tuple[list[str], bool]:
    """Return warnings about the values (H, W) of a frame, and whether they are Hounsfield units."""
    warnings, is_hu = [NEGATIVE_SLOPE] if rescale.slope < 0 else [], rescale.is_hu
    if is_hu:
        try:
            doubt = doubt_hounsfield(values[None], path)
        except UnitsError:
            is_hu = False
            doubt = "declared as Hounsfield units, but no scanner makes these values: taken as arbitrary units"
        warnings += [doubt] if doubt else []
    elif known_modality(dataset) == "CT" and not rescale.stated:
        warnings.append("a CT without a rescale: the values are as stored, not Hounsfield units")
    return warnings, is_hu


def _rescaled(
    stored: np.ndarray, rescale: Rescale, dataset: Dataset, index: int, path: Path, history: list[str]
) -> np.ndarray:
    """Return stored values (H, W) of a frame after slope and intercept or the modality table."""
    if not rescale.has_table and (rescale.slope, rescale.intercept) == (1.0, 0.0):
        return stored
    if rescale.has_table:
        source = rescale_source(dataset, index)
        try:
            first, _, entries = table_of(source.ModalityLUTSequence[0], dataset)
        except MalformedError as error:
            raise ImagingError(f"{path}: its modality table cannot be applied: {error}.") from None
        values = look_up(stored, first, entries)
        history.append("modality table applied")
    else:
        values = stored.astype(np.float64) * rescale.slope + rescale.intercept
        history.append(f"rescaled: value * {rescale.slope:g} + {rescale.intercept:g}")
    if np.isfinite(values).all() and np.array_equal(values, np.rint(values)) and np.abs(values).max() < 2**15:
        return values.astype(np.int16)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImagingError(f"{path} holds NaN or infinite values.")
    return values


def _without_padding(
    values: np.ndarray, decoded: Frame, padding: Padding | None, rescale: Rescale, history: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values (H, W) and a mask of the padding (H, W), or None if there is none.

    In Hounsfield units padding becomes the value that `read_volume` gives it.
    """
    if padding is None:
        return values, None
    mask = padding.mask(decoded.values, decoded.words)
    if not mask.any():
        return values, None
    history.append(f"{np.count_nonzero(mask)} padding pixels left out of the contrast")
    if rescale.is_hu:
        values = np.where(mask, values.dtype.type(PADDED_HU), values)
        history.append(f"padding of the file -> {PADDED_HU} HU")
    return values, mask


def _voi(dataset: Dataset, index: int, values: np.ndarray, history: list[str]) -> Window | VoiLut | None:
    """Return the first window of the file, or else its VOI table."""
    source = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
    center, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if center is not None and width is not None:
        name = str(source.get("VOILUTFunction", "") or "LINEAR")
        function: VoiFunction = name if name in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"  # type: ignore[assignment]
        try:
            window = Window(center, width, function)
        except ValueError:
            history.append(f"window with center {center:g} and width {width:g} left out: it is not possible")
        else:
            history.append(f"window of the file: center {center:g}, width {width:g}, {function}")
            return window
    return _voi_table(source, dataset, values, history)


def _voi_table(source: Dataset, dataset: Dataset, values: np.ndarray, history: list[str]) -> VoiLut | None:
    """Return the first VOI table of the file, which maps values (H, W) after the rescale."""
    if not source.get("VOILUTSequence"):
        return None
    try:
        first, bits, entries = table_of(source.VOILUTSequence[0], dataset)
    except MalformedError as error:
        history.append(f"VOI table of the file left out: {error}")
        return None
    # Implicit VR encodes a negative first value like a large one, which no pixel then reaches.
    if first > 2**15 - 1 and values.max() < first and values.min() < 0:
        first -= 2**16
    history.append(f"VOI table of the file: {len(entries)} entries from {first}")
    return VoiLut(first, entries.astype(np.float32), bits)


def _first(value: object) -> float | None:
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    try:
        return float(value) if value not in (None, "") else None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _palette(stored: np.ndarray, dataset: Dataset, path: Path) -> np.ndarray:
    try:
        colors = apply_color_lut(stored, dataset)
    except MALFORMED as error:
        raise ImagingError(f"{path}: its color palette cannot be applied: {safe_reason(error)}.") from None
    # 16-bit palettes written by 8-bit software use the low byte only; these bytes are then the colors.
    return colors.astype(np.uint8) if colors.max() < 256 else (colors >> 8).astype(np.uint8)


def _eight_bit(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    if stored.shape[-1] != 3:
        raise ImagingError(f"The DICOM file has {stored.shape[-1]} samples per pixel; 1 and 3 are known.")
    if stored.dtype == np.uint8:
        return stored
    shift = max(integer(dataset, "BitsStored") - 8, 0)
    return np.clip(stored.astype(np.int64) >> shift, 0, 255).astype(np.uint8)


def _spacing(dataset: Dataset, index: int) -> tuple[float, float] | None:
    measures = functional_group(dataset, index, "PixelMeasuresSequence")
    for source in (measures, dataset):
        for keyword in _SPACINGS:
            pair = floats(source.get(keyword), 2) if source is not None else None
            if pair and min(pair) > 0:
                return pair[0], pair[1]
    return None
