"""Are these values Hounsfield units? Decided from what is declared, else from the values, else asked."""

from __future__ import annotations

import numpy as np

from medmvl.errors import ImagingError
from medmvl.imaging.volume import Units

#: Air is -1000 HU and every CT shows some; fat alone reaches -120. A least value below this one says HU.
AIR_BELOW = -200.0
#: no scanner writes less (padding outside the field of view is often -2048, -3024 or -8192 after the rescale)
LEAST_HU = -10_000.0


class UnitsError(ImagingError):
    """The units of a volume are neither declared nor plain from its values."""


def decide_units(array: np.ndarray, declared: Units | None, what: object) -> tuple[Units, str]:
    """Return the units of `array` and the reason, one sentence for the history.

    Args:
        array: (D, H, W) values after every rescale the file states.
        declared: what the caller says; None: look at the values.
        what: name of the file, for the message.

    Raises:
        UnitsError: if the values can be both: not below -200 (so no air in HU), but no 8-bit or 0..1 picture either.
    """
    if declared is not None:
        if declared not in ("HU", "arbitrary"):
            raise ImagingError(f"Units {declared!r} are not known. Use 'HU' or 'arbitrary'.")
        return declared, f"units {declared} as declared"
    if array.dtype == np.uint8 or array.dtype.kind == "b":
        return "arbitrary", "8-bit values: arbitrary units"
    # A coarse look is enough for "is there air?"; the exact one only where the coarse one says no.
    low = float(array[:: max(array.shape[0] // 8, 1), ::4, ::4].min())
    if low >= AIR_BELOW:
        low = min(float(plane.min()) for plane in array)
    if LEAST_HU <= low < AIR_BELOW:
        return "HU", f"values reach down to {low:g}: Hounsfield units"
    high = max(float(plane.max()) for plane in array)
    if low >= 0 and high <= 1:
        return "arbitrary", "values within 0..1: arbitrary units"
    raise UnitsError(
        f"{what}: values run from {low:g} to {high:g}, which does not tell whether they are Hounsfield units. "
        "Say units='HU' if they are, units='arbitrary' if they are not (MR, windowed pictures), or give "
        "slope=... and intercept=... if a CT's rescale was not applied (CT-RATE: RescaleSlope and RescaleIntercept "
        "of its metadata csv)."
    )
