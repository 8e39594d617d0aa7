"""Tokenizer metadata for llama.cpp: pieces, their kinds, and merges or scores."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from medmvl.checkpoints.engine_templates import begins_with_bos, llama_cpp_template
from medmvl.errors import CheckpointError
from medmvl.processing.chat import WORD_MARK

#: Kinds of a piece (`LlamaTokenType` of llama.cpp).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int, chat_template: str) -> None:
    """Write the tokenizer's metadata.

    Args:
        writer: gguf's writer.
        vocab_size: rows of the LLM's embedding table; ids without a piece are written as unused.
        chat_template: Jinja source of the checkpoint.

    Raises:
        CheckpointError: if llama.cpp has no tokenizer of this kind.
    """
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = facts["model"]
    if model["type"] != "BPE":
        raise CheckpointError(f"The tokenizer is a {model['type']} model; llama.cpp export knows BPE only.")
    pieces, kinds = _pieces(tokenizer, facts, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(pieces)
        writer.add_token_scores(_scores(pieces, merges))
        writer.add_token_types(kinds)
        # Llama 2 marks the first word of a text as it marks one behind a space, Gemma does not.
        first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
        writer.add_add_space_prefix(first.startswith(WORD_MARK))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(facts))
        writer.add_token_list(pieces)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
    # llama.cpp removes the bos token of the template where it adds one itself: never two.
    _add_special(writer, tokenizer, adds_bos=begins_with_bos(chat_template, tokenizer))
    missing = [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None]
    writer.add_chat_template(llama_cpp_template(chat_template, missing))


def model_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name of the model in the file; a name with "phi-3" lets llama.cpp strip white space behind special tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return "medmvl phi-3" if any(token.special and token.rstrip for token in added) else "medmvl"


def marks_words_alike(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a sentencepiece tokenizer marks the first word behind a special token as it marks the first one of a text.

    llama.cpp does so; tokenizers that transformers makes with `legacy=False` do not.
    """
    if not json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("byte_fallback"):
        return True
    special = tokenizer.eos_token or tokenizer.bos_token or ""
    first, behind = (tokenizer.tokenize(text)[-1] for text in ("a", f"{special}a"))
    return first == behind


def _pieces(tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    by_id = {index: piece for piece, index in tokenizer.get_vocab().items()}
    added = {token["id"]: bool(token["special"]) for token in facts["added_tokens"]}
    unknown = facts["model"].get("unk_token")
    pieces, kinds = [], []
    for index in range(vocab_size):
        piece = by_id.get(index)
        if piece is None:
            pieces.append(f"[PAD{index}]")
            kinds.append(UNUSED)
            continue
        pieces.append(piece)
        if piece == unknown:
            kinds.append(UNKNOWN)
        elif index in added:
            kinds.append(CONTROL if added[index] else USER_DEFINED)
        else:
            kinds.append(BYTE if _is_byte(piece) and facts["model"].get("byte_fallback") else NORMAL)
    return pieces, kinds


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _scores(pieces: list[str], merges: list[str]) -> list[float]:
    """Return sentencepiece's scores: a piece that is merged earlier has a higher score; single characters have the lowest."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), index)
    return [float(-rank.get(piece, len(merges))) for piece in pieces]


def _pre_tokenizer(facts: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer.

    Raises:
        CheckpointError: for an unknown pre-tokenizer.
    """
    text = json.dumps(facts.get("pre_tokenizer"))
    if "p{N}{1,3}" in text:
        return "llama-bpe"
    if "p{N}" in text:
        return "qwen2"
    if '"Digits"' in text:
        return "smollm"
    if '"ByteLevel"' in text:
        return "gpt-2"
    raise CheckpointError("The tokenizer splits text in a way that this export cannot name to llama.cpp.")


def _add_special(writer: Any, tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool) -> None:
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
