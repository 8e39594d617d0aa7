"""`medmvl train --dry-run`: check everything that can be checked without training, and print what it will cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from medmvl.data.mixture import Mixture
from medmvl.errors import DataError
from medmvl.files import PathLike
from medmvl.models import MedMVLConfig
from medmvl.models.budget import Budget, budget, dual_budget, print_budget
from medmvl.models.head_loss import PIECE
from medmvl.processing import MedMVLProcessor
from medmvl.training.batches import StepShape
from medmvl.training.build import build_config
from medmvl.training.contrastive_plan import plan_contrastive
from medmvl.training.cost import UTILISATION, Hardware, PartCost, Shards, StagePlan, memory_bytes, refuse_faulty
from medmvl.training.phantoms import draw_phantoms
from medmvl.training.recipe import Recipe, StageSection
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import build_mixture, prepare, total_steps


@dataclass(frozen=True)
class _Lengths:
    """Sums over an epoch of a mixture; a record counts as often as it is seen."""

    count: float
    tokens: float
    supervised: float
    longest: int
    images: float
    volumes: float


def dry_run(
    recipe: Recipe | PathLike | dict[str, Any],
    overrides: Iterable[str] = (),
    *,
    hardware: str | None = None,
    console: Console | None = None,
) -> list[StagePlan]:
    """Check a recipe with its data and print its budget; no weight is made or read.

    Args:
        recipe, overrides: as for `train`.
        hardware: a line such as "2xA100-80GB"; hours and memory are compared with it.

    Raises:
        RecipeError, ModelError: if the recipe or its parts are not usable.
        DataError: listing the records that do not fit the model.
    """
    recipe = load_recipe(recipe, overrides)
    machine = Hardware.parse(hardware) if hardware is not None else None
    prepare(recipe)
    draw_phantoms(recipe)
    console = console or Console()
    described = None if recipe.model.encoder_only else build_config(recipe)
    price = budget(described[0]) if described is not None else None
    if price is not None:
        print_budget(price, console)
    plans = []
    for stage in recipe.stages:
        if stage.objective == "contrastive":
            plan, dual = plan_contrastive(recipe, stage, described[1].tokenizer if described else None, machine)
            print_budget(dual_budget(dual), console, f"Dual encoder of stage {stage.name}")
            plans.append(plan)
        else:
            assert described is not None  # the recipe checks it
            assert price is not None
            plans.append(_plan(recipe, stage, *described, price, machine))
    _print_plans(plans, machine, console)
    return plans


def _plan(
    recipe: Recipe,
    stage: StageSection,
    config: MedMVLConfig,
    processor: MedMVLProcessor,
    price: Budget,
    machine: Hardware | None,
) -> StagePlan:
    if stage.template is not None:
        processor.with_template(stage.template)
    mixture = build_mixture(recipe, stage)
    lengths = _measure(mixture, processor)
    world = machine.count if machine is not None else 1
    shape = StepShape.of(stage.batch_size, stage.micro_batch_size, world)
    per_step = stage.batch_size / lengths.count
    parts = _part_costs(stage, config, processor, price, lengths, per_step)
    vocabulary = config.text_config.vocab_size
    memory = memory_bytes(
        list(parts.values()),
        shape.micro_batches,
        _logits_at_once(stage, lengths, per_step / shape.micro_batches, vocabulary),
        vocabulary,
        half=stage.precision != "fp32",
        shards=Shards.of(recipe.run.strategy, world),
    )
    flops = sum(part.flops for part in parts.values())
    steps = total_steps(stage, mixture)
    hours = machine.hours(steps * flops) if machine is not None else None
    tokens, supervised = lengths.tokens * per_step, lengths.supervised * per_step
    records = steps * stage.batch_size
    return StagePlan(stage.name, steps, records, tokens, supervised, lengths.longest, flops, memory / 1e9, hours)


def _logits_at_once(stage: StageSection, lengths: _Lengths, per_micro_batch: float, vocabulary: int) -> float:
    """Return the positions whose logits are in memory together."""
    if not stage.supervised_logits:
        return lengths.tokens * per_micro_batch
    positions = lengths.supervised * per_micro_batch
    return positions if stage.cross_entropy == "full" else min(positions, max(1, PIECE // vocabulary))


def _measure(mixture: Mixture, processor: MedMVLProcessor) -> _Lengths:
    """Tokenise every record.

    Raises:
        DataError: naming the records that are malformed or do not fit.
    """
    faults: list[str] = []
    count = tokens = supervised = images = volumes = 0.0
    longest = 0
    for number in range(len(mixture)):
        try:
            sample = mixture[number]  # with its media, which must be there
            ids, labels = processor.encode_text(sample)
        except DataError as error:
            faults.append(str(error))
            continue
        share = mixture.times_per_epoch(number)
        count += share
        tokens += share * len(ids)
        supervised += share * sum(label != -100 for label in labels)
        longest = max(longest, len(ids))
        images += share * len(sample.images)
        volumes += share * len(sample.volumes)
    refuse_faulty(faults)
    return _Lengths(count, tokens, supervised, longest, images, volumes)


def _part_costs(
    stage: StageSection,
    config: MedMVLConfig,
    processor: MedMVLProcessor,
    price: Budget,
    lengths: _Lengths,
    per_step: float,
) -> dict[str, PartCost]:
    """Return part -> its cost; a part before which nothing trains needs no backward pass."""
    media = {"image": lengths.images * per_step, "volume": lengths.volumes * per_step}
    costs: dict[str, PartCost] = {}
    for name, parameters in price.parameters.items():
        modality, _, kind = name.partition("_")
        trained = _trained(stage, name, parameters)
        if name == "llm":
            text = config.text_config
            tokens, width, layers = lengths.tokens * per_step, text.hidden_size, text.num_hidden_layers
        else:
            spec = config.tower(modality)
            grid = spec.encoder_spec.grid(spec.input_size)
            tokens, width, layers = media[modality] * grid.tokens, spec.encoder_spec.hidden_size, 1
            if kind == "encoder":
                if stage.feature_cache and not trained:
                    tokens = 0.0  # it runs before the stage, once per image or volume
                layers = max(1, round(parameters / (12 * width**2)))
        chosen = stage.activation_checkpointing
        recomputes = chosen if isinstance(chosen, bool) else name in chosen
        costs[name] = PartCost(parameters, trained, tokens, width, layers, trained > 0, recomputes)
    before_llm = any(cost.trained for name, cost in costs.items() if name != "llm")
    for name, cost in costs.items():
        encoder = costs.get(name.replace("connector", "encoder"))
        behind_encoder = name.endswith("connector") and encoder is not None and encoder.trained > 0
        if (name == "llm" and before_llm) or behind_encoder:
            costs[name] = replace(cost, backward=True)
    return costs


def _trained(stage: StageSection, name: str, parameters: int) -> int:
    """Return how many parameters of a part train; adapters are counted as r / 512 of the part, their usual share."""
    part = stage.train.get(name)  # type: ignore[call-overload]
    if part is None or part.mode == "frozen":
        return 0
    return parameters if part.mode == "full" else max(1, round(parameters * part.lora.r / 512))


def _print_plans(plans: list[StagePlan], machine: Hardware | None, console: Console) -> None:
    title = "Plan" if machine is None else f"Plan on {machine.count} x {machine.name}, {UTILISATION:.0%} of its peak"
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    columns = ["steps", "records", "tokens\n/step", "with\nloss", "longest", "TFLOP\n/step", "GB\n/device"]
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
        if plan.cut:
            console.print(
                f"Stage {plan.name!r}: {plan.cut:,} text(s) are longer than the text encoder takes and are cut."
            )
    if machine is not None:
        for plan in plans:
            if plan.gigabytes > 0.9 * machine.gigabytes:
                console.print(
                    f"Stage {plan.name!r} needs about {plan.gigabytes:.0f} GB per device, a {machine.name} has "
                    f"{machine.gigabytes:.0f}: lower micro_batch_size, set activation_checkpointing, or use LoRA."
                )
