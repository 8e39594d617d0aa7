"""Stages of a recipe: one class per training objective."""

from __future__ import annotations

import typing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from medmvl.training.recipe.base import Count, FolderName, Fraction, PartName, Positive, Section
from medmvl.training.recipe.data import AugmentSection
from medmvl.training.recipe.model import TokenizerSection
from medmvl.training.recipe.parts import PartSection, PartSetting


class EvaluateSection(Section):
    """Validation on held-out data during a stage."""

    data: list[str]
    """Names of data sets that are not trained on."""
    every: Count = 200
    """Optimizer steps between evaluations."""
    samples: Count = 64
    """Records used: the first ones of each data set."""
    generate: Annotated[int, Field(ge=0)] = 4
    """Number of records per data set whose answers are generated and written to `samples.jsonl`."""
    max_new_tokens: Count = 64
    """Maximum length of a generated answer, in tokens."""
    metric: str = "loss"
    """Metric that decides which weights are best. Language stages: `loss`, or `accuracy` (exact match) or `f1` (word F1) of
    the generated answers, both ignoring case and punctuation. Contrastive stages: `loss`, or `recall`, the mean of R@1,
    R@5 and R@10 in both directions."""
    patience: Count | None = None
    """Stop after this many evaluations without a better metric; the stage then ends with the best weights."""


class TextEncoderSection(Section):
    """The text encoder of a contrastive stage. It trains with the image or volume encoder and is saved with the stage."""

    init_from: str | None = None
    """Folder or hub name of a text encoder (BERT, RoBERTa, the text part of CLIP or SigLIP). Give this or `config`."""
    config: dict[str, Any] | None = None
    """Settings of a text encoder that starts with random weights, with `model_type`; `vocab_size` follows the tokenizer."""
    tokenizer: TokenizerSection | str | None = None
    """Folder or hub name of a tokenizer, or settings to train one; default: the one in `init_from`, else the model's, else
    a trained one."""
    max_length: Count | None = None
    """Most tokens of a text; longer texts are truncated (`--dry-run` counts them). Default: what the encoder takes."""
    pooling: Literal["mean", "first", "own"] = "mean"
    """Pooling of the text: the mean of its tokens, the first one (BERT's [CLS]), or the encoder's own pooling (CLIP's
    end token, SigLIP's last token)."""
    train: PartSetting = PartSection()
    """How it trains: `full`, `frozen`, `lora`, or settings."""

    @model_validator(mode="after")
    def _one_source(self) -> TextEncoderSection:
        if (self.init_from is None) == (self.config is None):
            raise ValueError("give either `init_from` (a folder or hub name) or `config` (random weights), not both")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, such as bert, clip_text_model or siglip_text_model")
        return self


class ContrastiveSection(Section):
    """How a contrastive stage compares images or volumes with their reports."""

    text: TextEncoderSection | None = None
    """The text encoder. Default: the one of the preceding contrastive stage, with its projections and temperature."""
    loss: Literal["clip", "siglip"] = "clip"
    """clip: softmax over the batch with a learned temperature (arXiv 2103.00020); siglip: a sigmoid for every pair, with a
    learned temperature and bias (arXiv 2303.15343)."""
    pooling: Literal["mean", "attention"] = "mean"
    """Pooling of an image or volume: the mean of the encoder's tokens, or attention with one learned query."""
    heads: Count = 8
    """Heads of the attention pooling; must divide the encoder's width."""
    dim: Count = 512
    """Width of the shared embedding space."""
    temperature: Positive | None = None
    """Initial temperature; default: 0.07 for clip, 0.1 for siglip, as in the papers."""
    bias: float = -10.0
    """Initial bias of the sigmoid loss."""


#: Names in a run folder that a stage may not take.
RESERVED_STAGE_NAMES = ("model", "init", "phantoms")


