"""System turns that a chat template leaves out of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from medmvl.data.sample import Message, Sample
from medmvl.errors import RecipeError, counted
from medmvl.processing.chat import render


def drops_system_turn(messages: Sequence[Message], template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model would not read a system turn of a conversation.

    Raises:
        RecipeError: if the template refuses the conversation.
    """
    systems = [message for message in messages if message.role == "system" and message.text.strip()]
    if not systems:
        return False
    text = render(messages, template, tokenizer).text
    if any(message.text.strip() not in text for message in systems):
        return True
    others = [message for message in messages if message.role != "system"]
    try:  # the words of a system turn may stand elsewhere in the prompt, too
        return render(others, template, tokenizer).text == text
    except RecipeError:
        return False


class SystemTurnCheck:
    """Count of the records whose system turns a template leaves out or refuses.

    Args:
        templates: description, such as "the template of stage 'align'" -> (Jinja template, tokenizer).
    """

    def __init__(self, templates: Mapping[str, tuple[str, PreTrainedTokenizerBase]]) -> None:
        self._templates = templates
        self._dropped: dict[str, list[str]] = {name: [] for name in templates}
        self._refused: dict[str, list[str]] = {name: [] for name in templates}

    def add(self, sample: Sample) -> None:
        """Try one record."""
        if all(message.role != "system" for message in sample.messages):
            return
        for name, (template, tokenizer) in self._templates.items():
            try:
                if drops_system_turn(sample.messages, template, tokenizer):
                    self._dropped[name].append(sample.id)
            except RecipeError:
                self._refused[name].append(sample.id)

    def warnings(self) -> list[str]:
        """Return a sentence for each template that leaves out or refuses system turns."""
        remedy = "Write them into the questions, or use another template."
        found = [
            f"{name} has no place for system turns: the model does not read those of {counted(len(ids), 'record')} (first: {ids[0]}). {remedy}"
            for name, ids in self._dropped.items()
            if ids
        ]
        return found + [
            f"{name} refuses conversations with a system turn: {counted(len(ids), 'record')} (first: {ids[0]}). {remedy}"
            for name, ids in self._refused.items()
            if ids
        ]
