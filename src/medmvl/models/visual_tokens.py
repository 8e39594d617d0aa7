"""How many tokens an image or a volume becomes: the one owner of that number.

An encoder turns its input into a `Grid` of tokens, a pooling turns a grid into a smaller one, a projector keeps it.
The processor expands placeholders with `count_visual_tokens`; the model compares what arrives with what it was given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmvl.models.tower import TowerSpec


@dataclass(frozen=True, slots=True)
class Grid:
    """Tokens laid out on a grid.

    Attributes:
        shape: (h, w) of an image, (d, h, w) of a volume.
        prefix: tokens without a place (class, register) that stand before the patches; for a stack of slices,
            before those of each slice.
        slicewise: True if the first axis is a stack of separately encoded slices.
    """

    shape: tuple[int, ...]
    prefix: int = 0
    slicewise: bool = False

    @property
    def tokens(self) -> int:
        """Total number of tokens."""
        slices = self.shape[0] if self.slicewise else 1
        return math.prod(self.shape) + slices * self.prefix

    @property
    def plane(self) -> tuple[int, int]:
        """The in-plane part (h, w)."""
        return self.shape[-2], self.shape[-1]

    def __str__(self) -> str:
        text = "x".join(map(str, self.shape))
        return f"{text} + {self.prefix} prefix" if self.prefix else text


def count_visual_tokens(tower: TowerSpec, size: tuple[int, ...] | None = None) -> int:
    """Return how many LLM positions one input of `size` takes ((H, W) or (D, H, W); default: the encoder's own)."""
    return tower.output_grid(size).tokens
