"""Export of a 2D model to a `LlavaForConditionalGeneration` folder, which transformers, vLLM and SGLang load.

LLaVA consists of one CLIP or SigLIP vision tower, a projector of two linear layers with GELU, and an LLM without a bias on its
head. Other models are refused with the reason.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image as PILImage
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from medmvl.checkpoints.engine_templates import llava_template, without_special_tokens_added
from medmvl.checkpoints.vllm_cpu import vllm_cpu_note
from medmvl.data.sample import IMAGE_PLACEHOLDER, Message
from medmvl.errors import CheckpointError
from medmvl.files import PathLike, atomic_directory, check_new_folder
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.models.encoders.transformers_vision import TransformersVisionSpec
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.models.tower import count_visual_tokens
from medmvl.models.weight_writer import Entry, write_weights
from medmvl.pretrained import open_pretrained
from medmvl.processing import MedMVLProcessor
from medmvl.processing.chat import render
from medmvl.processing.image2d import pil_processor_class

#: The vision models that transformers', vLLM's and SGLang's LLaVA have in common.
_VISION = ("clip_vision_model", "siglip_vision_model")

#: Names in transformers 5's module -> names in published folders.
_PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)

#: Embedding tables grow to a multiple of this many rows, which suits GPU kernels.
_ROWS = 64


@dataclass
class LlavaExport:
    """Result of an export.

    Attributes:
        difference: largest difference of a logit between the model and the exported one (float32).
        notes: remarks for the user.
    """

    difference: float
    notes: list[str] = field(default_factory=list)


def export_llava(source: PathLike, target: PathLike, *, drop_volume_tower: bool = False) -> LlavaExport:
    """Write a MedM-VL checkpoint as an HF LLaVA folder after comparing the logits of both models.

    Args:
        drop_volume_tower: leave out the volume tower of a model with both towers.

    Raises:
        CheckpointError: with the reason, if LLaVA cannot express the model; nothing is written then.
    """
    check_new_folder(target)
    model = MedMVLForConditionalGeneration.from_pretrained(Path(source), dtype=torch.float32)
    processor = MedMVLProcessor.from_pretrained(str(source))
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    stored = model.config.dtype or torch.float32
    if drop_volume_tower:
        remove_volume_tower(model)
    tower = check_expressible(model.config)
    export = LlavaExport(difference=0.0, notes=[note] if (note := vllm_cpu_note(model.config.text_config)) else [])
    llava = _build(model, tower, image_token, len(processor.tokenizer), export)
    export.difference = _compare(model, llava, image_token)
    llava_processor = _processor(processor, tower)
    _compare_prompts(processor, llava_processor, export)
    with atomic_directory(Path(target)) as folder:
        _write(llava.to(stored), folder)
        processor.configure_generation(model.generation_config)
        model.generation_config.save_pretrained(folder)
        llava_processor.save_pretrained(folder)
        # Engines built on transformers 4 look for the image processor in a separate file.
        llava_processor.image_processor.save_pretrained(folder)
        export.difference = max(export.difference, _compare_written(folder, llava, model, image_token))
    return export


def check_expressible(config: MedMVLConfig, *, bias_of_the_head: bool = False) -> TransformersVisionSpec:
    """Return the image encoder's spec if LLaVA can express the model.

    Args:
        bias_of_the_head: whether the target has a bias on the LLM's head.

    Raises:
        CheckpointError: with every reason why not.
    """
    reasons = []
    if "volume" in config.towers:
        reasons.append("it has a volume tower, and LLaVA has images only (--drop-volume-tower exports it without)")
    if "image" not in config.towers:
        raise CheckpointError(f"This model cannot be a LLaVA: {'; '.join(reasons) or 'it has no image tower'}.")
    tower = config.tower("image")
    spec = tower.encoder_spec
    kind = spec.vision_config.get("model_type") if isinstance(spec, TransformersVisionSpec) else spec.name
    if kind not in _VISION:
        reasons.append(f"its encoder is {kind}, and LLaVA takes {' or '.join(_VISION)}")
    if tower.connector.pooling["name"] != "none":
        reasons.append(f"its connector pools ({tower.connector.pooling['name']}), and LLaVA keeps every token")
    if tower.connector.projector != "mlp2x_gelu":
        reasons.append(f"its projector is {tower.connector.projector}, and LLaVA's is mlp2x_gelu")
    if tower.input_size != spec.input_size:
        reasons.append(f"it runs at {tower.input_size}, and LLaVA at the encoder's own {spec.input_size}")
    if config.text_config.model_type == "phi" and not bias_of_the_head:
        reasons.append("its LLM's head has a bias, and LLaVA's has none")
    if reasons:
        raise CheckpointError(f"This model cannot be a LLaVA: {'; '.join(reasons)}.")
    assert isinstance(spec, TransformersVisionSpec)
    return spec


def remove_volume_tower(model: MedMVLForConditionalGeneration) -> None:
    """Remove the volume tower from a model with both towers.

    Raises:
        CheckpointError: if the model lacks either tower.
    """
    if not {"image", "volume"} <= set(model.config.towers):
        raise CheckpointError("--drop-volume-tower needs a model with an image tower and a volume tower.")
    del model.towers["volume"]
    model.config.towers = {"image": model.config.towers["image"]}


def head_is_tied(model: MedMVLForConditionalGeneration) -> bool:
    """Whether the LLM's head has the weights of its embedding table; the weights decide, not the config."""
    head: Any = model.get_output_embeddings().weight
    table: Any = model.get_input_embeddings().weight
    return head.data_ptr() == table.data_ptr() or (head.shape == table.shape and torch.equal(head, table))


