"""Construction of the dual encoder and the processor of a contrastive stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from medmvl.auto_classes import DUAL_ENCODER_TYPE
from medmvl.data.formats import read_samples
from medmvl.errors import RecipeError
from medmvl.models import MedMVLConfig
from medmvl.models.assemble import pretrained_encoder, tower_spec
from medmvl.models.contrastive import ContrastSpec, DualEncoder, DualEncoderConfig
from medmvl.models.contrastive.folder import dual_encoder_folder
from medmvl.models.contrastive.losses import FIRST_TEMPERATURE
from medmvl.models.contrastive.text import is_padded_to_length, longest_text, pretrained_text_encoder, text_config
from medmvl.models.encoders import EncoderModule
from medmvl.models.encoders.medmvl_checkpoint import medmvl_checkpoint_encoder, medmvl_checkpoint_kind
from medmvl.models.tower import TowerSpec
from medmvl.processing import ImageProcessor, VolumeProcessor
from medmvl.processing.pairs import PairProcessor, text_of
from medmvl.training.build import (
    TOKENIZER_RECORDS,
    image_processor,
    load_tokenizer,
    own_processor,
    train_tokenizer,
    volume_processor,
)
from medmvl.training.recipe import ContrastiveSection, ContrastiveStage, Recipe, TextEncoderSection, TokenizerSection

#: Longest text where neither the recipe nor the text encoder sets a limit.
LONGEST_TEXT = 512


@dataclass(frozen=True)
class _Encoder:
    """The image or volume encoder that a stage starts from.

    Attributes:
        tower: the encoder's specification.
        encoder: the module; None in a dry run.
        processor: prepares images or volumes.
        tokenizer: of the model that it is taken from, if it has one.
    """

    tower: TowerSpec
    encoder: EncoderModule | None
    processor: ImageProcessor | VolumeProcessor
    tokenizer: PreTrainedTokenizerBase | None


def build_dual_encoder(
    recipe: Recipe, stage: ContrastiveStage, source: Path | None
) -> tuple[DualEncoder, PairProcessor]:
    """Return the dual encoder that a contrastive stage starts with, and its processor.

    Args:
        source: the checkpoint that the stage starts from; None for the encoder that `model` describes.

    Raises:
        RecipeError, ModelError, CheckpointError: if parts are unknown, cannot be loaded, or do not fit together.
    """
    section = stage.contrastive
    if section.text is None:
        return _continued(stage, section, source)
    visual = _visual(recipe, stage, source, weights=True)
    config, processor = _describe(recipe, stage, section.text, visual)
    dual = DualEncoder(config)
    assert visual.encoder is not None
    dual.use_encoder(visual.encoder)
    if section.text.init_from is not None:
        dual.text_encoder = pretrained_text_encoder(section.text.init_from, section.text.pooling)
    return dual, processor


def describe_dual_encoder(
    recipe: Recipe, stage: ContrastiveStage, source: Path | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[DualEncoderConfig, PairProcessor]:
    """Return config and processor of a contrastive stage's dual encoder; no weight is made or read.

    Args:
        source: an existing checkpoint; None for the encoder that the recipe describes.
        tokenizer: of the model that the recipe describes, if it has an LLM.
    """
    section = stage.contrastive
    if section.text is None:
        folder = _dual_folder(stage, source)
        return DualEncoderConfig.from_pretrained(folder), PairProcessor.from_pretrained(folder)
    visual = _visual(recipe, stage, source, weights=False)
    return _describe(recipe, stage, section.text, replace(visual, tokenizer=visual.tokenizer or tokenizer))


def contrast_spec(section: ContrastiveSection) -> ContrastSpec:
    """Return the settings of pooling, projection and loss."""
    return ContrastSpec(
        loss=section.loss,
        pooling=section.pooling,
        heads=section.heads,
        dim=section.dim,
        text_pooling=section.text.pooling if section.text else "mean",
        temperature=section.temperature or FIRST_TEMPERATURE[section.loss],
        bias=section.bias,
    )


def _describe(
    recipe: Recipe, stage: ContrastiveStage, text: TextEncoderSection, visual: _Encoder
) -> tuple[DualEncoderConfig, PairProcessor]:
    tokenizer = _tokenizer(recipe, stage, text, visual.tokenizer)
    source = text.init_from if text.init_from is not None else dict(text.config or {})
    encoder = text_config(source, vocab_size=len(tokenizer), **_special_ids(tokenizer))
    if len(tokenizer) > encoder.vocab_size:
        raise RecipeError(
            f"Stage {stage.name!r}: the tokenizer has {len(tokenizer)} tokens, the text encoder {encoder.vocab_size}. Use "
            "the tokenizer that the text encoder was trained with (leave contrastive.text.tokenizer out)."
        )
    config = DualEncoderConfig(
        text_config=encoder.to_dict(),
        towers={stage.modality: {"encoder": visual.tower.encoder, "size": visual.tower.size}},
        contrast=contrast_spec(stage.contrastive).model_dump(mode="json"),
    )
    length = _text_length(stage, text, encoder, tokenizer)
    padded = is_padded_to_length(encoder, text.pooling)
    return config, PairProcessor(tokenizer, stage.modality, visual.processor, length, padded)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _text_length(
    stage: ContrastiveStage, text: TextEncoderSection, encoder: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int:
    longest = longest_text(encoder)
    if text.max_length is not None:
        if longest is not None and text.max_length > longest:
            raise RecipeError(
                f"Stage {stage.name!r}: contrastive.text.max_length is {text.max_length}, the text encoder takes {longest} "
                "tokens."
            )
        return text.max_length
    # A tokenizer without a limit states a very large one.
    return min(longest or LONGEST_TEXT, tokenizer.model_max_length)


def _tokenizer(
    recipe: Recipe, stage: ContrastiveStage, text: TextEncoderSection, models: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the text encoder: the one named, its own, the model's, or one trained on the texts."""
    named = text.tokenizer if text.tokenizer is not None else text.init_from
    if isinstance(named, str):
        return load_tokenizer(named)
    if named is None and models is not None:
        return models
    return train_tokenizer(_texts(recipe, stage), (named or TokenizerSection()).vocab_size)


