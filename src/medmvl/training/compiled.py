"""`torch.compile` for training: layer by layer, with lengths that repeat.

A model as a whole does not compile into one graph that is used twice: every batch has other numbers of images and of
tokens with a loss. Its layers do, and all layers of a part share one compiled form, so that there is little to wait for.
For the LLM that form is made for one length of rows; rows are therefore padded to one of a few lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

#: What turns graphs into code.
BACKEND = "inductor"
#: Lengths of rows between a power of two and the next one.
STEPS = 4
#: Forms of one layer that are kept; from 64 to 2 ** 22 tokens there are 65 lengths.
_FORMS = 65


def compile_layers(parts: dict[str, nn.Module]) -> int:
    """Compile the repeated layers of every part, in place; names of weights stay. Returns how many layers there are.

    Args:
        parts: name -> module; "llm" is compiled for rows of fixed length, others for any number of images.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
    count = 0
    for name, part in parts.items():
        for layer in repeated_layers(part):
            layer.compile(backend=BACKEND, dynamic=False if name == "llm" else None)
            count += 1
    return count


def repeated_layers(part: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of every stack of equal layers; stacks within a layer are its own affair."""
    for child in part.children():
        if isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            yield from child
        else:
            yield from repeated_layers(child)


def rounded(length: int) -> int:
    """Return the smallest of the few lengths that holds `length`: 64, 80, 96, 112, 128, 160, ...; above 64 at most a quarter more."""
    if length <= 64:
        return 64
    step = 2 ** (length - 1).bit_length() // (2 * STEPS)
    return -(-length // step) * step
