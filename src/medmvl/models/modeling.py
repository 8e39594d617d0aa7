"""Encode, connect, scatter, continue with the LLM.

Shapes: B rows, T tokens, H width of the LLM, V vocabulary, N images and M volumes of the whole batch in reading order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import ModelOutput

from medmvl.errors import ModelError
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.fusion import scatter_embeddings, without_placeholders
from medmvl.models.head_loss import head_loss, plain_head
from medmvl.models.strict import StrictModel
from medmvl.models.tower import Tower

#: Inputs that carry pixels or features; they matter for the prompt only, not for generated tokens.
MEDIA_INPUTS = ("pixel_values", "volume_values", "image_features", "volume_features")


@dataclass
class MedMVLOutput(ModelOutput):
    """What the model returns.

    Attributes:
        loss: scalar, mean negative log-likelihood (nats) over supervised tokens, if labels were given.
        logits: (B, T, V), or fewer positions with `logits_to_keep`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MedMVLForConditionalGeneration(StrictModel, GenerationMixin):
    """A medical vision-language model: towers for images and volumes in front of a causal LLM.

    `language_model` is the complete causal LM, head included, so that what is particular to an LLM (tied embeddings,
    biases of the head, logit scaling) stays its own affair.
    """

    config_class = MedMVLConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MedMVLConfig) -> None:
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = config.text_config.hidden_size
        #: Modality -> "pixels" or "features": what of a tower runs, on blank input, where a batch does not use it, so that
        #: every process does the same in the same order. DDP and FSDP2 do not mind the order; DeepSpeed does.
        self.idle_inputs: dict[str, str] = {}
        self.towers = nn.ModuleDict({name: config.tower(name).build(width) for name in config.towers})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave fresh weights as the parts made them: each part owns its initialisation."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's embedding table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's embedding table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the LLM's head."""
        return self.language_model.get_output_embeddings()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> embeddings (N, n, H) of the image tower."""
        return self._tower("image")(pixel_values)

    def get_volume_features(self, volume_values: Tensor) -> Tensor:
        """(M, C, D, H, W) -> embeddings (M, m, H) of the volume tower."""
        return self._tower("volume")(volume_values)

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
            ModelError: if placeholders and media do not match, or media come for a tower that is not there.
        """
        vocab_size = self.config.text_config.vocab_size
        inputs_embeds = self.get_input_embeddings()(without_placeholders(input_ids, vocab_size))
        media = {"image": (pixel_values, image_features), "volume": (volume_values, volume_features)}
        for modality, (pixels, features) in media.items():
            mask = input_ids == self.config.placeholder_id(modality)
            if pixels is not None or features is not None:
                embeddings = self._tower(modality)(pixels, features)
                inputs_embeds = scatter_embeddings(inputs_embeds, mask, embeddings, modality)
            elif self.training or modality in self.idle_inputs:
                # Every rank must touch every trainable parameter, or distributed training waits for ever.
                inputs_embeds = inputs_embeds + self._nothing_from(modality)
        return inputs_embeds

    def _nothing_from(self, modality: str) -> Tensor | float:
        """Return a zero that depends on every trainable weight of a tower that this batch does not use."""
        if modality not in self.towers:
            return 0.0
        if modality in self.idle_inputs:
            tower, spec = self._tower(modality), self.config.tower(modality)
            kind = self.idle_inputs[modality] if self.training else "pixels"  # only training knows stored features
            encoder = spec.encoder_spec
            size = (
                (encoder.channels, *spec.input_size) if kind == "pixels" else (tower.stored_tokens, encoder.hidden_size)
            )
            return tower(**{kind: torch.zeros(1, *size, device=self.device)}).sum() * 0.0
        weights = [p for p in self.towers[modality].parameters() if p.requires_grad]
        return sum((p.flatten()[:1].sum() * 0.0 for p in weights), start=torch.zeros((), device=self.device))

    def _tower(self, modality: str) -> Tower:
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
        image_features: Tensor | None = None,
        volume_features: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        cross_entropy: str | None = None,
        **kwargs: Any,
    ) -> MedMVLOutput:
        """Return logits, and the loss if labels are given.

        1. embed the tokens, 2. encode and connect images and volumes, 3. scatter them to their placeholders,
        4. run the LLM, 5. compare with the labels.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 0 where padded.
            pixel_values: (N, C, H, W) float, normalised as the processor does.
            volume_values: (M, C, D, H, W) float.
            labels: (B, T) int64, -100 where there is no loss; position t is predicted from the ones before it.
            logits_to_keep: 0 all positions, n > 0 the last n, or positions / a (B, T) mask (with `shift_labels`).
            cross_entropy: with a mask and `shift_labels`: "chunked" or "liger" return a loss without logits, see
                `medmvl.models.head_loss`.

        Raises:
            ModelError: if placeholders and media do not match.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ModelError("The model needs input_ids or inputs_embeds.")
            inputs_embeds = self.embed(input_ids, pixel_values, volume_values, image_features, volume_features)
        loss_arguments = {key: kwargs.pop(key) for key in ("shift_labels", "num_items_in_batch") if key in kwargs}
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        if cross_entropy is not None:
            return self._loss_alone(cross_entropy, logits_to_keep, inputs | kwargs, **loss_arguments)
        outputs = self.language_model(
            **inputs, past_key_values=past_key_values, logits_to_keep=logits_to_keep, **kwargs
        )
        loss = None
        if labels is not None or loss_arguments.get("shift_labels") is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=outputs.logits, labels=labels, vocab_size=vocab_size, **loss_arguments)
        return MedMVLOutput(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
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
        head = plain_head(self.language_model)
        if head is None or shift_labels is None or not isinstance(kept, Tensor):
            raise ModelError(
                f"cross_entropy={kernel!r} needs logits_to_keep as a mask, shift_labels, and an LLM whose logits are "
                "its head's output as it is."
            )
        hidden = self.language_model.get_decoder()(**inputs).last_hidden_state
        return MedMVLOutput(loss=head_loss(hidden[kept], head, shift_labels, num_items_in_batch, kernel))

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as every transformers model does; returns prompt and new tokens, (B, T + new).

        Media are encoded once, before the search, so that beams share them and rows with several images keep their
        own when rows are repeated. Rules about repetition (penalty, n-grams) look at the answer alone, not at the prompt:
        a model must be free to say the words of the question, and the answer must not depend on its neighbours.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        media = {key: kwargs.pop(key, None) for key in MEDIA_INPUTS}
        if input_ids is None or kwargs.get("past_key_values") is not None:
            return super().generate(input_ids, **kwargs, **{k: v for k, v in media.items() if v is not None})
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(input_ids)
        self._penalise_the_answer_alone(kwargs)
        result = super().generate(inputs_embeds=self.embed(input_ids, **media), **kwargs)
        new = result if isinstance(result, Tensor) else result.sequences
        prompt = input_ids.repeat_interleave(new.shape[0] // input_ids.shape[0], dim=0)
        sequences = torch.cat([prompt, new], dim=1)
        if isinstance(result, Tensor):
            return sequences
        result.sequences = sequences
        return result

    def _penalise_the_answer_alone(self, arguments: dict[str, Any]) -> None:
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
    def from_parts(cls, llm: Any, **parts: Any) -> MedMVLForConditionalGeneration:
        """Assemble a new model.

        Args:
            llm: a folder or hub name (weights are loaded), settings with `model_type` or a config (fresh weights),
                or a causal LM.
            image, volume: (encoder, connector) or None. An encoder is settings with a `name`, optionally `init_from`
                a folder or hub name; a connector is a projector's name or {"pooling": ..., "projector": ...}.
            image_size, volume_size: the input sizes; default: what the encoders were made for.
            image_token_id, volume_token_id: placeholder ids; default: just behind the LLM's vocabulary.

        Raises:
            ModelError: if a source cannot be loaded or parts do not fit together.
        """
        from medmvl.models.assemble import from_parts

        return from_parts(llm, **parts)

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
