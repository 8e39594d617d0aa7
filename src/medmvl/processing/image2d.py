"""2D images to tensors, by the image processor that the encoder was trained with."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import PIL.Image
import transformers
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from torch import Tensor

from medmvl.data.read_options import reading_of
from medmvl.errors import CheckpointError, DataError
from medmvl.imaging import Image, read_image
from medmvl.pretrained import check_folder
from medmvl.processing.resize_order import with_fixed_order

#: Longest side of a picture for an encoder.
LONGEST_SIDE = 8192

#: An image as users hand it over: a path, an image of ours, or a PIL image.
ImageLike = str | os.PathLike[str] | Image | PILImage


class ImageProcessor:
    """Runs a transformers image processor, always in its PIL implementation.

    With torchvision installed transformers would choose another implementation, whose numbers differ slightly; Pillow's
    own versions differ as well, see `resize_order`.

    Args:
        settings: the dictionary of the image processor, with `image_processor_type`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = _named(settings)
        _check_lengths(self.settings)
        values = dict(self.settings)
        name = str(values.pop("image_processor_type", ""))
        self._processor = with_fixed_order(pil_processor_class(name))(**values)

    @classmethod
    def for_size(cls, height: int, width: int) -> ImageProcessor:
        """Return a processor for an encoder with fresh weights: bicubic resize, values to [-1, 1]."""
        processor = transformers.SiglipImageProcessorPil(size={"height": height, "width": width})
        return cls({**processor.to_dict(), "image_processor_type": "SiglipImageProcessor"})

    @classmethod
    def from_pretrained(cls, folder: str) -> ImageProcessor:
        """Return the processor saved in an encoder's folder."""
        check_folder(folder)
        settings, _ = transformers.BaseImageProcessor.get_image_processor_dict(folder)
        return cls(settings)

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the values of black and white after preprocessing, each (3, 1, 1) float32."""
        black, white = (self(PIL.Image.new("RGB", (8, 8), (level,) * 3)) for level in (0, 255))
        middle = (
            slice(None),
            slice(black.shape[1] // 2, black.shape[1] // 2 + 1),
            slice(black.shape[2] // 2, black.shape[2] // 2 + 1),
        )
        return black[middle], white[middle]

    def positions(self, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the row (H,) and the column (W,) of an image of this size that each row and column of its tensor shows.

        A picture of two ramps goes through the processor, whatever it does (resize, crop, pad), and lines are fitted to what
        comes out. Rows and columns that show padding are nan.
        """
        down = np.rint(np.linspace(0, 255, height)).astype(np.uint8)[:, None]
        across = np.rint(np.linspace(0, 255, width)).astype(np.uint8)[None, :]
        ramps = np.zeros((height, width, 3), dtype=np.uint8)
        ramps[..., 0], ramps[..., 1] = down, across
        black, white = self.value_range()
        seen = (self(PIL.Image.fromarray(ramps)) - black) / (white - black)
        rows, columns = seen[0].median(dim=1).values.numpy(), seen[1].median(dim=0).values.numpy()
        return _fit_line(rows, height), _fit_line(columns, width)

    def __call__(self, image: ImageLike) -> Tensor:
        """Return (3, H, W) float32.

        Raises:
            DataError: if it cannot be read, or is something else than an image.
        """
        if isinstance(image, os.PathLike):
            image = os.fspath(image)
        picture = read_image(image, **reading_of(image).for_image()) if isinstance(image, str) else image
        if isinstance(picture, Image):
            picture = picture.to_pil()
        if not isinstance(picture, PILImage):
            raise DataError(
                f"An image is a path, a PIL image or a medmvl Image, not a {type(image).__name__}. Make one of an array by "
                "PIL.Image.fromarray."
            )
        return self._processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _fit_line(shares: NDArray[np.float32], length: int) -> NDArray[np.float64]:
    """Return the index in the input of each entry of `shares` (N,), the gray of a ramp over `length` pixels, from 0 to 1."""
    index = np.arange(len(shares))
    inner = (shares > 0.05) & (shares < 0.95)  # a filter bends the ends
    if length < 2 or inner.sum() < 2:
        return np.linspace(0, length - 1, len(shares))
    slope, start = np.polyfit(index[inner], shares[inner].astype(np.float64) * (length - 1), 1)
    positions = start + slope * index
    return np.where((positions >= -0.5) & (positions <= length - 0.5), positions, np.nan)


def _check_lengths(settings: dict[str, Any]) -> None:
    """Raise if a picture would become absurdly large: resizing one to 10^6 x 10^6 fills the memory.

    Raises:
        CheckpointError: naming the setting.
    """
    for name in ("size", "crop_size", "pad_size", "max_image_size", "min_pixels", "max_pixels"):
        value = settings.get(name)
        most = LONGEST_SIDE**2 if name.endswith("pixels") else LONGEST_SIDE
        numbers = [*value.values()] if isinstance(value, dict) else [value]
        if any(isinstance(number, int | float) and not 0 < number <= most for number in numbers):
            raise CheckpointError(
                f"The image processor's {name} is {value!r:.100}; allowed is 1 to {most}. Copy the folder again."
            )


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that name their class as transformers has done since 2022: files of published CLIPs are older."""
    old = settings.get("feature_extractor_type")
    if old is None:
        return settings
    rest = {key: value for key, value in settings.items() if key != "feature_extractor_type"}
    return {"image_processor_type": str(old).replace("FeatureExtractor", "ImageProcessor"), **rest}


def pil_processor_class(name: str) -> Any:
    """Return the PIL class of an image processor named as in a checkpoint (old, fast or PIL spelling)."""
    base = name.removesuffix("Fast").removesuffix("Pil")
    for candidate in (f"{base}Pil", base):
        found = getattr(transformers, candidate, None) if base.endswith("ImageProcessor") else None
        if found is not None:
            return found
    raise CheckpointError(
        f"Unknown image processor {name!r}; it must be one of transformers, such as SiglipImageProcessor."
    )
