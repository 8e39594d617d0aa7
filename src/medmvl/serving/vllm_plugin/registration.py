"""Entry point of the plugin."""

from __future__ import annotations

from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

import medmvl.models  # noqa: F401 - the config's class becomes known to transformers
from medmvl.serving.vllm_plugin.config import MedMVLModelConfig
from medmvl.serving.vllm_plugin.modalities import MODE
from medmvl.serving.vllm_plugin.uploads import UploadLoader

#: Name of our model class in config.json.
_ARCHITECTURE = "MedMVLForConditionalGeneration"

_PACKAGE = __package__


def register() -> None:
    """Make our models, prompts and reader of volumes known to vLLM, which calls this once in each of its processes."""
    ModelRegistry.register_model(_ARCHITECTURE, f"{_PACKAGE}.model:MedMVLForVLLM")
    MODELS_CONFIG_MAP[_ARCHITECTURE] = MedMVLModelConfig
    RENDERER_REGISTRY.renderers[MODE] = (f"{_PACKAGE}.renderer", "MedMVLRenderer")
    TokenizerRegistry.tokenizers[MODE] = ("vllm.tokenizers.hf", "CachedHfTokenizer")
    VIDEO_LOADER_REGISTRY.register(MODE)(UploadLoader)
