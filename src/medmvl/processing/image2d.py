"""2D images to tensors, through the image processor that the encoder was trained with."""

from __future__ import annotations

from typing import Any

import PIL.Image
import transformers
from PIL.Image import Image as PILImage
from torch import Tensor

from medmvl.errors import CheckpointError
from medmvl.imaging import Image, read_image
from medmvl.processing.resize_order import with_fixed_order

#: An image as users hand it over: a path, an image of ours, or a PIL image.
ImageLike = str | Image | PILImage


class ImageProcessor:
    """Runs a transformers image processor, always in its PIL implementation.

    With torchvision installed transformers would choose another implementation, whose numbers differ slightly; Pillow's
    own versions differ as well, see `resize_order`.

    Args:
        settings: the dictionary of the image processor, with `image_processor_type`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = _named(settings)
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
        settings, _ = transformers.BaseImageProcessor.get_image_processor_dict(folder)
        return cls(settings)

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return what black and white become, each (3, 1, 1) float32."""
        black, white = (self(PIL.Image.new("RGB", (8, 8), (level,) * 3)) for level in (0, 255))
        middle = (
            slice(None),
            slice(black.shape[1] // 2, black.shape[1] // 2 + 1),
            slice(black.shape[2] // 2, black.shape[2] // 2 + 1),
        )
        return black[middle], white[middle]

    def __call__(self, image: ImageLike) -> Tensor:
        """Return (3, H, W) float32."""
        picture = read_image(image) if isinstance(image, str) else image
        if isinstance(picture, Image):
            picture = picture.to_pil()
        return self._processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]


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
