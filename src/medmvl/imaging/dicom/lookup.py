"""Lookup tables of DICOM images: modality tables (PS3.3 C.11.1) and VOI tables (PS3.3 C.11.2)."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from medmvl.imaging.dicom.dataset import MalformedError, floats


def table_of(item: Dataset, dataset: Dataset) -> tuple[int, int, np.ndarray]:
    """Return a table: the first value that it maps, bits per entry, and its entries (N,) as unsigned integers.

    Args:
        item: item of ModalityLUTSequence or VOILUTSequence.
        dataset: the file's data set, whose byte order and sign of pixels hold for the item.

    Raises:
        MalformedError: if the descriptor is not three integers, or the data have another number of entries.
    """
    descriptor = floats(item.get("LUTDescriptor"), 3)
    if descriptor is None:
        raise MalformedError("LUTDescriptor is not three integers")
    count, first, bits = (int(value) for value in descriptor)
    if not 1 <= bits <= 16:
        raise MalformedError("LUTDescriptor states an impossible number of bits")
    if first > 2**15 - 1 and int(dataset.get("PixelRepresentation") or 0):
        first -= 2**16  # the sign follows PixelRepresentation, whatever the writer stated
    return first, bits, _entries(item.get("LUTData"), count or 2**16, dataset)


def _entries(data: object, count: int, dataset: Dataset) -> np.ndarray:
    """Return `count` entries of 16-bit words, or of bytes of which two are in a word."""
    little = getattr(dataset, "original_encoding", (None, True))[1] is not False
    if not isinstance(data, bytes):
        words = np.atleast_1d(np.asarray(data if data is not None else [], dtype=np.int64)).astype("<u2")
        data, little = words.tobytes(), True
    if len(data) // 2 * 2 == (count + 1) // 2 * 2 or len(data) == count:
        octets = np.frombuffer(data, np.uint8)
        if not little and len(data) % 2 == 0:  # words of OW are swapped as a whole
            octets = octets.reshape(-1, 2)[:, ::-1].reshape(-1)
        return octets[:count]
    if len(data) < 2 * count:
        raise MalformedError("LUTData has fewer entries than LUTDescriptor states")
    return np.frombuffer(data, "<u2" if little else ">u2")[:count].astype(np.uint16)


def look_up(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    """Return the entries of integer `values` (any shape); values beyond the table have its first or last entry."""
    index: np.ndarray = np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)
    return entries[index]
