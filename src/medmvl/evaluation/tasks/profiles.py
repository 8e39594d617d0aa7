"""Scorer profiles: the columns that a published protocol reports, and the careful ones beside them.

`unimed` is the scorer behind the paper's 2D table, `ct-rate` holds both BLEU flavours of its CT table, `m3d` is M3D-Bench,
`llava-med` LLaVA-Med v1. A profile's first column is the number its papers print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from medmvl.errors import EvaluationError
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.choice import stated_letter
from medmvl.evaluation.metrics.vqa import is_open
from medmvl.evaluation.tasks.base import Benchmark, Column, Where, column
from medmvl.registry import Registry

PROFILES: Registry[Callable[[], tuple[Column, ...]]] = Registry("scorer profile", EvaluationError)


def has_letter(item: Item) -> bool:
    """Return whether the reference states an option letter."""
    return stated_letter(item.reference) is not None


def careful_vqa() -> tuple[Column, ...]:
    """Return what a careful reader wants beside any published VQA number."""
    return (
        column("closed_accuracy", "closed-accuracy-strict"),
        column("open_recall", "open-recall"),
        column("open_f1", "open-f1"),
        column("token_f1_unimed", "token-f1-unimed"),
        column("accuracy", "accuracy"),
        column("rouge_l", "rouge-l"),
    )


def careful_report() -> tuple[Column, ...]:
    """Return the word-level metrics that every report benchmark shows."""
    return (
        column("bleu1_nltk_mean", "bleu1-nltk-mean"),
        column("rouge_l", "rouge-l"),
        column("meteor", "meteor-exact-stem"),
        column("token_f1_unimed", "token-f1-unimed"),
    )


def label_columns(labeller: str, where: Where | None = None) -> tuple[Column, ...]:
    """Return macro and micro label F1 with a labeller of `LABELLERS`."""
    return (
        column("label_f1_macro", f"label-f1-macro-{labeller}", where),
        column("label_f1_micro", f"label-f1-micro-{labeller}", where),
    )


@PROFILES.register("unimed-vqa")
def unimed_vqa() -> tuple[Column, ...]:
    """Uni-Med's VQA: mean NLTK BLEU-1 of normalised words is the published number."""
    return (
        column("bleu1", "bleu1-nltk-mean"),
        column("bleu1_nltk_mean", "bleu1-nltk-mean"),
        *careful_vqa(),
        column("closed_accuracy_published", "closed-accuracy-contains"),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a"),
    )


@PROFILES.register("unimed-report")
def unimed_report() -> tuple[Column, ...]:
    """Uni-Med's captions and reports: corpus COCO BLEU-1 on PTB tokens is the published number."""
    return (
        column("bleu1", "bleu1-coco-corpus-ptb"),
        column("bleu1_coco_corpus", "bleu1-coco-corpus-ptb"),
        column("bleu4_coco_corpus", "bleu4-coco-corpus-ptb"),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a"),
        column("rouge_l_coco", "rouge-l-coco-ptb"),
        column("cider", "cider-d-corpus-ptb"),
        *careful_report(),
    )


@PROFILES.register("unimed-identify")
def unimed_identify() -> tuple[Column, ...]:
    """Uni-Med's naming of a box (REG): mean NLTK BLEU-1 is the published number."""
    return (
        column("bleu1", "bleu1-nltk-mean"),
        column("bleu1_nltk_mean", "bleu1-nltk-mean"),
        column("accuracy", "accuracy"),
        column("token_f1_unimed", "token-f1-unimed"),
        column("rouge_l", "rouge-l"),
    )


@PROFILES.register("unimed-refer")
def unimed_refer() -> tuple[Column, ...]:
    """Uni-Med's finding of a box (REC): mean IoU with inclusive pixels is the published number."""
    return (
        column("miou_published", "miou-unimed"),
        column("miou", "miou"),
        column("acc_iou50", "acc-iou50"),
    )


@PROFILES.register("unimed-classify")
def unimed_classify() -> tuple[Column, ...]:
    """Uni-Med's classification: equality of normalised words is the published number."""
    return (
        column("accuracy", "accuracy"),
        column("token_f1_unimed", "token-f1-unimed"),
    )


def _ct_rate_words() -> tuple[Column, ...]:
    return (
        column("bleu1", "bleu1-hf-mean-13a"),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a"),
        column("bleu1_coco_corpus", "bleu1-coco-corpus-whitespace"),
        column("bleu4_coco_corpus", "bleu4-coco-corpus-whitespace"),
        column("rouge_l_coco", "rouge-l-coco-whitespace"),
        column("cider", "cider-d-corpus-whitespace"),
        *careful_report(),
    )


@PROFILES.register("ct-rate")
def ct_rate() -> tuple[Column, ...]:
    """CT-RATE texts: `bleu1` as MedM-VL's rows (mean, 13a), `bleu1_coco_corpus` as CT-CHAT's rows (white space)."""
    return _ct_rate_words()


@PROFILES.register("ct-rate-short")
def ct_rate_short() -> tuple[Column, ...]:
    """CT-RATE short answers, with closed accuracy for the yes/no ones."""
    return (
        *_ct_rate_words(),
        column("closed_accuracy", "closed-accuracy-strict"),
        column("open_recall", "open-recall"),
        column("open_f1", "open-f1"),
    )


@PROFILES.register("ct-rate-choice")
def ct_rate_choice() -> tuple[Column, ...]:
    """CT-RATE multiple choice, with the letter read strictly and by MedM-VL's rule."""
    return (
        *_ct_rate_words(),
        column("letter_accuracy", "letter-accuracy-strict"),
        column("letter_accuracy_published", "letter-accuracy-medm-vl"),
    )


@PROFILES.register("ct-rate-report")
def ct_rate_report() -> tuple[Column, ...]:
    """CT-RATE reports, with F1 of the 18 findings."""
    return (*_ct_rate_words(), *label_columns("rule-based-ct-rate"))


@PROFILES.register("m3d")
def m3d() -> tuple[Column, ...]:
    """M3D-Bench: mean HF BLEU-1, ROUGE-1 and METEOR of open answers and captions, its letter rule for closed ones."""

    def worded(item: Item) -> bool:
        return not (item.record.get("answer_choice") or has_letter(item))

    def lettered(item: Item) -> bool:
        return not worded(item)

    return (
        column("bleu1", "bleu1-hf-mean-13a", worded),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a", worded),
        column("rouge_1", "rouge-1", worded),
        column("rouge_l", "rouge-l", worded),
        column("meteor", "meteor-exact-stem", worded),
        column("letter_accuracy_published", "letter-accuracy-m3d", lettered),
        column("letter_accuracy", "letter-accuracy-strict", lettered),
    )


@PROFILES.register("llava-med")
def llava_med() -> tuple[Column, ...]:
    """LLaVA-Med v1: token recall of open answers is the headline, its own rule for closed ones."""
    return (
        column("open_recall", "open-recall"),
        column("open_f1", "open-f1"),
        column("open_precision", "open-precision"),
        column("closed_accuracy_published", "closed-accuracy-llava-med"),
        column("closed_accuracy", "closed-accuracy-strict"),
        column("bleu1_nltk_mean", "bleu1-nltk-mean", is_open),
    )


def with_profile(benchmark: Benchmark, name: str) -> Benchmark:
    """Return the benchmark scored by another profile; its headline becomes the profile's first column.

    Raises:
        EvaluationError: for an unknown profile.
    """
    columns = PROFILES[name]()
    return replace(benchmark, columns=columns, headline=columns[0].key, profile=name)
