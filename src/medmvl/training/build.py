"""Construction of the model and the processor that a recipe's `model` section describes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medmvl.auto_classes import DUAL_ENCODER_TYPE
from medmvl.data.formats import read_samples
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER
from medmvl.errors import ModelError, RecipeError
from medmvl.imaging import Geometry, geometry
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.models.assemble import llm_config, tower_spec
from medmvl.models.base_model import check_kind
from medmvl.models.contrastive import DualEncoderConfig
from medmvl.models.encoders.medmvl_checkpoint import medmvl_checkpoint_kind
from medmvl.pretrained import open_pretrained, translate_load_errors
from medmvl.processing import ImageProcessor, MedMVLProcessor, Normalization, VolumeProcessor
from medmvl.processing.pairs import PairProcessor
from medmvl.processing.volume3d import GRAY_TO_UNIT
from medmvl.training.recipe import LLMSection, ModelSection, Recipe, TokenizerSection, TowerSection

#: Special tokens of a trained tokenizer: those of ChatML, so that the template chatml is its own.
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

#: The geometry of a volume tower that names none: the published MedM-VL chain.
DEFAULT_GEOMETRY = "medm-vl-ct"

#: Maximum number of records per data set on which a tokenizer is trained.
TOKENIZER_RECORDS = 20_000


def build(recipe: Recipe) -> tuple[MedMVLForConditionalGeneration, MedMVLProcessor]:
    """Return the model that a recipe describes, and its processor.

    Raises:
        RecipeError, ModelError, DataError: if parts are unknown, cannot be loaded, or do not fit together.
    """
    section = recipe.model
    if section.from_ is not None:
        model = MedMVLForConditionalGeneration.from_pretrained(section.from_)
        processor = MedMVLProcessor.from_pretrained(section.from_)
        return model, processor.with_template(section.template) if section.template else processor
    tokenizer = build_tokenizer(recipe)
    towers = {name: tower for name in ("image", "volume") if (tower := getattr(section, name)) is not None}
    sources: dict[str, Any] = {name: (tower.encoder, tower.connector) for name, tower in towers.items()}
    sizes: dict[str, Any] = {f"{name}_size": tower.size for name, tower in towers.items()}
    model = MedMVLForConditionalGeneration.from_parts(llm_source(section, tokenizer), **sources, **sizes)
    processor = build_processor(recipe, model.config, tokenizer)
    processor.configure_generation(model.generation_config)
    return model, processor


def build_config(recipe: Recipe) -> tuple[MedMVLConfig, MedMVLProcessor]:
    """Return config and processor of the model that a recipe describes; no weight is made or read."""
    section = recipe.model
    if section.from_ is not None:
        check_kind(Path(section.from_), MedMVLConfig.model_type)
        return MedMVLConfig.from_pretrained(section.from_), MedMVLProcessor.from_pretrained(section.from_)
    tokenizer = build_tokenizer(recipe)
    text_config = llm_config(llm_source(section, tokenizer))
    towers = {
        name: tower_spec(tower.encoder, tower.connector, tower.size).to_dict()
        for name in ("image", "volume")
        if (tower := getattr(section, name)) is not None
    }
    config = MedMVLConfig(text_config=text_config.to_dict(), towers=towers)
    return config, build_processor(recipe, config, tokenizer)


def llm_source(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> str | dict[str, Any]:
    """Return the LLM as a name, or as settings that fit the tokenizer."""
    llm = section.llm
    assert llm is not None
    if llm.init_from is not None:
        return llm.init_from
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return special | {"vocab_size": len(tokenizer)} | dict(llm.config or {})


def build_processor(recipe: Recipe, config: MedMVLConfig, tokenizer: PreTrainedTokenizerBase) -> MedMVLProcessor:
    """Return the processor that fits `config`; placeholder ids are written into it."""
    section = recipe.model
    assert section.llm is not None
    return MedMVLProcessor.from_parts(
        config,
        tokenizer,
        image=image_processor(section.image, config) if section.image else None,
        volume=volume_processor(section.volume, config) if section.volume else None,
        template=section.template,
        max_length=section.llm.max_length,
    )


def image_processor(tower: TowerSection, config: MedMVLConfig | DualEncoderConfig) -> ImageProcessor:
    """Return the encoder's own image processor, or a default one for an encoder with random weights."""
    height, width = config.tower("image").input_size
    inner = tower.encoder.get("encoder") or {}  # of a wrapper such as `tiled`, which sees more pixels than its encoder
    folder = tower.encoder.get("init_from") or inner.get("init_from")
    if folder is None:
        return ImageProcessor.for_size(height, width)
    settings = dict(encoder_processor(folder).settings)
    if tower.size is not None or inner:
        size = {"height": height, "width": width}
        settings["size"] = size
        if settings.get("crop_size"):
            settings["crop_size"] = size
    return ImageProcessor(settings)


