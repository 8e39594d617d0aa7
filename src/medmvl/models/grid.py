"""The grid of tokens that an image or a volume becomes.

An encoder turns its input into a `Grid`, a pooling turns a grid into a smaller one, a projector keeps it. The number of
tokens that reach the LLM is `medmvl.models.tower.count_visual_tokens`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grid:
    """Tokens laid out on a grid.

    Attributes:
        shape: (h, w) of an image, (d, h, w) of a volume.
        num_prefix_tokens: class and register tokens before the patches; for a stack of slices, before those of each slice.
        slicewise: True if the first axis is a stack of separately encoded slices.
    """

    shape: tuple[int, ...]
    num_prefix_tokens: int = 0
    slicewise: bool = False

    @property
    def tokens(self) -> int:
        """Total number of tokens."""
        slices = self.shape[0] if self.slicewise else 1
        return math.prod(self.shape) + slices * self.num_prefix_tokens

    @property
    def plane(self) -> tuple[int, int]:
        """The in-plane part (h, w)."""
        return self.shape[-2], self.shape[-1]

    def __str__(self) -> str:
        text = "x".join(map(str, self.shape))
        return f"{text} + {self.num_prefix_tokens} prefix" if self.num_prefix_tokens else text
