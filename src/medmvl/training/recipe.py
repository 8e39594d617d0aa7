"""A recipe: a model, data, and stages, as data. YAML is only its spelling.

Every key is checked: an unknown one is an error that names the closest known one and where it stands. The text under
each field is its documentation; `docs/recipe-reference.md` is made from it.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from medmvl.imaging.augment import Augmentation

#: The parts of a model that a stage can train.
PART_NAMES = ("llm", "image_encoder", "image_connector", "volume_encoder", "volume_connector")
PartName = Literal["llm", "image_encoder", "image_connector", "volume_encoder", "volume_connector"]

#: Names in a run folder that a stage may not take.
RESERVED_STAGE_NAMES = ("model", "init", "phantoms")

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class TokenizerSection(Section):
    """A tokenizer trained on the recipe's own texts, for models that start from nothing."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Size of the byte-level BPE vocabulary, special tokens included; at least 300 (256 bytes and the specials)."""


class LLMSection(Section):
    """The language model."""

    init_from: str | None = None
    """Folder or hub name of a causal LM with its tokenizer; weights are loaded. Give this or `config`."""
    config: dict[str, Any] | None = None
    """Settings of a causal LM that starts with random weights, with `model_type`; `vocab_size` follows the tokenizer."""
    tokenizer: TokenizerSection | str | None = None
    """Folder or hub name of a tokenizer, or settings to train one; default: the one in `init_from`, or a trained one."""
    max_length: Count = 2048
    """Most tokens of a sample, visual ones included; a longer one loses early turns, or is refused."""

    @model_validator(mode="after")
    def _one_source(self) -> LLMSection:
        if (self.init_from is None) == (self.config is None):
            raise ValueError("give either `init_from` (a folder or hub name) or `config` (random weights), not both")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, such as qwen2, llama or phi3")
        return self


class TowerSection(Section):
    """An encoder and its connector, for images or for volumes."""

    encoder: dict[str, Any]
    """Settings of the encoder with its `name` (`medmvl list encoders`); `init_from` starts from a folder or hub name; of a
    MedM-VL checkpoint its encoder of that name is taken, with the processor it was trained with."""
    connector: str | dict[str, Any] = "mlp2x_gelu"
    """A projector's name, or {pooling: ..., projector: ...} (`medmvl list connectors`)."""
    size: tuple[int, ...] | None = None
    """Input size, (H, W) or (D, H, W); default: the size the encoder was made for."""
    geometry: str | dict[str, Any] | None = None
    """Volumes only: how a scan becomes the encoder's input (`medmvl list geometries`), as a name or {name, ...}."""

    @model_validator(mode="after")
    def _named_encoder(self) -> TowerSection:
        if "name" not in self.encoder:
            raise ValueError("`encoder` needs its `name`, such as siglip, clip, slicewise or vit3d")
        return self


class ModelSection(Section):
    """The model: a ready checkpoint, or parts; without an LLM an encoder alone, for contrastive stages."""

    from_: str | None = Field(default=None, alias="from")
    """Folder of a ready checkpoint; give this or `llm` with towers."""
    llm: LLMSection | None = None
    """The language model; a recipe whose stages are all contrastive may do without."""
    image: TowerSection | None = None
    """The tower for 2D images."""
    volume: TowerSection | None = None
    """The tower for 3D volumes."""
    template: str | None = None
    """Chat template (`medmvl list templates`); default: the one of the LLM's family."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if self.from_ is not None and self.llm is not None:
            raise ValueError("give either `from` (a checkpoint folder) or `llm` (and towers), not both")
        if self.from_ is not None and (self.image or self.volume):
            raise ValueError("a model `from` a checkpoint brings its towers; remove `image` and `volume`")
        if not (self.from_ or self.llm or self.image or self.volume):
            raise ValueError("give `from` (a checkpoint folder), or `llm` (and towers)")
        return self

    @property
    def encoder_only(self) -> bool:
        """Whether there is no LLM: what is trained is an encoder, with contrastive stages."""
        return self.from_ is None and self.llm is None

    def part_names(self) -> list[str]:
        """Return the parts that this section builds; empty if they are known only once the checkpoint is read."""
        if self.from_ is not None:
            return []
        towers = [name for name in ("image", "volume") if getattr(self, name) is not None]
        kinds = ("encoder",) if self.encoder_only else ("encoder", "connector")
        return [*([] if self.encoder_only else ["llm"]), *(f"{tower}_{kind}" for tower in towers for kind in kinds)]


class DataSection(Section):
    """A file of records."""

    path: str
    """JSON array, JSON Lines or Parquet file of records, below `data_root`."""
    image_root: str | None = None
    """Folder of the images, below `data_root`; default: the file's own folder."""
    volume_root: str | None = None
    """Folder of the volumes, below `data_root`; default: the file's own folder."""
    weight: Positive = 1.0
    """How often a record is seen per epoch; 2 is twice, 0.5 every second record (others each epoch)."""
    tasks: list[str] | None = None
    """Only the records whose `task` is one of these, such as [report]; the whole file is read once to find them."""


