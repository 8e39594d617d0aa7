"""Encoders: pixels to features on a token grid. Importing this package registers all of them."""

from medmvl.models.encoders import m3dclip, medmclip, slicewise, transformers_vision, vit3d  # noqa: F401  (to register)
from medmvl.models.encoders.base import ENCODERS, EncoderModule, EncoderSpec, encoder_spec

__all__ = ["ENCODERS", "EncoderModule", "EncoderSpec", "encoder_spec"]
