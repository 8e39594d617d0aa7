"""Files of records: predictions and scores are written row by row, so a killed job loses at most a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import to_record
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.errors import DataError
from medmvl.files import PathLike, read_json, sha256, write_json, write_text
from medmvl.inference.predictor import GenerationOptions, Predictor

Control = Literal["blank", "shuffled", "text_only"]
CONTROLS: tuple[Control, ...] = ("blank", "shuffled", "text_only")


def predict_file(
    model: PathLike | Predictor,
    data: PathLike,
    out: PathLike,
    *,
    image_root: PathLike | None = None,
    volume_root: PathLike | None = None,
    options: GenerationOptions | None = None,
    batch_size: int = 8,
    save_token_ids: bool = False,
    control: Control | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Answer every record of a file; returns how many rows were written now.

    Rows go to `out` (JSON Lines) as they come: the record plus `prediction`, `confidence` (see `Answer`), and
    `token_ids` on request. A rerun with the same `out` answers only what is missing; another model, data file or setting
    is refused.

    Args:
        model: a checkpoint folder or a loaded predictor.
        control: "blank" shows black images and empty volumes, "shuffled" those of another patient, "text_only" none.
        on_row: called with (rows done, rows in all).

    Raises:
        DataError: naming the record, if one is not right; nothing already written is lost.
    """
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model)
    options = options or GenerationOptions()
    dataset = SampleDataset(data, image_root, volume_root)
    settings = {"control": control, "options": asdict(options), "save_token_ids": save_token_ids}
    job = RowJob(Path(out), dataset, _run_facts(predictor, data, settings), on_row)
    donors = shuffled_media(dataset) if control == "shuffled" else None

    def answer(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        samples = [dataset[index].as_question() for index in indices]
        if control == "text_only":
            samples = [_without_media(sample) for sample in samples]
        encoded = [
            predictor.encode(sample if donors is None else _with_media(sample, dataset[donors[index]]))
            for index, sample in zip(indices, samples, strict=True)
        ]
        if control == "blank":
            encoded = [predictor.blank(item) for item in encoded]
        answers = predictor.generate(encoded, options)
        for index, sample, found in zip(indices, samples, answers, strict=True):
            ids = {"token_ids": found.token_ids} if save_token_ids else {}
            written = dataset.sample(index)  # paths as the user wrote them
            said = {"prediction": found.text, "confidence": float(f"{found.confidence:.6g}")}
            yield {**to_record(replace(written, answer=sample.answer)), **said, **ids}

    return job.run(answer, batch_size)


def score_file(
    model: PathLike | Predictor,
    data: PathLike,
    out: PathLike,
    *,
    image_root: PathLike | None = None,
    volume_root: PathLike | None = None,
    batch_size: int = 8,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Write `{"id", "loss", "supervised_tokens"}` for every record; resumable as `predict_file` is.

    `loss` is the mean negative log-likelihood in nats over the supervised tokens. A record that ends with a question
    is scored on its `answer`.
    """
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model)
    dataset = SampleDataset(data, image_root, volume_root)
    job = RowJob(Path(out), dataset, _run_facts(predictor, data, {"score": True}), on_row)

    def score(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        samples = [_answered(dataset[index]) for index in indices]
        encoded: list[dict[str, Tensor]] = [predictor.processor.encode(sample, train=True) for sample in samples]
        for sample, (loss, count) in zip(samples, predictor.losses(encoded), strict=True):
            yield {"id": sample.id, "loss": loss, "supervised_tokens": count}

    return job.run(score, batch_size)


def shuffled_media(dataset: SampleDataset) -> list[int]:
    """Return for each record the index of one whose media it is shown: another patient's, as many of each kind.

    Deterministic: the next fitting record in the file, cyclically, seen from half the file away.

    Raises:
        DataError: if a record has no partner.
    """
    samples = [dataset.sample(index) for index in range(len(dataset))]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault((len(sample.images), len(sample.volumes)), []).append(index)
    donors = list(range(len(samples)))
    for (images, volumes), members in groups.items():
        if not images and not volumes:
            continue  # nothing to shuffle
        for place, index in enumerate(members):
            order = (members[(place + len(members) // 2 + step) % len(members)] for step in range(len(members)))
            donor = next((other for other in order if _patient(samples[other]) != _patient(samples[index])), None)
            if donor is None:
                raise DataError(
                    f"Record {samples[index].id}: no other patient has {images} image(s) and {volumes} volume(s) to show "
                    "instead. The shuffled control needs at least two patients of each kind."
                )
            donors[index] = donor
    return donors


def _patient(sample: Sample) -> Any:
    """Whose media these are: the record's `patient`, or the paths where it names none."""
    return sample.extra.get("patient", (sample.images, sample.volumes))


def _with_media(sample: Sample, donor: Sample) -> Sample:
    return replace(sample, images=donor.images, volumes=donor.volumes)


def _without_media(sample: Sample) -> Sample:
    """Return the sample with neither pictures nor their placeholders.

    Raises:
        DataError: if a question is nothing but a picture.
    """
    messages = []
    for message in sample.messages:
        text = message.text.replace(IMAGE_PLACEHOLDER, "").replace(VOLUME_PLACEHOLDER, "").strip()
        if not text:
            raise DataError(f"Record {sample.id}: it asks nothing in words, so it has no text_only control.")
        messages.append(replace(message, text=text))
    return replace(sample, messages=tuple(messages), images=(), volumes=())


def _answered(sample: Sample) -> Sample:
    if sample.messages and sample.messages[-1].role == "user" and sample.answer:
        return replace(sample, messages=(*sample.messages, Message("assistant", sample.answer)))
    return sample


class RowJob:
    """Writes a row per record to a file, in order, and goes on where an earlier run stopped.

    Args:
        out: JSON Lines file.
        facts: what the rows depend on; kept beside `out` and compared on a rerun.
    """

    def __init__(
        self, out: Path, dataset: SampleDataset, facts: dict[str, Any], on_row: Callable[[int, int], None] | None
    ) -> None:
        self.out, self.dataset, self.on_row = out, dataset, on_row
        self.ids = _unique_ids(dataset)
        self._check_same_run(facts)
        self.done = self._finished_ids()

    def run(self, work: Callable[[Sequence[int]], Iterator[dict[str, Any]]], batch_size: int) -> int:
        """Run `work` on the records that are missing, batch by batch."""
        if batch_size < 1:
            raise DataError(f"The batch size must be at least 1, got {batch_size}.")
        missing = [index for index, name in enumerate(self.ids) if name not in self.done]
        written = 0
        with self.out.open("a", encoding="utf-8") as handle:
            for start in range(0, len(missing), batch_size):
                for row in work(missing[start : start + batch_size]):
                    handle.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written += 1
                handle.flush()
                if self.on_row:
                    self.on_row(len(self.done) + written, len(self.ids))
        return written

    def _check_same_run(self, facts: dict[str, Any]) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        note = self.out.with_name(f"{self.out.name}.run.json")
        if not self.out.exists():
            write_json(note, facts)
            return
        if not note.exists():
            raise DataError(
                f"{self.out} exists and was not written by this command. Choose another --out or remove it."
            )
        before = read_json(note)
        changed = sorted(key for key in facts.keys() | before.keys() if facts.get(key) != before.get(key))
        if changed:
            raise DataError(
                f"{self.out} was begun with another {', '.join(changed)}. Choose another --out, or remove the file to "
                "start over."
            )

    def _finished_ids(self) -> set[str]:
        """Return the ids already in the file; a last line that was cut off by a kill is removed."""
        if not self.out.exists():
            return set()
        text = self.out.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(self.out, whole)
        ids = {str(json.loads(line)["id"]) for line in whole.splitlines() if line.strip()}
        unknown = ids - set(self.ids)
        if unknown:
            raise DataError(
                f"{self.out} holds the id {min(unknown)!r}, which the data file lacks. Choose another --out."
            )
        return ids


def _unique_ids(dataset: SampleDataset) -> list[str]:
    ids = [dataset.sample(index).id for index in range(len(dataset))]
    seen: set[str] = set()
    for index, name in enumerate(ids):
        if name in seen:
            raise DataError(
                f"{dataset.where(index)}: the id {name!r} stands twice in the file. Give every record its own."
            )
        seen.add(name)
    return ids


def _run_facts(predictor: Predictor, data: PathLike, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a prediction depends on, in a form that says which part differs."""
    template = predictor.processor.chat_template
    return {"model": model_digest(predictor.model), "data": sha256(data), "template": template, **settings}


def model_digest(model: PreTrainedModel) -> str:
    """Return what tells a model from others: its config and a few values of every tensor, not gigabytes read again."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()