class StageSection(Section):
    """Settings that the stages of all objectives share: what trains, on which data, for how long."""

    #: Metrics that `evaluate.metric` may name.
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    #: Whether the model must have an LLM.
    needs_llm: ClassVar[bool] = True
    #: Whether `run.strategy` shards the model; otherwise every device holds all of it.
    can_be_sharded: ClassVar[bool] = False

    name: FolderName
    """Name of the stage and of its folder."""
    objective: str
    """What the stage learns: `language` (default), answers to questions; `contrastive`, matching images or volumes with
    their reports (CLIP-style)."""
    from_: str | None = Field(default=None, alias="from")
    """Starting point: an earlier stage or a checkpoint folder. Default: the preceding stage, or the model."""
    train: dict[PartName, PartSetting]
    """Part -> how it trains (`full`, `lora`, or settings). Parts that are not listed are frozen."""
    data: dict[str, Positive] | list[str] | None = None
    """Names of data sets, or name -> weight. Default: all of the recipe with their weights."""
    temperature: Positive | None = None
    """Draw data sets in proportion to size ** (1 / temperature) instead of by weight; larger values draw more evenly."""
    epochs: Positive | None = None
    """Passes over the mixture; give this or `max_steps`. Default: 1."""
    max_steps: Count | None = None
    """Optimizer steps."""
    batch_size: Count = 16
    """Samples per optimizer step, over all devices."""
    micro_batch_size: Count | None = None
    """Maximum number of samples a device processes at once; gradients of the rest are accumulated. Default: all at once."""
    lr: Positive | None = None
    """Peak learning rate of parts without their own."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Warm-up: below 1 a fraction of the steps, else a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; not applied to biases and norms."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """muon uses Muon for the matrices of linear layers and AdamW for the rest (torch 2.9 or later, run.strategy ddp).
    adamw_8bit needs a CUDA device and bitsandbytes (extra `quantize`), and ddp or fsdp."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Maximum gradient norm; larger gradients are clipped. 0 does not clip."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast dtype. Trained weights keep an fp32 master copy; with bf16, frozen parts are stored in bf16.
    fp16 is for accelerators without bf16, and for `strategy: ddp` only."""
    augment: AugmentSection | None = None
    """Random changes of images and volumes, different in each epoch. Default: none."""
    activation_checkpointing: bool | list[PartName] = False
    """Recompute activations in the backward pass: less memory, about a third more time. true, or a list of parts."""
    compile: bool = False
    """`torch.compile` the layers of encoders and LLM, and pad rows to a few lengths so that compiled code is reused; for
    CUDA. Not with `strategy: zero3`."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the trained weights; the stage ends with the average. Not with
    `strategy: zero2` or `zero3`."""
    evaluate: EvaluateSection | None = None
    """Validation on held-out data during the stage."""
    save_every: Count = 500
    """Optimizer steps between checkpoints."""
    save_minutes: Positive | None = 10.0
    """Minutes between checkpoints, in addition to `save_every`; null: no checkpoints by time."""
    keep: Count = 2
    """Number of newest checkpoints kept; the best one is kept in addition."""
    stop_after_nans: Count = 5
    """A step with a NaN or infinite gradient is skipped; after this many in a row the run stops."""
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the finished checkpoint."""

    @classmethod
    def objective_name(cls) -> str:
        """Return the name of the objective, which the class states as the Literal type of its field `objective`."""
        (name,) = typing.get_args(cls.model_fields["objective"].annotation)
        return str(name)

    @model_validator(mode="before")
    @classmethod
    def _only_own_keys(cls, values: Any) -> Any:
        """Refuse keys that exist for another objective only."""
        if not isinstance(values, dict):
            return values
        own, objective = keys_of(cls), objective_of(values)
        foreign = {
            key: [name for name, section in STAGES.items() if key in keys_of(section)]
            for key in values
            if key not in own
        }
        misplaced = [key for key, owners in foreign.items() if owners]
        if misplaced:
            owners = ", ".join(dict.fromkeys(name for key in misplaced for name in foreign[key]))
            special = ", ".join(sorted(own - keys_of(StageSection))) or "no key"
            raise ValueError(
                f"no meaning in a {objective} stage: {', '.join(f'`{key}`' for key in misplaced)}, which is for stages with "
                f"`objective: {owners}`; remove it. Besides the keys of all stages, a {objective} stage takes {special}"
            )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> StageSection:
        if self.name in RESERVED_STAGE_NAMES:
            raise ValueError(f"a stage cannot be called {self.name!r}; the run folder uses that name")
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give either `epochs` or `max_steps`, not both")
        trained = {name: part for name, part in self.train.items() if part.mode != "frozen"}
        if not trained:
            raise ValueError("`train` names no part that trains; give at least one part the mode full or lora")
        without = [name for name, part in trained.items() if part.lr is None and self.lr is None]
        if without:
            raise ValueError(f"no learning rate for {', '.join(without)}; set the stage's `lr` or the part's")
        if self.evaluate is not None and self.evaluate.metric not in self.metrics:
            raise ValueError(f"evaluate.metric of a {self.objective} stage is one of {', '.join(self.metrics)}")
        return self


