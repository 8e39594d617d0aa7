"""`transformers.Trainer` with what our stages need: groups per part, exact sampling, exact resume, skipped NaN steps.

What is overridden, and why:
- the loader, because the order of the data is a function of the seed and the step (`batches.StepSampler`);
- the optimiser's groups, because every part has its own learning rate;
- saving and loading, because only what trains needs to be saved, whole or not at all, and because the stock loading
  matches key names leniently and may restore nothing;
- the gradient norm, because a NaN must not reach the weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from medmvl.errors import TrainingError
from medmvl.training import zero
from medmvl.training.batches import BatchMaker, EncodedRecords, StepSampler
from medmvl.training.checkpoints import rotate, whole_folder
from medmvl.training.muon import MuonWithAdamW, hidden_matrices
from medmvl.training.stage import AppliedStage
from medmvl.training.state import TrainedState, load_weights, write_values
from medmvl.training.watch import Average

logger = logging.getLogger(__name__)

#: Names of a checkpoint's files, see `medmvl.training.state`.
WEIGHTS, BUFFERS, OPTIMIZER, AVERAGE = "trainable", "buffers", "optimizer", "average"
STATE = "trainer_state.json"


@dataclass
class StepFacts:
    """What the log says about one optimiser step.

    Attributes:
        tokens: without padding, over all devices.
        positions: with padding, over all devices.
        supervised: tokens with a label, over all devices.
        ids: records of this device, per micro-batch.
        losses: share of the step's loss of each micro-batch of this device.
        grad_norm: before clipping.
        skipped: True if the gradient was not finite and the weights were left alone.
    """

    tokens: int = 0
    positions: int = 0
    supervised: int = 0
    ids: list[list[str]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    grad_norm: float = math.nan
    skipped: bool = False
    started: float = field(default_factory=time.perf_counter)

    def suspects(self) -> list[str]:
        """Return the ids of the micro-batches whose loss is not finite; all ids if every loss is finite."""
        bad = [ids for ids, loss in zip(self.ids, self.losses, strict=False) if not torch.isfinite(loss)]
        return [identifier for ids in bad or self.ids for identifier in ids]


def course(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Return step (from 0) -> share of the peak learning rate.

    It rises linearly from 1 / (warmup + 1) to 1 at step `warmup`; then "cosine" follows half a cosine wave (arXiv
    1608.03983) and "linear" a line, both to zero at step `steps`; "constant" stays.
    """

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(steps - warmup, 1)
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if name == "linear" else 1.0

    return share


