"""Random augmentation: small rotations, scalings, shifts, intensity changes and noise; patient sides are preserved.

A mirrored chest has its heart on the right, while the text of the record may say "left". Mirroring is therefore off by
default, and is applied only to samples whose texts do not name a side. The changes depend on (seed, epoch, id) only,
not on worker, batch or order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

#: Minimum and maximum possible value, for all channels or as (C, 1, ...) tensors per channel.
Range = tuple[float, float] | tuple[torch.Tensor, torch.Tensor]

#: Words that name or may name a side, in the languages of the public data sets: sides, lobes that exist on one side
#: only, and questions about a location.
_SIDES = re.compile(
    r"\b(left\w*|right\w*|bilateral\w*|unilateral\w*|ipsilateral\w*|contralateral\w*|dextro\w*|laevo\w*|levo\w*|situs"
    r"|sinist\w*|lateral\w*|dexter|[lr]t|ll[lz]|lul|rll|rml|rul|lingul\w*|middle lobe|hemi\w*|mirror\w*"
    r"|links\w*|linke[nmrs]?|rechts\w*|rechte[nmrs]?|gauche\w*|droite?s?|izquierd\w*|derech\w*|esquerd\w*|direit\w*|destr[aoei]"
    r"|vänster|höger|venstre|højre|lew[aey]\w*|praw[aey]\w*"
    r"|side[ds]?|where|locat\w*|position\w*|quadrant\w*|box\w*|coordinat\w*)\b",
    re.IGNORECASE,
)
#: "L" or "R" alone, in capitals, as on a radiograph.
_MARKER = re.compile(r"\b[LR]\b")
#: Coordinates: <12><34>, [0.1, 0.2, ...], {12, 34, ...}, (12, 34).
_COORDINATES = re.compile(r"<\s*\d+(\.\d+)?\s*>|[\[({]\s*\d+(\.\d+)?\s*[,;]\s*\d")
#: Letters of scripts whose words for left and right are not listed above (everything but Latin and Greek).
_OTHER_SCRIPT = re.compile(r"[\u0400-\uffff]")


class Augmentation(BaseModel):
    """Random augmentation of an image or volume; each field is the range of one change, 0 turns it off."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rotate: Annotated[float, Field(ge=0, le=30)] = 10.0
    """Largest in-plane rotation in degrees, in either direction."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest relative in-plane change of size; 0.1 means 90 to 110 %."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Largest in-plane shift, as a fraction of the extent."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest relative change of contrast about the mean."""
    brightness: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Largest shift of the gray values, as a fraction of their range."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """Largest standard deviation of the added Gaussian noise, as a fraction of the range of gray values."""
    mirror: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a left-right mirror; applied only if no text of the record can name a side (left, RUL, where, a box ...)."""

    def __call__(
        self,
        tensor: torch.Tensor,
        *,
        seed: int,
        epoch: int,
        sample_id: str,
        item: int = 0,
        texts: Iterable[str] = (),
        value_range: Range | None = None,
        mirror_axis: int = -1,
    ) -> torch.Tensor:
        """Return a changed copy of `tensor`, of the same shape and dtype.

        Args:
            tensor: (C, D, H, W) volume from a geometry or (C, H, W) image, on the CPU.
            item: index of the image or volume within the sample, from 0; all items of a sample are mirrored together.
            texts: questions, answers and reports of the sample.
            value_range: (minimum, maximum) possible value, as numbers or as (C, 1, ...) tensors; default 0..255 for
                uint8, else the range of the tensor. The minimum fills areas moved in from outside.
            mirror_axis: the axis that runs between the patient's left and right: W of the axial view.
        """
        coin = float(generator(seed, epoch, sample_id).random())
        rng = generator(seed, epoch, f"{sample_id}/{item}")
        # Every number is drawn even if unused, so that one setting does not change the random numbers of another.
        draws = {name: float(rng.uniform(-1, 1)) for name in ("angle", "scale", "x", "y", "contrast", "brightness")}
        sigma, noise_seed = float(rng.random()), int(rng.integers(2**62))
        low, high = (torch.as_tensor(v, dtype=torch.float32) for v in value_range or _value_range(tensor))
        values = self._move(tensor.to(torch.float32), draws, low)
        if coin < self.mirror and not names_a_side(texts):
            values = values.flip(mirror_axis)
        mean = _mean(values)
        values = (values - mean) * (1 + self.contrast * draws["contrast"]) + mean
        values = values + (high - low) * (self.brightness * draws["brightness"])
        if self.noise:
            # The same noise for all channels: they are windows or colors of the same measurement.
            source = torch.Generator().manual_seed(noise_seed)
            values = values + torch.randn(values.shape[1:], generator=source) * ((high - low) * (self.noise * sigma))
        values = torch.clamp(values, low, high)
        return values.round().to(tensor.dtype) if not tensor.dtype.is_floating_point else values.to(tensor.dtype)

    def _move(self, values: torch.Tensor, draws: dict[str, float], background: torch.Tensor) -> torch.Tensor:
        """Rotate, scale and shift all slices of `values` (C, ..., H, W) alike, filling with `background`."""
        if not (self.rotate or self.scale or self.shift):
            return values
        angle = np.radians(self.rotate * draws["angle"])
        zoom = 1 / (1 + self.scale * draws["scale"])
        cosine, sine = float(np.cos(angle)) * zoom, float(np.sin(angle)) * zoom
        x, y = 2 * self.shift * draws["x"], 2 * self.shift * draws["y"]
        height, width = values.shape[-2:]
        aspect = width / height
        theta = torch.tensor([[cosine, -sine / aspect, x], [sine * aspect, cosine, y]], dtype=torch.float32)
        planes = (values - background).reshape(1, -1, height, width)
        grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
        moved = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved.reshape(values.shape) + background


def names_a_side(texts: Iterable[str]) -> bool:
    """Return whether any text may name a side (left, right, bilateral, RUL, "where", a box ...); True if in doubt."""
    patterns = (_SIDES, _MARKER, _COORDINATES, _OTHER_SCRIPT)
    return any(pattern.search(text) for text in texts for pattern in patterns)


def generator(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Return the random generator for one sample in one epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel as (C, 1, ...), computed by numpy: its sums do not depend on the thread count."""
    axes = tuple(range(1, values.ndim))
    return torch.from_numpy(values.numpy().mean(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32))


def _value_range(tensor: torch.Tensor) -> tuple[float, float]:
    if tensor.dtype == torch.uint8:
        return 0.0, 255.0
    return float(tensor.min()), float(tensor.max())
