"""Calibration of confidences: the temperature and the threshold that a checkpoint folder stores.

Temperature scaling (Guo et al. 2017, arXiv:1706.04599) divides the logits by one number before the softmax. It changes no greedy answer,
since the order of the tokens stays; it changes how sure the model says it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmvl.errors import CheckpointError, RecipeError, shown
from medmvl.files import PathLike, read_json, write_json

FILE = "calibration.json"
#: What a caller reads in place of an answer that is not sure enough.
ABSTENTION = "No answer: the model is less sure than the threshold asks."
#: Value of `abstain_below` that stands for the threshold that the checkpoint stores.
STORED = "stored"
#: Temperatures that are tried: 0.2 to 5 in equal ratios, 1 among them.
TEMPERATURES: tuple[float, ...] = tuple(5 ** (step / 60) for step in range(-60, 61))


@dataclass(frozen=True)
class Calibration:
    """What was found on validation data; without it, confidences are the model's own.

    Attributes:
        temperature: logits are divided by it for confidences, not for the choice of tokens.
        threshold: least confidence of an answer to closed questions at which `target_accuracy` was reached; above 1 if it
            never was; None if it was not chosen.
        target_accuracy: of the answers with at least that confidence.
        coverage: share of the validation questions that were answered then.
        records: validation records.
        nll_before, nll_after: mean negative log-likelihood in nats per token of their reference answers.
    """

    temperature: float = 1.0
    threshold: float | None = None
    target_accuracy: float | None = None
    coverage: float | None = None
    records: int = 0
    nll_before: float | None = None
    nll_after: float | None = None

    def save(self, folder: PathLike) -> Path:
        """Write calibration.json into a checkpoint folder; return its path."""
        path = Path(folder) / FILE
        write_json(path, {"format": 1, **asdict(self)})
        return path

    @classmethod
    def load(cls, folder: PathLike) -> Calibration:
        """Return the calibration of a checkpoint folder; the neutral one if the folder has none.

        Raises:
            CheckpointError: if the file is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return cls()
        values = read_json(path)
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.get("format") != 1 or set(values) - names - {"format"}:
            raise CheckpointError(
                f"{path} is not a calibration of this version. Run medmvl checkpoint calibrate again."
            )
        numbers = {name: value for name, value in values.items() if name != "format" and value is not None}
        wrong = [name for name, value in numbers.items() if isinstance(value, bool) or not _is_finite(value)]
        if wrong or not numbers.get("temperature", 1.0) > 0:
            raise CheckpointError(
                f"{path}: {', '.join(wrong) or 'temperature'} must be a number that fits, above 0 for the temperature. Run medmvl "
                "checkpoint calibrate again."
            )
        return cls(**{name: value for name, value in values.items() if name in names})

    def resolve(self, abstain_below: float | str | None) -> float:
        """Return the confidence below which no answer is given; 0 for never.

        Raises:
            RecipeError: if it is neither a number from 0 to 1 nor "stored", or none is stored.
        """
        if abstain_below is None:
            return 0.0
        if abstain_below == STORED:
            if self.threshold is None:
                raise RecipeError(
                    "This checkpoint stores no threshold for abstain_below. Run medmvl checkpoint calibrate, or give a number."
                )
            return self.threshold
        if isinstance(abstain_below, bool | str) or not 0 <= abstain_below <= 1:
            raise RecipeError(f"abstain_below must be a number from 0 to 1, or {STORED!r}, not {shown(abstain_below)}.")
        return float(abstain_below)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def nll_over_temperatures(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed negative log-likelihood in nats at each of `TEMPERATURES`, (G,) float64.

    Args:
        logits: (K, V).
        targets: (K,) int64.
    """
    chosen = logits.float().gather(1, targets[:, None])[:, 0]
    found = []
    for temperature in TEMPERATURES:
        total = torch.logsumexp(logits.float() / temperature, dim=1) - chosen / temperature
        found.append(total.double().sum())
    return torch.stack(found).cpu()


def threshold_for(confidences: Sequence[float], right: Sequence[float], target: float) -> tuple[float, float]:
    """Return the least confidence from which on the answers reach an accuracy, and the share of answers that have it.

    Answers of equal confidence are answered or not together. If no confidence reaches the accuracy, the threshold is above 1.

    Args:
        confidences, right: per answer, 1.0 for a right one.
        target: accuracy.
    """
    pairs = sorted(zip(confidences, right, strict=True), reverse=True)
    best, total = (1.0 + 1e-6, 0), 0.0
    for place, (confidence, correct) in enumerate(pairs, start=1):
        total += correct
        last_of_its_kind = place == len(pairs) or pairs[place][0] < confidence
        if last_of_its_kind and total / place >= target:
            best = confidence, place
    return best[0], best[1] / len(pairs) if pairs else 0.0
