"""The vision-language model: visual embeddings in the prompt of a causal LLM.

Shapes: B rows, T tokens, H width of the LLM, V vocabulary, N images and M volumes of the whole batch in reading order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from medmvl.errors import ModelError
from medmvl.models.assemble import (
    ConnectorSource,
    EncoderSource,
    LLMSource,
    assemble_config,
    pretrained_encoder,
    pretrained_llm,
)
from medmvl.models.base_model import StrictPreTrainedModel
from medmvl.models.compatibility import CACHE
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.fusion import embeddable_ids, scatter_embeddings
from medmvl.models.head_loss import find_decoder, head_loss, linear_head
from medmvl.models.tower import MODALITIES, Tower
from medmvl.models.visual_inputs import FEATURE_KEYS, VISUAL_INPUTS
from medmvl.pretrained import build_from_config


class ForwardOptions(TypedDict, total=False):
    """Keyword arguments of `MedMVLForConditionalGeneration.forward` that few callers need.

    Attributes:
        image_features, volume_features: stored features (N or M, tokens, encoder width), instead of pixels.
        shift_labels: (K,) int64, targets of the K positions that the mask `logits_to_keep` names; instead of `labels`.
        num_items_in_batch: what the summed loss is divided by; default: the number of targets.
        cross_entropy: with a mask and `shift_labels`: "chunked" or "liger" return a loss without logits, see
            `medmvl.models.head_loss`.
    """

    image_features: Tensor | None
    volume_features: Tensor | None
    num_items_in_batch: Tensor | int | None
    shift_labels: Tensor | None
    cross_entropy: str | None


@dataclass
class MedMVLOutput(CausalLMOutputWithPast):
    """Output of the model: that of a causal LM.

    Attributes:
        loss: scalar, mean negative log-likelihood (nats) over supervised tokens, if labels were given.
        logits: (B, T, V), or fewer positions with `logits_to_keep`.
    """


class MedMVLForConditionalGeneration(StrictPreTrainedModel, GenerationMixin):
    """A medical vision-language model: towers for images and volumes in front of a causal LLM.

    `language_model` is the complete causal LM with its head, so that particulars of an LLM (tied embeddings, biases of the
    head, logit scaling) stay inside it.
    """

    config_class = MedMVLConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _skip_keys_device_placement = [CACHE]
    _supports_flex_attn = True

    def __init__(self, config: MedMVLConfig) -> None:
        super().__init__(config)
        self.language_model = build_from_config(AutoModelForCausalLM, config.text_config)
        width = config.text_config.hidden_size
        self.towers = nn.ModuleDict({name: config.tower(name).build(width) for name in config.towers})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's embedding table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's embedding table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the LLM's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's head."""
        self.language_model.set_output_embeddings(value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Resize the LLM's embedding table and head, tied or not, and return the table.

        Args:
            new_num_tokens: rows, such as `len(tokenizer)`; default: as many as there are.
            pad_to_multiple_of: round the rows up to a multiple.
            mean_resizing: draw new rows from the distribution of the old ones, as transformers does.

        Raises:
            ModelError: if a token of the generation config would lose its row.
        """
        config = self.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        highest = max((token for token in (*ends, config.pad_token_id) if token is not None), default=-1)
        if new_num_tokens is not None and highest >= new_num_tokens:
            raise ModelError(
                f"The token id {highest}, which ends or pads answers, would have no row in a table of {new_num_tokens} rows. "
                f"Keep at least {highest + 1} rows (len(tokenizer))."
            )
        table = self.language_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.text_config.vocab_size = self.language_model.config.vocab_size = table.weight.shape[0]
        return table

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> embeddings (N, n, H) of the image tower."""
        return self.tower("image")(pixel_values)

    def get_volume_features(self, volume_values: Tensor) -> Tensor:
        """(M, C, D, H, W) -> embeddings (M, m, H) of the volume tower."""
        return self.tower("volume")(volume_values)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        volume_values: Tensor | None = None,
        image_features: Tensor | None = None,
        volume_features: Tensor | None = None,
    ) -> Tensor:
        """Return the (B, T, H) input of the LLM: token embeddings with the visual ones in their places.

        Args:
            input_ids: (B, T), placeholders already expanded to one token per visual embedding.
            pixel_values: (N, C, H, W).
            volume_values: (M, C, D, H, W).
            image_features, volume_features: (N or M, tokens, encoder width); stand in for the encoder's run (and a pooling's
                without weights).

        Raises:
            ModelError: if placeholders and visual inputs do not match, or a tower is missing.
        """
        placeholders = [self.config.placeholder_id(modality) for modality in MODALITIES]
        ids = embeddable_ids(input_ids, self.config.text_config.vocab_size, placeholders)
        inputs_embeds = self.get_input_embeddings()(ids)
        given = {"image": (pixel_values, image_features), "volume": (volume_values, volume_features)}
        for modality, (pixels, features) in given.items():
            mask = input_ids == self.config.placeholder_id(modality)
            if pixels is not None or features is not None:
                embeddings = self.tower(modality)(pixels, features)
                inputs_embeds = scatter_embeddings(inputs_embeds, mask, embeddings, modality)
            elif (zero := self.zero_from_unused_tower(modality)) is not None:
                inputs_embeds = inputs_embeds + zero
        return inputs_embeds

    def zero_from_unused_tower(self, modality: str) -> Tensor | None:
        """Return a zero scalar that depends on every trainable weight of a tower without inputs in this batch.

        In distributed training every process must use every trainable parameter. None outside of training.
        """
        if not self.training or modality not in self.towers:
            return None
        weights = [p for p in self.towers[modality].parameters() if p.requires_grad]
        return sum((p.flatten()[:1].sum() * 0.0 for p in weights), start=torch.zeros((), device=self.device))

    def tower(self, modality: str) -> Tower:
        """Return the tower of a modality.

        Raises:
            ModelError: if the model has none.
        """
        if modality not in self.towers:
            raise ModelError(
                f"The batch holds {modality}s, but this model has no {modality} tower (it has: "
                f"{', '.join(self.towers) or 'none'}). Use a model with that tower or leave the {modality}s out."
            )
        tower = self.towers[modality]
        assert isinstance(tower, Tower)
        return tower

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        volume_values: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[ForwardOptions],
    ) -> MedMVLOutput:
        """Return logits, and the loss if labels are given.

        1. embed the tokens, 2. encode and connect images and volumes, 3. scatter them to their placeholders,
        4. run the LLM, 5. compare with the labels.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 0 where padded.
            pixel_values: (N, C, H, W) float, normalized as the processor does.
            volume_values: (M, C, D, H, W) float.
            labels: (B, T) int64, `IGNORE_INDEX` where there is no loss; position t is predicted from the ones before it.
            position_ids: (B, T) int64; default: counted from the mask by the LLM.
            inputs_embeds: (B, T, H), instead of `input_ids`.
            past_key_values: the LLM's cache; also taken as `cache`, its name since transformers 5.24.
            logits_to_keep: 0 all positions, n > 0 the last n, or positions / a (B, T) mask (with `shift_labels`).
            kwargs: see `ForwardOptions`; the rest goes to the LLM.

        Raises:
            ModelError: if placeholders and visual inputs do not match.
        """
        options: dict[str, Any] = dict(kwargs)
        features = {key: options.pop(key, None) for key in FEATURE_KEYS.values()}
        loss_options = {key: options.pop(key) for key in ("shift_labels", "num_items_in_batch") if key in options}
        cross_entropy = options.pop("cross_entropy", None)
        cache = {CACHE: options.pop("cache", None) or past_key_values}
        if inputs_embeds is None:
            if input_ids is None:
                raise ModelError("The model needs input_ids or inputs_embeds.")
            inputs_embeds = self.embed(input_ids, pixel_values, volume_values, **features)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        if cross_entropy is not None:
            return self._loss_alone(cross_entropy, logits_to_keep, inputs | options, **loss_options)
        outputs = self.language_model(**inputs, **cache, logits_to_keep=logits_to_keep, **options)
        loss = None
        if labels is not None or loss_options.get("shift_labels") is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=outputs.logits, labels=labels, vocab_size=vocab_size, **loss_options)
        return MedMVLOutput(
            loss=loss,
            logits=outputs.logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_alone(
        self,
        kernel: str,
        kept: int | Tensor,
        inputs: dict[str, Any],
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MedMVLOutput:
        """Return the loss over the positions of the mask `kept` without ever holding their logits together."""
        head = linear_head(self.language_model)
        if head is None or shift_labels is None or not isinstance(kept, Tensor):
            raise ModelError(
                f"cross_entropy={kernel!r} needs logits_to_keep as a mask, shift_labels, and an LLM whose logits are "
                "its head's output as it is."
            )
        decoder = find_decoder(self.language_model)
        assert decoder is not None  # else there is no linear head
        hidden = decoder(**inputs).last_hidden_state
        return MedMVLOutput(loss=head_loss(hidden[kept], head, shift_labels, num_items_in_batch, kernel))

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as every transformers model does; returns prompt and new tokens, (B, T + new).

        Visual inputs are encoded once, before the search, so that beams share them. Rules about repetition (penalty, n-grams)
        apply to the answer alone and not to the prompt: a model must be free to use the words of the question, and an answer
        must not depend on the padding that its neighbors cause.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        visual = {key: kwargs.pop(key, None) for key in VISUAL_INPUTS}
        if input_ids is None or any(kwargs.get(name) is not None for name in ("past_key_values", "cache")):
            return super().generate(input_ids, **kwargs, **{k: v for k, v in visual.items() if v is not None})
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = self._infer_attention_mask(input_ids, kwargs)
        self._penalize_the_answer_alone(kwargs)
        result = super().generate(inputs_embeds=self.embed(input_ids, **visual), **kwargs)
        new = result if isinstance(result, Tensor) else result.sequences
        prompt = input_ids.repeat_interleave(new.shape[0] // input_ids.shape[0], dim=0)
        sequences = torch.cat([prompt, new], dim=1)
        if isinstance(result, Tensor):
            return sequences
        result.sequences = sequences
        return result

    def _infer_attention_mask(self, input_ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Return (B, T), 0 where the pad token stands, by transformers' rule: only if it does not end answers as well."""
        settings = arguments.get("generation_config") or self.generation_config
        pad, end = (arguments.get(name, getattr(settings, name)) for name in ("pad_token_id", "eos_token_id"))
        ends = end if isinstance(end, list) else [end]
        return torch.ones_like(input_ids) if pad is None or pad in ends else input_ids.ne(pad).long()

    def _penalize_the_answer_alone(self, arguments: dict[str, Any]) -> None:
        """Replace `repetition_penalty` by the same rule of our own.

        Without prompt ids, transformers 5.23 still skips as many tokens as the prompt has padding: new ones.
        """
        settings = arguments.get("generation_config") or self.generation_config
        penalty = arguments.pop("repetition_penalty", None) or settings.repetition_penalty
        if penalty is not None and penalty != 1.0:
            own = RepetitionPenaltyLogitsProcessor(float(penalty))
            arguments["logits_processor"] = LogitsProcessorList([*(arguments.get("logits_processor") or []), own])
            arguments["repetition_penalty"] = 1.0

    @classmethod
    def from_parts(
        cls,
        llm: LLMSource,
        image: tuple[EncoderSource, ConnectorSource] | None = None,
        volume: tuple[EncoderSource, ConnectorSource] | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        volume_size: tuple[int, int, int] | None = None,
        image_token_id: int | None = None,
        volume_token_id: int | None = None,
    ) -> MedMVLForConditionalGeneration:
        """Assemble a new model.

        Args:
            llm: a folder or hub name (weights are loaded), settings with `model_type` or a config (random weights),
                or a causal LM.
            image, volume: (encoder, connector) or None. An encoder is settings with a `name`, optionally `init_from`
                a folder or hub name; a connector is a projector's name or {"pooling": ..., "projector": ...}.
            image_size, volume_size: the input sizes; default: what the encoders were made for.
            image_token_id, volume_token_id: placeholder ids; default: just behind the LLM's vocabulary.

        Raises:
            ModelError: if a source cannot be loaded or parts do not fit together.
        """
        given = {"image": image, "volume": volume}
        towers = {modality: source for modality, source in given.items() if source}
        sizes: dict[str, tuple[int, ...] | None] = {"image": image_size, "volume": volume_size}
        model = cls(assemble_config(llm, towers, sizes, image_token_id, volume_token_id))
        if (language_model := pretrained_llm(llm)) is not None:
            model.language_model = language_model
        model.config.text_config = model.language_model.config
        for modality, (encoder, _) in towers.items():
            if (module := pretrained_encoder(encoder)) is not None:
                model.towers[modality].encoder = module
        return model

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts by name: `llm`, `image_encoder`, `image_connector`, `volume_encoder`, ..."""
        found: dict[str, nn.Module] = {"llm": self.language_model}
        for modality, tower in self.towers.items():
            assert isinstance(tower, Tower)
            found[f"{modality}_encoder"] = tower.encoder
            found[f"{modality}_connector"] = tower.connector
        return found


def parts(model: MedMVLForConditionalGeneration) -> dict[str, nn.Module]:
    """Return the parts of a model by name, see `MedMVLForConditionalGeneration.parts`."""
    return model.parts()