class LoRASection(Section):
    """Low-rank adapters (arXiv 2106.09685) of a part; merged into the weights when the stage is finished."""

    r: Count = 16
    """Rank."""
    alpha: Count = 32
    """Scale; the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter."""
    targets: list[str] | None = None
    """Names of the linear layers to adapt; default: all of the part but an LLM's head."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (arXiv 2312.03732)."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the part's frozen linear layers in few bits (QLoRA, arXiv 2305.14314): nf4 by bitsandbytes, int8 by torchao (extra
    `quantize`). The finished checkpoint is the model that was trained: the weights as the quantiser rounded them, adapters
    merged. With `strategy: ddp` only."""


class PartSection(Section):
    """How one part of the model takes part in a stage."""

    mode: Literal["frozen", "full", "lora"] = "full"
    """frozen: as it is; full: all weights train; lora: adapters train, the weights stay."""
    lr: Positive | None = None
    """Learning rate of this part; default: the stage's."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of this part; default: the stage's."""
    only: list[str] = []
    """Regular expressions; with mode full only parameters whose name one of them finds are trained (layer-wise freezing)."""
    lora: LoRASection = LoRASection()
    """Settings of the adapters."""


def _spelt_out(value: Any) -> Any:
    """`llm: full` is short for `llm: {mode: full}`."""
    return {"mode": value} if isinstance(value, str) else value


PartSetting = Annotated[PartSection, BeforeValidator(_spelt_out)]


class EvaluateSection(Section):
    """Looking at held-out data while a stage runs."""

    data: list[str]
    """Names of data sets that are not trained on."""
    every: Count = 200
    """Optimiser steps between two looks."""
    samples: Count = 64
    """Records used, the first ones of each data set."""
    generate: Annotated[int, Field(ge=0)] = 4
    """For so many records of each data set an answer is generated and logged (`samples.jsonl`)."""
    max_new_tokens: Count = 64
    """Longest generated answer."""
    metric: Literal["loss", "accuracy", "f1", "recall"] = "loss"
    """What decides which weights are best: loss; of the generated answers the share that equals the true one, or the mean F1
    of their words, both without case and punctuation; recall, of a contrastive stage: the mean of R@1, R@5, R@10 both ways."""
    patience: Count | None = None
    """Stop when the metric has not improved for so many looks; the best weights are what the stage ends with."""

    @model_validator(mode="after")
    def _answers_to_judge(self) -> EvaluateSection:
        if self.metric in ("accuracy", "f1") and not self.generate:
            raise ValueError(f"metric: {self.metric} judges generated answers; set `generate` to a number of records")
        return self


class TextEncoderSection(Section):
    """The text encoder of a contrastive stage; it trains with the image or volume encoder and stays with the stage."""

    init_from: str | None = None
    """Folder or hub name of a text encoder (BERT, RoBERTa, the text part of CLIP or SigLIP). Give this or `config`."""
    config: dict[str, Any] | None = None
    """Settings of a text encoder that starts with random weights, with `model_type`; `vocab_size` follows the tokenizer."""
    tokenizer: TokenizerSection | str | None = None
    """Folder or hub name of a tokenizer, or settings to train one; default: the one in `init_from`, else the model's, else
    a trained one."""
    max_length: Count | None = None
    """Most tokens of a text; a longer one is cut at its end (`--dry-run` counts them). Default: what the encoder takes."""
    pooling: Literal["mean", "first", "own"] = "mean"
    """What stands for the text: the mean of its tokens, the first one (BERT's [CLS]), or the encoder's own pooling (CLIP's
    end token, SigLIP's last one)."""
    train: PartSetting = PartSection()
    """How it trains: `full`, `frozen`, `lora` or settings."""

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
    """The text encoder; default: go on with that of the contrastive stage before, with its projections and temperature."""
    loss: Literal["clip", "siglip"] = "clip"
    """clip: softmax over the batch with a learned temperature (arXiv 2103.00020); siglip: a sigmoid for every pair, with a
    learned temperature and bias (arXiv 2303.15343)."""
    pooling: Literal["mean", "attention"] = "mean"
    """What stands for an image or a volume: the mean of the encoder's tokens, or a learned query that attends to them."""
    heads: Count = 8
    """Heads of the attention pooling; a divisor of the encoder's width."""
    dim: Count = 512
    """Width of the space in which both are compared."""
    temperature: Positive | None = None
    """First temperature; default: 0.07 for clip, 0.1 for siglip, as in the papers."""
    bias: float = -10.0
    """First bias of the sigmoid loss."""