def _build(
    model: MedMVLForConditionalGeneration,
    spec: TransformersVisionSpec,
    image_token: int,
    tokens: int,
    export: LlavaExport,
) -> LlavaForConditionalGeneration:
    tied = head_is_tied(model)
    text = {**model.config.text_config.to_dict(), "tie_word_embeddings": tied}
    text["architectures"] = [type(model.language_model).__name__]  # by which vLLM and SGLang choose the LLM's class
    rows = text["vocab_size"]
    if tokens > rows:
        text["vocab_size"] = -(-tokens // _ROWS) * _ROWS
        export.notes.append(
            f"The LLM's table has {rows} rows and the tokenizer {tokens} tokens: it grows to {text['vocab_size']} rows, the new "
            "ones being the mean of the old."
        )
    config = LlavaConfig(
        vision_config=spec.hf_config().to_dict(),
        text_config=text,
        image_token_index=image_token,
        image_seq_length=count_visual_tokens(model.config.tower("image")),
        projector_hidden_act="gelu",
        vision_feature_layer=-1,  # a MedM-VL model ends at the selected layer
        vision_feature_select_strategy="default"
        if spec.select_feature == "patch" and spec.num_prefix_tokens
        else "full",
        multimodal_projector_bias=True,
        tie_word_embeddings=tied,
    )
    llava = LlavaForConditionalGeneration(config)
    state = _renamed(model.state_dict(), llava.state_dict(), rows)
    missing, unexpected = llava.load_state_dict(state, strict=False)
    absent = "lm_head.weight" if tied else None
    if unexpected or [name for name in missing if name != absent]:
        raise CheckpointError(
            f"The LLM {text['model_type']!r} does not fit transformers' LLaVA: {len(missing)} weights missing, "
            f"{len(unexpected)} left over ({[*missing, *unexpected][:3]})."
        )
    llava.tie_weights()
    return llava.eval()


def _renamed(state: dict[str, Tensor], wanted: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("towers.image.encoder.model.", "model.vision_tower."),
            ("towers.image.connector.projector.0.", "model.multi_modal_projector.linear_1."),
            ("towers.image.connector.projector.2.", "model.multi_modal_projector.linear_2."),
        ):
            if name.startswith(ours):
                renamed[theirs + name.removeprefix(ours)] = tensor
    # LLaVA loads a final norm that it does not apply to the features: write the identity.
    for name in wanted:
        if ".post_layernorm." in name and name not in renamed:
            fill = torch.ones_like if name.endswith("weight") else torch.zeros_like
            renamed[name] = fill(wanted[name])
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in renamed and wanted[name].shape[0] > rows:
            extra = renamed[name].float().mean(0, keepdim=True).to(renamed[name].dtype)
            renamed[name] = torch.cat([renamed[name], extra.expand(wanted[name].shape[0] - rows, -1)])
    return renamed


def _write(llava: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write config and weights under the names of the published llava-hf folders."""
    state = llava.state_dict()
    if llava.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    entries = {}
    for name, tensor in state.items():
        published = next(theirs + name.removeprefix(ours) for ours, theirs in _PUBLISHED if name.startswith(ours))
        entries[published] = Entry(name, tuple(tensor.shape), partial(torch.Tensor.detach, tensor))
    write_weights(entries, folder)
    llava.config.architectures = ["LlavaForConditionalGeneration"]
    llava.config.save_pretrained(folder)


def _compare_written(
    folder: Path, llava: LlavaForConditionalGeneration, model: MedMVLForConditionalGeneration, image_token: int
) -> float:
    """Load the written folder with transformers, compare every weight, and return the largest difference of a logit.

    Raises:
        CheckpointError: if a weight is missing, left over or different, or the logits differ by more than rounding.
    """
    loaded, info = open_pretrained(LlavaForConditionalGeneration, folder, output_loading_info=True)
    expected = llava.state_dict()
    same = all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    if info["missing_keys"] or info["unexpected_keys"] or not same:
        raise CheckpointError(
            f"The exported folder does not load in transformers {transformers.__version__} as it was written; nothing is kept."
        )
    return _compare(model, loaded.float().eval(), image_token)


def _compare(model: MedMVLForConditionalGeneration, llava: LlavaForConditionalGeneration, image_token: int) -> float:
    """Return the largest difference of a logit; raise if it is more than rounding."""
    model.config.image_token_id = image_token
    batch = probe_batch(model.config)
    ours = probe_logits(model, batch)
    with torch.no_grad():
        theirs = llava(**batch).logits[0, :, : ours.shape[1]].float()
    difference = float((ours - theirs).abs().max())
    if not difference <= 1e-4 * max(float(ours.abs().max()), 1.0):
        raise CheckpointError(f"The exported model's logits differ by {difference:.2e}; nothing was written.")
    return difference


def _processor(processor: MedMVLProcessor, spec: TransformersVisionSpec) -> LlavaProcessor:
    assert processor.image is not None
    settings = dict(processor.image)
    image_processor = pil_processor_class(settings.pop("image_processor_type"))(**settings)
    tokenizer = without_special_tokens_added(copy.deepcopy(processor.tokenizer))
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=int(spec.vision_config["patch_size"]),
        vision_feature_select_strategy="default"
        if spec.select_feature == "patch" and spec.num_prefix_tokens
        else "full",
        num_additional_image_tokens=spec.num_prefix_tokens,
        image_token=IMAGE_PLACEHOLDER,
        chat_template=llava_template(processor.chat_template),
    )


#: Conversations whose prompts are compared: parts of the user's turns, "I" for an image, and answers between them.
_CONVERSATIONS: tuple[tuple[tuple[str, ...] | str, ...], ...] = (
    (("I", "Is there a nodule?"),),
    (("Is there a nodule?", "I"),),
    (("I", "I", "Compare."),),
    (("Before:", "I", "After:", "I", "What changed?"),),
    (("I", "What is it?"), "A lung.", ("Which side?",)),
    (("What is a lung?",),),
)


def _compare_prompts(ours: MedMVLProcessor, theirs: LlavaProcessor, export: LlavaExport) -> None:
    """Compare the prompt ids of both processors, theirs in one step and in two; note a difference.

    LLaVA's processor tokenizes a prompt in one piece, ours piece by piece around the images.
    """
    assert ours.image is not None
    blank = PILImage.new("RGB", (8, 8))
    for turns in _CONVERSATIONS:
        chat = [_chat_turn(turn, blank) for turn in turns]
        texts = (
            "\n".join("<image>" if part == "I" else part for part in t) if isinstance(t, tuple) else t for t in turns
        )
        messages = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)]
        rendered = render(messages, ours.chat_template, ours.tokenizer, ask=True)
        images = [blank] * sum(turn.count("I") for turn in turns if isinstance(turn, tuple)) or None
        if rendered.text.count(IMAGE_PLACEHOLDER) != len(images or []):
            continue  # the template drops an image, and our processor refuses such a conversation
        ids = ours.tokenize(rendered)[0]
        options: dict[str, Any] = {"add_generation_prompt": True}
        one = theirs.apply_chat_template(chat, tokenize=True, return_dict=True, **options)["input_ids"]
        two = theirs(text=theirs.apply_chat_template(chat, tokenize=False, **options), images=images)["input_ids"]
        if not ids == list(_flat(one)) == list(_flat(two)):
            export.notes.append(
                "With this tokenizer the text after an image becomes other tokens in LLaVA's processor, which tokenizes the prompt "
                "in one piece, than in training. Logits for the same ids are equal; answers may differ slightly."
            )
            return


def _chat_turn(turn: tuple[str, ...] | str, image: PILImage.Image) -> dict[str, Any]:
    """Return a turn in the chat style of transformers."""
    if isinstance(turn, str):
        return {"role": "assistant", "content": [{"type": "text", "text": turn}]}
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": image} if part == "I" else {"type": "text", "text": part} for part in turn
    ]
    return {"role": "user", "content": parts}


def _flat(ids: Any) -> Any:
    """Return the only row of a batch, or the row itself."""
    return ids[0] if len(ids) == 1 and not isinstance(ids[0], int) else ids
