"""A 2D model as a plain `LlavaForConditionalGeneration` folder, which transformers, vLLM and SGLang load.

LLaVA is: one vision tower of CLIP or SigLIP, a projector of two linear layers with GELU, an LLM without a bias on its head.
What is outside of that is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from medmvl.checkpoints.probe import probe_batch, probe_logits
from medmvl.checkpoints.write import whole_folder
from medmvl.data.sample import IMAGE_PLACEHOLDER, Message
from medmvl.errors import CheckpointError
from medmvl.files import PathLike
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.models.encoders.transformers_vision import TransformersVisionSpec
from medmvl.models.visual_tokens import count_visual_tokens
from medmvl.models.weight_writer import Entry, write_weights
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

#: Embedding tables grow in steps of this many rows, as their GPU kernels like it.
_ROWS = 64

#: Chat clients send a message's content as a list of parts; our templates take text.
_FLATTEN = """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text = namespace(value='') -%}
{%- if message['content'] is string -%}{%- set text.value = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- set text.value = text.value + ('<image>\\n' if part['type'] in ('image', 'image_url') else part['text']) -%}
{%- endfor -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text.value}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


@dataclass
class LlavaExport:
    """What an export did.

    Attributes:
        difference: largest difference of a logit between the model and the exported one (float32).
        notes: what the user should know.
    """

    difference: float
    notes: list[str] = field(default_factory=list)


def export_llava(source: PathLike, target: PathLike) -> LlavaExport:
    """Write a checkpoint of ours as an HF LLaVA folder, after comparing the logits of both.

    Raises:
        CheckpointError: with the reason, if LLaVA cannot express the model; nothing is written then.
    """
    model = MedMVLForConditionalGeneration.from_pretrained(Path(source), dtype=torch.float32)
    processor = MedMVLProcessor.from_pretrained(str(source))
    tower = check_expressible(model.config)
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    stored = model.config.dtype or torch.float32
    export = LlavaExport(difference=0.0)
    llava = _build(model, tower, image_token, len(processor.tokenizer), export)
    export.difference = _compare(model, llava, image_token)
    llava_processor = _processor(processor, tower)
    _compare_prompts(processor, llava_processor, export)
    with whole_folder(Path(target)) as folder:
        _write(llava.to(stored), folder)
        model.generation_config.save_pretrained(folder)
        llava_processor.save_pretrained(folder)
        # Engines built on transformers 4 look for the image processor in a file of its own.
        llava_processor.image_processor.save_pretrained(folder)
        _check_readable(folder, llava)
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
        reasons.append("it has a volume tower, and LLaVA has images only")
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


def _build(
    model: MedMVLForConditionalGeneration,
    spec: TransformersVisionSpec,
    image_token: int,
    tokens: int,
    export: LlavaExport,
) -> LlavaForConditionalGeneration:
    text = model.config.text_config.to_dict()
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
        vision_feature_layer=-1,  # layers behind the selected one are not part of our models
        vision_feature_select_strategy="default" if spec.select_feature == "patch" and spec.prefix_tokens else "full",
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
    )
    llava = LlavaForConditionalGeneration(config)
    state = _renamed(model.state_dict(), llava.state_dict(), rows)
    missing, unexpected = llava.load_state_dict(state, strict=False)
    tied = "lm_head.weight" if config.tie_word_embeddings else None
    if unexpected or [name for name in missing if name != tied]:
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
    # A final norm that LLaVA loads and never applies to the features it takes: the identity.
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
    """Write config and weights under the names of the published llava-hf folders, which every engine reads."""
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


def _check_readable(folder: Path, llava: LlavaForConditionalGeneration) -> None:
    """Load what was written as a user would, and compare every weight.

    Raises:
        CheckpointError: if a weight is missing, left over or different.
    """
    loaded, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    expected = llava.state_dict()
    same = all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    if info["missing_keys"] or info["unexpected_keys"] or not same:
        raise CheckpointError(
            f"The exported folder does not load in transformers {transformers.__version__} as it was written; nothing is kept."
        )


def _compare(model: MedMVLForConditionalGeneration, llava: LlavaForConditionalGeneration, image_token: int) -> float:
    """Return the largest difference of a logit; refuse one that is more than rounding."""
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
    tokenizer = processor.tokenizer
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=int(spec.vision_config["patch_size"]),
        vision_feature_select_strategy="default" if spec.select_feature == "patch" and spec.prefix_tokens else "full",
        num_additional_image_tokens=spec.prefix_tokens,
        image_token=IMAGE_PLACEHOLDER,
        chat_template=_FLATTEN + without_generation(processor.chat_template),
    )


def without_generation(template: str) -> str:
    """Drop the generation marks: engines other than transformers do not know the tag."""
    for tag in ("{%- generation -%}", "{%- endgeneration -%}", "{% generation %}", "{% endgeneration %}"):
        template = template.replace(tag, "")
    return template


def _compare_prompts(ours: MedMVLProcessor, theirs: LlavaProcessor, export: LlavaExport) -> None:
    """Say so where LLaVA's one-piece tokenisation gives other ids than ours, which is piece by piece."""
    messages = [Message("user", f"{IMAGE_PLACEHOLDER}\nIs there a nodule?")]
    ids = ours.tokenize(render(messages, ours.chat_template, ours.tokenizer, ask=True))[0]
    chat: list[dict[str, Any]] = [{"role": "user", "content": messages[0].text}]
    prompt = theirs.apply_chat_template(chat, add_generation_prompt=True)
    whole = prompt.replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER * ours.image_tokens)
    if theirs.tokenizer(whole, add_special_tokens=False)["input_ids"] != ids:
        export.notes.append(
            "With this tokenizer the text after an image becomes other tokens in LLaVA's processor, which tokenises the prompt "
            "in one piece, than in training. Logits for the same ids are equal; answers may differ slightly."
        )
