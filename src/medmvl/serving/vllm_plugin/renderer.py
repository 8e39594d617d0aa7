"""Renderer of vLLM for our models: chats and texts to the token ids of our processor."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.base import BaseRenderer
from vllm.renderers.chat_utils import parse_chat_messages, parse_chat_messages_async
from vllm.utils.async_utils import make_async

from medmvl.errors import MedMVLError
from medmvl.serving.vllm_plugin.modalities import load_processor
from medmvl.serving.vllm_plugin.prompt import chat_ids, text_ids

#: Ways of rendering that a chat request may ask for, with the value that our prompts have.
_FIXED = {"tools": None, "documents": None, "continue_final_message": False, "add_generation_prompt": True}


@contextmanager
def client_errors() -> Iterator[None]:
    """Turn our errors raised inside into those that vLLM answers with status 400."""
    try:
        yield
    except MedMVLError as error:
        raise VLLMValidationError(str(error)) from None


class MedMVLRenderer(BaseRenderer[Any]):
    """Renders by the processor of the checkpoint; vLLM loads the images and volumes and repeats placeholders."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self._processor = load_processor(str(self.model_config.model))
        self._lock = threading.Lock()  # a fast tokenizer serves one thread at a time
        self._chat_ids_async = make_async(self._chat_ids, executor=self._executor)

    def render_messages(self, messages: Any, params: Any) -> tuple[Any, Any]:
        """Return the conversation and its prompt."""
        found = parse_chat_messages(messages, self.model_config, content_format="openai", **_media_options(params))
        return found[0], _prompt(self._chat_ids(found[0], params), found[1])

    async def render_messages_async(self, messages: Any, params: Any) -> tuple[Any, Any]:
        """Return the conversation and its prompt."""
        found = await parse_chat_messages_async(
            messages, self.model_config, content_format="openai", **_media_options(params)
        )
        return found[0], _prompt(await self._chat_ids_async(found[0], params), found[1])

    def _chat_ids(self, conversation: Any, params: Any) -> list[int]:
        if params.chat_template is not None:
            raise VLLMValidationError("The chat template is part of the checkpoint; none can be given.")
        for name, value in _FIXED.items():
            if params.chat_template_kwargs.get(name, value) not in (None, [], value):
                raise VLLMValidationError(f"This model's prompts do not know {name}. Leave it out of the request.")
        with client_errors(), self._lock:
            return chat_ids(self._processor, conversation)

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        with client_errors(), self._lock:
            return self._build_tokens_prompt(text_ids(self._processor, prompt["prompt"]), prompt)


def _media_options(params: Any) -> dict[str, Any]:
    return {"media_io_kwargs": params.media_io_kwargs, "mm_processor_kwargs": params.mm_processor_kwargs}


def _prompt(ids: list[int], media: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return vLLM's prompt.

    Clients' uuids are left out. vLLM would take them for the content, so that two studies with one uuid would be confused.
    """
    return {"prompt_token_ids": ids} | ({"multi_modal_data": media} if media else {})
