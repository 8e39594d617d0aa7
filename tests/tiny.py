"""Tiny things that tests build by code: a toy tokenizer and a model with both towers."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medmvl.imaging import geometry
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import ImageProcessor, MedMVLProcessor, VolumeProcessor

IMAGE_SIZE = 32
VOLUME_SIZE = (4, 32, 32)
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}
LLM = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TEXTS = [
    "Is there a pleural effusion? Yes. No.",
    "Findings: a nodule in the left lung. Impression: nodule.",
    "USER: ASSISTANT: What is seen on the right side?",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with ChatML tokens, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def make_model(seed: int = 0) -> tuple[MedMVLForConditionalGeneration, MedMVLProcessor]:
    """Return a tiny model with an image tower and a slice-wise volume tower, and its processor."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = MedMVLForConditionalGeneration.from_parts(
        {**LLM, "vocab_size": len(tokenizer)},
        image=({"name": "siglip", "vision_config": SIGLIP}, "mlp2x_gelu"),
        volume=(
            {"name": "slicewise", "slices": VOLUME_SIZE[0], "encoder": {"name": "siglip", "vision_config": SIGLIP}},
            {"pooling": {"name": "average"}, "projector": "mlp2x_gelu"},
        ),
    )
    processor = MedMVLProcessor.from_parts(
        model.config,
        tokenizer,
        image=ImageProcessor.for_size(IMAGE_SIZE, IMAGE_SIZE),
        volume=VolumeProcessor(geometry("medm-vl-ct", size=VOLUME_SIZE)),
        max_length=512,
    )
    return model.eval(), processor