class AugmentSection(Section):
    """Random changes of images and volumes, anew in each pass over the data; they follow from seed, pass and id alone."""

    image: Augmentation | None = None
    """Changes of images; `{}` takes the defaults."""
    volume: Augmentation | None = None
    """Changes of volumes; `{}` takes the defaults."""

    def settings(self) -> dict[str, Augmentation]:
        """Return modality -> its changes, of those that have some."""
        both = {"image": self.image, "volume": self.volume}
        return {modality: changes for modality, changes in both.items() if changes is not None}


class StageSection(Section):
    """One stage: what trains, on what, for how long."""

    name: FolderName
    """Name of the stage and of its folder."""
    objective: Literal["language", "contrastive"] = "language"
    """language: say the answers; contrastive: find the report of an image or volume among others, which trains an encoder
    (CLIP-style). `template`, `packing`, `supervised_logits`, `cross_entropy` and `feature_cache` mean something for language
    only."""
    contrastive: ContrastiveSection | None = None
    """Settings of a contrastive stage."""
    from_: str | None = Field(default=None, alias="from")
    """An earlier stage, or a checkpoint folder; default: the stage before, or the model for the first one."""
    train: dict[PartName, PartSetting]
    """Part -> how it trains (`full`, `lora` or settings); a part that is not named is frozen."""
    data: dict[str, Positive] | list[str] | None = None
    """Names of the data sets, or name -> weight; default: all of the recipe with their weights."""
    temperature: Positive | None = None
    """Draw data sets in proportion to size ** (1 / temperature) instead of by weight; 1 is plain, more is more even."""
    template: str | None = None
    """Chat template of this stage; default: the model's."""
    epochs: Positive | None = None
    """Passes over the mixture; give this or `max_steps`; default: 1."""
    max_steps: Count | None = None
    """Optimiser steps."""
    batch_size: Count = 16
    """Samples per optimiser step, over all devices."""
    micro_batch_size: Count | None = None
    """Most samples a device takes at once; the rest is accumulated. Default: all at once."""
    lr: Positive | None = None
    """Peak learning rate of parts that do not give their own."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Warm-up: below 1 a fraction of the steps, else a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; never applied to biases and norms."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """muon moves the matrices of linear layers by Muon, the rest by AdamW (torch 2.9 or later, run.strategy ddp); from random
    weights it learns more in as many steps. adamw_8bit needs a CUDA device and bitsandbytes (extra `quantize`), and ddp or fsdp."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast; trained weights keep an fp32 master copy, frozen parts are held in bf16 with bf16.
    fp16 is for accelerators without bf16, and `strategy: ddp` only."""
    packing: bool = True
    """Lay the samples of a micro-batch end to end instead of padding them; exact, samples do not see each other."""
    supervised_logits: bool = True
    """Run the LLM's head only where there is a label; exact."""
    cross_entropy: Literal["auto", "full", "chunked", "liger"] = "auto"
    """full makes all supervised logits at once; chunked a few rows at a time, so that a large vocabulary is never whole in
    memory (exact); liger is liger-kernel's fused kernel (CUDA, extra `liger`); auto is chunked where the LLM allows it."""
    feature_cache: bool = False
    """Run frozen encoders once per image and volume and store their features (pooled, where the pooling has no weights) in the
    run folder; pays when media are seen several times, in epochs, questions or further runs. Exact. Not together with
    `augment`."""
    augment: AugmentSection | None = None
    """Change images and volumes a little, differently in each pass; default: not at all."""
    activation_checkpointing: bool | list[PartName] = False
    """Recompute activations in the backward pass: less memory, about a third more time. true, or the parts that do so."""
    compile: bool = False
    """`torch.compile` the layers of encoders and LLM, and pad rows to one of a few lengths, so that compiled forms are used
    again; for CUDA. Not with `strategy: zero3`."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the trained weights with this decay; the stage ends with the average. Not with
    `strategy: zero2` or `zero3`."""
    evaluate: EvaluateSection | None = None
    """Look at held-out data while training."""
    save_every: Count = 500
    """Optimiser steps between two checkpoints."""
    keep: Count = 2
    """Newest checkpoints kept; the best one is kept besides."""
    stop_after_nans: Count = 5
    """A step with a NaN or infinite gradient is skipped; after so many in a row the run stops."""
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the finished checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> StageSection:
        if self.name in RESERVED_STAGE_NAMES:
            raise ValueError(f"a stage cannot be called {self.name!r}; the run folder uses that name")
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give either `epochs` or `max_steps`, not both")
        if self.augment is not None and self.feature_cache:
            raise ValueError(
                "`augment` changes the pixels in each pass and `feature_cache` runs the encoder once for all passes; "
                "remove one of them"
            )
        if self.cross_entropy in ("chunked", "liger") and not self.supervised_logits:
            raise ValueError(f"cross_entropy: {self.cross_entropy} needs `supervised_logits`")
        trained = {name: part for name, part in self.train.items() if part.mode != "frozen"}
        if not trained:
            raise ValueError("`train` names no part that trains; give at least one part the mode full or lora")
        without = [name for name, part in trained.items() if part.lr is None and self.lr is None]
        if without:
            raise ValueError(f"no learning rate for {', '.join(without)}; set the stage's `lr` or the part's")
        if self.objective == "contrastive":
            self._check_contrastive(list(self.train))
        elif self.contrastive is not None:
            raise ValueError("`contrastive` is for stages with `objective: contrastive`")
        metrics = ("loss", "recall") if self.objective == "contrastive" else ("loss", "accuracy", "f1")
        if self.evaluate is not None and self.evaluate.metric not in metrics:
            raise ValueError(f"evaluate.metric of a {self.objective} stage is one of {', '.join(metrics)}")
        return self

    def _check_contrastive(self, parts: list[str]) -> None:
        if len(parts) != 1 or not parts[0].endswith("_encoder"):
            raise ValueError(
                f"a contrastive stage trains one encoder, `image_encoder` or `volume_encoder`, not {', '.join(parts)}; "
                "the text encoder's setting is contrastive.text.train"
            )
        if self.batch_size < 2:
            raise ValueError("a contrastive stage needs a batch_size of at least 2: a pair is told from the others")
        if self.lr is None:
            raise ValueError("a contrastive stage needs the stage's `lr`, for the projections and the temperature")
        meaningless = {
            "template": self.template is not None,
            "feature_cache": self.feature_cache,
            "packing": not self.packing,
            "supervised_logits": not self.supervised_logits,
            "cross_entropy": self.cross_entropy != "auto",
        }
        if given := [f"`{name}`" for name, is_given in meaningless.items() if is_given]:
            raise ValueError(f"no meaning in a contrastive stage, which has no LLM: {', '.join(given)}; remove it")

    @property
    def modality(self) -> Literal["image", "volume"]:
        """What a contrastive stage pairs with texts."""
        return "image" if "image_encoder" in self.train else "volume"


