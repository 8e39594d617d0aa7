"""Contrastive pretraining of an encoder of images or volumes with a text encoder."""

from transformers import AutoConfig

from medmvl.models.contrastive.configuration import ContrastSpec, DualEncoderConfig
from medmvl.models.contrastive.modeling import DualEncoder, DualEncoderOutput
from medmvl.models.contrastive.pairing import Pairing

AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig, exist_ok=True)

__all__ = ["ContrastSpec", "DualEncoder", "DualEncoderConfig", "DualEncoderOutput", "Pairing"]
