"""The interface of a training objective: everything about a stage that depends on what it learns.

The loop, checkpoints, devices and logs are the same for all objectives. A new objective is a section of the recipe (a
`StageSection` with its own keys) and a class that implements `Objective`, registered by `register_objective`. Put both into
a module of your own and name it under `plugins` in the recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from medmvl.data.dataset import SampleDataset
from medmvl.data.mixture import Mixture
from medmvl.data.sample import Sample
from medmvl.processing.read_ahead import media_fetcher
from medmvl.registry import Registry
from medmvl.training.context import StageContext
from medmvl.training.cost import StageCosts
from medmvl.training.engine.batch import Batch, EncodedSample
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.trainable import TrainableModel
from medmvl.training.recipe import StageSection, register_stage


@dataclass(frozen=True)
class StepResult:
    """The outcome of the backward pass of a step, on one device.

    Attributes:
        loss: scalar; its mean over the devices is the step's loss.
        evidence: a scalar per micro-batch that is not finite if its records caused a loss that is not.
    """

    loss: Tensor
    evidence: list[Tensor]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one validation.

    Attributes:
        rows: for `evaluation.jsonl`, each with `data`, the name of the data set; "all" is the row over all of them, which is not
            written if there is one.
        samples: for `samples.jsonl`, each with `data`.
        metrics: name -> value over all data sets.
    """

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(ABC):
    """Interface of a training objective.

    Attributes:
        section: the section of the recipe that describes such a stage.
        trainable: the model and its trainable parts; set by `adapt`.
        attention_in_fp32: whether attention in half precision may run in fp32 on the CPU.
        processor: prepares samples; has `image_processor`, `volume_processor` and `save_pretrained`.
    """

    section: ClassVar[type[StageSection]]
    trainable: TrainableModel
    processor: Any
    attention_in_fp32: bool = True

    @classmethod
    @abstractmethod
    def load(cls, context: StageContext) -> Objective:
        """Return the objective with the model and the processor that the stage starts from.

        Raises:
            RecipeError: if the stage cannot start.
        """

    @classmethod
    @abstractmethod
    def costs(cls, context: StageContext, described: Any) -> StageCosts:
        """Return how to measure the stage's samples and what its parts cost, for a dry run; no weight is read.

        Args:
            context: the stage.
            described: the model of the recipe (`medmvl.training.cost.ModelDescription`); None without an LLM.
        """

    @abstractmethod
    def adapt(self) -> None:
        """Freeze and unfreeze weights, add adapters, and set `trainable`."""

    def prepare(self, devices: DeviceFacts, mixture: Mixture) -> None:  # noqa: B027 (most objectives need nothing)
        """Do what must be done before the model is sharded or wrapped; nothing by default."""

    @abstractmethod
    def encode(self, sample: Sample) -> dict[str, Tensor]:
        """Return a sample as tensors without a batch axis, such as `input_ids` (T,)."""

    def read_ahead(self, sample: Sample) -> None:
        """Fetch what `encode` will read of a sample into the local cache, if it is in an object store."""
        media_fetcher(self.processor)(sample)

    @abstractmethod
    def size(self, sample: Sample) -> tuple[str, float]:
        """Return the kind of a sample and its approximate number of tokens, by which micro-batches are balanced."""

    @abstractmethod
    def collate(self, samples: Sequence[EncodedSample]) -> Batch:
        """Return a batch."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Context of the whole stage, such as another attention function; nothing by default."""
        yield

    @abstractmethod
    def step(self, engine: Engine, batches: Sequence[Batch], supervised: Tensor) -> StepResult:
        """Run the forward and backward passes of one optimizer step.

        Args:
            engine: runs the model.
            batches: this device's micro-batches.
            supervised: scalar int64, the sum of their `supervised` over all devices.
        """

    @abstractmethod
    def evaluate(self, engine: Engine, datasets: Mapping[str, SampleDataset]) -> Evaluation:
        """Evaluate held-out data; called on all processes, with the model in evaluation mode."""

    @abstractmethod
    def finish(self, engine: Engine, context: StageContext) -> None:
        """Write the finished checkpoint; called on all processes."""


@dataclass(frozen=True)
class DeviceFacts:
    """The devices of a stage, before the model is prepared for them.

    Attributes:
        device: of this process.
        rank: number of this process.
        world: number of processes.
        autocast: context factory of the stage's precision.
    """

    device: Any
    rank: int
    world: int
    autocast: Any


#: Objective -> its class.
OBJECTIVES: Registry[type[Objective]] = Registry("objective")

ObjectiveClass = TypeVar("ObjectiveClass", bound=type[Objective])


def register_objective(objective: ObjectiveClass) -> ObjectiveClass:
    """Class decorator: let recipes have stages of this objective, under the name in its section."""
    register_stage(objective.section)
    OBJECTIVES.add(objective.section.objective_name(), objective)
    return objective
