"""The model in vLLM: our towers in front of vLLM's LLM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER
from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig
from medmvl.serving.vllm_plugin.checks import llm_architecture
from medmvl.serving.vllm_plugin.inputs import MedMVLDummyInputs, MedMVLMultiModalProcessor, MedMVLProcessingInfo
from medmvl.serving.vllm_plugin.modalities import TOWERS, VALUE_KEYS

_TEXTS = {"image": IMAGE_PLACEHOLDER, "volume": VOLUME_PLACEHOLDER}


@MULTIMODAL_REGISTRY.register_processor(
    MedMVLMultiModalProcessor, info=MedMVLProcessingInfo, dummy_inputs=MedMVLDummyInputs
)
class MedMVLForVLLM(nn.Module, SupportsMultiModal):
    """Towers as in `MedMVLForConditionalGeneration`, and an LLM of vLLM's registry.

    The towers compute in the dtype of their weights, in float32 if vLLM runs in float32.
    """

    # From SupportsMultiModal; without vLLM's types a module's attributes pass for tensors.
    configure_mm_token_handling: Any
    _mark_language_model: Any
    language_model: Any
    towers: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return the placeholder of an image or volume in a text."""
        return _TEXTS[TOWERS[modality]]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config: MedMVLConfig = vllm_config.model_config.hf_config
        self.config = config
        self._dtype = vllm_config.model_config.dtype
        ids = [config.placeholder_id(modality) for modality in config.towers]
        self.configure_mm_token_handling(config.text_config.vocab_size, ids)
        width = config.text_config.hidden_size
        self.towers = nn.ModuleDict({name: config.tower(name).build(width) for name in config.towers})
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[llm_architecture(config.text_config, ModelRegistry.get_supported_archs())],
            )

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Return the embeddings (tokens, width) of each image and volume, in the order of the modalities given.

        Args:
            kwargs: values (N, C, [D,] H, W) under the keys of `VALUE_KEYS`.
        """
        found: list[Tensor] = []
        keys = {key: modality for modality, key in VALUE_KEYS.items()}
        for key, values in kwargs.items():
            if key in keys:
                stacked = values if isinstance(values, Tensor) else torch.stack(list(values))
                # One at a time, so that memory does not grow with the number of volumes that come together.
                found += [self.towers[TOWERS[keys[key]]](one[None])[0].to(self._dtype) for one in stacked]
        return found

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Return the hidden states (T, H) of the LLM."""
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits (T, V)."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the tensors of a checkpoint folder, of any shape; returns the names of what was loaded.

        Raises:
            CheckpointError: if a tensor of a tower is missing or unknown.
        """
        towers: dict[str, Tensor] = {}
        loaded = {f"language_model.{name}" for name in self.language_model.load_weights(_split(weights, towers))}
        return loaded | self._load_towers(towers)

    def _load_towers(self, tensors: dict[str, Tensor]) -> set[str]:
        wanted = self.towers.state_dict(keep_vars=True)
        if set(wanted) != set(tensors):
            different = sorted(set(wanted) ^ set(tensors))
            raise CheckpointError(f"The weights of the towers do not fit config.json: {different[0]} and others.")
        for name, tensor in wanted.items():
            stored = tensors[name].to(tensor.device)
            tensor.data = stored.float() if self._dtype == torch.float32 and stored.is_floating_point() else stored
        return {f"towers.{name}" for name in wanted}


def _split(weights: Iterable[tuple[str, Tensor]], towers: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Yield the LLM's tensors by its own names, and put those of the towers aside."""
    for name, tensor in weights:
        part, _, rest = name.partition(".")
        if part == "language_model":
            yield rest, tensor
        elif part == "towers":
            towers[rest] = tensor.clone()  # the file is closed behind the iteration
        else:
            raise CheckpointError(f"The checkpoint holds a tensor of no part of the model: {name}.")
