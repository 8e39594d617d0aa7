"""Checks and settings of a model when vLLM reads its config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from medmvl.errors import MedMVLError
from medmvl.serving.vllm_plugin.checks import check_answer_end, check_model
from medmvl.serving.vllm_plugin.modalities import MODE, load_processor

logger = logging.getLogger("vllm.medmvl")  # vLLM shows its own loggers


class MedMVLModelConfig(VerifyAndUpdateConfig):
    """Hook that vLLM calls with the config of our models, before it loads anything."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Refuse what vLLM cannot do, and choose our prompts and our reader of volumes.

        Raises:
            ValueError: with the reason, which vLLM prints.
        """
        try:
            _check(model_config)
        except MedMVLError as error:
            raise ValueError(str(error)) from None
        model_config.tokenizer_mode = MODE
        options = model_config.multimodal_config.media_io_kwargs
        options["video"] = {**options.get("video", {}), "video_backend": MODE}


def _check(model_config: Any) -> None:
    processor = load_processor(str(model_config.model))
    config = model_config.hf_config
    sizes = CPUAttentionBackend.get_supported_head_sizes() if current_platform.is_cpu() else None
    check_model(config, ModelRegistry.get_supported_archs(), model_config.get_head_size(), sizes)
    processor.check_rows(config)
    stored = GenerationConfig()
    if (Path(model_config.model) / GENERATION_CONFIG_NAME).is_file():
        stored = GenerationConfig.from_pretrained(model_config.model, local_files_only=True)
    for note in check_answer_end(processor, stored):
        logger.warning(note)
