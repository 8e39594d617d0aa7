"""What a contrastive stage will cost, and whether every record of it is a pair; the dry run's part for such stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from medmvl.data.mixture import Mixture
from medmvl.errors import DataError, RecipeError
from medmvl.models.contrastive import DualEncoder, DualEncoderConfig
from medmvl.processing.pairs import PairProcessor, medium_of
from medmvl.training.batches import StepShape
from medmvl.training.build_contrastive import describe_dual_encoder
from medmvl.training.contrastive import apply_contrastive
from medmvl.training.cost import Hardware, PartCost, StagePlan, memory_bytes, refuse_faulty
from medmvl.training.recipe import ContrastiveSection, Recipe, StageSection
from medmvl.training.run import build_mixture, total_steps


@dataclass(frozen=True)
class _Texts:
    """Means over an epoch of a mixture, and the longest."""

    tokens: float
    longest: int
    cut: int


def plan_contrastive(
    recipe: Recipe, stage: StageSection, tokenizer: PreTrainedTokenizerBase | None, machine: Hardware | None
) -> tuple[StagePlan, DualEncoderConfig]:
    """Return what a contrastive stage will do and cost; no weight is made or read.

    Args:
        tokenizer: of the model that the recipe describes, if it has an LLM.
        machine: hardware to reckon hours for.

    Raises:
        RecipeError, ModelError: if the stage's parts are not usable.
        DataError: listing the records that are no pairs.
    """
    stage, source = _with_text(recipe, stage)
    config, processor = describe_dual_encoder(recipe, stage, source, tokenizer)
    mixture = build_mixture(recipe, stage)
    texts = _measure(mixture, processor)
    costs = _part_costs(stage, config, texts.tokens)
    world = machine.count if machine is not None else 1
    shape = StepShape.of(stage.batch_size, stage.micro_batch_size, world)
    memory = memory_bytes(list(costs.values()), shape.micro_batches, 0, 0, half=stage.precision != "fp32")
    again = 1 if shape.accumulation > 1 else 0  # features are made once more without autograd, see contrastive_trainer
    flops = sum(cost.flops + again * 2 * cost.tokens * cost.parameters for cost in costs.values())
    steps = total_steps(stage, mixture)
    hours = machine.hours(steps * flops) if machine is not None else None
    tokens = sum(cost.tokens for cost in costs.values())
    plan = StagePlan(
        stage.name,
        steps,
        steps * stage.batch_size,
        tokens,
        tokens,
        texts.longest,
        flops,
        memory / 1e9,
        hours,
        texts.cut,
    )
    return plan, config


def _measure(mixture: Mixture, processor: PairProcessor) -> _Texts:
    """Tokenise the text of every pair.

    Raises:
        DataError: naming the records that are no pairs.
    """
    faults: list[str] = []
    count = tokens = 0.0
    longest = cut = 0
    for number in range(len(mixture)):
        try:
            sample = mixture[number]  # with its medium, which must be there
            medium_of(sample, processor.modality)
            ids, is_cut = processor.tokenize(sample)
        except DataError as error:
            faults.append(str(error))
            continue
        share = mixture.times_per_epoch(number)
        count += share
        tokens += share * (processor.max_length if processor.padded else len(ids))
        longest, cut = max(longest, len(ids)), cut + is_cut
    refuse_faulty(faults)
    return _Texts(tokens / count, longest, cut)


def _part_costs(stage: StageSection, config: DualEncoderConfig, text_tokens: float) -> dict[str, PartCost]:
    """Return part -> its cost; the projections are too small to count but for their weights."""
    with torch.device("meta"):
        dual = DualEncoder(config)
    stage = stage.model_copy(update={"precision": "fp32"})  # weights that are nowhere cannot be put aside
    trained = {
        part.name: sum(p.numel() for p in part.parameters.values()) for part in apply_contrastive(dual, stage).trained
    }
    tower = config.tower(config.modality)
    text = config.text_config
    pairs = stage.batch_size
    tokens = {
        f"{config.modality}_encoder": pairs * tower.encoder_spec.grid(tower.input_size).tokens,
        "text_encoder": pairs * text_tokens,
        "head": 0.0,
    }
    width = {f"{config.modality}_encoder": tower.encoder_spec.hidden_size, "text_encoder": text.hidden_size, "head": 0}
    costs = {}
    for name, part in dual.parts().items():
        parameters = sum(p.numel() for p in part.parameters())
        layers = max(1, round(parameters / (12 * width[name] ** 2))) if width[name] else 0
        count = trained.get(name, 0)
        chosen = stage.activation_checkpointing
        recomputes = chosen if isinstance(chosen, bool) else name in chosen
        costs[name] = PartCost(parameters, count, tokens[name], width[name], layers, count > 0, recomputes)
    return costs


def _with_text(recipe: Recipe, stage: StageSection) -> tuple[StageSection, Path | None]:
    """Return the stage with the text encoder that it goes on with spelt out, and the checkpoint at its beginning.

    Earlier stages have not run yet, so what they will leave is read from their sections.

    Raises:
        RecipeError: if the stage goes on with a text encoder, and what it starts from has none.
    """
    names = [section.name for section in recipe.stages]
    section = stage.contrastive or ContrastiveSection()
    origin: StageSection = stage
    while True:
        index = names.index(origin.name)
        before = origin.from_ if origin.from_ is not None else (names[index - 1] if index else None)
        if before is not None and before not in names:
            return stage, Path(before)
        if before is None:
            break
        origin = recipe.stage(before)
        goes_on = section.text is None
        if goes_on and (origin.objective != "contrastive" or origin.modality != stage.modality):
            raise RecipeError(
                f"Stage {stage.name!r} names no text encoder, and {origin.name!r}, from which it starts, is no contrastive "
                f"stage for {stage.modality}s. Give contrastive.text."
            )
        if goes_on and origin.contrastive is not None:
            section = origin.contrastive
    stage = stage.model_copy(update={"contrastive": section})
    return stage, Path(recipe.model.from_) if recipe.model.from_ is not None else None
