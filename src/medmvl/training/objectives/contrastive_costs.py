"""Cost of a contrastive stage."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from medmvl.data.sample import Sample
from medmvl.errors import RecipeError
from medmvl.models.budget import dual_budget
from medmvl.models.contrastive import DualEncoder
from medmvl.processing.pairs import visual_input_of
from medmvl.training.context import StageContext
from medmvl.training.cost import Lengths, PartCost, SampleSize, StageCosts, recomputes
from medmvl.training.objectives.contrastive_build import describe_dual_encoder
from medmvl.training.objectives.contrastive_parts import adapt_dual_encoder, contrastive_adaptation
from medmvl.training.recipe import ContrastiveStage, Recipe


class ContrastiveCosts(StageCosts):
    """Sizes and costs of a contrastive stage.

    Args:
        context: the stage.
        tokenizer: of the model that the recipe describes, if it has an LLM.
    """

    def __init__(self, context: StageContext, tokenizer: PreTrainedTokenizerBase | None) -> None:
        assert isinstance(context.stage, ContrastiveStage)
        stage, source = _with_text(context.recipe, context.stage)
        self._stage = stage
        self._config, self._processor = describe_dual_encoder(context.recipe, stage, source, tokenizer)
        self.budget, self.title = dual_budget(self._config), f"Dual encoder of stage {stage.name}"

    def measure(self, sample: Sample) -> SampleSize:
        """Return the size of a pair's text."""
        visual_input_of(sample, self._processor.modality)
        ids, is_truncated = self._processor.tokenize(sample)
        tokens = self._processor.max_length if self._processor.padded else len(ids)
        return SampleSize(tokens, tokens, len(ids), truncated=is_truncated)

    def parts(self, lengths: Lengths, per_step: float) -> dict[str, PartCost]:
        """Return part -> its cost; of the projections only the weights count, for they are small."""
        with torch.device("meta"):
            dual = DualEncoder(self._config)
        adapted = adapt_dual_encoder(dual, contrastive_adaptation(self._stage).structure_only())
        trained = {part.name: sum(p.numel() for p in part.parameters.values()) for part in adapted.trained}
        encoder, tower = f"{self._config.modality}_encoder", self._config.tower(self._config.modality)
        tokens = {
            encoder: self._stage.batch_size * tower.encoder_spec.grid(tower.input_size).tokens,
            "text_encoder": lengths.tokens * per_step,
            "head": 0.0,
        }
        width = {encoder: tower.encoder_spec.hidden_size, "text_encoder": self._config.text_config.hidden_size}
        costs = {}
        for name, part in dual.parts().items():
            parameters, w = sum(p.numel() for p in part.parameters()), width.get(name, 0)
            layers = max(1, round(parameters / (12 * w**2))) if w else 0
            count = trained.get(name, 0)
            again = recomputes(self._stage.activation_checkpointing, name)
            costs[name] = PartCost(parameters, count, tokens[name], w, layers, count > 0, again)
        return costs

    def step_tokens(self, lengths: Lengths, per_step: float, parts: dict[str, PartCost]) -> tuple[float, float]:
        """Return the tokens of all encoders in a step; all of them carry the loss."""
        tokens = sum(cost.tokens for cost in parts.values())
        return tokens, tokens

    def extra_flops(self, parts: dict[str, PartCost], accumulation: int) -> float:
        """Return the FLOPs of the first run without autograd, see `medmvl.training.objectives.gradient_cache`."""
        return sum(2 * cost.tokens * cost.parameters for cost in parts.values()) if accumulation > 1 else 0.0


def _with_text(recipe: Recipe, stage: ContrastiveStage) -> tuple[ContrastiveStage, Path | None]:
    """Return the stage with the settings of the text encoder it continues with, and the checkpoint at its beginning.

    Earlier stages have not run yet, so their results are taken from their sections.

    Raises:
        RecipeError: if the stage continues with a text encoder, and its start has none.
    """
    names = [section.name for section in recipe.stages]
    settings, origin = stage.contrastive, recipe.stage(stage.name)
    while True:
        index = names.index(origin.name)
        before = origin.from_ if origin.from_ is not None else (names[index - 1] if index else None)
        if before is not None and before not in names:
            return stage, Path(before)
        if before is None:
            break
        origin = recipe.stage(before)
        if settings.text is not None:
            continue
        if not isinstance(origin, ContrastiveStage) or origin.modality != stage.modality:
            raise RecipeError(
                f"Stage {stage.name!r} names no text encoder, and {origin.name!r}, from which it starts, is no contrastive "
                f"stage for {stage.modality}s. Give contrastive.text."
            )
        settings = origin.contrastive
    stage = stage.model_copy(update={"contrastive": settings})
    return stage, Path(recipe.model.from_) if recipe.model.from_ is not None else None
