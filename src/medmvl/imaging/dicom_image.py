"""One DICOM frame as an Image: rescale, VOI window or table, palette, MONOCHROME1, spacing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut

from medmvl.errors import ImagingError
from medmvl.imaging.dicom import brief, decode, floats, frame_count, number, open_dicom, understanding
from medmvl.imaging.image import Image
from medmvl.imaging.pictures import choose_frame
from medmvl.imaging.rescale import check_rescale
from medmvl.imaging.windows import VoiFunction, VoiLut, Window

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def read_dicom_image(path: Path, frame: int | None, max_bytes: int | None) -> Image:
    """Read one frame of a DICOM file.

    Raises:
        ImagingError: if the file has no pixels, several frames and none is named, or cannot be decoded.
    """
    dataset = open_dicom(path)
    with understanding(path):
        return _read(dataset, path, frame, max_bytes)


def _read(dataset: Dataset, path: Path, frame: int | None, max_bytes: int | None) -> Image:
    count = frame_count(dataset)
    index = choose_frame(frame, count, path)
    stored = decode(dataset, path, index, max_bytes)
    history = [
        f"read DICOM {dataset.get('Modality', '')}".rstrip() + (f", frame {index} of {count}" if count > 1 else "")
    ]
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        return Image(
            _palette(stored, dataset, path),
            _spacing(dataset, index),
            history=(*history, "palette applied"),
            source="dicom",
        )
    if stored.ndim == 3:
        history.append(f"{photometric} shown as RGB")
        return Image(_eight_bit(stored, dataset), _spacing(dataset, index), history=tuple(history), source="dicom")
    values = _rescaled(stored, _rescale_of(dataset, index), path, history)
    inverted = photometric == "MONOCHROME1" or str(dataset.get("PresentationLUTShape", "")) == "INVERSE"
    if inverted:
        history.append("MONOCHROME1: low values are white")
    is_hu = dataset.get("Modality") == "CT" and str(dataset.get("RescaleType", "HU")) in ("HU", "")
    return Image(
        values,
        _spacing(dataset, index),
        units="HU" if is_hu and "RescaleIntercept" in _rescale_of(dataset, index) else "arbitrary",
        window=_voi(dataset, index, history),
        inverted=inverted,
        history=tuple(history),
        source="dicom",
    )


def functional_group(dataset: Dataset, index: int, sequence: str) -> Dataset | None:
    """Return the first item of a functional group of frame `index` (enhanced multi-frame objects), or None.

    A frame's own group goes before the shared one.
    """
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for groups in ([frames[index]] if frames and index < len(frames) else []) + (list(shared) if shared else []):
        items = groups.get(sequence)
        if items:
            return items[0]
    return None


def _rescale_of(dataset: Dataset, index: int) -> Dataset:
    """The data set that holds RescaleSlope and RescaleIntercept (or a modality table) of this frame."""
    return functional_group(dataset, index, "PixelValueTransformationSequence") or dataset


def _rescaled(stored: np.ndarray, rescale: Dataset, path: Path, history: list[str]) -> np.ndarray:
    slope, intercept = number(rescale.get("RescaleSlope"), 1.0), number(rescale.get("RescaleIntercept"), 0.0)
    check_rescale(slope, intercept, path)
    has_table = bool(rescale.get("ModalityLUTSequence"))
    if not has_table and (slope, intercept) == (1.0, 0.0):
        return stored
    try:
        values = apply_modality_lut(stored, rescale)  # computes in float64, so unsigned values cannot wrap
    except (ValueError, KeyError, AttributeError, IndexError) as error:
        raise ImagingError(f"{path}: its modality table cannot be applied: {brief(error)}.") from error
    history.append("modality table applied" if has_table else f"rescaled: value * {slope:g} + {intercept:g}")
    if np.isfinite(values).all() and np.array_equal(values, np.rint(values)) and np.abs(values).max() < 2**15:
        return values.astype(np.int16)
    return values.astype(np.float32)


def _voi(dataset: Dataset, index: int, history: list[str]) -> Window | VoiLut | None:
    """The window (the first, where there are several) or else the table that the file brings."""
    source = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
    center, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if center is not None and width is not None:
        name = str(source.get("VOILUTFunction", "") or "LINEAR")
        function: VoiFunction = name if name in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"  # type: ignore[assignment]
        try:
            window = Window(center, width, function)
        except ValueError:
            history.append(f"window with centre {center:g} and width {width:g} left out: it is not possible")
        else:
            history.append(f"window of the file: centre {center:g}, width {width:g}, {function}")
            return window
    table = source.get("VOILUTSequence")
    if not table:
        return None
    item = table[0]
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    history.append(f"VOI table of the file: {count or 2**16} entries from {first}")
    data = item.LUTData
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    return VoiLut(_signed(first, dataset), entries.astype(np.float32), bits)


def _signed(first: int, dataset: Dataset) -> int:
    return first - 2**16 if first > 2**15 - 1 and int(dataset.get("PixelRepresentation", 0)) else first


def _first(value: object) -> float | None:
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    try:
        return float(value) if value not in (None, "") else None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _palette(stored: np.ndarray, dataset: Dataset, path: Path) -> np.ndarray:
    try:
        colours = apply_color_lut(stored, dataset)
    except (ValueError, KeyError, AttributeError, IndexError) as error:
        raise ImagingError(f"{path}: its colour palette cannot be applied: {brief(error)}.") from error
    # 16-bit palettes that only use the low byte exist (written by 8-bit software); those bytes are the colours then.
    return colours.astype(np.uint8) if colours.max() < 256 else (colours >> 8).astype(np.uint8)


def _eight_bit(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    if stored.shape[-1] != 3:
        raise ImagingError(f"The DICOM file has {stored.shape[-1]} samples per pixel; 1 and 3 are known.")
    if stored.dtype == np.uint8:
        return stored
    shift = max(int(dataset.get("BitsStored", 16)) - 8, 0)
    return np.clip(stored.astype(np.int64) >> shift, 0, 255).astype(np.uint8)


def _spacing(dataset: Dataset, index: int) -> tuple[float, float] | None:
    measures = functional_group(dataset, index, "PixelMeasuresSequence")
    for source in (measures, dataset):
        for keyword in _SPACINGS:
            pair = floats(source.get(keyword), 2) if source is not None else None
            if pair and min(pair) > 0:
                return pair[0], pair[1]
    return None