def _texts(recipe: Recipe, stage: ContrastiveStage) -> Iterator[str]:
    """Yield the texts of the stage's pairs."""
    for name in recipe.mixture(stage):
        section, count = recipe.data[name], 0
        for sample in read_samples(recipe.path(section.path)):
            if section.tasks is not None and str(sample.extra.get("task")) not in section.tasks:
                continue
            if count == TOKENIZER_RECORDS:
                break
            count += 1
            yield text_of(sample)


def _visual(recipe: Recipe, stage: ContrastiveStage, source: Path | None, weights: bool) -> _Encoder:
    """Return the encoder that a stage starts from: the one that `model` describes, or that of a checkpoint."""
    modality = stage.modality
    if source is None:
        section = getattr(recipe.model, modality)
        tower = tower_spec(section.encoder, section.connector, section.size)
        described = DualEncoderConfig(towers={modality: tower.to_dict()})
        prepare = image_processor if modality == "image" else volume_processor
        encoder = (pretrained_encoder(section.encoder) or tower.encoder_spec.build()) if weights else None
        return _Encoder(tower, encoder, prepare(section, described), None)
    kind = medmvl_checkpoint_kind(str(source))
    if kind is None:
        raise RecipeError(f"Stage {stage.name!r} starts from {source}, which is not a MedM-VL checkpoint.")
    config: MedMVLConfig | DualEncoderConfig = (
        DualEncoderConfig.from_pretrained(source) if kind == DUAL_ENCODER_TYPE else MedMVLConfig.from_pretrained(source)
    )
    if modality not in config.towers:
        raise RecipeError(f"Stage {stage.name!r} trains the {modality} encoder, and {source} has none.")
    tower = config.tower(modality)
    processor = own_processor(str(source))
    assert processor is not None
    visual = processor.image_processor if modality == "image" else processor.volume_processor
    assert visual is not None
    return _Encoder(
        tower, medmvl_checkpoint_encoder(str(source), tower.encoder) if weights else None, visual, processor.tokenizer
    )


def _continued(
    stage: ContrastiveStage, section: ContrastiveSection, source: Path | None
) -> tuple[DualEncoder, PairProcessor]:
    """Return the dual encoder of the contrastive stage that a stage starts from."""
    folder = _dual_folder(stage, source)
    dual = DualEncoder.from_pretrained(folder)
    have, wanted = dual.config.spec, contrast_spec(section)
    for key in ("loss", "pooling", "dim"):
        if getattr(have, key) != getattr(wanted, key):
            raise RecipeError(
                f"Stage {stage.name!r} continues with the text encoder of {folder}, whose {key} is {getattr(have, key)!r}, not "
                f"{getattr(wanted, key)!r}. Set contrastive.{key} to that, or give contrastive.text to start a new one."
            )
    return dual, PairProcessor.from_pretrained(folder)


def _dual_folder(stage: ContrastiveStage, source: Path | None) -> Path:
    """Return the folder of the dual encoder that belongs to what a stage starts from.

    Raises:
        RecipeError: if there is none for this modality.
    """
    folder = dual_encoder_folder(source, stage.modality) if source is not None else None
    if folder is not None:
        return folder
    raise RecipeError(
        f"Stage {stage.name!r} names no text encoder, and what it starts from ({source or 'the model'}) is no contrastive "
        f"stage for {stage.modality}s. Give contrastive.text, such as {{init_from: bert-base-uncased}}."
    )
