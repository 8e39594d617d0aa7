"""Chat templates: Jinja files with `{% generation %}` around the text that the model learns.

A template sees `messages` (role, content), `add_generation_prompt` and the tokenizer's special tokens. Only text
inside a generation block is supervised.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from medmvl.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

#: Which template speaks an LLM's own chat format, told by a special token that only this format has.
_NATIVE = (
    ("<|im_start|>", "chatml"),
    ("<|eot_id|>", "llama3-chat"),
    ("<start_of_turn>", "gemma-chat"),
    ("<|end|>", "phi3-chat"),
)

#: For base models without a chat format: USER/ASSISTANT lines, closed by the tokenizer's eos token.
DEFAULT_TEMPLATE = "plain"


def template_names() -> list[str]:
    """Return the names of all templates that come with the package."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja"))


def load_template(name: str) -> str:
    """Return the Jinja source of a template.

    Raises:
        RecipeError: if there is none of that name.
    """
    if name not in template_names():
        raise RecipeError(f"Unknown template {name!r}. {did_you_mean(name, template_names())}")
    return resources.files(__name__).joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def template_name(source: str) -> str | None:
    """Return the name of the template of this package that has this Jinja source; None if it is another one."""
    return _names_by_source().get(source)


@cache
def _names_by_source() -> dict[str, str]:
    return {load_template(name): name for name in template_names()}


def native_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name of the template in the tokenizer's own chat format, or of the default template."""
    vocabulary = tokenizer.get_vocab()
    found = next((name for token, name in _NATIVE if token in vocabulary), None)
    if found is None:
        logger.warning("The tokenizer has no chat format that is known: the template %r is used.", DEFAULT_TEMPLATE)
    return found or DEFAULT_TEMPLATE
