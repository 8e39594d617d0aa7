"""The `Geometry` class: a versioned description of how a volume becomes a model's input tensor.

A geometry covers windowing, cropping and resampling. Its hash identifies it: it is stored in the checkpoint's processor
and in every cache, and a mismatch is refused. The named geometries are in `geometries.py`; a YAML file or overrides
define others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medmvl.errors import GeometryError, ImagingError, did_you_mean, naming, shown
from medmvl.files import existing_file, load_yaml
from medmvl.imaging.orientation import AXIAL, check_code
from medmvl.imaging.preprocessing.intensity import Intensity
from medmvl.imaging.preprocessing.resample import Box, Grid, Resampling, foreground_box, resample, value_range
from medmvl.imaging.volume import Volume, check_finite
from medmvl.registry import Registry
from medmvl.validation import allowed_and_given

if TYPE_CHECKING:  # imported at first use: reading and describing geometries needs no torch, which takes seconds
    import torch

Triple = tuple[float, float, float]

#: named geometries; `geometries.py` fills it
GEOMETRIES: Registry[Geometry] = Registry("geometry", GeometryError)


class Geometry(BaseModel):
    """Windowing, cropping and resampling of a volume. The steps run in the order of the fields below.

    Attributes:
        name, version: identity. The version increases when the same fields start to mean something else.
        source: paper or code the numbers come from; not part of the hash.
        units: "HU": only volumes in Hounsfield units are accepted; "any": volumes in arbitrary units as well.
        orientation: patient sides towards which the output axes (D, H, W) grow.
        windows: (low, high) in the volume's units, one output channel each; empty: one channel of unchanged values.
        scale: output values of the low and the high end of a window.
        minmax: scale the volume's minimum and maximum (after the window) to 0 and 1.
        normalize: (mean, std) to subtract and divide by, for published pipelines that normalize before their crop.
        window_after_resampling: interpolate the raw values first and window afterwards. Clipping is not linear, so the
            order changes the result.
        crop: "foreground": crop to the bounding box of the foreground voxels; "none".
        foreground_above: threshold in the volume's units for "foreground"; None: gray value > 0 after the steps above.
        spacing: resample to these mm (z, y, x) first; None: `size` alone decides.
        grid: how the resampled grid is aligned, see `resample.plan_axis`.
        size: (D, H, W) of the output.
        fit: "resize": interpolate (trilinear, no antialiasing) to `size`; "crop_pad": cut or pad at the center.
        pad_value: output value of the padding.
        dtype: "uint8": gray values 0..255, truncated; "float32".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    version: int = Field(default=1, ge=1)
    source: str = ""
    units: Literal["HU", "any"] = "HU"
    orientation: str = AXIAL
    windows: tuple[tuple[float, float], ...] = ((-1000.0, 1000.0),)
    scale: tuple[float, float] = (0.0, 255.0)
    minmax: bool = False
    normalize: tuple[float, float] | None = None
    window_after_resampling: bool = False
    crop: Literal["none", "foreground"] = "none"
    foreground_above: float | None = None
    spacing: Triple | None = None
    grid: Grid = "edges"
    size: tuple[int, int, int] = (32, 256, 256)
    fit: Literal["resize", "crop_pad"] = "resize"
    pad_value: float = 0.0
    dtype: Literal["uint8", "float32"] = "uint8"

    @field_validator("orientation")
    @classmethod
    def _known_sides(cls, code: str) -> str:
        return check_code(code)

    @model_validator(mode="after")
    def _consistent(self) -> Geometry:
        if any(not low < high for low, high in self.windows):
            raise ValueError(f"each window needs low < high; got {self.windows}")
        if any(n < 1 for n in self.size):
            raise ValueError(f"size (D, H, W) must be positive; got {self.size}")
        if self.spacing is not None and any(mm <= 0 for mm in self.spacing):
            raise ValueError(f"spacing (z, y, x) must be positive; got {self.spacing}")
        if self.units == "any" and self.windows:
            raise ValueError("windows are in Hounsfield units; with units 'any' give none (and minmax instead)")
        if self.minmax and len(self.windows) > 1:
            raise ValueError("minmax goes with one channel")
        if self.grid == "centers" and self.spacing is None:
            raise ValueError("grid 'centers' goes with a spacing")
        if self.fit == "crop_pad" and self.spacing is None:
            raise ValueError("fit 'crop_pad' goes with a spacing; use fit 'resize' without one")
        if self.crop == "foreground" and self.foreground_above is None and len(self.windows) > 1:
            raise ValueError("with several windows, give foreground_above in the volume's units")
        if self.window_after_resampling and self.crop == "foreground" and self.foreground_above is None:
            raise ValueError("with window_after_resampling, give foreground_above in the volume's units")
        if self.dtype == "uint8" and (self.minmax or self.normalize or not self.windows or self.scale != (0.0, 255.0)):
            raise ValueError("dtype 'uint8' needs windows scaled to (0, 255), no minmax and no normalize")
        return self

    @property
    def channels(self) -> int:
        """Number of output channels C."""
        return max(len(self.windows), 1)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Minimum and maximum possible output; None if `normalize` or unwindowed values leave it open."""
        if self.normalize is not None or not (self.windows or self.minmax):
            return None
        return (0.0, 1.0) if self.minmax else self.scale

    @cached_property
    def hash(self) -> str:
        """Hash of every field that can change the result (all but `source`), as 16 hex digits."""
        canonical = json.dumps(self.model_dump(exclude={"source"}, mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values from which `from_dict` builds an equal geometry."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """Build a geometry from `to_dict` output.

        Raises:
            GeometryError: naming the field and the closest known one, for unknown or impossible values.
        """
        unknown = set(values) - set(cls.model_fields)
        if unknown:
            name = min(map(str, unknown))
            raise GeometryError(f"A geometry has no field {shown(name)}. {did_you_mean(name, cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            where = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'geometry'}: {allowed_and_given(fault)}"
                for fault in error.errors()
            )
            raise GeometryError(f"Geometry {values.get('name', '')!r} is not possible: {where}.") from error

    def check_same(self, other: str, what: str) -> None:
        """Raise unless `other` is this geometry's hash.

        Args:
            other: the hash stored with `what`.
            what: the object that was prepared with it, for the message ("the cache ...", "the checkpoint ...").

        Raises:
            GeometryError: with both hashes.
        """
        if other != self.hash:
            raise GeometryError(
                f"{what} was prepared with geometry {other}, the model wants {self.name} v{self.version} ({self.hash}). "
                "Prepare it again with the model's geometry, or use the model it was made for."
            )

    def __call__(self, volume: Volume) -> torch.Tensor:
        """Return the tensor (C, D, H, W), uint8 or float32 by `dtype`, before the encoder's own normalization.

        Raises:
            GeometryError: if the units do not match, the spacing is needed and unknown, or there is no foreground.
            ImagingError: for NaN or infinite values.
        """
        return self.prepare(volume).tensor

    def prepare(self, volume: Volume) -> Prepared:
        """Return the tensor (C, D, H, W) of `__call__` together with its spacing, crop box and history."""
        if not isinstance(volume, Volume):
            raise ImagingError(
                f"A geometry prepares a Volume, not a {type(volume).__name__}. Read it with read_volume."
            )
        self._check_units(volume)
        check_finite(volume.array)
        oriented = volume.to_orientation(self.orientation)
        intensity = self._intensity(oriented.array)
        plan = self._plan(oriented, self._box(oriented.array, intensity))
        out = np.empty((self.channels, *self.size), dtype=self.dtype)
        if any(r < s for r, s in zip(plan.resampled, self.size, strict=True)):
            out.fill(self.pad_value)
        late = self.window_after_resampling
        # Truncation (not rounding) to uint8 is the reference's; numpy's float -> uint8 cast truncates.
        resample(
            oriented.array,
            plan,
            to_channels=_as_single_channel if late else intensity.apply,
            finish=(lambda plane: intensity.apply(plane[0])) if late else (lambda plane: plane),
            out=out,
        )
        self._check_constant(out, oriented.array)
        import torch

        return Prepared(
            torch.from_numpy(out), self._out_spacing(oriented, plan), plan.box, self._story(oriented, plan), self.hash
        )

    def plan(self, volume: Volume) -> Resampling:
        """Return where the voxels of `prepare` come from: crop box and resampling of the volume in this orientation.

        Raises:
            GeometryError: as `prepare`.
        """
        self._check_units(volume)
        oriented = volume.to_orientation(self.orientation)
        return self._plan(oriented, self._box(oriented.array, self._intensity(oriented.array)))

    def affine(self, volume: Volume) -> np.ndarray:
        """Return (4, 4) float64, index (d, h, w) of the prepared tensor -> the volume's RAS+ mm.

        Raises:
            GeometryError: as `prepare`.
        """
        plan = self.plan(volume)
        inner = np.eye(4)  # index of the tensor -> index of the oriented volume
        for axis, (start, stop) in enumerate(zip(*plan.box, strict=True)):
            step, first = (stop - start) / plan.resampled[axis], 0.0
            if plan.step is not None:
                step = plan.step[axis]
            else:
                first = step / 2 - 0.5  # the edges of the first voxels coincide, not their centers
            inner[axis, axis], inner[axis, 3] = step, start + first + step * plan.offset[axis]
        return np.asarray(volume.to_orientation(self.orientation).affine @ inner)

    def _intensity(self, array: np.ndarray) -> Intensity:
        plain = Intensity(self.windows, self.scale, self.normalize)
        if not self.minmax:
            return plain
        low, high = value_range(array)
        try:
            return plain.stretched_to((low, high))
        except ValueError:
            raise GeometryError(
                f"Geometry {self.name!r} stretches values to 0..1 and the volume is constant "
                f"(values from {low:g} to {high:g})."
            ) from None

    def _check_units(self, volume: Volume) -> None:
        if self.units == "HU" and volume.units != "HU":
            raise GeometryError(
                f"Geometry {self.name!r} windows Hounsfield units and the volume is in arbitrary units. "
                "If its values are HU, read it with units='HU'; else use a geometry with units 'any', such as 'm3d'."
            )
        if self.spacing is not None and volume.spacing is None:
            raise GeometryError(
                f"Geometry {self.name!r} resamples to {self.spacing} mm and the volume's spacing is unknown. "
                "Read it with spacing=(z, y, x) in mm."
            )

    def _check_constant(self, out: np.ndarray, array: np.ndarray) -> None:
        """Raise if the result has no contrast.

        A crop to a single foreground voxel is allowed: the reference produces a constant there too.
        """
        if any(channel.min() < channel.max() for channel in out):
            return
        low, high = value_range(array)
        if low == high or self.crop == "none":
            raise GeometryError(
                f"Geometry {self.name!r} makes a constant of the volume, whose values run from {low:g} to {high:g}. "
                "Is this a scan, and is it in Hounsfield units?"
            )

    def _box(self, array: np.ndarray, intensity: Intensity) -> Box:
        if self.crop == "none":
            return (0, 0, 0), (array.shape[0], array.shape[1], array.shape[2])
        above = self.foreground_above
        test = intensity.is_positive if above is None else (lambda values: values > above)
        box = foreground_box(array, test)
        if box is None:
            low, high = value_range(array)
            threshold = "gray value 0 after the window" if above is None else f"{above:g} HU"
            raise GeometryError(
                f"Geometry {self.name!r} crops to the foreground and no voxel is above {threshold}: "
                f"the values run from {low:g} to {high:g}. Is this a scan, and is it in Hounsfield units?"
            )
        return box

    def _plan(self, volume: Volume, box: Box) -> Resampling:
        extent = tuple(stop - start for start, stop in zip(*box, strict=True))
        if self.spacing is None:
            return Resampling(box, self.size, self.size)
        assert volume.spacing is not None
        ratios = tuple(have / want for have, want in zip(volume.spacing, self.spacing, strict=True))
        if self.grid == "edges":
            resampled = tuple(max(int(n * ratio), 1) for n, ratio in zip(extent, ratios, strict=True))
            step = None
        else:
            resampled = tuple(round((n - 1) * ratio) + 1 for n, ratio in zip(extent, ratios, strict=True))
            step = _triple(1 / ratio for ratio in ratios)
        if self.fit == "resize":
            resampled = self.size
        return Resampling(box, _ints(resampled), self.size, self.grid, step)

    def _out_spacing(self, volume: Volume, plan: Resampling) -> Triple | None:
        if volume.spacing is None:
            return None
        if plan.step is not None:
            return self.spacing
        extent = (stop - start for start, stop in zip(*plan.box, strict=True))
        return _triple(mm * n / r for mm, n, r in zip(volume.spacing, extent, plan.resampled, strict=True))

    def _story(self, volume: Volume, plan: Resampling) -> tuple[str, ...]:
        steps = list(volume.history)
        if self.windows:
            windows = ", ".join(f"[{low:g}, {high:g}]" for low, high in self.windows)
            steps.append(f"window {windows} {volume.units} -> {self.scale[0]:g}..{self.scale[1]:g}")
        if self.minmax:
            steps.append("least and greatest value -> 0..1")
        if self.normalize:
            steps.append(f"minus {self.normalize[0]:g}, divided by {self.normalize[1]:g}")
        if self.crop == "foreground":
            steps.append(f"cropped to the foreground box {plan.box[0]} .. {plan.box[1]} of {volume.shape}")
        steps.append(f"interpolated to {plan.resampled}, {self.fit} to {self.size}, {self.dtype}")
        return tuple(steps)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model's input tensor and how it was made.

    Attributes:
        tensor: (C, D, H, W).
        spacing: (z, y, x) mm of the tensor's voxels; None if the volume's is unknown.
        box: crop box in the oriented volume, start and end (exclusive).
        history: the volume's history and the geometry's steps.
        geometry_hash: hash of the geometry that made it.
    """

    tensor: torch.Tensor
    spacing: Triple | None
    box: Box
    history: tuple[str, ...]
    geometry_hash: str


