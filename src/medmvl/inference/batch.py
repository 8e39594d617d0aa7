"""Predictions and scores of a file of records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import local_records
from medmvl.data.roots import MediaRoots
from medmvl.errors import RecipeError
from medmvl.files import PathLike, sha256
from medmvl.inference.answering import Answering, AnswerSettings, Control
from medmvl.inference.engine import GenerationOptions
from medmvl.inference.predictor import Predictor
from medmvl.inference.row_job import RowJob
from medmvl.inference.shares import Share
from medmvl.processing import MedMVLProcessor
from medmvl.processing.read_ahead import media_fetcher


def predict_file(
    model: PathLike | Predictor,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    options: GenerationOptions | None = None,
    batch_size: int = 8,
    save_token_ids: bool = False,
    control: Control | None = None,
    choices: bool = False,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Answer every record of a file; returns how many rows this process has written now.

    Rows are written to `out` (JSON Lines) as they come: the record plus `prediction`, `confidence` (see `Answer`), and
    `token_ids` on request. Records about the same images and volumes are answered together, so that each is read once; the
    finished file is in the order of the records. A rerun with the same `out` answers only what is missing; another model,
    data file or setting is refused. Under torchrun each process answers a share, and one file results.

    Args:
        model: a checkpoint folder or a loaded predictor.
        roots: folders of the images and volumes; the data file's own by default.
        options: how answers are generated.
        batch_size: records that are answered at once.
        save_token_ids: whether rows hold `token_ids`.
        control: see `AnswerSettings`.
        choices: whether questions with known options are answered by the most likely one, see `options_of`.
        on_row: called with (rows done, rows in all).

    Raises:
        DataError: naming the record, if one is not right; nothing already written is lost.
    """
    if options is not None and not isinstance(options, GenerationOptions):
        raise RecipeError(f"options must be GenerationOptions(...), not a {type(options).__name__}.")
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model)
    settings = AnswerSettings(options or GenerationOptions(), save_token_ids, control, choices)
    answering = Answering(predictor, SampleDataset(data, roots), settings)
    facts = run_facts(predictor, data, settings.facts())
    job = RowJob(Path(out), answering.dataset, facts, on_row, Share.from_environment())
    return job.run(answering, batch_size, answering.order(), answering.visual_inputs, answering.fetch)


def score_file(
    model: PathLike | Predictor,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    batch_size: int = 8,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Write `{"id", "loss", "supervised_tokens"}` for every record; resumable as `predict_file` is.

    `loss` is the mean negative log-likelihood in nats over the supervised tokens. A record that ends with a question
    is scored on its `answer`.
    """
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model)
    dataset = SampleDataset(data, roots)
    job = RowJob(Path(out), dataset, run_facts(predictor, data, {"score": True}), on_row)

    def score(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        encoded = [encode_answered(predictor.processor, dataset, index) for index in indices]
        for index, (loss, count) in zip(indices, predictor.losses(encoded), strict=True):
            yield {"id": job.ids[index], "loss": loss, "supervised_tokens": count}

    fetch = media_fetcher(predictor.processor)
    return job.run(score, batch_size, fetch=lambda index: fetch(dataset[index]))


def encode_answered(processor: MedMVLProcessor, dataset: SampleDataset, index: int) -> dict[str, Tensor]:
    """Return `input_ids` and `labels` (T,) and visual inputs (n, ...) of a record with its answer; errors name the record."""
    with dataset.naming(index):
        return processor.encode(dataset[index].as_answered(), train=True)


def run_facts(predictor: Predictor, data: PathLike, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a prediction depends on, in a form that says which part differs."""
    template = predictor.processor.chat_template
    return {
        "model": model_digest(predictor.model),
        "data": sha256(local_records(data)),
        "template": template,
        **settings,
    }


def model_digest(model: PreTrainedModel) -> str:
    """Return a digest that distinguishes models: of the config and of a few values of every tensor."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        plain = weight if type(weight) in (Tensor, Parameter) else weight.dequantize()  # torchao's have no flatten
        digest.update(plain.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()
