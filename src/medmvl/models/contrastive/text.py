"""Text encoders of transformers, from settings or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, Siglip2TextModel, SiglipTextModel
from transformers.utils import logging as hf_logging

from medmvl.errors import CheckpointError, ModelError, counted
from medmvl.pretrained import build_from_config, open_pretrained, translate_load_errors

#: Text encoders that `AutoModel` does not know by their config.
_OTHERS: dict[str, Any] = {"siglip_text_model": SiglipTextModel, "siglip2_text_model": Siglip2TextModel}

#: Their last token stands for the text and is found by its place, so that a text is padded to a fixed length, unmasked
#: (SigLIP, arXiv 2303.15343; transformers' SiglipTextTransformer).
_PADDED_TO_LENGTH = ("siglip_text_model", "siglip2_text_model")


def text_config(source: str | dict[str, Any], **facts: Any) -> PreTrainedConfig:
    """Return the config of a text encoder.

    Args:
        source: settings with `model_type`, or a folder or hub name; of a model of images and texts (CLIP, SigLIP) the text
            part is taken.
        facts: of the tokenizer (vocabulary size, special ids); they count for settings only, and yield to them.

    Raises:
        ModelError: if the source cannot be read, or is not a text encoder.
    """
    if isinstance(source, dict):
        settings = facts | source
        try:
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        except (ValueError, TypeError) as error:
            raise ModelError(f"The text encoder's settings are not usable: {error}") from error
    else:
        config = _load(partial(open_pretrained, AutoConfig), source)
        config = getattr(config, "text_config", None) or config
    if not hasattr(config, "hidden_size") or not hasattr(config, "vocab_size"):
        raise ModelError(
            f"The text encoder {getattr(config, 'model_type', source)!r} has no hidden_size and vocab_size. Use an encoder of "
            "texts, such as bert, roberta, clip_text_model or siglip_text_model."
        )
    return config


def fresh_text_encoder(config: PreTrainedConfig, pooling: str) -> PreTrainedModel:
    """Return a text encoder with random weights; its own pooler is left out unless it is used.

    Raises:
        ModelError: if transformers has no encoder of texts for this config.
    """
    other = _OTHERS.get(config.model_type)
    try:
        model = other(config) if other is not None else build_from_config(AutoModel, config)
    except ValueError as error:
        raise ModelError(f"There is no text encoder {config.model_type!r}: {str(error).splitlines()[0]}") from error
    return _without_pooler(model, pooling)


def pretrained_text_encoder(folder: str, pooling: str) -> PreTrainedModel:
    """Return the text encoder of a folder or hub name, in fp32; weights of other parts (a head, a vision tower) are left.

    Raises:
        ModelError: if it cannot be loaded.
        CheckpointError: if a weight of it is not there.
    """
    config = text_config(folder)
    loader = _OTHERS.get(config.model_type, AutoModel)
    with _without_reports():
        model, info = _load(
            partial(open_pretrained, loader, config=config, dtype=torch.float32, output_loading_info=True),
            folder,
        )
    missing = [name for name in info["missing_keys"] if pooling == "own" or not name.startswith("pooler.")]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {counted(len(missing), 'weight')} of the text encoder {config.model_type!r} ({sorted(missing)[0]}, ...). "
            "Give a folder of that encoder."
        )
    return _without_pooler(model, pooling)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers from listing the weights that a part of a larger model has no use for."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _without_pooler(model: PreTrainedModel, pooling: str) -> PreTrainedModel:
    if pooling != "own" and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return model


def is_padded_to_length(config: PreTrainedConfig, pooling: str) -> bool:
    """Return whether every text is padded to the longest length, without a mask."""
    return pooling == "own" and config.model_type in _PADDED_TO_LENGTH


def longest_text(config: PreTrainedConfig) -> int | None:
    """Return the most tokens that a text encoder takes; None if it has no limit.

    RoBERTa and models derived from it count positions from the padding id on, so that two rows of their table are unused.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    offset = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(positions) - offset


def pool_text(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """Run a text encoder and return one vector per text, (N, width).

    Args:
        input_ids: (N, T).
        attention_mask: (N, T), 0 where padded; None where texts are padded to one length without a mask.

    Raises:
        ModelError: if `pooling` is "own" and the model has none.
    """
    output = model(input_ids=input_ids, attention_mask=attention_mask)
    if pooling == "own":
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ModelError(
                f"The text encoder {model.config.model_type!r} has no pooling of its own. Use text.pooling mean or first."
            )
        return pooled
    tokens = output.last_hidden_state
    if pooling == "first":
        return tokens[:, 0]
    weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    weights = weights.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def _load(loader: Any, source: str) -> Any:
    """Call a loader; its failures become one sentence."""
    advice = "Give a local folder with config.json and weights, or a hub name that this machine can reach or has in its cache."
    with translate_load_errors(f"The text encoder {source!r} cannot be loaded", advice, ModelError):
        return loader(source)
