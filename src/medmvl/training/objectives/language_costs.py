"""Cost of a language stage."""

from __future__ import annotations

from dataclasses import replace

from medmvl.data.sample import Sample
from medmvl.models.head_loss import PIECE
from medmvl.models.labels import IGNORE_INDEX
from medmvl.training.context import StageContext
from medmvl.training.cost import Lengths, ModelDescription, PartCost, SampleSize, StageCosts, recomputes
from medmvl.training.recipe import LanguageStage


class LanguageCosts(StageCosts):
    """Sizes and costs of a language stage.

    Args:
        context: the stage.
        described: the recipe's model.
    """

    def __init__(self, context: StageContext, described: ModelDescription) -> None:
        assert isinstance(context.stage, LanguageStage)
        self._stage, self._described = context.stage, described
        self.vocabulary = described.config.text_config.vocab_size
        if context.stage.template is not None:
            described.processor.with_template(context.stage.template)

    def measure(self, sample: Sample) -> SampleSize:
        """Return the size of a sample."""
        ids, labels = self._described.processor.encode_text(sample)
        supervised = sum(label != IGNORE_INDEX for label in labels)
        return SampleSize(len(ids), supervised, len(ids), len(sample.images), len(sample.volumes))

    def check_held_out(self, sample: Sample) -> None:
        """Raise if a sample has no answer to compare with, or does not fit."""
        self.measure(sample.as_compared())

    def logit_positions(self, lengths: Lengths, per_micro_batch: float) -> float:
        """Return the positions whose logits are in memory together."""
        if not self._stage.supervised_logits:
            return lengths.tokens * per_micro_batch
        positions = lengths.supervised * per_micro_batch
        return positions if self._stage.cross_entropy == "full" else min(positions, max(1, PIECE // self.vocabulary))

    def parts(self, lengths: Lengths, per_step: float) -> dict[str, PartCost]:
        """Return part -> its cost; a part before which nothing trains needs no backward pass."""
        inputs = {"image": lengths.images * per_step, "volume": lengths.volumes * per_step}
        costs = {
            name: self._part(name, parameters, lengths.tokens * per_step, inputs)
            for name, parameters in self._described.budget.parameters.items()
        }
        before_llm = any(cost.trained for name, cost in costs.items() if name != "llm")
        for name, cost in costs.items():
            encoder = costs.get(name.replace("connector", "encoder"))
            behind_encoder = name.endswith("connector") and encoder is not None and encoder.trained > 0
            if (name == "llm" and before_llm) or behind_encoder:
                costs[name] = replace(cost, backward=True)
        return costs

    def _part(self, name: str, parameters: int, text_tokens: float, inputs: dict[str, float]) -> PartCost:
        config, trained = self._described.config, self._trained(name, parameters)
        modality, _, kind = name.partition("_")
        if name == "llm":
            text = config.text_config
            tokens, width, layers = text_tokens, text.hidden_size, text.num_hidden_layers
        else:
            spec = config.tower(modality)
            grid = spec.encoder_spec.grid(spec.input_size)
            tokens, width, layers = inputs[modality] * grid.tokens, spec.encoder_spec.hidden_size, 1
            if kind == "encoder":
                if self._stage.feature_cache and not trained:
                    tokens = 0.0  # it runs before the stage, once per image or volume
                layers = max(1, round(parameters / (12 * width**2)))
        again = recomputes(self._stage.activation_checkpointing, name)
        return PartCost(parameters, trained, tokens, width, layers, trained > 0, again)

    def _trained(self, name: str, parameters: int) -> int:
        """Return how many parameters of a part train; adapters are estimated as r / 512 of the part, a typical share."""
        part = self._stage.train.get(name)  # type: ignore[call-overload]
        if part is None or part.mode == "frozen":
            return 0
        return parameters if part.mode == "full" else max(1, round(parameters * part.lora.r / 512))