class RunSection(Section):
    """How the run uses the machine; changing these does not change the result."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Data loader processes per device; 0 loads in the training process."""
    prefetch: Count = 4
    """Micro-batches each worker prepares ahead."""
    volume_cache: str | None = None
    """Folder made by `medmvl data cache` with the same volume root; volumes in it are not read and prepared again."""
    cache_megabytes: Annotated[int, Field(ge=0)] = 0
    """Keep encoded samples in memory up to this size per loader process; for small data sets seen many times."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes the accelerator if there is one."""
    strategy: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """Several processes (torchrun): ddp shares gradients; fsdp shards weights, gradients and optimiser state (FSDP2); zero2
    shards gradients and optimiser state, zero3 weights as well (DeepSpeed, extra `deepspeed`)."""
    tensorboard: bool = False
    """Also write TensorBoard files to `<stage>/tensorboard` (needs the extra `tensorboard`)."""
    progress: bool = True
    """Show a progress bar; without a terminal, a line a minute."""


class PhantomSection(Section):
    """Synthetic patients that are drawn on first use, so that a recipe runs with no data at all.

    Below `data_root` they become `phantoms/slake` and `phantoms/ct-rate` in the layouts of those data sets, and the
    records `phantoms/2d/{train,validation,test}.jsonl` and `phantoms/ct/{train,valid}.jsonl`.
    """

    train: Annotated[int, Field(ge=2)] = 24
    """Patients to train on; even, since phantoms come in pairs of opposite findings."""
    val: Annotated[int, Field(ge=2)] = 4
    """Patients of the 2D validation split."""
    test: Annotated[int, Field(ge=2)] = 8
    """Patients of the 2D test split and of CT-RATE's `valid` split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawing."""
    size: tuple[int, int, int] = (24, 64, 64)
    """Voxels (D, H, W) of a scan."""
    film: Annotated[int, Field(ge=32)] = 64
    """Side of a radiograph in pixels."""
    readings: Annotated[int, Field(ge=0)] = 0
    """Patients described in words only, `phantoms/readings.jsonl`: what an LLM that starts from nothing learns to answer
    from. With any, the drawn patients also get `phantoms/{film,ct}-captions.jsonl` and `phantoms/{film,ct}-closed.jsonl`."""


