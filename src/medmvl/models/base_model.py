"""Base class of our models: strict loading and saving of checkpoint folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from medmvl.errors import CheckpointError, shown
from medmvl.files import BAD_JSON
from medmvl.models.weights import COPY_AGAIN, check_layers, open_weights
from medmvl.pretrained import NO_REMOTE_CODE, check_folder, open_pretrained, refuse_adapters, translate_load_errors

_HALF = {torch.float16, torch.bfloat16}

#: Our kinds of models, in words.
_KINDS = {
    "medmvl": "a model with an LLM, which answers questions",
    "medmvl-dual-encoder": "the dual encoder of a contrastive stage, which finds reports (medmvl evaluate --benchmark "
    "retrieval) and is where other recipes' encoders start from (init_from)",
}


class StrictPreTrainedModel(PreTrainedModel):
    """A model whose folder must hold every weight of it and no other."""

    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Leave random weights as the parts made them: each part initializes itself."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint folder; every weight must be there.

        Raises:
            CheckpointError: if the folder is not a complete checkpoint of this kind of model.
        """
        check_kind(Path(folder), cls.config_class.model_type)
        check_layers(Path(folder))
        wants_info = kwargs.pop("output_loading_info", False)
        in_full = kwargs.get("dtype") in (torch.float32, "float32") and not kwargs.get("device_map")
        if in_full:
            kwargs["dtype"] = "auto"  # mapped from the file, nothing copied yet
        kwargs |= NO_REMOTE_CODE
        with translate_load_errors(f"The model in {folder} cannot be loaded", COPY_AGAIN):
            _check_sizes(cls, Path(folder))
            try:
                loaded: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
            except RuntimeError as error:  # transformers has already shown a table of the shapes
                raise CheckpointError(
                    f"The weights in {folder} do not fit its config.json: some have another shape. {COPY_AGAIN}"
                ) from error
        model, info = loaded
        broken = {key: sorted(map(str, info[key])) for key in ("missing_keys", "mismatched_keys", "unexpected_keys")}
        if any(broken.values()):
            raise CheckpointError(
                f"The weights in {folder} do not fit its config.json: "
                + "; ".join(
                    f"{len(keys)} {kind.replace('_', ' ')} ({keys[0]}, ...)" for kind, keys in broken.items() if keys
                )
                + f". {COPY_AGAIN}"
            )
        _check_special_ids(model, folder)
        _correct_tie_flags(model)
        _check_generation(model, folder)
        if in_full:
            restore_full_precision(model, Path(folder))
            _to_float32(model)
        return (model, info) if wants_info else model

    @classmethod
    def from_tensors(cls, config: Any, tensors: dict[str, Tensor]) -> Any:
        """Return the model of a config with these weights, in their dtype; mapped ones stay in their files.

        Args:
            config: of the model.
            tensors: name in the model -> weight, of the shape and with the name that its state dict has.
        """
        return super().from_pretrained(None, config=config, state_dict=tensors, dtype="auto", **NO_REMOTE_CODE)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save under the module's own key names, so that whatever loads a state dict finds every key."""
        kwargs.setdefault("save_original_format", False)
        _correct_tie_flags(self)
        super().save_pretrained(*args, **kwargs)


def check_kind(folder: Path, wanted: str) -> None:
    """Raise if a folder is not a checkpoint of the wanted kind.

    Checked before anything is built: transformers would ask the hub for an unknown name, and build a model of its default
    sizes, several billion parameters, for another model's config.

    Raises:
        CheckpointError: saying what the folder holds.
    """
    check_folder(folder)
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except OSError as error:
        adapters = (folder / "adapter_config.json").is_file()
        hint = "It holds PEFT adapters: merge them first (medmvl checkpoint merge)." if adapters else ""
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it has no config.json. {hint or 'Give the folder of a model.'}"
        ) from error
    except (*BAD_JSON, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object. Copy it again.") from error
    if found == wanted:
        refuse_adapters(folder)
        return
    if isinstance(found, str) and found in _KINDS:
        raise CheckpointError(f"{folder} holds {_KINDS[found]}; wanted here is {_KINDS[wanted]}. Give another folder.")
    raise CheckpointError(
        f"{folder} holds a model of the type {found!r}, not one of ours ({wanted!r}). `medmvl checkpoint convert` brings "
        "checkpoints of other layouts in."
    )


def _check_sizes(model: type[PreTrainedModel], folder: Path) -> None:
    """Raise if the tensors that a config describes have other shapes than the stored ones, or are far more.

    Checked on the meta device, because transformers would allocate them and fill them with random numbers first.

    Raises:
        CheckpointError: naming a tensor.
    """
    config = open_pretrained(model.config_class, folder)
    stored: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        source = open_weights(file)
        stored |= {name: tuple(source.get_slice(name).get_shape()) for name in source.keys()}  # noqa: SIM118 - no dict
    if not stored or getattr(config, "quantization_config", None) is not None:
        return
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in model(config).state_dict().items()}
    for name, shape in wanted.items():
        if stored.get(name, shape) != shape:
            raise CheckpointError(
                f"The weights in {folder} do not fit its config.json: {name} has another shape, {stored[name]} instead of "
                f"{shape}. {COPY_AGAIN}"
            )
    missing = sum(math.prod(shape) for name, shape in wanted.items() if name not in stored)
    if missing > 4 * sum(math.prod(shape) for shape in stored.values()) + 2**20:
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json: {missing:,} values are missing. {COPY_AGAIN}"
        )


