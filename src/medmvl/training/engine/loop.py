"""The training loop of a stage: data, steps, the schedule, skipped steps, and checkpoints to resume from.

The objective (`medmvl.training.objectives`) computes a step, and the engine (`medmvl.training.engine.devices`) runs it on the
devices.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import set_seed

from medmvl.errors import TrainingError
from medmvl.files import read_json, write_json
from medmvl.processing.read_ahead import ReadAhead
from medmvl.training.engine.batch import Batch
from medmvl.training.engine.callbacks import EMA, Callback
from medmvl.training.engine.checkpoints import rotate, sealed_directory
from medmvl.training.engine.dataset import TrainingDataset
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.progress import LoopSettings, LoopState, StepFacts
from medmvl.training.engine.rng import load_rng, save_rng
from medmvl.training.engine.sampling import StepSampler
from medmvl.training.engine.schedule import lr_lambda
from medmvl.training.engine.state import AVERAGE, BUFFERS, OPTIMIZER, WEIGHTS, TrainedState, load_weights, write_values
from medmvl.training.objectives.base import Objective

logger = logging.getLogger(__name__)

STATE, SCALER = "state.json", "scaler.pt"


class TrainingLoop:
    """Trains one stage.

    Args:
        engine: model and optimizer on the devices.
        objective: what is learned.
        data: record number -> encoded sample.
        sampler: micro-batches of this device.
        settings: of the loop.
        callbacks: called at the events of `Callback`, in this order.

    Attributes:
        state: progress.
        facts: of the current step.
        stop_requested: whether this process was asked to stop; processes agree on it at the next step.
        interrupted: whether all processes stop after this step.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        data: TrainingDataset,
        sampler: StepSampler,
        settings: LoopSettings,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        set_seed(settings.seed)
        self.engine, self.objective, self.settings = engine, objective, settings
        self.state, self.facts = LoopState(), StepFacts()
        self.stop_requested = self.interrupted = False
        self.callbacks = list(callbacks)
        self.ema = next((callback for callback in self.callbacks if isinstance(callback, EMA)), None)
        self._data, self._sampler = data, sampler
        self._factor = lr_lambda(settings.scheduler, settings.warmup, settings.steps)
        self._peak_rates = [float(group["lr"]) for group in engine.optimizer.param_groups]
        self._save_requested = self._save_proposed = self._stop = False
        self._nans_in_a_row = 0

    # --- events ---------------------------------------------------------------------------------------------------

    def request_save(self) -> None:
        """Write a checkpoint after this step; all processes must call it at the same step."""
        self._save_requested = True

    def propose_save(self) -> None:
        """Write a checkpoint after the next step; a single process may call it."""
        self._save_proposed = True

    def request_stop(self) -> None:
        """End the stage after this step; all processes must call it at the same step."""
        self._stop = True

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.settings.steps

    def _tell(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, resume_from: Path | None = None) -> None:
        """Train from the start or from a checkpoint to the last step, or until a callback or a signal ends the stage.

        Raises:
            MedMVLError: if a record cannot be used.
            TrainingError: after `stop_after_nans` steps without a finite gradient in a row.
            CheckpointError: if the checkpoint holds other weights than this stage trains.
        """
        if resume_from is not None:
            self._load(resume_from)
        self._sampler.start = self.state.step
        self.engine.model.zero_grad()
        try:
            self._tell("on_begin")
            batches = iter(self._loader())
            while not (self.is_done or self._stop):
                micro_batches = self._collect(list(islice(batches, self._sampler.layout.accumulation)))
                if resume_from is not None:
                    load_rng(resume_from, self.engine.rank, self.engine.world)  # after the loader has drawn from them
                    resume_from = None
                self._step(micro_batches)
        finally:
            self._tell("on_end")

    def _loader(self) -> DataLoader:
        """Return the loader of this device's micro-batches. The sampler already shards the data."""
        workers = self.settings.workers
        sampler: Any = self._sampler
        if self._data.is_remote:
            sampler = ReadAhead(sampler, self._data.read_ahead, self.settings.prefetch * max(workers, 1))
        return DataLoader(
            self._data,
            batch_sampler=sampler,
            collate_fn=self.objective.collate,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=self.settings.prefetch if workers else None,
        )

    def _collect(self, batches: list[Batch]) -> list[Batch]:
        """Count a step's tokens over all devices, and agree on whether to save or stop after it."""
        for batch in batches:
            if batch.error is not None:
                raise batch.error
        counts = [sum(getattr(batch, key) for batch in batches) for key in ("supervised", "tokens", "positions")]
        totals = self.engine.sum(
            torch.tensor([*counts, int(self.stop_requested), int(self._save_proposed)], device=self.engine.device)
        )
        self._supervised = totals[0]
        supervised, tokens, positions, stop, save = totals.tolist()
        self._save_proposed = False
        self._save_requested = self._save_requested or bool(save)
        self.interrupted = self.interrupted or bool(stop)
        self.facts = StepFacts(tokens, positions, supervised, [batch.ids for batch in batches])
        return batches

    def _step(self, batches: list[Batch]) -> None:
        """Take one optimizer step."""
        self._set_rates()
        self._tell("on_step_begin")
        self.engine.model.train()
        result = self.objective.step(self.engine, batches, self._supervised)
        self.facts.evidence = result.evidence
        self.facts.grad_norm = self.engine.clip_gradients(self.settings.max_grad_norm)
        self._check_gradients()
        self._tell("on_gradients")
        self.engine.optimizer.step()
        self.engine.model.zero_grad()
        self.state.step += 1
        self._tell("on_step_end")
        self.facts.loss = self.engine.mean(result.loss)
        self._tell("on_log")
        if self._save_requested:
            self._save_requested = False
            self._save()

    def _set_rates(self) -> None:
        """Set the learning rates of the next step, which depend on the step alone."""
        factor = self._factor(self.state.step)
        for group, rate in zip(self.engine.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = rate * factor
        self.facts.lr = max(float(group["lr"]) for group in self.engine.optimizer.param_groups)

    def _check_gradients(self) -> None:
        """Leave the weights unchanged if the gradient is not finite.

        Raises:
            TrainingError: after `stop_after_nans` such steps in a row.
        """
        if math.isfinite(self.facts.grad_norm):
            self._nans_in_a_row = 0
            return
        self.facts.skipped = True
        if self.engine.loss_scale() > 1:
            return  # the loss was scaled too much; the scaler skips this step and lowers its factor
        if not self.engine.is_deepspeed:  # which has skipped the step already
            self.engine.model.zero_grad(set_to_none=True)  # optimizers ignore parameters without a gradient
        self._nans_in_a_row += 1
        suspects = ", ".join(self.facts.suspects()[:16])
        step = self.state.step + 1
        logger.warning("Step %d is skipped: its gradient is not finite. Records: %s.", step, suspects)
        if self._nans_in_a_row >= self.settings.stop_after_nans:
            raise TrainingError(
                f"{self._nans_in_a_row} steps in a row had no finite gradient; the last one, step {step}, held the "
                f"records {suspects}. Look at these records, lower the learning rate, or train in fp32."
            )

    # --- checkpoints ----------------------------------------------------------------------------------------------

    @property
    def trained(self) -> TrainedState:
        """Trained weights and optimizer state, wherever they are stored."""
        return self.engine.trained_state(self.objective.trainable.trainable())

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.settings.checkpoints / f"checkpoint-{step}"

    def _save(self) -> None:
        """Write trained weights, optimizer, random numbers and progress, atomically."""
        target, is_main = self.checkpoint(self.state.step), self.engine.rank == 0
        if self.engine.world > 1:
            self._save_from_all(target, is_main)
        else:
            with sealed_directory(target) as folder:
                save_rng(folder)
                self._write_values(folder)
                self.write_shared(folder)
        if is_main:
            best = self.state.best_step
            rotate(self.settings.checkpoints, self.settings.keep, None if best is None else self.checkpoint(best))

    def _save_from_all(self, target: Path, is_main: bool) -> None:
        """Write a checkpoint to which every process adds its random numbers and, if sharded, its piece of the values."""
        pieces = target.with_name(f".{target.name}.ranks")
        pieces.mkdir(parents=True, exist_ok=True)
        save_rng(pieces, self.engine.rank)
        if self.trained.is_sharded or is_main:
            self._write_values(pieces)
        torch.distributed.barrier()
        if is_main:
            with sealed_directory(target) as folder:
                self.write_shared(folder)
                for file in pieces.iterdir():
                    file.replace(folder / file.name)
            pieces.rmdir()
        torch.distributed.barrier()

    def _write_values(self, folder: Path) -> None:
        """Write weights and optimizer state, or this process's piece of them."""
        trained = self.trained
        trained.write_weights(folder, WEIGHTS)
        trained.write_optimizer(folder, OPTIMIZER)
        if self.ema is not None:
            write_values(folder, AVERAGE, self.ema.values, *trained.shard)

    def write_shared(self, folder: Path) -> None:
        """Write what is the same on every process: buffers, the loss scaler and the progress."""
        scaler: Any = self.engine.accelerator.scaler
        if scaler is not None:
            torch.save(scaler.state_dict(), folder / SCALER)  # numbers only; loaded with weights_only
        if buffers := self.objective.trainable.buffers():
            write_values(folder, BUFFERS, buffers)
        write_json(folder / STATE, vars(self.state))

    def _load(self, folder: Path) -> None:
        self.load_weights(folder)
        self.trained.load_optimizer(folder, OPTIMIZER)
        if (folder / SCALER).is_file():
            self.engine.accelerator.scaler.load_state_dict(torch.load(folder / SCALER, weights_only=True))
        self.state = LoopState(**read_json(folder / STATE))
        if self.state.best_step is not None and not self.checkpoint(self.state.best_step).is_dir():
            logger.warning("The best checkpoint, of step %d, is gone and is not used.", self.state.best_step)
            self.state.best_step = None

    def load_weights(self, folder: Path) -> None:
        """Load a checkpoint's weights; every name and shape must be the same.

        Raises:
            CheckpointError: if the checkpoint holds other weights than this stage trains.
        """
        self.trained.load_weights(folder, WEIGHTS)
        if buffers := self.objective.trainable.buffers():
            load_weights(folder, BUFFERS, buffers)
        if self.ema is not None:
            self.ema.start(self)
            load_weights(folder, AVERAGE, self.ema.values)

    def load_final_weights(self, best: bool) -> None:
        """Load the weights that the stage ends with: those of the best checkpoint, the moving average, or the last ones.

        Args:
            best: take the checkpoint with the best validation metric.
        """
        if best and self.state.best_step not in (None, self.state.step):
            self.load_weights(self.checkpoint(self.state.best_step or 0))
        if self.ema is not None:
            self.ema.apply(self)
