"""Prompts of chats for vLLM, laid out by our processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medmvl.data.sample import Sample
from medmvl.errors import DataError
from medmvl.processing import MedMVLProcessor
from medmvl.processing.chat import Rendered, tokenize
from medmvl.processing.conversation import read_conversation

#: Type of a content part in vLLM -> in our conversations.
_PARTS = {"text": "text", "image": "image", "video": "volume"}

_ROLES = {"developer": "system"}


def chat_ids(processor: MedMVLProcessor, turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the token ids of a chat, with one placeholder token per image or volume; vLLM repeats it.

    Args:
        turns: each with `role`, and `content` as a text or a list of parts `{"type": "text" | "image" | "video", ...}`.

    Raises:
        DataError: if a turn or part is of another kind, the last turn is not the user's, or the prompt is too long.
    """
    plain = [_turn(number, turn) for number, turn in enumerate(turns)]
    messages = read_conversation(plain).messages
    if messages[-1].role != "user":
        raise DataError("The last message must be the user's, who is answered.")
    parts = [part["type"] for turn in plain if isinstance(turn["content"], list) for part in turn["content"]]
    images, volumes = parts.count("image"), parts.count("volume")
    sample = Sample("of this request", messages)
    ids, _ = processor.encode_text(sample, train=False, images=images, volumes=volumes)
    return collapsed(ids, {one.token_id: one.tokens for one in processor.placeholders.values()})


def text_ids(processor: MedMVLProcessor, text: str) -> list[int]:
    """Return the token ids of a finished prompt, with one placeholder token per image or volume."""
    single = {name: replace(one, tokens=1) for name, one in processor.placeholders.items()}
    return tokenize(Rendered(text, ()), processor.tokenizer, single, slow_spaces=processor.slow_spaces)[0]


def collapsed(ids: Sequence[int], tokens: Mapping[int, int]) -> list[int]:
    """Return ids with one placeholder token per image or volume.

    Args:
        ids: of an expanded prompt.
        tokens: id of a placeholder -> how many of it stand for one image or volume.
    """
    found, position = [], 0
    while position < len(ids):
        found.append(ids[position])
        position += max(tokens.get(ids[position], 1), 1)
    return found


def _turn(number: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    role, content = str(turn.get("role")), turn.get("content")
    if turn.get("tool_calls") or role == "tool":
        raise DataError(f"messages[{number}] is about tools, and this model calls none.")
    if isinstance(content, list | tuple):
        content = [_part(part, f"messages[{number}].content[{place}]") for place, part in enumerate(content)]
    return {"role": _ROLES.get(role, role), "content": content}


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _PARTS:
        raise DataError(f"{where} has the type {kind!r}. Known: text, image_url, and video_url for a volume.")
    return {"type": "text", "text": part.get("text")} if kind == "text" else {"type": _PARTS[kind]}
