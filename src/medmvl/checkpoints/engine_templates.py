"""Chat templates and tokenizers for other engines, so that they make the prompt ids that training used."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from medmvl.data.sample import Message
from medmvl.processing.chat import render

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

#: Chat clients send a content as a list of parts; our templates take a text, one line per part.
_JOIN_PARTS = """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text = namespace(value='') -%}
{%- if message['content'] is string -%}{%- set text.value = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- set piece = '<image>' if part['type'] in ('image', 'image_url') else part['text'] -%}
{%- set text.value = text.value + ('' if loop.first else '\\n') + piece -%}
{%- endfor -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text.value}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""

#: llama.cpp hands a content over as one text in which `<__media__>` (or `<__media_...__>`) stands for an image, without the
#: line ends that stand around an image in training.
_BREAK_AROUND_MARKERS = """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text = namespace(value=message['content']) -%}
{%- if '<__media_' in text.value -%}
{%- set text.value = text.value | replace('__>', '__>\\n') | replace('__>\\n\\n', '__>\\n') -%}
{%- if message['content'].endswith('__>') -%}{%- set text.value = text.value[:-1] -%}{%- endif -%}
{%- set text.value = text.value | replace('<__media_', '\\n<__media_') | replace('\\n\\n<__media_', '\\n<__media_') -%}
{%- if message['content'].startswith('<__media_') -%}{%- set text.value = text.value[1:] -%}{%- endif -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text.value}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def without_generation(template: str) -> str:
    """Return a template without generation blocks, in any spelling of their tags; other engines do not know the tag.

    Each block becomes a condition that is always true, so that the whitespace control of its tags keeps its effect.
    """
    return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)


def llava_template(template: str) -> str:
    """Return the template for transformers, vLLM and SGLang: it also takes contents that are lists of parts."""
    return _JOIN_PARTS + without_generation(template)


def llama_cpp_template(template: str, missing: Sequence[str] = ()) -> str:
    """Return the template for llama.cpp: each image stands on a line of its own.

    Args:
        missing: special tokens that the tokenizer lacks, such as "bos_token". They are empty here; llama.cpp would write the
            token of its default id, which is any word.
    """
    empty = "".join(f"{{%- set {name} = '' -%}}\n" for name in missing)
    return empty + _BREAK_AROUND_MARKERS + without_generation(template)


def begins_with_bos(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a prompt of this template begins with the bos token."""
    bos = tokenizer.bos_token
    return bool(bos) and render([Message("user", ".")], template, tokenizer, ask=True).text.startswith(str(bos))


def without_special_tokens_added(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer changed so that it adds no special tokens: the template writes them.

    Otherwise the usual two steps, `apply_chat_template(tokenize=False)` and then the processor, give two bos tokens.
    """
    for name in ("add_bos_token", "add_eos_token"):
        if name in tokenizer.init_kwargs or hasattr(tokenizer, name):
            setattr(tokenizer, name, False)
            tokenizer.init_kwargs[name] = False
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    return tokenizer
