"""The contrastive objective: an encoder learns to match images or volumes with their reports.

A dual encoder without the LLM is trained. It is written when the stage begins (`<stage>/checkpoints/start`) and when it is
finished. In a recipe with an LLM, the trained encoder is put into the model, which is the stage's finished checkpoint, and
the dual encoder is saved next to it in `<stage>/encoder`. In a recipe without an LLM the dual encoder is the finished
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from medmvl.data.dataset import SampleDataset
from medmvl.data.sample import Sample
from medmvl.errors import RecipeError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.contrastive import DualEncoder
from medmvl.models.contrastive.folder import ENCODER
from medmvl.models.contrastive.probe import dual_probe
from medmvl.processing import MedMVLProcessor
from medmvl.processing.pairs import PairProcessor
from medmvl.training.acceleration.cpu import whole_attention_on_cpu
from medmvl.training.context import StageContext
from medmvl.training.engine.batch import Batch, EncodedSample
from medmvl.training.engine.checkpoints import sealed_directory
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.distributed import barrier, is_main_process
from medmvl.training.engine.finished import FinishedCheck, release_gradients, round_weights
from medmvl.training.engine.modes import evaluating
from medmvl.training.engine.sampling import CHARACTERS_PER_TOKEN
from medmvl.training.engine.trainable import Adaptation
from medmvl.training.objectives.base import Evaluation, Objective, StepResult, register_objective
from medmvl.training.objectives.contrastive_build import build_dual_encoder
from medmvl.training.objectives.contrastive_costs import ContrastiveCosts
from medmvl.training.objectives.contrastive_parts import adapt_dual_encoder, contrastive_adaptation
from medmvl.training.objectives.gradient_cache import contrastive_step
from medmvl.training.objectives.retrieval import evaluate_retrieval
from medmvl.training.recipe import ContrastiveStage

#: The dual encoder as a stage begins, next to its checkpoints.
START = "start"


@register_objective
class ContrastiveObjective(Objective):
    """Matching images or volumes with their reports.

    Args:
        dual: the dual encoder as the stage starts.
        processor: makes pairs.
        adaptation: how the dual encoder is changed for the stage.
        eval_samples: held-out records that are compared with one another, per data set.
        eval_shown: of them, how many are written to `samples.jsonl`.
    """

    section = ContrastiveStage

    def __init__(
        self,
        dual: DualEncoder,
        processor: PairProcessor,
        adaptation: Adaptation,
        eval_samples: int = 64,
        eval_shown: int = 4,
    ) -> None:
        self.dual, self.processor, self._adaptation = dual, processor, adaptation
        self._eval_samples, self._eval_shown = eval_samples, eval_shown
        tower = dual.config.tower(processor.modality)
        self._visual_tokens = tower.encoder_spec.grid(tower.input_size).tokens

    @classmethod
    def load(cls, context: StageContext) -> ContrastiveObjective:
        """Return the objective with the dual encoder that the stage starts with.

        It is made once, and read by all processes and by every resumption.
        """
        stage = context.stage
        assert isinstance(stage, ContrastiveStage)
        source, start = start_of(context), context.folder.checkpoints(stage.name) / START
        if not context.folder.finished(start):
            if is_main_process():
                set_seed(context.seed)
                dual, processor = build_dual_encoder(context.recipe, stage, source)
                with sealed_directory(start) as folder:
                    dual.save_pretrained(folder)
                    processor.save_pretrained(folder)
            barrier()
        dual, processor = DualEncoder.from_pretrained(start, dtype=torch.float32), PairProcessor.from_pretrained(start)
        shown = {}
        if stage.evaluate is not None:
            shown = {"eval_samples": stage.evaluate.samples, "eval_shown": stage.evaluate.generate}
        return cls(dual, processor, contrastive_adaptation(stage), **shown)

    @classmethod
    def costs(cls, context: StageContext, described: Any) -> ContrastiveCosts:
        """Return how to measure the stage's pairs and what its parts cost."""
        return ContrastiveCosts(context, described.processor.tokenizer if described is not None else None)

    def adapt(self) -> None:
        """Make the encoder, the text encoder (as the recipe says) and the projections trainable."""
        self.trainable = adapt_dual_encoder(self.dual, self._adaptation)

    def encode(self, sample: Sample) -> dict[str, Tensor]:
        """Return the tensors of a pair; shapes as for `medmvl.processing.pairs.PairProcessor.encode`."""
        return self.processor.encode(sample)

    def size(self, sample: Sample) -> tuple[str, float]:
        """Return the kind of a pair (all are of one kind) and its approximate number of tokens."""
        text = sum(len(message.text) for message in sample.messages if message.role == "assistant")
        return "", self._visual_tokens + text / CHARACTERS_PER_TOKEN

    def collate(self, samples: Sequence[EncodedSample]) -> Batch:
        """Return a batch. Its tokens are those of the texts, and `supervised` counts pairs."""
        for sample in samples:
            if sample.error is not None:
                return Batch(error=sample.error)
        pairs = [sample.inputs for sample in samples]
        inputs = self.processor.collate(pairs)
        tokens = sum(len(pair["input_ids"]) for pair in pairs)
        ids = tuple(sample.id for sample in samples)
        return Batch(inputs, ids, tokens, inputs["input_ids"].numel(), len(pairs))

    def step(self, engine: Engine, batches: Sequence[Batch], supervised: Tensor) -> StepResult:
        """Run forward and backward; the scalar loss compares all pairs of the step, of all devices and micro-batches."""
        return contrastive_step(engine, self.dual, batches)

    def evaluate(self, engine: Engine, datasets: Mapping[str, SampleDataset]) -> Evaluation:
        """Return loss and recalls; means over data sets are weighted by their pairs."""
        rows: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        for name, dataset in datasets.items():
            facts, found = evaluate_retrieval(
                engine, self.dual, self.processor, dataset, self._eval_samples, self._eval_shown
            )
            rows.append({"data": name, **facts})
            samples += [{"data": name, **row} for row in found]
        pairs = sum(row["pairs"] for row in rows)
        names = [key for key in rows[0] if key not in ("data", "pairs")]
        means = {name: sum(row[name] * row["pairs"] for row in rows) / pairs for name in names}
        rows.append({"data": "all", "pairs": pairs, **means})
        recall = sum(means[name] for name in names if name != "loss") / (len(names) - 1)
        return Evaluation(rows, samples, {"loss": means["loss"], "recall": recall})

    def finish(self, engine: Engine, context: StageContext) -> None:
        """Compare with what was trained and write the dual encoder and, in a recipe with an LLM, the model with the encoder."""
        if is_main_process():
            finished = self._finished(engine, context)
            if context.recipe.model.encoder_only:
                context.save(finished, self.processor)
            else:
                context.save_part(ENCODER, finished, self.processor)
                self._write_model(context)
        barrier()

    def _finished(self, engine: Engine, context: StageContext) -> Callable[[Path], object]:
        """Finish the dual encoder and return the function that writes and compares it."""
        check, dtype = FinishedCheck(context.stage.name, "embeddings"), context.stage.save_dtype
        release_gradients(self.dual)
        engine.leave_autocast()
        if self._adaptation.half:
            with engine.autocast():
                half = _embeddings(self.dual)
            self.trainable.restore()
            check.compare("bf16 to fp32", _embeddings(self.dual), half, half=True)
        trained = _embeddings(self.dual)
        finished = self.trainable.finish()
        assert isinstance(finished, DualEncoder)
        expected = merged = _embeddings(finished)
        check.compare("merged", merged, trained)
        finished.limit_scale()
        if dtype != "float32":
            round_weights(finished, getattr(torch, dtype))
            expected = _embeddings(finished)
            check.compare(f"rounded to {dtype}", expected, merged, half=True)

        def compare(folder: Path) -> None:
            check.compare("written", _embeddings(DualEncoder.from_pretrained(folder, dtype=torch.float32)), expected)

        return check.when_written(finished.to(getattr(torch, dtype)).save_pretrained, compare)

    def _write_model(self, context: StageContext) -> None:
        """Write the model that the stage started from, with the trained encoder."""
        source, encoder = start_of(context), self.dual.encoder
        assert source is not None
        model = MedMVLForConditionalGeneration.from_pretrained(source)
        name = f"{self.processor.modality}_encoder"
        if model.parts()[name].state_dict().keys() != encoder.state_dict().keys():
            raise RecipeError(f"{source} has changed since stage {context.stage.name!r} began. Start the stage again.")
        model.parts()[name].load_state_dict(encoder.state_dict())
        check = FinishedCheck(context.stage.name, "encoder features")

        def compare(folder: Path) -> None:
            written = MedMVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            pixels = dual_probe(self.dual.config)["pixels"]
            check.compare("written", _features(written.parts()[name], pixels), _features(encoder, pixels))

        model.to(getattr(torch, context.stage.save_dtype))
        write_model = check.when_written(model.save_pretrained, compare)
        context.save(write_model, MedMVLProcessor.from_pretrained(source))


def _embeddings(dual: DualEncoder) -> Tensor:
    """Return the embeddings (2 N, dim) of the probe's images or volumes and of its texts."""
    batch = {key: value.to(dual.device) for key, value in dual_probe(dual.config).items()}
    with evaluating(dual), whole_attention_on_cpu():
        found = dual(**batch)
    return torch.cat([found.visual, found.texts])


def _features(encoder: Any, pixels: Tensor) -> Tensor:
    """Return the features (N, tokens, width) of an encoder in fp32, on the CPU."""
    with evaluating(encoder):
        features: Tensor = encoder.to("cpu", torch.float32)(pixels)
    return features


def start_of(context: StageContext) -> Path | None:
    """Return the folder that a stage starts from; None if it is the encoder of a recipe without an LLM."""
    if context.recipe.model.encoder_only and context.source == context.folder.init:
        return None
    return context.ready_source()
