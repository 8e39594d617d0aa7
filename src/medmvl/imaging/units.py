"""Decision whether the values of a volume are Hounsfield units."""

from __future__ import annotations

import numpy as np

from medmvl.errors import ImagingError
from medmvl.imaging.volume import Units

#: HU. Air is -1000 and nearly every CT contains some; fat reaches only -120. A lower minimum indicates HU.
AIR_BELOW = -200.0
#: HU. Lowest plausible value: padding outside the field of view is often -2048, -3024 or -8192 after the rescale.
LEAST_HU = -10_000.0


#: HU. A larger value does not fit into the 16 bits of any scanner's output.
MOST_HU = 32767.0
#: HU. Air stored as 12-bit two's complement and read as unsigned is about 3096.
WRAPPED_FROM = 3000.0


#: Advice for files whose rescale can be given.
_RESCALE = (
    ", or give slope=... and intercept=... if a CT's rescale was not applied (CT-RATE: RescaleSlope and RescaleIntercept of its "
    "metadata csv)"
)


class UnitsError(ImagingError):
    """The units of a volume are neither declared nor evident from its values."""


def decide_units(
    array: np.ndarray, declared: Units | None, what: object, *, takes_rescale: bool = False
) -> tuple[Units, str]:
    """Return the units of `array` and the reason as a sentence for the history.

    Args:
        array: (D, H, W) values after every rescale stated in the file.
        declared: the caller's declaration; None: decide from the values.
        what: name of the file, for the message.
        takes_rescale: whether a slope and an intercept can be given for this kind of file, for the message.

    Raises:
        UnitsError: if the values are ambiguous: no air below -200 HU or values above 32767, and neither 8-bit nor within
            0..1.
    """
    if declared is not None:
        if declared not in ("HU", "arbitrary"):
            raise ImagingError(f"Units {declared!r} are not known. Use 'HU' or 'arbitrary'.")
        return declared, f"units {declared} as declared"
    if array.dtype == np.uint8 or array.dtype.kind == "b":
        return "arbitrary", "8-bit values: arbitrary units"
    # A coarse sample usually finds air; the exact minimum is computed only if it does not.
    low = float(array[:: max(array.shape[0] // 8, 1), ::4, ::4].min())
    if low >= AIR_BELOW:
        low = min(float(plane.min()) for plane in array)
    if LEAST_HU <= low < AIR_BELOW and array.dtype == np.int16:  # which holds nothing above MOST_HU
        return "HU", f"values reach down to {low:g}: Hounsfield units"
    high = max(float(plane.max()) for plane in array)
    if LEAST_HU <= low < AIR_BELOW and high <= MOST_HU:
        return "HU", f"values reach down to {low:g}: Hounsfield units"
    if low >= 0 and high <= 1:
        return "arbitrary", "values within 0..1: arbitrary units"
    raise UnitsError(
        f"{what}: values run from {low:g} to {high:g}, which does not tell whether they are Hounsfield units. "
        f"Say units='HU' if they are, units='arbitrary' if they are not (MR, windowed pictures){_RESCALE if takes_rescale else ''}."
    )


def doubt_hounsfield(array: np.ndarray, what: object) -> str | None:
    """Return a warning about values declared as Hounsfield units that contain no air, or None.

    Args:
        array: (D, H, W) values that the file declares to be Hounsfield units.
        what: name of the file, for the message.

    Raises:
        UnitsError: if no scanner makes the values: above 32767 or below -10000 HU, or no air below -200 HU but values
            above 3000, as if negative values had been stored as unsigned.
    """
    low = float(array[:: max(array.shape[0] // 8, 1), ::4, ::4].min())
    if array.dtype == np.int16 and LEAST_HU <= low < AIR_BELOW:
        return None
    low = min(float(plane.min()) for plane in array)
    high = max(float(plane.max()) for plane in array)
    if low >= LEAST_HU and high <= MOST_HU and (low < AIR_BELOW or high <= WRAPPED_FROM):
        if low < AIR_BELOW:
            return None
        return f"declared as Hounsfield units, but no value is below {AIR_BELOW:g} HU: there is no air in this scan"
    raise UnitsError(
        f"{what}: declared as Hounsfield units, but its values run from {low:g} to {high:g}, which no scanner makes "
        "(negative values stored as unsigned?). Say units='HU' if they are right, or units='arbitrary'."
    )
