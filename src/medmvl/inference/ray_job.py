"""Predictions of a file of records on several machines or devices, by Ray Data (extra `ray`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError, MedMVLError, require
from medmvl.files import PathLike
from medmvl.inference.answering import Answering, AnswerSettings
from medmvl.inference.batch import run_facts
from medmvl.inference.predictor import Predictor
from medmvl.inference.row_job import RowJob
from medmvl.remote import RemotePath, as_root

#: Batches of one task: few enough to balance, enough to keep questions about one volume together.
_BATCHES = 4


@dataclass(frozen=True)
class RayOptions:
    """Where and how Ray works.

    Attributes:
        workers: number of processes, each with a copy of the model.
        gpus: GPUs of each; 0 on CPUs.
        address: of a running cluster; None starts one on this machine.
    """

    workers: int = 1
    gpus: float = 0.0
    address: str | None = None


@dataclass(frozen=True)
class _Task:
    """What a worker needs; paths must be valid on every machine."""

    folder: str
    data: PathLike
    roots: MediaRoots | None
    settings: AnswerSettings
    loading: dict[str, Any] = field(default_factory=dict)


def predict_file_with_ray(
    folder: PathLike,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    settings: AnswerSettings | None = None,
    batch_size: int = 8,
    ray_options: RayOptions | None = None,
    on_row: Callable[[int, int], None] | None = None,
    loading: dict[str, Any] | None = None,
) -> int:
    """Answer every record of a file as `predict_file` does, with the same rows; returns how many were written.

    Args:
        folder: checkpoint folder, on a path that all machines have, as `data` and `roots`.
        settings, roots, batch_size, on_row: as for `predict_file`.
        ray_options: where and how Ray works.
        loading: arguments of `Predictor.from_pretrained`.

    Raises:
        MissingExtraError: if Ray is not installed.
        DataError: naming the record, if one is not right; nothing already written is lost.
    """
    ray, ray_data = require("ray", "ray"), require("ray.data", "ray")
    settings, where = settings or AnswerSettings(), ray_options or RayOptions()
    predictor = Predictor.from_pretrained(folder, **(loading or {}))
    answering = Answering(predictor, SampleDataset(data, roots), settings)
    job = RowJob(Path(out), answering.dataset, run_facts(predictor, data, settings.facts()), on_row)
    missing = job.missing(answering.order())
    del predictor, answering
    if not missing:
        return job.write([])
    task = _Task(str(Path(folder).resolve()), _everywhere(data), roots, settings, loading or {})
    # A user's own Ray stays as it is.
    own = not ray.is_initialized()
    if own:
        ray.init(address=where.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        ray_data.DataContext.get_current().enable_progress_bars = False
        step = _BATCHES * batch_size
        items = [{"indices": missing[start : start + step]} for start in range(0, len(missing), step)]
        answers = ray_data.from_items(items, override_num_blocks=len(items)).map(
            _Worker,
            fn_constructor_args=(task, batch_size),
            concurrency=where.workers,
            num_gpus=where.gpus or None,
        )
        return job.write(_rows(answers))
    finally:
        if own:
            ray.shutdown()


def _everywhere(data: PathLike) -> PathLike:
    """Return a records file as other machines name it: its absolute path or its URL."""
    source = as_root(data, "data file")
    return source if isinstance(source, RemotePath) else str(source.resolve())


def _rows(answers: Any) -> Iterator[list[dict[str, Any]]]:
    for found in answers.iter_rows():
        if found["error"]:
            raise DataError(str(found["error"]))
        yield [json.loads(line) for line in found["rows"]]


class _Worker:
    """Answers the records of one task after the other, in a process of Ray."""

    def __init__(self, task: _Task, batch_size: int) -> None:
        predictor = Predictor.from_pretrained(task.folder, **task.loading)
        self._answering = Answering(predictor, SampleDataset(task.data, task.roots), task.settings)
        self._batch_size = batch_size

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of a task as JSON, or the message of a user's mistake."""
        indices = [int(index) for index in item["indices"]]
        rows: list[str] = []
        try:
            for start in range(0, len(indices), self._batch_size):
                part = self._answering(indices[start : start + self._batch_size])
                rows += [json.dumps(row, ensure_ascii=False) for row in part]
        except MedMVLError as error:
            return {"rows": rows, "error": str(error)}
        return {"rows": rows, "error": ""}