def geometry(name: str | Path | Mapping[str, Any] | Geometry, **overrides: Any) -> Geometry:
    """Return a named geometry (or one from a YAML file, a dict, a Geometry), with fields overridden.

    Args:
        name: one of `geometry_names()`, a Geometry, the output of `Geometry.to_dict`, or some fields as a dict or a
            .yaml/.yml file. Missing fields come from the named geometry in `base`, else from the one in `name`, else
            from the defaults.
        overrides: fields to change, e.g. size=(32, 256, 256); the hash changes with them.

    Raises:
        GeometryError: for unknown names, unknown fields or impossible values.
    """
    if isinstance(name, Geometry):
        base: dict[str, Any] = name.to_dict()
    elif isinstance(name, Mapping):
        base = _with_base(dict(name))
    elif str(name).endswith((".yaml", ".yml")):
        with naming(name):
            return Geometry.from_dict({**_with_base(_read_yaml(Path(name))), **overrides})
    else:
        base = GEOMETRIES[str(name)].to_dict()
    return Geometry.from_dict({**base, **overrides})


def geometry_names() -> list[str]:
    """Return the names of all registered geometries."""
    return GEOMETRIES.names()


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    """Fill missing fields from the named geometry in `base`, or else in `name`."""
    if "base" in values:
        return {**GEOMETRIES[str(values.pop("base"))].to_dict(), **values}
    if values.get("name") in GEOMETRIES and not set(Geometry.model_fields) <= set(values):
        return {**GEOMETRIES[str(values["name"])].to_dict(), **values}
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = load_yaml(existing_file(path, "geometry file").read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number of 5000 digits; 1000 nested lists
        reason = " ".join(str(error).split()).rstrip(".")
        raise GeometryError(f"{path} is not valid YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise GeometryError(f"{path} must hold the fields of a geometry as a mapping, not {type(values).__name__}.")
    return values


def _as_single_channel(plane: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(plane, dtype=np.float32)[None]


def _triple(values: Any) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _ints(values: Any) -> tuple[int, int, int]:
    a, b, c = (int(v) for v in values)
    return a, b, c
