"""Answering encoded prompts by transformers' `generate`: for beams, and for models that train in several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from medmvl.errors import RecipeError, did_you_mean, shown
from medmvl.inference.answer_end import AnswerEnd
from medmvl.inference.calibration import ABSTENTION, STORED, Calibration
from medmvl.inference.confidence import ChosenTokens, beam_probabilities
from medmvl.inference.decoding.row import RowOptions
from medmvl.inference.sampling import RowSampler, row_seed
from medmvl.inference.shared_prefix import Prefix, prefill
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.compatibility import CACHE
from medmvl.models.labels import supervised_targets
from medmvl.processing import MedMVLProcessor

Options = TypeVar("Options")

#: Logits divided by a smaller temperature overflow in half precision.
_LOWEST_TEMPERATURE = 1e-3


def named_options(cls: Callable[..., Options], options: Mapping[str, Any]) -> Options:
    """Return a dataclass of options given by name.

    Raises:
        RecipeError: for an unknown name or an impossible value.
    """
    names = [field.name for field in fields(cast(Any, cls))]
    for name in options:
        if name not in names:
            raise RecipeError(f"There is no option {name!r}. {did_you_mean(name, names)}")
    return cls(**options)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0 for greedy (or beam) search; above 0 for sampling, with one beam only.
        num_beams: 1 for greedy search or sampling.
        seed: of the sampling; each row draws from (seed, key of the row).
        abstain_below: confidence below which no answer is given; "stored": the threshold of the checkpoint's calibration.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    num_beams: int = 1
    seed: int = 0
    abstain_below: float | str | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "seed", "temperature"):
            value, kinds = getattr(self, name), (int, float) if name == "temperature" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                kind = "number" if name == "temperature" else "whole number"
                raise RecipeError(f"{name} must be a {kind}, not {shown(value)}.")
        if self.abstain_below != STORED:
            Calibration().resolve(self.abstain_below)
        if self.max_new_tokens < 1 or self.num_beams < 1 or not 0 <= self.temperature < math.inf:
            raise RecipeError(
                f"max_new_tokens and num_beams must be at least 1 and temperature at least 0, got {self.max_new_tokens}, "
                f"{self.num_beams} and {self.temperature}."
            )
        if 0 < self.temperature < _LOWEST_TEMPERATURE:
            raise RecipeError(
                f"The temperature {self.temperature} is too small to divide by. Use 0 for the most likely tokens, or at least "
                f"{_LOWEST_TEMPERATURE}."
            )
        if self.temperature > 0 and self.num_beams > 1:
            raise RecipeError(
                f"Sampling (temperature {self.temperature}) and beam search ({self.num_beams} beams) exclude each other. "
                "Set temperature to 0 or num_beams to 1."
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Return options given by name.

        Raises:
            RecipeError: for an unknown name or an impossible value.
        """
        return named_options(cls, options)

    def row(self, key: str) -> RowOptions:
        """Return the options of one row of a continuous batch; `key` is that of its sampling."""
        return RowOptions(self.max_new_tokens, self.temperature, seed=self.seed, key=key)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `generate`; sampling is a logits processor of our own, see `RowSampler`."""
        return {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, "do_sample": False}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        text: the decoded answer.
        token_ids: as generated, the end token included.
        confidence: the probability that the model gave to exactly these tokens (the product of theirs), at the temperature
            of the checkpoint's calibration and before that of any sampling. Beams know no calibration.
        withheld: the decoded answer if its confidence is below `abstain_below`; `text` then says so. Else None.
    """

    text: str
    token_ids: list[int]
    confidence: float
    withheld: str | None = None

    @property
    def abstained(self) -> bool:
        """Whether the model was not sure enough to answer."""
        return self.withheld is not None

    def unless_below(self, threshold: float) -> Answer:
        """Return the answer, or an abstention if its confidence is below `threshold`."""
        if self.confidence >= threshold:
            return self
        return replace(self, text=ABSTENTION, withheld=self.text)


