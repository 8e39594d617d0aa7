"""Augmentation that respects anatomy: small turns, scalings, shifts, intensity and noise; sides stay where they are.

A mirror image of a chest has its heart on the right, and the text that comes with it may say "left". So mirroring is
off, and where it is asked for it is only done to samples whose texts name no side. What a sample gets depends on
(seed, epoch, id) alone: not on the worker, the batch or the order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

_SIDES = re.compile(
    r"\b(left|right|bilateral|unilateral|ipsilateral|contralateral|dextro\w*|laevo\w*|levo\w*|situs|sinist\w*|lateral\w*"
    r"|dexter|[lr]t|lll|lul|rll|rml|rul|lingula\w*|links\w*|rechts\w*|gauche|droite?|izquierd\w*|derech\w*|side[ds]?"
    r"|box|where|locat\w*)\b|[左右]",
    re.IGNORECASE,
)


class Augmentation(BaseModel):
    """Ranges of the random changes; all zero is no change.

    Attributes:
        rotate: largest turn in the axial plane, degrees either way.
        scale: largest relative change of size in the axial plane (0.1: 90 to 110 %).
        shift: largest shift in the axial plane as a share of its extent.
        contrast: largest relative change of contrast about the mean.
        brightness: largest shift of grey values, as a share of the value range.
        noise: largest standard deviation of added Gaussian noise, as a share of the value range.
        mirror: probability of a left-right mirror where no text names a side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: float = Field(default=10.0, ge=0, le=30)
    scale: float = Field(default=0.1, ge=0, le=0.5)
    shift: float = Field(default=0.05, ge=0, le=0.5)
    contrast: float = Field(default=0.1, ge=0, lt=1)
    brightness: float = Field(default=0.05, ge=0, le=0.5)
    noise: float = Field(default=0.02, ge=0, le=0.5)
    mirror: float = Field(default=0.0, ge=0, le=1)

    def __call__(
        self,
        tensor: torch.Tensor,
        *,
        seed: int,
        epoch: int,
        sample_id: str,
        texts: Iterable[str] = (),
        value_range: tuple[float, float] | None = None,
    ) -> torch.Tensor:
        """Return a changed copy of `tensor`, of the same shape, dtype and device.

        Args:
            tensor: (C, D, H, W) as a geometry gives it, W running from one side of the patient to the other; or an
                image (C, H, W).
            texts: everything said about the sample: questions, answers, reports.
            value_range: (least, greatest) possible value; default 0..255 for uint8, else those of the tensor.
        """
        rng = generator(seed, epoch, sample_id)
        # Every number is drawn whether it is used or not, so that one setting does not change what another draws.
        draws = {name: float(rng.uniform(-1, 1)) for name in ("angle", "scale", "x", "y", "contrast", "brightness")}
        coin, sigma, noise_seed = float(rng.random()), float(rng.random()), int(rng.integers(2**62))
        low, high = value_range or _value_range(tensor)
        values = tensor.to(torch.float32)
        values = self._move(values, draws, low)
        if coin < self.mirror and not names_a_side(texts):
            values = values.flip(-1)
        mean = values.mean()
        values = (values - mean) * (1 + self.contrast * draws["contrast"]) + mean
        values = values + self.brightness * draws["brightness"] * (high - low)
        if self.noise:
            source = torch.Generator().manual_seed(noise_seed)
            values = values + torch.randn(values.shape, generator=source).to(values) * (
                self.noise * sigma * (high - low)
            )
        values = values.clamp(low, high)
        return values.round().to(tensor.dtype) if not tensor.dtype.is_floating_point else values.to(tensor.dtype)

    def _move(self, values: torch.Tensor, draws: dict[str, float], background: float) -> torch.Tensor:
        """Turn, scale and shift all slices alike, bilinear; what comes in from outside is background."""
        if not (self.rotate or self.scale or self.shift):
            return values
        angle = np.radians(self.rotate * draws["angle"])
        zoom = 1 / (1 + self.scale * draws["scale"])
        cosine, sine = float(np.cos(angle)) * zoom, float(np.sin(angle)) * zoom
        x, y = 2 * self.shift * draws["x"], 2 * self.shift * draws["y"]
        height, width = values.shape[-2:]
        aspect = width / height
        theta = torch.tensor([[cosine, -sine / aspect, x], [sine * aspect, cosine, y]], dtype=torch.float32)
        planes = values.reshape(1, -1, height, width)
        grid = F.affine_grid(theta[None].to(values.device), [1, 1, height, width], align_corners=False)
        moved = F.grid_sample(planes - background, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return (moved + background).reshape(values.shape)


def names_a_side(texts: Iterable[str]) -> bool:
    """Say whether any text can name a side: left, right, bilateral, RUL, "where", a box ...; when in doubt, yes."""
    return any(_SIDES.search(text) for text in texts)


def generator(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Return the random generator of one sample in one epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _value_range(tensor: torch.Tensor) -> tuple[float, float]:
    if tensor.dtype == torch.uint8:
        return 0.0, 255.0
    return float(tensor.min()), float(tensor.max())
