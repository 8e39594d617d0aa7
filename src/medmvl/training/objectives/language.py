"""The language objective: next-token prediction on the assistant's turns."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from medmvl.data.dataset import SampleDataset
from medmvl.data.mixture import Mixture
from medmvl.data.sample import Sample
from medmvl.inference import GenerationOptions, generate_answers
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.base_model import restore_full_precision
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.processing import MedMVLProcessor
from medmvl.processing.read_ahead import media_fetcher
from medmvl.training.acceleration import deepspeed
from medmvl.training.acceleration.attention import PACKED, attention
from medmvl.training.acceleration.compiled import uncompile_layers
from medmvl.training.acceleration.cpu import whole_attention_on_cpu
from medmvl.training.acceleration.exactness import (
    why_no_fp32_attention,
    why_no_pieces,
    why_no_supervised_logits,
    why_not_compiled,
)
from medmvl.training.acceleration.features import StoredMedia, store_features
from medmvl.training.acceleration.packing import Packing
from medmvl.training.acceleration.packing_check import choose_packing
from medmvl.training.context import StageContext
from medmvl.training.engine.adapter_folder import StageAdapters, stage_adapters
from medmvl.training.engine.batch import Batch, EncodedSample
from medmvl.training.engine.consolidate import write_consolidated
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.distributed import barrier, is_main_process
from medmvl.training.engine.finished import FinishedCheck, release_gradients, round_weights
from medmvl.training.engine.modes import evaluating
from medmvl.training.engine.sampling import CHARACTERS_PER_TOKEN
from medmvl.training.engine.state import BUFFERS, WEIGHTS, ValueReader, write_values
from medmvl.training.engine.trainable import Adaptation, freeze_and_adapt
from medmvl.training.objectives.answer_scores import score_answers
from medmvl.training.objectives.base import DeviceFacts, Evaluation, Objective, StepResult, register_objective
from medmvl.training.objectives.language_batches import Collator
from medmvl.training.objectives.language_costs import LanguageCosts, ModelDescription
from medmvl.training.objectives.loss_kernel import loss_kernel
from medmvl.training.recipe import LanguageStage

logger = logging.getLogger(__name__)

#: Held-out samples per forward pass.
BATCH = 8

#: Folder in which the processes of a sharded stage leave their pieces of the finished checkpoint.
PIECES = ".pieces.ranks"


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of the language objective.

    Attributes:
        packing: concatenate samples instead of padding them.
        supervised_logits: compute logits only where there is a label.
        cross_entropy: "auto", "full", "chunked" or "liger".
        feature_cache: run frozen encoders once, before the stage.
        feature_shards: folder or URL of packed features, which are not computed again.
        bucket_lengths: pad rows to one of a few lengths, for compiled layers.
        keep_originals: keep full-precision values of frozen weights that are stored in bf16.
        zero_level: 2 or 3 with DeepSpeed, else None.
        is_sharded: whether weights or optimizer state are sharded over processes.
        eval_samples, eval_answers: held-out records per data set for the loss, and for generated answers.
        max_new_tokens: longest generated answer.
    """

    packing: bool = True
    supervised_logits: bool = True
    cross_entropy: str = "auto"
    feature_cache: bool = False
    feature_shards: str | None = None
    bucket_lengths: bool = False
    keep_originals: bool = True
    zero_level: int | None = None
    is_sharded: bool = False
    eval_samples: int = 64
    eval_answers: int = 4
    max_new_tokens: int = 64