def volume_processor(tower: TowerSection, config: MedMVLConfig | DualEncoderConfig) -> VolumeProcessor:
    """Return the volume processor: the tower's geometry at its size, then gray levels to [-1, 1].

    An encoder of a MedM-VL checkpoint brings the processor it was trained with, unless the tower names a geometry.
    """
    trained = own_processor(tower.encoder.get("init_from"))
    own = trained.volume_processor if trained is not None else None
    if own is not None and tower.geometry is None:
        return own
    settings = tower.geometry if tower.geometry is not None else DEFAULT_GEOMETRY
    chosen = geometry(settings, size=config.tower("volume").input_size)
    channels = config.tower("volume").encoder_spec.channels
    if chosen.channels not in (1, channels):
        raise RecipeError(
            f"model.volume: the geometry {chosen.name!r} gives {chosen.channels} channels, the encoder takes {channels}."
        )
    if own is not None and own.geometry.value_range == chosen.value_range:
        return VolumeProcessor(chosen, own.normalization)
    return VolumeProcessor(chosen, normalization(chosen, tower.encoder))


def volume_geometry(tower: TowerSection) -> Geometry:
    """Return the geometry that a volume tower's processor will have, without building the model."""
    config = MedMVLConfig(towers={"volume": tower_spec(tower.encoder, tower.connector, tower.size).to_dict()})
    return volume_processor(tower, config).geometry


def own_processor(folder: str | None) -> MedMVLProcessor | PairProcessor | None:
    """Return the processor of the MedM-VL checkpoint that an encoder is taken from; None if it comes from elsewhere."""
    kind = medmvl_checkpoint_kind(folder) if folder is not None else None
    if folder is None or kind is None:
        return None
    return (
        PairProcessor.from_pretrained(folder) if kind == DUAL_ENCODER_TYPE else MedMVLProcessor.from_pretrained(folder)
    )


def normalization(chosen: Geometry, encoder: dict[str, Any]) -> Normalization:
    """Return the normalization after the geometry: gray levels 0..255 become the encoder's range, by default [-1, 1].

    A geometry with another range (0..1, or normalized) was made for its encoder and needs no normalization.
    """
    if chosen.value_range != (0.0, 255.0):
        return Normalization()
    inner = encoder.get("encoder", encoder)
    folder = inner.get("init_from", encoder.get("init_from"))
    if encoder["name"] != "slicewise" or folder is None:
        return GRAY_TO_UNIT
    # The 2D encoder's own mean and spread; a slice has equal channels, so its three means become one.
    settings = encoder_processor(folder).settings
    means, spreads = settings.get("image_mean", [0.5]), settings.get("image_std", [0.5])
    return Normalization(scale=1 / 255, mean=sum(means) / len(means), std=sum(spreads) / len(spreads))


def encoder_processor(folder: str) -> ImageProcessor:
    """Return the image processor saved with an encoder.

    Raises:
        ModelError: if there is none.
    """
    own = own_processor(folder)
    if own is not None and own.image_processor is not None:
        return own.image_processor
    advice = "Put its preprocessor_config.json into the folder."
    with translate_load_errors(f"The image processor of the encoder {folder!r} cannot be loaded", advice, ModelError):
        return ImageProcessor.from_pretrained(folder)


# --- tokenizers -------------------------------------------------------------------------------------------------


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the recipe names, or one trained on the texts of its training data."""
    llm = recipe.model.llm
    assert llm is not None
    source = _tokenizer_source(llm)
    if isinstance(source, TokenizerSection):
        return train_tokenizer(_texts(recipe), source.vocab_size)
    return load_tokenizer(source)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub name.

    Raises:
        ModelError: if it cannot be loaded.
    """
    with translate_load_errors(
        f"The tokenizer {source!r}", "Give a folder with tokenizer files, or a hub name.", ModelError
    ):
        return open_pretrained(AutoTokenizer, source)


def _tokenizer_source(llm: LLMSection) -> str | TokenizerSection:
    if llm.tokenizer is not None:
        return llm.tokenizer
    return llm.init_from if llm.init_from is not None else TokenizerSection()


def _texts(recipe: Recipe) -> Iterator[str]:
    """Yield the turns of all training data with the names of their roles, which templates write out."""
    names = dict.fromkeys(name for stage in recipe.stages for name in recipe.mixture(stage))
    for name in names:
        for number, sample in enumerate(read_samples(recipe.path(recipe.data[name].path))):
            if number >= TOKENIZER_RECORDS:
                break
            yield from (f"{message.role}\n{message.text}\n" for message in sample.messages)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (arXiv 1508.07909) with single digits and ChatML's special tokens.

    Args:
        texts: from which the vocabulary is learned; other texts are encoded byte by byte where needed.
        vocab_size: including special tokens; the vocabulary is smaller if the texts have too few pairs.
    """
    tokenizer = Tokenizer(models.BPE())
    # Single digits: sizes in millimeters and box coordinates stay comparable.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [END_OF_TEXT, TURN_START, TURN_END, IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER],
        clean_up_tokenization_spaces=False,
    )
