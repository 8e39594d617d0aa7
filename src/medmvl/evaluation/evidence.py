"""Rows of the benchmark `evidence`: where heat maps peak, and what happens when a finding is erased."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmvl.data.dataset import SampleDataset, resolve_below
from medmvl.data.record import to_record
from medmvl.data.roots import MediaRoots
from medmvl.data.sample import Sample
from medmvl.errors import DataError
from medmvl.evaluation.text import normalize_word
from medmvl.files import PathLike
from medmvl.inference import GenerationOptions, Predictor
from medmvl.inference.batch import run_facts
from medmvl.inference.evidence import Evidence, Explained, Explainer, ExplainOptions, ExplainRequest, Watch
from medmvl.inference.evidence.curves import area, deletion_and_insertion
from medmvl.inference.evidence.result import Method
from medmvl.inference.row_job import RowJob
from medmvl.models import MedMVLForConditionalGeneration

ATTENTION, RANDOM_WEIGHTS = "attention", "random_weights"
CONTROLS = (ATTENTION, RANDOM_WEIGHTS)
_SEED = 20250
#: Part of each axis over which the baseline of deletion and insertion is blurred.
_BLUR = 1 / 2


def predict_evidence(
    predictor: Predictor,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots,
    batch_size: int = 16,
    control: str | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Write a row per record with what was measured; returns how many were written now. A rerun adds the missing ones.

    Args:
        predictor: the model.
        data: records with one image or volume, a reference answer, and `evidence` with `box` and `erased`, see docs/evidence.md.
        out: JSON Lines file.
        roots: folders of the images and volumes.
        batch_size: occluded inputs that are run at once.
        control: None for occlusion; "attention": attention of the same model; "random_weights": occlusion of a model with
            the same parts and random weights.
        on_row: called with (rows done, rows in all).

    Raises:
        DataError: naming the record, if it is not as described.
    """
    dataset = SampleDataset(data, roots)
    method: Method = "attention-preview" if control == ATTENTION else "occlusion"
    options = ExplainOptions(method=method, batch_size=batch_size)
    facts = {**run_facts(predictor, data, {}), "evidence": control or method, "neutral": options.neutral}
    job = RowJob(Path(out), dataset, facts, on_row)
    rows = EvidenceRows(predictor, dataset, options, random_weights=control == RANDOM_WEIGHTS)
    return job.run(rows, 1)