@register_objective
class LanguageObjective(Objective):
    """Next-token prediction on the assistant's turns.

    Args:
        model: as the stage starts.
        processor: its processor.
        adaptation: how the model is changed for the stage.
        settings: of the objective.
        feature_folder: where features of frozen encoders are stored.
    """

    section = LanguageStage

    def __init__(
        self,
        model: MedMVLForConditionalGeneration,
        processor: MedMVLProcessor,
        adaptation: Adaptation,
        settings: LanguageSettings,
        feature_folder: Path,
    ) -> None:
        self.model, self.processor = model, processor
        self._adaptation, self._settings, self._feature_folder = adaptation, settings, feature_folder
        self._stored: StoredMedia | None = None
        self._own_attention = model.language_model.config._attn_implementation
        self.cross_entropy: str | None = None
        self.packing = _packing(model) if settings.packing else None
        self.supervised_logits = settings.supervised_logits and _holds(
            "supervised_logits", why_no_supervised_logits(model)
        )
        self.collate_samples = self._collator(settings.bucket_lengths)

    def _collator(self, bucket_lengths: bool = False) -> Collator:
        by_masks = self.packing is Packing.MASKS
        return Collator(self.processor, self.packing is not None, self.supervised_logits, bucket_lengths, by_masks)

    # --- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, context: StageContext) -> LanguageObjective:
        """Return the objective with the model and the processor that the stage starts from."""
        stage = context.stage
        assert isinstance(stage, LanguageStage)
        source = context.ready_source()
        model, processor = cls.read(source, torch.float32 if stage.precision == "fp32" else None)
        if stage.template is not None:
            processor.with_template(stage.template)
        evaluate = stage.evaluate
        settings = LanguageSettings(
            packing=stage.packing,
            supervised_logits=stage.supervised_logits,
            cross_entropy=stage.cross_entropy,
            feature_cache=stage.feature_cache,
            feature_shards=context.recipe.run.feature_shards,
            bucket_lengths=stage.compile,
            keep_originals=is_main_process() and not context.is_sharded,
            zero_level=context.zero_level,
            is_sharded=context.is_sharded,
            **(
                {
                    "eval_samples": evaluate.samples,
                    "eval_answers": evaluate.generate,
                    "max_new_tokens": evaluate.max_new_tokens,
                }
                if evaluate is not None
                else {}
            ),
        )
        return cls(model, processor, Adaptation.of(stage), settings, context.folder.root / "features")

    @staticmethod
    def read(folder: Path, dtype: torch.dtype | None = None) -> tuple[MedMVLForConditionalGeneration, MedMVLProcessor]:
        """Return the model and the processor of a checkpoint folder.

        Args:
            folder: the checkpoint.
            dtype: of all weights; None: as they are stored.
        """
        options = {} if dtype is None else {"dtype": dtype}
        model = MedMVLForConditionalGeneration.from_pretrained(folder, **options)
        restore_full_precision(model, folder)
        return model, MedMVLProcessor.from_pretrained(folder)

    @classmethod
    def costs(cls, context: StageContext, described: ModelDescription | None) -> LanguageCosts:
        """Return how to measure the stage's samples and what its parts cost."""
        assert described is not None  # the recipe checks that there is an LLM
        return LanguageCosts(context, described)

    def adapt(self) -> None:
        """Freeze and unfreeze weights, and add adapters."""
        self.trainable = freeze_and_adapt(self.model, self._adaptation, keep_originals=self._settings.keep_originals)

    def prepare(self, devices: DeviceFacts, mixture: Mixture) -> None:
        """Choose the loss kernel, store features of frozen encoders, and prepare the towers for DeepSpeed."""
        settings = self._settings
        self.cross_entropy = loss_kernel(
            settings.cross_entropy, self.supervised_logits, self.model.language_model, devices.device
        )
        if self.cross_entropy == "chunked" and not _holds("cross_entropy: chunked", why_no_pieces(self.model)):
            self.cross_entropy = None
        self._measure_speedups(devices)
        if settings.feature_cache:
            self.model.to(devices.device)
            self._stored = store_features(
                self.model,
                self.processor,
                mixture,
                self._feature_folder,
                rank=devices.rank,
                world=devices.world,
                autocast=devices.autocast,
                shards=settings.feature_shards,
            )
            barrier()
        if settings.zero_level is not None:
            stored = self._stored.stores if self._stored is not None else ()
            deepspeed.use_all_towers(self.model, stored, settings.zero_level)

    def _measure_speedups(self, devices: DeviceFacts) -> None:
        """Leave compiled layers, and fp32 attention on the CPU, if they change the results."""
        if self._adaptation.compile and not self._settings.is_sharded:
            self.model.to(devices.device)
            if not _holds("compile", why_not_compiled(self.model, self.packing, devices.autocast)):
                uncompile_layers(self.model.parts())
        if devices.device.type == "cpu" and devices.autocast is not None:
            reason = why_no_fp32_attention(self.model, devices.autocast)
            self.attention_in_fp32 = _holds("attention in fp32", reason)

    # --- training -------------------------------------------------------------------------------------------------

    def encode(self, sample: Sample) -> dict[str, Tensor]:
        """Return `input_ids` and `labels` (T,) and visual inputs (n, ...)."""
        return self._stored.encode(sample) if self._stored is not None else self.processor.encode(sample)

    def read_ahead(self, sample: Sample) -> None:
        """Fetch the features or files of a sample into the local cache, if they are in an object store."""
        media_fetcher(self.processor)(sample if self._stored is None else self._stored.read_ahead(sample))

    def size(self, sample: Sample) -> tuple[str, float]:
        """Return the modalities of a sample and its approximate number of tokens."""
        return sample_size(sample, self.processor)

    def collate(self, samples: Sequence[EncodedSample]) -> Batch:
        """Return a batch."""
        return self.collate_samples(samples)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the LLM use our attention function, if that is what packs rows."""
        with attention(self.model.language_model, PACKED if self.packing is Packing.KERNEL else None):
            yield

    def step(self, engine: Engine, batches: Sequence[Batch], supervised: Tensor) -> StepResult:
        """Run forward and backward of all micro-batches; the scalar loss is the mean over the step's supervised tokens."""
        total, shares = torch.zeros((), device=engine.device), []
        for index, batch in enumerate(batches):
            with engine.accumulating(last=index == len(batches) - 1):
                inputs = engine.to_device(batch.inputs)
                with engine.autocast():
                    loss = self._loss(engine.model, inputs, supervised)
                    loss = loss * engine.world  # data parallelism averages the gradients of the devices
                shares.append(engine.backward(loss))
            total = total + shares[-1]
        return StepResult(total, shares)

    def _loss(self, model: Any, inputs: Mapping[str, Any], supervised: Tensor | None = None) -> Tensor:
        """Return the loss (scalar): the sum over the batch's targets divided by `supervised`, or their mean."""
        count = {} if supervised is None else {"num_items_in_batch": supervised}
        # With a key-value cache, an LLM given reset positions would attend over the whole packed row.
        loss: Tensor = model(**inputs, use_cache=False, cross_entropy=self.cross_entropy, **count).loss
        return loss

    # --- validation -----------------------------------------------------------------------------------------------

    def evaluate(self, engine: Engine, datasets: Mapping[str, SampleDataset]) -> Evaluation:
        """Return loss (nats per supervised token), and accuracy and F1 of generated answers."""
        losses, totals = [], torch.zeros(2, dtype=torch.float64)
        answers: list[dict[str, Any]] = []
        for name, dataset in datasets.items():
            sums = self._held_out_loss(engine, dataset)
            totals += sums
            losses.append(_row(name, sums))
        # Sharded weights are gathered by all processes together, so that all of them have to generate.
        if engine.rank == 0 or engine.is_sharded:
            for name, dataset in datasets.items():
                answers += [{"data": name, **answer} for answer in self._answers(engine, dataset)]
        losses.append(_row("all", totals))
        for row in losses:
            row |= score_answers([answer for answer in answers if row["data"] in ("all", answer["data"])])
        return Evaluation(losses, answers, {name: value for name, value in losses[-1].items() if name != "data"})

    def _held_out_loss(self, engine: Engine, dataset: SampleDataset) -> Tensor:
        """Return (2,) float64: summed negative log-likelihood and number of supervised tokens, over all devices."""
        count = min(self._settings.eval_samples, len(dataset))
        chosen = range(count)[engine.rank :: engine.world]
        collate = self._collator()
        sums = torch.zeros(2, dtype=torch.float64)
        # Sharded weights are gathered by all processes together: each runs as many batches as the busiest one, the last
        # ones without weight.
        for start in range(0, -(-count // engine.world), BATCH):
            mine = chosen[start : start + BATCH]
            batch = collate([self._with_answer(dataset, index) for index in mine or (0,)])
            supervised = batch.supervised if mine else 0
            with engine.autocast():
                loss = self._loss(self.model, engine.to_device(batch.inputs))
            sums += torch.tensor([float(loss) * supervised, supervised], dtype=torch.float64)
        return engine.sum(sums).cpu()

    def _with_answer(self, dataset: SampleDataset, index: int) -> EncodedSample:
        with dataset.naming(index):
            sample = dataset[index].as_compared()
            return EncodedSample(sample.id, self.processor.encode(sample, train=True))

    def _prompt(self, dataset: SampleDataset, index: int) -> dict[str, Tensor]:
        with dataset.naming(index):
            return self.processor.encode(dataset[index].as_question(), train=False)

    def _answers(self, engine: Engine, dataset: SampleDataset) -> Iterator[dict[str, Any]]:
        """Yield the greedy answers to the first records of a data set, with the true ones."""
        options = GenerationOptions(max_new_tokens=self._settings.max_new_tokens)
        count = min(self._settings.eval_answers, len(dataset))
        for start in range(0, count, BATCH):
            indices = range(start, min(start + BATCH, count))
            samples = [dataset[index].as_question() for index in indices]
            encoded = [engine.to_device(self._prompt(dataset, index)) for index in indices]
            with attention(self.model.language_model, self._own_attention):
                answers = generate_answers(self.model, self.processor, encoded, options)
            for sample, answer in zip(samples, answers, strict=True):
                question = sample.messages[-1].text
                yield {"id": sample.id, "question": question, "answer": sample.answer, "prediction": answer.text}

    # --- the end --------------------------------------------------------------------------------------------------

    def finish(self, engine: Engine, context: StageContext) -> None:
        """Merge adapters, restore full precision, compare with the trained model, and write the finished checkpoint."""
        check = FinishedCheck(context.stage.name)
        if engine.is_sharded:
            self._finish_sharded(engine, context, check)
        elif is_main_process():
            self._finish_whole(engine, context, check)
        barrier()

    def _logits(self, model: MedMVLForConditionalGeneration) -> Tensor:
        """Return the logits (T, V) of the probe batch."""
        batch = {key: value.to(model.device) for key, value in probe_batch(model.config).items()}
        with evaluating(model), whole_attention_on_cpu():
            return probe_logits(model, batch)

    def _finish_whole(self, engine: Engine, context: StageContext, check: FinishedCheck) -> None:
        """Compare the model as it was trained, with full-precision frozen weights, merged, rounded, and read from its folder."""
        dtype = getattr(torch, context.stage.save_dtype)
        release_gradients(self.model)
        engine.leave_autocast()
        if self._adaptation.half:
            with engine.autocast():
                half = self._logits(self.model)
            self.trainable.restore()
            check.compare("bf16 to fp32", self._logits(self.model), half, half=True)
        trained = self._logits(self.model)
        adapters, trained_values = stage_adapters(self.trainable), self.trainable.trainable()
        model: MedMVLForConditionalGeneration = self.trainable.finish()
        merged = self._logits(model)
        check.compare("merged", merged, trained)
        expected = merged
        if dtype is not torch.float32:
            round_weights(model, dtype)
            expected = self._logits(model)
            check.compare(f"rounded to {context.stage.save_dtype}", expected, merged, half=True)
        model.to(dtype).config.text_config.dtype = context.stage.save_dtype
        write = _with_adapters(model.save_pretrained, adapters, trained_values.__getitem__, context.source_name)
        write_model = check.when_written(write, partial(self._compare_folder, check, expected, False))
        context.save(write_model, self.processor)

    def _finish_sharded(self, engine: Engine, context: StageContext, check: FinishedCheck) -> None:
        """Write the checkpoint from the pieces of all processes; the first one compares it with the sharded model."""
        dtype = context.stage.save_dtype
        batch = engine.to_device(probe_batch(self.model.config))
        # Sharded weights are gathered by all processes together, so that all of them run the model.
        with evaluating(self.model), whole_attention_on_cpu(), engine.autocast():
            trained = probe_logits(self.model, batch).cpu()
        pieces = context.target / PIECES
        pieces.mkdir(parents=True, exist_ok=True)
        engine.trained_state(self.trainable.trainable()).write_weights(pieces, WEIGHTS)
        if is_main_process() and (buffers := self.trainable.buffers()):
            write_values(pieces, BUFFERS, buffers)
        deepspeed.leave()
        barrier()
        if is_main_process():
            consolidate = partial(
                write_consolidated, source=context.source, pieces=pieces, adaptation=self._adaptation, dtype=dtype
            )
            adapters, values = stage_adapters(self.trainable), ValueReader(pieces, WEIGHTS)
            write = _with_adapters(consolidate, adapters, values.__getitem__, context.source_name)
            rounded = self._adaptation.half or dtype != "float32"
            write_model = check.when_written(write, partial(self._compare_folder, check, trained, rounded))
            context.save(write_model, self.processor)
            shutil.rmtree(pieces)

    def _compare_folder(self, check: FinishedCheck, expected: Tensor, half: bool, folder: Path) -> None:
        """Compare the model that a folder holds, in fp32, with the expected logits (T, V)."""
        written = MedMVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        check.compare("written", self._logits(written), expected, half=half)


def _with_adapters(
    write: Callable[[Path], object], adapters: StageAdapters | None, read: Callable[[str], Tensor], base: str
) -> Callable[[Path], object]:
    """Return a function that writes the model and, beside it, the adapters that were merged into it."""

    def write_both(folder: Path) -> None:
        write(folder)
        if adapters is not None:
            adapters.write(folder, read, base)

    return write_both


def _packing(model: MedMVLForConditionalGeneration) -> Packing | None:
    """Return what keeps the samples of packed rows apart, and say so; None if rows must be padded."""
    llm = model.language_model
    packing, reason = choose_packing(llm)
    if not _holds("packing", reason) or packing is None:
        return None
    if is_main_process():
        by = f"{packing.value}, {llm.config._attn_implementation}" if packing is Packing.MASKS else packing.value
        message = f"Packing: samples share rows, so that nothing is computed on padding; {by} keeps each from seeing the others."
        Console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)
    return packing


def _holds(setting: str, reason: str | None) -> bool:
    """Whether a shortcut may be used; if not, log the reason."""
    if reason is not None and is_main_process():
        logger.warning("This stage trains without %s, since the model does not allow it: %s.", setting, reason)
    return reason is None


def sample_size(sample: Sample, processor: MedMVLProcessor) -> tuple[str, float]:
    """Return the modalities of a sample and its approximate number of tokens, visual ones included."""
    text = sum(len(message.text) for message in sample.messages) / CHARACTERS_PER_TOKEN
    visual = len(sample.images) * processor.image_tokens + len(sample.volumes) * processor.volume_tokens
    return f"{'image' if sample.images else ''}{'volume' if sample.volumes else ''}", text + visual


def _row(data: str, sums: Tensor) -> dict[str, Any]:
    return {"data": data, "loss": float(sums[0] / sums[1]), "tokens": int(sums[1])}
