"""Image resizing that gives equal pixels under Pillow 12 and 13.

Pillow resizes in two passes and rounds to 8 bits between them, so the order of the passes decides the last bit. Up to
version 12 the horizontal pass comes first; since version 13 (pull request 9549) the vertical one does where the height
shrinks by more than twice as many pixels as the width. About a quarter of such an image's values differ by one gray
level. Here the newer rule is always used (found by comparing both orders with Pillow 13.0 over a range of sizes).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict


def vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Return whether the vertical pass comes first."""
    shrinks = height > new_height
    return shrinks and height - new_height > 2 * (width - new_width)


@cache
def with_fixed_order(processor: type[Any]) -> type[Any]:
    """Return a subclass of a PIL image processor that resizes in the order above, or the class if it resizes its own way."""
    if getattr(processor, "resize", None) is not PilBackend.resize:
        return processor

    class FixedOrder(processor):
        def resize(self, image: np.ndarray, size: SizeDict, resample: Any = None, **options: Any) -> np.ndarray:
            """(C, H, W) uint8 -> (C, H', W') uint8."""
            height, width = image.shape[-2:]
            # The processor decides the size (shortest edge, ...); resizing an empty image shows it.
            shape = super().resize(np.zeros_like(image), size, PILImageResampling.NEAREST, **options).shape
            new_height, new_width = shape[-2:]
            if vertical_first(height, width, new_height, new_width):
                image = super().resize(image, SizeDict(height=new_height, width=width), resample)
            return super().resize(image, SizeDict(height=new_height, width=new_width), resample)

    FixedOrder.__name__ = processor.__name__
    return FixedOrder