class LanguageStage(StageSection):
    """A stage that learns to answer: next-token prediction on the assistant's turns."""

    metrics = ("loss", "accuracy", "f1")
    can_be_sharded = True

    objective: Literal["language"] = "language"
    """Next-token prediction on the assistant's turns."""
    template: str | None = None
    """Chat template of this stage. Default: the model's."""
    packing: bool = True
    """Concatenate the samples of a micro-batch instead of padding them; attention stays within each sample."""
    supervised_logits: bool = True
    """Compute logits only at positions with a label."""
    cross_entropy: Literal["auto", "full", "chunked", "liger"] = "auto"
    """full computes all supervised logits at once; chunked a few rows at a time, so that the logits of a large vocabulary
    are never in memory together; liger uses liger-kernel's fused kernel (CUDA, extra `liger`); auto is chunked where the
    LLM allows it."""
    feature_cache: bool = False
    """Run frozen encoders once per image and volume and store their features in the run folder (after the pooling, if it
    has no weights). Useful when images are seen several times. Not with `augment`."""

    @model_validator(mode="after")
    def _compatible(self) -> LanguageStage:
        if self.augment is not None and self.feature_cache:
            raise ValueError(
                "`augment` changes the pixels in each pass and `feature_cache` runs the encoder once for all passes; "
                "remove one of them"
            )
        if self.cross_entropy in ("chunked", "liger") and not self.supervised_logits:
            raise ValueError(f"cross_entropy: {self.cross_entropy} needs `supervised_logits`")
        judged = self.evaluate
        if judged is not None and judged.metric in ("accuracy", "f1") and not judged.generate:
            raise ValueError(f"metric: {judged.metric} scores generated answers; set `generate` to a number of records")
        return self


class ContrastiveStage(StageSection):
    """A stage that trains one encoder to match images or volumes with their reports."""

    metrics = ("loss", "recall")
    needs_llm = False

    objective: Literal["contrastive"]
    """Matching images or volumes with their reports."""
    contrastive: ContrastiveSection = ContrastiveSection()
    """Text encoder, loss and pooling."""

    @model_validator(mode="after")
    def _one_encoder(self) -> ContrastiveStage:
        parts = list(self.train)
        if len(parts) != 1 or not parts[0].endswith("_encoder"):
            raise ValueError(
                f"a contrastive stage trains one encoder, `image_encoder` or `volume_encoder`, not {', '.join(parts)}; "
                "the text encoder's setting is contrastive.text.train"
            )
        if self.batch_size < 2:
            raise ValueError("a contrastive stage needs a batch_size of at least 2: a pair is told from the others")
        if self.lr is None:
            raise ValueError("a contrastive stage needs the stage's `lr`, for the projections and the temperature")
        return self

    @property
    def modality(self) -> Literal["image", "volume"]:
        """The modality that is paired with texts."""
        return "image" if "image_encoder" in self.train else "volume"


#: Objective -> section of its stages; others are added by `medmvl.training.recipe.register_stage`.
STAGES: dict[str, type[StageSection]] = {"language": LanguageStage, "contrastive": ContrastiveStage}


def objective_of(stage: Any) -> str:
    """Return the objective of a stage, given as a section or as plain values."""
    if isinstance(stage, StageSection):
        return stage.objective
    return str(stage.get("objective", "language")) if isinstance(stage, dict) else "language"


def keys_of(section: type[StageSection]) -> set[str]:
    """Return the keys that a stage of this section takes."""
    names = {field.alias or name for name, field in section.model_fields.items()}
    return names | set(section.model_fields)