class EvidenceRows:
    """Measures records by their index.

    Args:
        predictor: the model.
        dataset: the records.
        options: how evidence is computed.
        random_weights: whether the evidence is that of a model with random weights.
    """

    def __init__(
        self,
        predictor: Predictor,
        dataset: SampleDataset,
        options: ExplainOptions,
        *,
        random_weights: bool = False,
    ) -> None:
        self.predictor, self.dataset, self.options = predictor, dataset, options
        self.explains = with_random_weights(predictor) if random_weights else predictor

    def __call__(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows of some records, in their order."""
        for index in indices:
            written = self.dataset.sample(index)
            with self.dataset.naming(index):
                yield {**to_record(written), **self._measure(self.dataset[index].as_question())}

    def _measure(self, sample: Sample) -> dict[str, Any]:
        reference = (sample.answer or "").strip()
        box, erased = _evidence_of(sample)
        answer = self._answer(sample.images, sample.volumes, sample)
        row: dict[str, Any] = {"prediction": answer, "measured": {}, "curves": {}}
        if normalize_word(answer) != normalize_word(reference):
            return row  # a wrong answer points nowhere
        if erased is not None and self.explains is self.predictor and self.options.method == "occlusion":
            row["measured"]["answer_changes"] = float(self._changes(sample, erased, answer))
        if box is not None:
            explained = self._explained(self.predictor, sample, answer)
            own = explained if self.explains is self.predictor else self._explained(self.explains, sample, answer)
            evidence = _explainer(self.explains).explain(own, self.options, Watch())
            row["measured"] |= pointing(evidence, box)
            deletion, insertion = self._curves(explained, evidence)
            row["measured"] |= {"deletion": area(deletion), "insertion": area(insertion)}
            row["measured"]["faithfulness"] = area(insertion) - area(deletion)
            rounded = {"deletion": deletion, "insertion": insertion}
            row["curves"] = {name: [float(f"{value:.4g}") for value in curve] for name, curve in rounded.items()}
        return row

    def _answer(self, images: Sequence[Any], volumes: Sequence[Any], sample: Sample) -> str:
        encoded = self.predictor.encode(sample, images, volumes)
        return self.predictor.generate([encoded], GenerationOptions(max_new_tokens=32))[0].text

    def _changes(self, sample: Sample, erased: str, answer: str) -> bool:
        """Whether the answer is another one about the picture without the finding."""
        root = self.dataset.image_root if sample.images else self.dataset.volume_root
        path = resolve_below(root, erased, "picture without the finding")
        images, volumes = ([path], ()) if sample.images else ((), [path])
        return normalize_word(self._answer(images, volumes, sample)) != normalize_word(answer)

    def _explained(self, predictor: Predictor, sample: Sample, answer: str) -> Explained:
        return predictor.explained(ExplainRequest(sample.messages, sample.images, sample.volumes, answer))

    def _curves(self, explained: Explained, evidence: Evidence) -> tuple[list[float], list[float]]:
        """Return the curves of a heat map under the trained model."""
        explainer = _explainer(self.predictor)
        blurred = explainer.replacement(explained, "blur")
        neutral = blurred.everything([max(1, round(n * _BLUR)) for n in explained.values.shape[1:]])
        score = explainer.likelihood(explained).score
        return deletion_and_insertion(score, explained.values, neutral, evidence.model_heat, self.options.batch_size)


def pointing(evidence: Evidence, box: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return whether the peak is in a box, and in the box enlarged by one patch of the encoder, with the odds of chance.

    The pointing game of Zhang et al. 2016 (arXiv:1608.00507). Chance is a peak anywhere in what the model sees.

    Args:
        box: first pixel and end along each axis of the heat map.
    """
    seen = evidence.places.to_input(np.ones_like(evidence.model_heat)) > 0
    found: dict[str, float] = {}
    for name, growth in (("pointing", evidence.patch), ("pointing_strict", (0.0,) * len(evidence.patch))):
        low = [first - more for first, more in zip(box[0], growth, strict=True)]
        high = [end + more for end, more in zip(box[1], growth, strict=True)]
        inside = all(a <= place < b for a, place, b in zip(low, evidence.peak, high, strict=True))
        part = tuple(slice(max(0, math.ceil(a)), max(0, math.ceil(b))) for a, b in zip(low, high, strict=True))
        found[name] = float(inside)
        found[f"{name}_chance"] = float(seen[part].sum() / seen.sum())
    return found


def with_random_weights(predictor: Predictor) -> Predictor:
    """Return a predictor of the same parts with random weights (the sanity check of Adebayo et al. 2018)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = MedMVLForConditionalGeneration(predictor.model.config)
    return Predictor(model.to(predictor.model.device, predictor.model.dtype), predictor.processor)


def _explainer(predictor: Predictor) -> Explainer:
    return Explainer(predictor.model, predictor.processor, predictor.visual_cache)


def _evidence_of(sample: Sample) -> tuple[list[list[float]] | None, str | None]:
    """Return the box and the erased picture of a record.

    Raises:
        DataError: if the record has no evidence, or the box is not two corners of as many axes as its picture has.
    """
    if len(sample.images) + len(sample.volumes) != 1:
        raise DataError("Evidence is measured on records with one image or one volume.")
    given = sample.extra.get("evidence")
    if not isinstance(given, Mapping) or not ({"box", "erased"} & set(given)):
        raise DataError('A record of this benchmark needs "evidence" with a "box", an "erased" picture, or both.')
    box, erased = given.get("box"), given.get("erased")
    axes = 2 if sample.images else 3
    if box is not None:
        fits = isinstance(box, list) and [len(corner) for corner in box if isinstance(corner, list)] == [axes, axes]
        if not fits or not all(isinstance(n, int | float) for corner in box for n in corner):
            raise DataError(f"The evidence box must be [[first ...], [end ...]] with {axes} numbers each.")
    if erased is not None and not isinstance(erased, str):
        raise DataError("The erased picture of the evidence must be a path.")
    return box, erased
