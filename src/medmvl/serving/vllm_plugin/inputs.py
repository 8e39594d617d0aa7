"""Images and volumes of a vLLM request to the values that the towers take, by our processor."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from medmvl.errors import DataError
from medmvl.models import MedMVLConfig
from medmvl.models.visual_inputs import PIXEL_KEYS
from medmvl.processing import MedMVLProcessor
from medmvl.serving.server.reader import Preparer
from medmvl.serving.server.settings import Limits
from medmvl.serving.vllm_plugin.modalities import TOWERS, VALUE_KEYS, load_processor
from medmvl.serving.vllm_plugin.renderer import client_errors
from medmvl.serving.vllm_plugin.uploads import Upload


class VisualItems(ProcessorBatchItems[Any]):
    """Images or volumes of one request: uploads, which are read when they are needed, or prepared tensors."""

    def get_item_for_hash(self, index: int) -> Any:
        """Return what names the content of an item: the bytes of a file and how it is read, or the values."""
        item = self.data[index]
        if isinstance(item, Upload):
            return [item.data, repr(sorted(item.read.items()))]
        return item.values


class PreparedValues:
    """Values of one image (3, H, W) or volume (C, D, H, W), as the towers take them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class VisualParser(MultiModalDataParser):
    """Takes over what callers hand over for a modality.

    Args:
        processor: of the checkpoint.
    """

    def __init__(self, processor: MedMVLProcessor) -> None:
        super().__init__()
        self._processor = processor

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {modality: partial(self._parse, modality) for modality in TOWERS}

    def _parse(self, modality: str, data: Any) -> VisualItems | None:
        if data is None:
            return None
        entries = data if isinstance(data, list | tuple) else [data]
        with client_errors():
            return VisualItems([self._item(modality, entry) for entry in entries], modality)

    def _item(self, modality: str, entry: Any) -> Upload | PreparedValues:
        if isinstance(entry, Upload | PreparedValues):
            return entry
        if isinstance(entry, MediaWithBytes):
            # Our readers know 16 bits, orientation and transparency, which the decoded picture has lost.
            return entry.media if isinstance(entry.media, Upload) else Upload(entry.original_bytes)
        if entry is None:
            raise DataError(f"An entry of {modality} has no data. Send it with every request; a uuid does not name it.")
        tower = TOWERS[modality]
        given: dict[str, Any] = {"images": [], "volumes": [], f"{tower}s": [entry]}
        return PreparedValues(self._processor.encode_visual_inputs(**given)[PIXEL_KEYS[tower]][0])


class MedMVLProcessingInfo(BaseProcessingInfo):
    """Facts about a checkpoint for vLLM."""

    def get_hf_config(self) -> Any:
        """Return the config."""
        return self.ctx.get_hf_config(MedMVLConfig)

    def get_hf_processor(self, **_: object) -> Any:
        """Return the processor of the checkpoint."""
        return load_processor(str(self.ctx.model_config.model))

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """Return no options: preprocessing is fixed by the checkpoint."""
        return {}

    def get_data_parser(self) -> MultiModalDataParser:
        """Return the parser of images and volumes."""
        return VisualParser(self.get_hf_processor())

    def parse_mm_data(self, mm_data: Mapping[str, Any], *, validate: bool = True) -> Any:
        """Return the items of a request by modality."""
        if validate and {"video", "volume"} <= set(mm_data):  # their order in the prompt would be open
            raise VLLMValidationError("A prompt holds volumes under one name: volume or video, not both.")
        return super().parse_mm_data(mm_data, validate=validate)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the modalities of the towers, without a limit."""
        return {modality: None for modality, tower in TOWERS.items() if tower in self.get_hf_config().towers}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the number of tokens of one image or volume, by modality."""
        return {modality: self.placeholder(modality)[1] for modality in mm_counts}

    def placeholder(self, modality: str) -> tuple[int, int]:
        """Return the token id of a modality's placeholder, and how many of it stand for one image or volume."""
        processor = self.get_hf_processor()
        tower = TOWERS[modality]
        tokens = {"image": processor.image_tokens, "volume": processor.volume_tokens}
        return self.get_hf_config().placeholder_id(tower), tokens[tower]


class MedMVLDummyInputs(BaseDummyInputsBuilder[MedMVLProcessingInfo]):
    """Empty images and volumes, by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return placeholders alone."""
        tokenizer = self.info.get_hf_processor().tokenizer
        ids = [self.info.placeholder(modality)[0] for modality, count in mm_counts.items() for _ in range(count)]
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Return prepared values of black images and volumes of zeros."""
        return {modality: [self._empty(TOWERS[modality])] * count for modality, count in mm_counts.items() if count}

    def _empty(self, tower: str) -> PreparedValues:
        processor = self.info.get_hf_processor()
        if tower == "image":
            return PreparedValues(processor.image_processor(PILImage.new("RGB", (8, 8))))
        geometry = processor.volume_processor.geometry
        return PreparedValues(processor.volume_processor(torch.zeros(geometry.channels, *geometry.size)))


class MedMVLMultiModalProcessor(BaseMultiModalProcessor[MedMVLProcessingInfo]):
    """Reads and prepares what the cache does not hold, and repeats placeholders."""

    def __init__(self, info: MedMVLProcessingInfo, dummy_inputs: Any) -> None:
        super().__init__(info, dummy_inputs)
        processor, limits = info.get_hf_processor(), Limits()
        self._preparer = Preparer(
            processor.image, processor.volume, limits.pixels, limits.voxels, tempfile.gettempdir()
        )

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        values = {}
        for modality, key in VALUE_KEYS.items():
            if items := hf_data.get(f"{modality}s"):
                values[key] = torch.stack([self._prepared(modality, item) for item in items])
        return BatchFeature(values)

    def _prepared(self, modality: str, item: Upload | PreparedValues) -> Tensor:
        tower = TOWERS[modality]
        with client_errors():
            try:
                if isinstance(item, PreparedValues):
                    values = item.values
                else:
                    values = self._preparer.prepare(tower, item.data, None, item.read)
                if not bool(torch.isfinite(values).all()):  # NaN would spoil later requests in vLLM's cache
                    raise DataError("Its values are not finite.")
                return values
            except DataError as error:
                raise DataError(f"The {tower} cannot be used. {error}") from None
            except MemoryError:
                raise DataError(f"Reading the {tower} takes more memory than there is.") from None

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {key: MultiModalFieldConfig.batched(modality) for modality, key in VALUE_KEYS.items()}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        updates = []
        for modality in mm_items:
            token, count = self.info.placeholder(modality)
            updates.append(PromptReplacement(modality, target=[token], replacement=[token] * count))
        return updates
