"""Retrieval of reports for images or volumes, and the reverse, by a dual encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import local_records
from medmvl.data.record import to_record
from medmvl.data.roots import MediaRoots
from medmvl.errors import CheckpointError, DataError, counted
from medmvl.files import PathLike, sha256
from medmvl.inference.answering import shuffled_visual_inputs
from medmvl.inference.batch import model_digest
from medmvl.inference.predictor import resolve_device
from medmvl.inference.row_job import RowJob
from medmvl.models.contrastive import DualEncoder, Pairing
from medmvl.models.contrastive.folder import dual_encoder_folder
from medmvl.models.contrastive.retrieval import Found, both_ways
from medmvl.processing.pairs import PairProcessor, text_of

RetrievalControl = Literal["blank", "shuffled"]


@dataclass(frozen=True)
class Features:
    """Pairs in the common space.

    Attributes:
        visual, texts: (n, dim) float32 on the CPU, of length 1.
        visual_keys, text_keys: (n,) int64, equal where the image (volume) or the text of two pairs is.
    """

    visual: Tensor
    texts: Tensor
    visual_keys: Tensor
    text_keys: Tensor


class Retriever:
    """A dual encoder and its processor, ready for retrieval.

    Args:
        model: in evaluation mode on its device.
        processor: the one saved with it.
    """

    def __init__(self, model: DualEncoder, processor: PairProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(cls, folder: PathLike, *, device: str | None = None, dtype: str = "auto") -> Retriever:
        """Load the dual encoder of a finished contrastive stage: its folder, or the stage's.

        Args:
            device, dtype: as for `Predictor.from_pretrained`.

        Raises:
            CheckpointError: if there is none in the folder, or it is incomplete.
        """
        found = dual_encoder_folder(Path(folder))
        if found is None:
            raise CheckpointError(
                f"{folder} holds no dual encoder, so it cannot look for reports. Give the folder of a contrastive stage "
                "(`objective: contrastive` in its recipe)."
            )
        target, wanted = resolve_device(device, dtype)
        return cls(DualEncoder.from_pretrained(found, dtype=wanted).to(target), PairProcessor.from_pretrained(found))

    @torch.inference_mode()
    def features(
        self, dataset: SampleDataset, batch_size: int = 8, on_row: Callable[[int, int], None] | None = None
    ) -> Features:
        """Encode all pairs of a data set, in its order.

        Raises:
            DataError: naming the record that is not a pair.
        """
        columns: dict[str, list[Tensor]] = {"visual": [], "texts": [], "visual_key": [], "text_key": []}
        for start in range(0, len(dataset), batch_size):
            stop = min(start + batch_size, len(dataset))
            batch = self.processor.collate([self._pair(dataset, index) for index in range(start, stop)])
            columns["visual"].append(self._visual(batch["pixels"]))
            mask = batch["attention_mask"]
            texts = self.model.encode_texts(batch["input_ids"].to(self.model.device), _to(mask, self.model.device))
            columns["texts"].append(texts.cpu())
            columns["visual_key"].append(batch["visual_key"])
            columns["text_key"].append(batch["text_key"])
            if on_row:
                on_row(stop, len(dataset))
        return Features(*(torch.cat(parts) for parts in columns.values()))

    @torch.inference_mode()
    def blank(self, dataset: SampleDataset) -> Tensor:
        """Return the feature of a black image or a volume of air, (dim,)."""
        (pixels,) = self.processor.collate([self.processor.encode(dataset[0])])["pixels"]
        return self._visual(self.processor.blank_like(pixels)[None])[0]

    def _pair(self, dataset: SampleDataset, index: int) -> dict[str, Tensor]:
        with dataset.naming(index):
            return self.processor.encode(dataset[index])

    def _visual(self, pixels: Tensor) -> Tensor:
        return self.model.encode_visual(pixels.to(self.model.device)).cpu()


def retrieve_file(
    model: PathLike | Retriever,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    batch_size: int = 8,
    control: RetrievalControl | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Retrieve the text of every image or volume of a file among all its texts, and the reverse.

    Rows go to `out` (JSON Lines): the record with its text as `answer`, the text that was found as `prediction`, and
    `retrieval` with, per direction, `rank` (place of the first right candidate, from 1), `found` (id of the best one),
    `right` (how many are right) and `candidates`. Returns how many rows were written now; a rerun with the same `out`
    adds what is missing, another model, data file or control is refused.

    Args:
        model: the folder of a contrastive stage, or a loaded retriever.
        roots: folders of the images and volumes; the data file's own by default.
        control: "blank" gives every record the same blank image or volume, "shuffled" that of another patient.
        on_row: called with (pairs encoded, pairs in all).

    Raises:
        DataError: naming the record that is not a pair.
    """
    retriever = model if isinstance(model, Retriever) else Retriever.from_pretrained(model)
    dataset = SampleDataset(data, roots)
    if len(dataset) < 2:
        raise DataError(
            f"{dataset.path} holds {counted(len(dataset), 'record')}; to find one among others takes two at least."
        )
    facts = {
        "model": model_digest(retriever.model),
        "data": sha256(local_records(data)),
        "retrieval": True,
        "control": control,
    }
    job = RowJob(Path(out), dataset, facts, None)
    found: dict[str, Found] = {}

    def rows(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        if not found:
            found.update(_look(retriever, dataset, batch_size, control, on_row))
        for index in indices:
            sample = dataset.sample(index)  # paths as the user wrote them
            best = dataset.sample(int(found["image_to_text"].best[index]))
            record = to_record(replace(sample.as_question(), answer=text_of(sample)))
            retrieval = {way: _row(there, index, dataset) for way, there in found.items()}
            yield {**record, "prediction": text_of(best), "retrieval": retrieval}

    return job.run(rows, batch_size=len(dataset))


def _look(
    retriever: Retriever,
    dataset: SampleDataset,
    batch_size: int,
    control: RetrievalControl | None,
    on_row: Callable[[int, int], None] | None,
) -> dict[str, Found]:
    """Return what is found in both directions; a control changes the images, not the correct matches."""
    features = retriever.features(dataset, batch_size, on_row)
    visual = features.visual
    if control == "shuffled":
        visual = visual[shuffled_visual_inputs(dataset)]
    elif control == "blank":
        visual = retriever.blank(dataset).expand_as(visual)
    return both_ways(visual, features.texts, Pairing(features.visual_keys, features.text_keys))


def _row(found: Found, index: int, dataset: SampleDataset) -> dict[str, Any]:
    best = dataset.sample(int(found.best[index])).id
    facts = {"rank": int(found.ranks[index]), "found": best, "right": int(found.right[index])}
    return {**facts, "candidates": len(dataset)}


def _to(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device)
