"""`torch.compile` for training: layer by layer, with a small number of row lengths.

A graph of the whole model would rarely be reused, because the numbers of images and of labeled tokens differ between
batches. The
layers of a part share one compiled graph. For the LLM the graph is specialized to the length of the rows, so rows are padded to
one of a few lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

#: The compiler backend.
BACKEND = "inductor"
#: Number of row lengths between a power of two and the next one.
STEPS = 4
#: Number of graphs kept per layer; there are 65 lengths from 64 to 2 ** 22 tokens.
_FORMS = 65


def compile_layers(parts: dict[str, nn.Module]) -> int:
    """Compile the repeated layers of every part, in place; the names of weights do not change. Returns the number of layers.

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


def uncompile_layers(parts: dict[str, nn.Module]) -> None:
    """Run the layers that `compile_layers` has compiled without compilation again, in place."""
    for part in parts.values():
        for layer in repeated_layers(part):
            layer._compiled_call_impl = None


def repeated_layers(part: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of every stack of equal layers; stacks inside a layer are not visited."""
    for child in part.children():
        if isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            yield from child
        else:
            yield from repeated_layers(child)


def rounded(length: int) -> int:
    """Return the smallest row length not below `length`: 64, 80, 96, 112, 128, 160, ...; above 64 at most a quarter more."""
    if length <= 64:
        return 64
    step = 2 ** (length - 1).bit_length() // (2 * STEPS)
    return -(-length // step) * step