#: Settings of generation_config.json by the kind of their value. Others do no harm, or are refused if transformers acts on them.
_WHOLE = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_return_sequences", "top_k",
          "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "prompt_lookup_num_tokens", "num_assistant_tokens")  # fmt: skip
_REAL = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
         "encoder_repetition_penalty", "length_penalty", "diversity_penalty", "max_time", "guidance_scale")  # fmt: skip
_FLAGS = ("do_sample", "use_cache", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
          "return_dict_in_generate", "remove_invalid_values", "renormalize_logits", "low_memory", "token_healing",
          "disable_compile", "is_assistant", "early_stopping")  # fmt: skip
_REFUSED = ("watermarking_config", "cache_config", "compile_config", "continuous_batching_config", "constraints",
            "force_words_ids", "sequence_bias", "bad_words_ids", "stop_strings", "exponential_decay_length_penalty",
            "custom_generate", "forced_decoder_ids", "assistant_early_exit")  # fmt: skip


def _check_generation(model: PreTrainedModel, folder: Any) -> None:
    """Raise if a setting of generation_config.json is of another kind than it must be; transformers loads any.

    Raises:
        CheckpointError: naming the setting.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    defaults = type(config)()
    for names, kinds in ((_WHOLE, (int,)), (_REAL, (int, float)), (_FLAGS, (bool,)), (_REFUSED, ())):
        for name in names:
            value = getattr(config, name, None)
            if value is None or value == getattr(defaults, name, None):
                continue
            if name == "num_return_sequences" and value != 1:
                raise CheckpointError(
                    f"{folder}: num_return_sequences in generation_config.json must be 1, not {shown(value)}."
                )
            if type(value) not in kinds or (bool not in kinds and abs(value) >= 2**31):
                wanted = f"must be {kinds[-1].__name__}" if kinds else "is not supported"
                raise CheckpointError(f"{folder}: {name} in generation_config.json {wanted}, not {shown(value)}.")


def _check_special_ids(model: PreTrainedModel, folder: Any) -> None:
    """Raise if the ids of special tokens in the configs are no numbers; transformers loads such a config."""
    for config in (model.config, getattr(model.config, "text_config", None), getattr(model, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            ids = value if isinstance(value, list) else [value]
            if any(token is not None and (type(token) is not int or abs(token) >= 2**31) for token in ids):
                raise CheckpointError(
                    f"{folder}: {name} must be a token id or a list of them, not {shown(value)}. {COPY_AGAIN}"
                )


def _correct_tie_flags(model: PreTrainedModel) -> None:
    """Let the configs say "untied" if the head has its own weights: those that load the folder by its config would drop it."""
    llm: Any = getattr(model, "language_model", None)
    if llm is None:  # a dual encoder has no head
        return
    head, table = (
        getattr(module, "weight", None) for module in (llm.get_output_embeddings(), llm.get_input_embeddings())
    )
    if head is not None and head is not table:
        for config in (model.config, model.config.text_config, llm.config):
            config.tie_word_embeddings = False


def restore_full_precision(model: nn.Module, folder: Path) -> None:
    """Give half-precision weights the values of a checkpoint folder that holds them in float32.

    A model of several parts is loaded in the dtype of its LLM. If another part was stored in float32, such as an encoder, that
    would round it.
    """
    weights = {name: value for name, value in model.state_dict(keep_vars=True).items() if value.dtype in _HALF}
    if not weights or not folder.is_dir():
        return
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in weights.keys() & set(stored.keys()):
                piece = stored.get_slice(name)
                if piece.get_dtype() == "F32" and list(weights[name].shape) == piece.get_shape():
                    weights[name].data = stored.get_tensor(name).to(weights[name].device)


def _to_float32(model: StrictPreTrainedModel) -> None:
    """Convert the weights in the order of their names, which is that of the files.

    A file is unmapped after its last weight is converted, so that the model is not in memory twice.
    """
    for _, parameter in sorted(model.named_parameters()):
        parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    for config in (model.config, model.config.text_config):
        config.dtype = torch.float32
