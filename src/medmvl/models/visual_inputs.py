"""Names of the visual inputs of a sample, a batch and the model's `forward`."""

from __future__ import annotations

#: Modality -> key of the pixels: images (N, C, H, W), volumes (M, C, D, H, W).
PIXEL_KEYS = {"image": "pixel_values", "volume": "volume_values"}

#: Modality -> key of stored encoder features (N, tokens, encoder width), which replace the encoder's run.
FEATURE_KEYS = {"image": "image_features", "volume": "volume_features"}

#: All visual inputs. A batch holds those of all its rows in reading order. They matter for the prompt only, not for
#: generated tokens.
VISUAL_INPUTS = (*PIXEL_KEYS.values(), *FEATURE_KEYS.values())