class Recipe(Section):
    """A model, data, and stages."""

    name: FolderName
    """Name of the recipe; the run goes to `runs/<name>` unless --out says otherwise."""
    description: str = ""
    """What it is for, in a sentence."""
    seed: int = 42
    """Seed of fresh weights, order of the data, and dropout."""
    plugins: list[str] = []
    """Python modules to import first; they register own encoders, connectors, templates."""
    data_root: str = "."
    """Folder that data paths are relative to; itself relative to the current folder."""
    phantoms: PhantomSection | None = None
    """Draw phantoms on first use."""
    model: ModelSection
    """What is trained."""
    data: Annotated[dict[FolderName, DataSection], Field(min_length=1)]
    """Name -> data set."""
    stages: Annotated[list[StageSection], Field(min_length=1)]
    """The stages, in order."""
    run: RunSection = RunSection()
    """How the machine is used."""

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        earlier: list[str] = []
        for index, stage in enumerate(self.stages):
            at = f"stages[{index}] ({stage.name})"
            if stage.name in earlier:
                raise ValueError(f"{at}: two stages have this name")
            if self.model.encoder_only and stage.objective != "contrastive":
                raise ValueError(f"{at}: it needs a language model; give `model.llm`, or `objective: contrastive`")
            self._check_data(at, stage)
            if stage.objective != "contrastive":  # whose model every device holds whole
                self._check_strategy(at, stage)
            known = self.model.part_names()
            strange = [part for part in stage.train if known and part not in known]
            if strange:
                raise ValueError(f"{at}: the model has no part {strange[0]!r}; it has {', '.join(known)}")
            augmented = stage.augment.settings() if stage.augment is not None else {}
            without = [modality for modality in augmented if known and f"{modality}_encoder" not in known]
            if without:
                raise ValueError(f"{at}: `augment` names {without[0]}s and the model has no {without[0]} tower")
            source = stage.from_
            later = [other.name for other in self.stages[index:]]
            if source is not None and source in later:
                raise ValueError(f"{at}: `from` names {source!r}, which does not come before it")
            earlier.append(stage.name)
        return self

    def _check_strategy(self, at: str, stage: StageSection) -> None:
        """Refuse what a strategy cannot do, or was never seen to do."""
        strategy = self.run.strategy
        only_whole = {
            "lora.quantize": any(part.mode == "lora" and part.lora.quantize for part in stage.train.values()),
            "precision: fp16": stage.precision == "fp16",
            "optimizer: muon": stage.optimizer == "muon",
        }
        for setting, wanted in only_whole.items():
            if wanted and strategy != "ddp":
                raise ValueError(f"{at}: {setting} does not go with run.strategy {strategy}; use ddp")
        if stage.optimizer == "adamw_8bit" and strategy in ("zero2", "zero3"):
            raise ValueError(f"{at}: optimizer: adamw_8bit does not go with run.strategy {strategy}; use ddp or fsdp")
        if stage.compile and strategy == "zero3":
            raise ValueError(f"{at}: `compile` does not go with run.strategy zero3; use fsdp")

    def _check_data(self, at: str, stage: StageSection) -> None:
        names = [*(stage.data or []), *(stage.evaluate.data if stage.evaluate else [])]
        for name in names:
            if name not in self.data:
                raise ValueError(f"{at}: there is no data set {name!r} in `data`; there is {', '.join(self.data)}")
        both = set(stage.data or []) & set(stage.evaluate.data if stage.evaluate else [])
        if both:
            raise ValueError(f"{at}: {sorted(both)[0]!r} is both trained on and evaluated on")

    def stage(self, name: str) -> StageSection:
        """Return the stage called `name`."""
        return next(stage for stage in self.stages if stage.name == name)

    def mixture(self, stage: StageSection) -> dict[str, float]:
        """Return name -> weight of the data sets that `stage` trains on."""
        if isinstance(stage.data, dict):
            return dict(stage.data)
        held_out = set(stage.evaluate.data) if stage.evaluate else set()
        names = stage.data if stage.data is not None else [name for name in self.data if name not in held_out]
        return {name: self.data[name].weight for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `Recipe.model_validate` takes back; settings left at their default are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def path(self, relative: str) -> PurePath:
        """Return a data path below `data_root`."""
        return PurePath(self.data_root) / relative