@torch.no_grad()  # inference tensors would break sharded weights that train on afterwards
def generate_answers(
    model: MedMVLForConditionalGeneration,
    processor: MedMVLProcessor,
    encoded: Sequence[dict[str, Tensor]],
    options: GenerationOptions,
    *,
    keys: Sequence[str] | None = None,
    calibration: float = 1.0,
) -> list[Answer]:
    """Answer a batch of encoded prompts, in order.

    Prompts about the same visual inputs share the prefill of their common prefix, see
    `medmvl.inference.shared_prefix`. Rows are padded on the left. Answers end where the chat template ends a turn, and
    their text is stripped.

    Args:
        model: in evaluation mode; inputs go to its device.
        processor: the one saved with the model.
        encoded: from `MedMVLProcessor.encode` without training: `input_ids` (T,) and visual inputs (n, ...).
        options: how to generate.
        keys: one per row for sampling, such as record ids; default: positions in the batch.
        calibration: temperature of the confidences.
    """
    prefix = prefill(model, encoded) if options.num_beams == 1 else None
    batch = _to_device(_collate_prompts(processor, encoded, prefix), model.device)
    cache = {} if prefix is None else {CACHE: prefix.cache}
    length = batch["input_ids"].shape[1]
    stops, chosen = processor.end_token_ids(model.generation_config), ChosenTokens(calibration)
    beams = options.num_beams > 1
    processors: list[LogitsProcessor] = [] if beams else [chosen]
    if options.temperature > 0:
        names = keys if keys is not None else [str(place) for place in range(len(encoded))]
        processors.append(RowSampler([row_seed(options.seed, name) for name in names], options.temperature))
    end = AnswerEnd(processor.tokenizer, stops, processor.turn_end_text, begin=0 if prefix is None else length)
    found = model.generate(
        **batch,
        **cache,
        **options.arguments(),
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=processor.tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([end] if end.text else []),
        return_dict_in_generate=True,
        output_scores=beams,
    )
    new = found.sequences[:, length:].tolist()
    answers = [end.cut(ids) for ids in new]
    lengths = [len(ids) for ids in answers]
    if beams:
        confidences = beam_probabilities(found.sequences_scores, lengths, model.generation_config.length_penalty)
    else:
        confidences = chosen.probabilities(found.sequences, lengths)
    return [Answer(end.decode(ids), ids, confidence) for ids, confidence in zip(answers, confidences, strict=True)]


@torch.no_grad()
def score_samples(
    model: MedMVLForConditionalGeneration,
    processor: MedMVLProcessor,
    encoded: Sequence[dict[str, Tensor]],
    temperature: float = 1.0,
) -> list[tuple[float, int]]:
    """Return per sample the mean negative log-likelihood (nats) over its supervised tokens, and their number.

    Args:
        model: in evaluation mode; inputs go to its device.
        processor: the one saved with the model.
        encoded: from `MedMVLProcessor.encode` for training: `input_ids` and `labels` (T,), and visual inputs (n, ...).
        temperature: logits are divided by it.
    """
    logits, targets, counts = supervised_logits(model, processor, encoded)
    per_token = torch.nn.functional.cross_entropy(logits / temperature, targets, reduction="none")
    return [
        (float(tokens.mean()) if count else 0.0, count)
        for tokens, count in zip(per_token.split(counts), counts, strict=True)
    ]


@torch.no_grad()
def supervised_logits(
    model: MedMVLForConditionalGeneration, processor: MedMVLProcessor, encoded: Sequence[dict[str, Tensor]]
) -> tuple[Tensor, Tensor, list[int]]:
    """Return the logits (K, V) float32 of all supervised tokens, those tokens (K,), and how many each sample has.

    Args:
        model, processor, encoded: as for `score_samples`.
    """
    batch = _to_device(processor.collate(encoded), model.device)
    mask, targets = supervised_targets(batch.pop("labels"))
    logits = model(**batch, logits_to_keep=mask).logits.float()  # (1, supervised tokens, V)
    return logits.flatten(0, -2), targets, mask.sum(1).tolist()


def _collate_prompts(
    processor: MedMVLProcessor, encoded: Sequence[dict[str, Tensor]], prefix: Prefix | None
) -> dict[str, Tensor]:
    """Return a left-padded batch; with a prefilled prefix: the prefix, padding that is masked, the rest of each prompt."""
    if prefix is None:
        return processor.collate(encoded, padding_side="left")
    length = len(prefix.ids)
    rest = processor.collate([{"input_ids": sample["input_ids"][length:]} for sample in encoded], padding_side="left")
    ids = prefix.ids.expand(len(encoded), -1)
    return {
        "input_ids": torch.cat([ids, rest["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(ids), rest["attention_mask"]], dim=1),
    }


def _to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in batch.items()}
