"""`medmvl train --dry-run`: check everything that can be checked without training, and print what it will cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medmvl.data.mixture import Mixture
from medmvl.errors import DataError, counted
from medmvl.files import PathLike
from medmvl.models.budget import budget, print_budget
from medmvl.training.build import build_config
from medmvl.training.context import StageContext
from medmvl.training.cost import (
    UTILIZATION,
    Hardware,
    Lengths,
    ModelDescription,
    Shards,
    StageCosts,
    StagePlan,
    memory_bytes,
)
from medmvl.training.engine.sampling import BatchLayout
from medmvl.training.environment import prepare
from medmvl.training.leaks import leak_warnings
from medmvl.training.media import read_media
from medmvl.training.objectives import OBJECTIVES
from medmvl.training.phantoms import draw_phantoms
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run_folder import RunFolder

#: Number of unusable records that are named; the others are counted.
NAMED_FAULTS = 20


def dry_run(
    recipe: Recipe | PathLike | dict[str, Any],
    overrides: Iterable[str] = (),
    *,
    hardware: str | None = None,
    console: Console | None = None,
    read: bool = True,
) -> list[StagePlan]:
    """Check a recipe with its training and held-out data and print its budget; no weight is made or read.

    Checked are all records of the training data, and of held-out data the first `evaluate.samples`, with which an evaluation
    works. Their images and volumes must be there, and are read for a minute at most; how many were read is printed.

    Args:
        recipe, overrides: as for `train`.
        hardware: such as "2xA100-80GB"; hours are estimated for it and memory is compared with it.
        console: where to print; default: standard output.
        read: whether images and volumes are read.

    Raises:
        RecipeError, ModelError: if the recipe or its parts are not usable.
        DataError: listing the records that do not fit the model, or the images and volumes that cannot be read.
    """
    recipe = load_recipe(recipe, overrides)
    machine = Hardware.parse(hardware) if hardware is not None else None
    prepare(recipe)
    draw_phantoms(recipe)
    console = console or Console()
    described = None
    if not recipe.model.encoder_only:
        config, processor = build_config(recipe)
        described = ModelDescription(config, processor, budget(config))
        print_budget(described.budget, console)
    plans = []
    folder = RunFolder(Path("runs") / recipe.name)  # nothing is read from it
    contexts = [StageContext(recipe, stage, folder) for stage in recipe.stages]
    for context in contexts:
        stage = context.stage
        costs = OBJECTIVES[stage.objective].costs(context, described)
        plans.append(plan_stage(context, costs, machine))
        check_held_out(context, costs)
        for warning in leak_warnings(context):
            console.print(f"LEAK: {warning}", highlight=False, markup=False, soft_wrap=True)
        if costs.budget is not None:
            print_budget(costs.budget, console, costs.title)
    if read:
        _check_media(contexts, console)
    _print_plans(plans, machine, console)
    return plans


def _check_media(contexts: Sequence[StageContext], console: Console) -> None:
    """Read images and volumes, and print how many were read and the readers' warnings.

    Raises:
        DataError: naming those that cannot be read.
    """
    report = read_media(contexts)
    for line in (*(f"warning: {warning}" for warning in report.warnings), report.describe()):
        if line:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    _refuse(report.faults, "image or volume cannot be read", "images and volumes cannot be read")


def plan_stage(context: StageContext, costs: StageCosts, machine: Hardware | None) -> StagePlan:
    """Return steps, tokens and cost of a stage.

    Args:
        context: the stage.
        costs: of its objective.
        machine: hardware to estimate hours for.

    Raises:
        DataError: listing the records that cannot be used.
    """
    stage, mixture = context.stage, context.mixture()
    lengths = measure(mixture, costs)
    world = machine.count if machine is not None else 1
    layout = BatchLayout.of(stage.batch_size, stage.micro_batch_size, world)
    per_step = stage.batch_size / lengths.count
    parts = costs.parts(lengths, per_step)
    memory = memory_bytes(
        list(parts.values()),
        layout.micro_batches,
        costs.logit_positions(lengths, per_step / layout.micro_batches),
        costs.vocabulary,
        half=stage.precision != "fp32",
        shards=Shards.of(context.recipe.run.strategy, world) if stage.can_be_sharded else Shards(),
    )
    flops = sum(part.flops for part in parts.values()) + costs.extra_flops(parts, layout.accumulation)
    steps = context.steps(mixture)
    tokens, supervised = costs.step_tokens(lengths, per_step, parts)
    return StagePlan(
        name=stage.name,
        steps=steps,
        records=steps * stage.batch_size,
        tokens=tokens,
        supervised=supervised,
        longest=lengths.longest,
        flops=flops,
        gigabytes=memory / 1e9,
        hours=machine.hours(steps * flops) if machine is not None else None,
        truncated=lengths.truncated,
    )


def measure(mixture: Mixture, costs: StageCosts) -> Lengths:
    """Measure every record of a mixture.

    Raises:
        DataError: naming the records that are malformed or do not fit.
    """
    faults: list[str] = []
    sums = dict.fromkeys(("count", "tokens", "supervised", "images", "volumes"), 0.0)
    longest = truncated = 0
    for number in range(len(mixture)):
        try:
            with mixture.naming(number):
                size = costs.measure(mixture[number])  # its images and volumes must exist
        except DataError as error:
            faults.append(str(error))
            continue
        times = mixture.times_per_epoch(number)
        sums["count"] += times
        for key in ("tokens", "supervised", "images", "volumes"):
            sums[key] += times * getattr(size, key)
        longest, truncated = max(longest, size.length), truncated + size.truncated
    _refuse(faults, "record cannot be used", "records cannot be used")
    return Lengths(**sums, longest=longest, truncated=truncated)


def check_held_out(context: StageContext, costs: StageCosts) -> None:
    """Check the records that a stage is evaluated on: the first `evaluate.samples` of each held-out data set.

    Raises:
        DataError: naming the records that are malformed, do not fit or have no answer.
    """
    faults: list[str] = []
    for dataset in context.held_out().values():
        for index in range(context.evaluated(dataset)):
            try:
                with dataset.naming(index):
                    costs.check_held_out(dataset[index])  # its images and volumes must exist
            except DataError as error:
                faults.append(str(error))
    end = f"of stage {context.stage.name!r} cannot be used"
    _refuse(faults, f"held-out record {end}", f"held-out records {end}")


def _refuse(faults: list[str], one: str, several: str) -> None:
    """Raise with the first faults and the number of all, if there are any; `one` and `several` say of what."""
    if faults:
        more = f"\n  ... and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise DataError("\n  ".join([f"{counted(len(faults), one, several)}:", *faults[:NAMED_FAULTS]]) + more)


#: What stands below the plan's table.
EXPLAINED = (
    "records: steps x batch; supervised: share of the tokens that the loss is taken of; longest: tokens of the longest sample; "
    "TFLOP: 10^12 floating-point operations; GB: memory, estimated. --hardware adds hours."
)


def _print_plans(plans: list[StagePlan], machine: Hardware | None, console: Console) -> None:
    title = "Plan" if machine is None else f"Plan on {machine.count} x {machine.name}, {UTILIZATION:.0%} of its peak"
    table = Table(title=title, title_justify="left", caption=EXPLAINED, caption_justify="left")
    table.add_column("stage")
    columns = ["steps", "records", "tokens\n/step", "super-\nvised", "longest", "TFLOP\n/step", "GB\n/device"]
    for column in [*columns, *(["hours", "GPU-\nhours"] if machine is not None else [])]:
        table.add_column(column, justify="right")
    for plan in plans:
        row = [plan.name, f"{plan.steps:,}", f"{plan.records:,}", f"{plan.tokens:,.0f}"]
        row += [f"{plan.supervised / plan.tokens:.0%}", f"{plan.longest:,}", f"{plan.flops / 1e12:,.3g}"]
        row.append(f"{plan.gigabytes:,.2f}")
        if machine is not None and plan.hours is not None:
            row += [f"{plan.hours:,.1f}", f"{plan.hours * machine.count:,.1f}"]
        table.add_row(*row)
    console.print(table)
    for plan in plans:
        if plan.truncated:
            console.print(
                f"Stage {plan.name!r}: {counted(plan.truncated, 'text is', 'texts are')} longer than the text encoder takes, and truncated."
            )
        if machine is not None and plan.gigabytes > 0.9 * machine.gigabytes:
            console.print(
                f"Stage {plan.name!r} needs about {plan.gigabytes:.0f} GB per device, a {machine.name} has "
                f"{machine.gigabytes:.0f}: lower micro_batch_size, set activation_checkpointing, or use LoRA."
            )
