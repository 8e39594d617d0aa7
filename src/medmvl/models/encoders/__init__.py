"""Encoders: pixels to features on a token grid. Importing this package registers all of them."""

from medmvl.models.encoders import (  # noqa: F401  (imported to register)
    any_vision,
    m3dclip,
    medmclip,
    siglip2,
    slicewise,
    tiled,
    transformers_vision,
    vit3d,
)
from medmvl.models.encoders.encoder import ENCODERS, EncoderModule, EncoderSpec, encoder_spec

__all__ = ["ENCODERS", "EncoderModule", "EncoderSpec", "encoder_spec"]
