"""What every reader of a foreign layout returns: our config, our processor, and where each tensor goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig
from medmvl.models.weight_writer import Entry
from medmvl.models.weights import Weights
from medmvl.processing import MedMVLProcessor

#: A tensor's name in the source -> its names in our model; an empty list for one that is known and not used,
#: None for an unknown one.
Renaming = Callable[[str], Sequence[str] | None]


@dataclass
class Source:
    """A foreign checkpoint, understood.

    Attributes:
        layout: what it is, in words.
        config, processor: ours, complete.
        entries: name in our model -> where it comes from.
        unused: tensors that our model does not need, by their name in the source.
        unknown: tensors that nothing here knows; they make the conversion refuse.
        generation: settings of the generation config.
        names: name of a base part in the source -> how it was found.
        notes: what the user should know.
    """

    layout: str
    config: MedMVLConfig
    processor: MedMVLProcessor
    entries: dict[str, Entry] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    generation: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, weights: Weights, rename: Renaming) -> Source:
        """Sort every tensor of `weights` by `rename`; returns the source itself."""
        for name in weights:
            targets = rename(name)
            if targets is None:
                self.unknown.append(name)
            elif not targets:
                self.unused.append(name)
            for target in targets or ():
                self.entries[target] = Entry(name, weights.shape(name), _loader(weights, name))
        return self


def _loader(weights: Weights, name: str) -> Callable[[], Tensor]:
    return lambda: weights[name]


def generation_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the ids that begin, end and pad an answer: the tokenizer's."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in ids.items() if value is not None}


def is_tied(declared: bool, weights: Weights, head: str) -> bool:
    """Say whether the LLM's head shares the embedding table.

    A head in the file is used as stored, even if the config says tied: the reference trains the two apart and saves both.

    Args:
        declared: what the LLM's config says.
        head: name of the head's weight in `weights`.

    Raises:
        CheckpointError: if the head is neither stored nor declared tied.
    """
    if head in weights:
        return False
    if not declared:
        raise CheckpointError(
            f"{weights.folder} has no {head}, and the LLM's config does not tie it to the embeddings. A shard is missing, "
            "or the name was resolved to another LLM."
        )
    return True
