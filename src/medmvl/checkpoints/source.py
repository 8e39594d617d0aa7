"""Result of parsing a checkpoint of another framework: config, processor, and the source of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig
from medmvl.models.weight_writer import Entry
from medmvl.models.weights import Weights
from medmvl.processing import MedMVLProcessor

#: Name of a tensor in the source -> its names in the MedM-VL model; an empty list for a tensor that is not used, None for an
#: unknown one.
Renaming = Callable[[str], Sequence[str] | None]


@dataclass
class Source:
    """Parsed description of a checkpoint from another framework.

    Attributes:
        layout: name of the layout.
        config, processor: those of the MedM-VL model.
        entries: name in the MedM-VL model -> source of the tensor.
        unused: names of source tensors that the model does not need.
        unknown: names of unknown source tensors; the conversion refuses them.
        generation: settings of the generation config.
        names: name of a base part in the source -> how it was found.
        notes: remarks for the user.
        original: returns the logits (T, V) of a batch by transformers' own implementation of the source; None if transformers
            has none.
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
    original: Callable[[dict[str, Tensor]], Tensor] | None = None

    def take(self, weights: Weights, rename: Renaming) -> Source:
        """Assign every tensor of `weights` by `rename`; return self."""
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
    """Return the tokenizer's bos, eos and pad ids as settings of a generation config."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in ids.items() if value is not None}


def is_tied(declared: bool, weights: Weights, head: str) -> bool:
    """Return whether the LLM's head shares the weights of the embedding table.

    A head in the file is used as stored even if the config says tied: the reference trains and saves both.

    Args:
        declared: `tie_word_embeddings` of the LLM's config.
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


def check_complete(source: Source, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise if the tensors of a source are not those of the model.

    Raises:
        CheckpointError: listing what is missing, unknown, left over or of another shape.
    """
    entries = source.entries
    problems = {
        "missing": sorted(expected.keys() - entries.keys()),
        "unknown": source.unknown + sorted(entries[name].source for name in entries.keys() - expected.keys()),
        "of another shape": [
            f"{entry.source} {entry.shape}, expected {expected[name]}"
            for name, entry in entries.items()
            if name in expected and entry.shape != expected[name]
        ],
    }
    found = [
        f"{len(names)} {kind} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"The weights do not fit the model that the configs describe: {', '.join(found)}. A shard is missing, or a name "
            "was resolved to another part than the one the checkpoint was trained with."
        )
