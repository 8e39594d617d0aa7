"""Keys that other trainers use, and what to write in a recipe here: hints for an unknown key.

The keys are those of transformers' TrainingArguments, PEFT's LoraConfig, LLaVA's and TinyLLaVA's scripts, and LLaMA-Factory.
"""

from __future__ import annotations

#: Key of another trainer -> our key for the same setting, with the same values.
SAME_SETTING = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "scheduler",
    "optim": "optimizer",
    "gradient_checkpointing": "activation_checkpointing",
    "torch_compile": "compile",
    "save_steps": "save_every",
    "eval_steps": "evaluate.every",
    "save_total_limit": "keep",
    "lora_r": "r",
    "lora_rank": "r",
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "dataloader_num_workers": "run.workers",
    "report_to": "run.trackers",
    "deepspeed": "run.strategy",
    "fsdp": "run.strategy",
    "output_dir": "--out",
    "dataset": "data",
    "model_max_length": "model.llm.max_length",
    "cutoff_len": "model.llm.max_length",
    "conv_version": "model.template",
    "mm_projector_type": "model.image.connector",
}

#: Key of another trainer -> a sentence, where the values differ.
OTHER_SETTING = {
    "per_device_train_batch_size": (
        "Write `micro_batch_size` for the samples that a device processes at once, and `batch_size` for those of an optimizer "
        "step: per_device_train_batch_size × gradient_accumulation_steps × number of devices."
    ),
    "gradient_accumulation_steps": (
        "The number of accumulation steps is computed: batch_size / (micro_batch_size × number of devices). For 4 steps of 8 "
        "samples on one device write `batch_size: 32` and `micro_batch_size: 8`."
    ),
    "bf16": "Write `precision: bf16`.",
    "fp16": "Write `precision: fp16` (CUDA only), or better `precision: bf16`, which needs no loss scaling.",
    "tensorboard": "Write `trackers: [tensorboard]`.",
    "wandb": "Write `trackers: [wandb]`.",
    "vision_tower": "Write `model: {image: {encoder: {name: siglip, init_from: FOLDER_OR_HUB_NAME}}}`.",
    "model_name_or_path": (
        "Write `model: {from: CHECKPOINT}` to go on from a MedM-VL checkpoint, or `model: {llm: {init_from: ...}, image: {...}}`."
    ),
    "tune_mm_mlp_adapter": "Write `train: {image_connector: full}` in the stage; parts that are not named are frozen.",
    "mm_projector_lr": "Write `train: {image_connector: {mode: full, lr: ...}}` in the stage.",
    "freeze_backbone": "Leave `llm` out of the stage's `train`; parts that are not named are frozen.",
    "lora_enable": "Write `train: {llm: lora}`, or {mode: lora, ...} with its settings.",
    "finetuning_type": "Write `train: {llm: lora}` or `train: {llm: full}`.",
    "load_in_4bit": "Write `lora: {quantize: nf4}` under the part that is trained with LoRA.",
    "load_in_8bit": "Write `lora: {quantize: int8}` under the part that is trained with LoRA.",
    "data_path": "Write `data: {NAME: {path: FILE}}`, and the names in the stage's `data`.",
    "image_folder": "Write `data: {NAME: {path: FILE, image_root: FOLDER}}`.",
}


def hint_for(key: str) -> str | None:
    """Return what to write in place of another trainer's key, as a sentence; None if the key is not one of those."""
    if key in SAME_SETTING:
        return f"Here it is called {SAME_SETTING[key]!r}."
    return OTHER_SETTING.get(key)