class StageTrainer(Trainer):
    """Runs one stage.

    Args:
        applied: the model with what trains.
        sampler: the micro-batches of this device.
        records: record number -> encoded sample.
        make_batch: encoded samples -> inputs.
        keep: how many checkpoints are kept.
        stop_after_nans: steps without a finite gradient in a row that end the run.
        schedule: course of the learning rate, see `course`.
        prefetch: batches each loader process prepares ahead.
        average: moving average of the weights, saved with them.
        cross_entropy: how the loss is computed, see the model's `forward`; None makes logits.
        muon: move the matrices of linear layers by Muon instead of AdamW.
    """

    def __init__(
        self,
        applied: AppliedStage,
        args: TrainingArguments,
        sampler: StepSampler,
        records: EncodedRecords,
        make_batch: BatchMaker,
        *,
        callbacks: list[TrainerCallback],
        keep: int = 2,
        stop_after_nans: int = 5,
        schedule: str = "cosine",
        prefetch: int = 4,
        average: Average | None = None,
        cross_entropy: str | None = None,
        muon: bool = False,
    ) -> None:
        use_cache = applied.model.config.use_cache if hasattr(applied.model.config, "use_cache") else None
        super().__init__(model=applied.model, args=args, train_dataset=records, callbacks=callbacks)
        if use_cache is None:  # the Trainer writes its own setting into the config; a checkpoint must not carry it
            del self.model.config.use_cache
        else:
            self.model.config.use_cache = use_cache
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.applied = applied
        self.facts = StepFacts()
        self.stop_requested = False  # by a signal to this process
        self.interrupted = False  # agreed between all processes
        self.packed = make_batch.packed
        self.average = average
        self.cross_entropy = cross_entropy
        self._sampler, self._make_batch = sampler, make_batch
        self._keep, self._stop_after_nans, self._prefetch = keep, stop_after_nans, prefetch
        self._schedule, self._muon = schedule, muon
        self._nans_in_a_row = 0

    # --- data ---------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of this device's micro-batches; sharing out is the sampler's affair, not accelerate's."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._sampler,
            collate_fn=self._make_batch,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=self._prefetch if workers else None,
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect a step's micro-batches and count its tokens over all devices.

        Raises:
            MedMVLError: if a record of the step cannot be used.
        """
        schedule: Any = self.lr_scheduler
        # It is not moved on after a step that fp16's scaler passed over.
        if schedule.last_epoch != self.state.global_step:
            self._follow_schedule()
        batches = list(islice(epoch_iterator, num_batches))
        for batch in batches:
            if "error" in batch:
                raise batch["error"]
        counts = [sum(batch[key] for batch in batches) for key in ("supervised", "tokens", "positions")]
        totals = torch.tensor([*counts, int(self.stop_requested)], device=device)
        if self.args.world_size > 1:
            # The stop signal travels along, so that all devices stop after the same step.
            torch.distributed.all_reduce(totals)
        supervised, tokens, positions, stop = totals.tolist()
        self.interrupted = self.interrupted or bool(stop)
        self.facts = StepFacts(tokens, positions, supervised, [batch["ids"] for batch in batches])
        return batches, totals[0]

    # --- one step -----------------------------------------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return this micro-batch's share of the step's token-weighted mean loss."""
        for key in ("ids", "tokens", "positions", "supervised"):
            inputs.pop(key, None)
        # With a cache, an LLM given reset positions would attend over the whole packed row.
        own = {"use_cache": False, "cross_entropy": self.cross_entropy}
        return super().compute_loss(model, inputs | own, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward of a micro-batch and note its loss."""
        loss = super().training_step(*args, **kwargs)
        self.facts.losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Leave the weights alone if the gradient is not finite.

        Raises:
            TrainingError: after `stop_after_nans` such steps in a row.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.facts.grad_norm = float(norm)
        if math.isfinite(self.facts.grad_norm):
            self._nans_in_a_row = 0
            return norm
        self.facts.skipped = True
        if self._loss_scale() > 1:
            return norm  # multiplied by too much; the scaler passes over the step and multiplies the next one by less
        if not self.is_deepspeed_enabled:  # which has already passed over the step
            model.zero_grad(set_to_none=True)  # Adam passes over parameters without a gradient
        self._nans_in_a_row += 1
        suspects = ", ".join(self.facts.suspects()[:16])
        step = self.state.global_step + 1
        logger.warning("Step %d is skipped: its gradient is not finite. Records: %s.", step, suspects)
        if self._nans_in_a_row >= self._stop_after_nans:
            raise TrainingError(
                f"{self._nans_in_a_row} steps in a row had no finite gradient; the last one, step {step}, held the "
                f"records {suspects}. Look at these records, lower the learning rate, or train in fp32."
            )
        return norm

    def _loss_scale(self) -> float:
        """Return what fp16's loss scaler multiplies the loss by; 1 without one."""
        scaler: Any = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimiser with its groups per part."""
        if getattr(self, "optimizer", None) is None:
            self.optimizer: torch.optim.Optimizer = self._new_optimizer(self.applied.optimizer_groups())
        return self.optimizer

    def _new_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self._muon:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            return MuonWithAdamW(groups, hidden_matrices(self.applied.model), betas)
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        optimizer: torch.optim.Optimizer = optimizer_class(groups, **settings)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule; unlike transformers' its first step is not one of rate zero, which teaches nothing."""
        if getattr(self, "lr_scheduler", None) is None:
            shape = course(self._schedule, self.args.get_warmup_steps(num_training_steps), num_training_steps)
            self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler = LambdaLR(optimizer or self.optimizer, shape)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        """Return the current learning rate of the part that trains fastest, for the log."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write what trains, optimiser, random numbers and state; whole or not at all."""
        folder = Path(self.args.output_dir)
        target = folder / f"checkpoint-{self.state.global_step}"
        if self.args.world_size > 1:
            self._save_from_all(target)
        else:
            with whole_folder(target) as aside:
                self._save_rng_state(str(aside))
                self._write_values(aside)
                self._write_shared(aside)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder, self._keep, Path(best) if best else None)

    def _save_from_all(self, target: Path) -> None:
        """Write a checkpoint to which every process adds its random numbers and, if sharded, its piece of the rest."""
        aside = target.with_name(f".{target.name}.ranks")
        aside.mkdir(parents=True, exist_ok=True)
        self._save_rng_state(str(aside))
        if self.trained.cut or self.args.should_save:
            self._write_values(aside)
        torch.distributed.barrier()
        if self.args.should_save:
            with whole_folder(target) as writing:
                self._write_shared(writing)
                for file in aside.iterdir():
                    file.replace(writing / file.name)
            aside.rmdir()
        torch.distributed.barrier()

    def _write_values(self, folder: Path) -> None:
        """Write weights and optimiser state, or this process's piece of them."""
        trained = self.trained
        trained.write_weights(folder, WEIGHTS)
        trained.write_optimizer(folder, OPTIMIZER)
        if self.average is not None:
            write_values(folder, AVERAGE, self.average.values, *trained.place)

    def _write_shared(self, folder: Path) -> None:
        """Write what is the same on every process."""
        self._save_scaler(str(folder))
        if buffers := self.applied.buffers():
            write_values(folder, BUFFERS, buffers)
        self.state.save_to_json(str(folder / STATE))

    @property
    def trained(self) -> TrainedState:
        """What trains, and the optimiser's state, wherever they are held."""
        parameters, place = self.applied.trainable(), (self.args.process_index, self.args.world_size)
        zeros = zero.zero_optimizer(self.optimizer)
        if zeros is not None:
            return zero.ZeroState(parameters, zeros, *place)
        # torch's optimiser lies below accelerate's wrapper.
        return TrainedState(parameters, getattr(self.optimizer, "optimizer", self.optimizer), *place)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Keep transformers from looking for a checkpoint of DeepSpeed's own; ours is loaded."""
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put a checkpoint's weights into the model; every name and shape must be the same.

        Raises:
            CheckpointError: if the checkpoint holds other weights than this stage trains.
        """
        folder = Path(resume_from_checkpoint)
        self.trained.load_weights(folder, WEIGHTS)
        if buffers := self.applied.buffers():
            load_weights(folder, BUFFERS, buffers)
        if self.average is not None:
            self.average.start()
            load_weights(folder, AVERAGE, self.average.values)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Put a checkpoint's optimiser state back; where the schedule stands follows from the step."""
        if checkpoint is None:
            return
        self.trained.load_optimizer(Path(checkpoint), OPTIMIZER)
        self._follow_schedule()

    def _follow_schedule(self) -> None:
        """Put the learning rates where the schedule has them before the next step, a function of the step alone."""
        step = self.state.global_step
        schedule: Any = self.lr_scheduler
        rates = [base * share(step) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        schedule.last_epoch, schedule._step_count, schedule._last_lr = step, step + 1, rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Reduce a sharded model's gradients with the last micro-batch of a step only."""
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def settle(self, best: bool) -> None:
        """Choose the weights that the stage ends with: the best checkpoint's, the moving average, or the last ones.

        Args:
            best: go back to the checkpoint with the best held-out metric.
        """
        if best and self.state.best_global_step not in (None, self.state.global_step):
            assert self.state.best_model_checkpoint is not None
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        if self.average is not None:
            self.average.apply()
