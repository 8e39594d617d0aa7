"""Comparison of a finished stage with the model that was trained, before its checkpoint is published.

Both run on one small probe batch. Differences are relative to the largest value. A difference that rounding does not explain
stops the stage: nothing is published and its checkpoints are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from medmvl.errors import TrainingError

#: Largest difference that is rounding, relative to the largest value: of fp32 results, and if weights or activations were
#: rounded to half precision in between.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.25

#: Share of the rows that may differ by more than that if half precision was in between. A pretrained LLM has massive activations
#: (arXiv 2402.17762) that come or go at single tokens of a random text with the rounding: of SmolLM2-135M after LoRA, 1 of 37 tokens
#: differed by 1.2, all others by less than 0.05. Wrong weights change most rows.
HALF_OUTLIERS = 0.1


@dataclass
class FinishedCheck:
    """Differences between the trained and the finished model.

    Attributes:
        stage: name of the stage, for messages.
        what: what is compared, such as "logits".
        differences: name of a comparison -> largest difference, relative to the largest value.
        beyond: largest share of rows that differ by more than rounding; above 0 in half precision only.
    """

    stage: str
    what: str = "logits"
    differences: dict[str, float] = field(default_factory=dict)
    beyond: float = 0.0

    def compare(self, name: str, found: Tensor, expected: Tensor, *, half: bool = False) -> None:
        """Note the largest difference of two results of equal shape (rows, values).

        Args:
            name: of the comparison.
            found: of the finished model.
            expected: of the trained model.
            half: whether half precision was in between.

        Raises:
            TrainingError: if more than rounding differs, or a result is not a number.
        """
        found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
        tolerance, outliers = (HALF_TOLERANCE, HALF_OUTLIERS) if half else (TOLERANCE, 0.0)
        differences = (found - expected).abs().amax(dim=-1) / expected.abs().max().clamp(min=1e-12)
        difference = float(differences.max())
        self.differences[name] = max(difference, self.differences.get(name, 0.0))
        beyond = float((differences > tolerance).float().mean())
        self.beyond = max(self.beyond, beyond)
        if not isfinite(difference) or beyond > outliers:
            raise TrainingError(
                f"Stage {self.stage!r}: the finished model's {self.what} differ from the trained model's by {difference:.1e} of "
                f"the largest one ({name}), and {beyond:.0%} of them by more than rounding explains ({tolerance:.0e}). Its "
                "checkpoints are kept. Please report this."
            )

    def when_written(
        self, write: Callable[[Path], object], compare: Callable[[Path], None]
    ) -> Callable[[Path], dict[str, float]]:
        """Return a function that writes a folder, compares what it holds, prints and returns the differences."""

        def write_and_compare(folder: Path) -> dict[str, float]:
            write(folder)
            compare(folder)
            self.say()
            return self.differences

        return write_and_compare

    def say(self) -> None:
        """Print the differences."""
        found = ", ".join(f"{name} {difference:.1e}" for name, difference in self.differences.items())
        more = f", but for {self.beyond:.1%} of them, as half precision allows" if self.beyond else ""
        message = (
            f"Stage {self.stage}: the written checkpoint gives the {self.what} of the trained model; they differ by no more than "
            f"rounding{more} (share of the largest: {found})."
        )
        Console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the stored floating-point values of a model to another dtype; they keep their own, and so do other buffers."""
    stored = model.state_dict(keep_vars=True)
    for value in stored.values():
        if value.is_floating_point():
            value.data = value.data.to(dtype).to(value.dtype)


def release_gradients(model: Any) -> None:
    """Free the gradients, in whose place the folder that is read again finds memory."""
    for parameter in model.parameters():
        parameter.grad = None
