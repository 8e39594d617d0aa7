"""Scorer profiles: the columns of a published protocol, and stricter metrics in addition.

`unimed` is the scorer behind the paper's 2D table, `ct-rate` holds both BLEU flavors of its CT table, `m3d` is M3D-Bench,
`llava-med` LLaVA-Med v1. A profile's first column is the number its papers print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from medmvl.data.converters.m3d import QUESTION_TYPES
from medmvl.errors import EvaluationError
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.choice import has_letter
from medmvl.evaluation.metrics.metric import mean_over_types
from medmvl.evaluation.metrics.vqa import is_open
from medmvl.evaluation.tasks.benchmark import Benchmark, Column, Where, column
from medmvl.registry import Registry

PROFILES: Registry[Callable[[], tuple[Column, ...]]] = Registry("scorer profile", EvaluationError)


def recommended_vqa() -> tuple[Column, ...]:
    """Return the columns that are shown in addition to every published VQA number."""
    return (
        column("closed_accuracy", "closed-accuracy-strict"),
        column("open_recall", "open-recall"),
        column("open_f1", "open-f1"),
        column("token_f1_unimed", "token-f1-unimed"),
        column("accuracy", "accuracy"),
        column("rouge_l", "rouge-l"),
    )


def recommended_report() -> tuple[Column, ...]:
    """Return the word-level metrics that every report benchmark shows."""
    return (
        column("bleu1_nltk_mean", "bleu1-nltk-mean"),
        column("rouge_1", "rouge-1"),
        column("rouge_2", "rouge-2"),
        column("rouge_l", "rouge-l"),
        column("meteor", "meteor-exact-stem"),
        column("token_f1_unimed", "token-f1-unimed"),
    )


def label_columns(labeler: str, where: Where | None = None) -> tuple[Column, ...]:
    """Return macro and micro label F1 with a labeler of `LABELERS`."""
    return (
        column("label_f1_macro", f"label-f1-macro-{labeler}", where),
        column("label_f1_micro", f"label-f1-micro-{labeler}", where),
    )


@PROFILES.register("unimed-vqa")
def unimed_vqa() -> tuple[Column, ...]:
    """Return Uni-Med's columns for VQA; the published number is mean NLTK BLEU-1 of normalized words."""
    return (
        column("bleu1", "bleu1-nltk-mean"),
        column("bleu1_nltk_mean", "bleu1-nltk-mean"),
        *recommended_vqa(),
        column("closed_accuracy_published", "closed-accuracy-contains"),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a"),
    )


@PROFILES.register("unimed-report")
def unimed_report() -> tuple[Column, ...]:
    """Return Uni-Med's columns for captions and reports; the published number is corpus COCO BLEU-1 on PTB tokens."""
    return (
        column("bleu1", "bleu1-coco-corpus-ptb"),
        column("bleu1_coco_corpus", "bleu1-coco-corpus-ptb"),
        *(column(f"bleu{order}_coco_corpus", f"bleu{order}-coco-corpus-ptb") for order in (2, 3, 4)),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a"),
        column("rouge_l_coco", "rouge-l-coco-ptb"),
        column("cider", "cider-d-corpus-ptb"),
        *recommended_report(),
    )


@PROFILES.register("unimed-identify")
def unimed_identify() -> tuple[Column, ...]:
    """Return Uni-Med's columns for naming a box (REG); the published number is mean NLTK BLEU-1."""
    return (
        column("bleu1", "bleu1-nltk-mean"),
        column("bleu1_nltk_mean", "bleu1-nltk-mean"),
        column("accuracy", "accuracy"),
        column("token_f1_unimed", "token-f1-unimed"),
        column("rouge_l", "rouge-l"),
    )


@PROFILES.register("unimed-refer")
def unimed_refer() -> tuple[Column, ...]:
    """Return Uni-Med's columns for locating a box (REC); the published number is mean IoU with inclusive pixels."""
    return (
        column("miou_published", "miou-unimed"),
        column("miou", "miou"),
        column("acc_iou50", "acc-iou50"),
    )


@PROFILES.register("unimed-classify")
def unimed_classify() -> tuple[Column, ...]:
    """Return Uni-Med's columns for classification; the published number is equality of normalized words."""
    return (
        column("accuracy", "accuracy"),
        column("token_f1_unimed", "token-f1-unimed"),
    )


def _ct_rate_words() -> tuple[Column, ...]:
    return (
        column("bleu1", "bleu1-hf-mean-13a"),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a"),
        column("bleu1_coco_corpus", "bleu1-coco-corpus-whitespace"),
        *(column(f"bleu{order}_coco_corpus", f"bleu{order}-coco-corpus-whitespace") for order in (2, 3, 4)),
        column("rouge_l_coco", "rouge-l-coco-whitespace"),
        column("cider", "cider-d-corpus-whitespace"),
        *recommended_report(),
    )


@PROFILES.register("ct-rate")
def ct_rate() -> tuple[Column, ...]:
    """Return the columns for CT-RATE texts.

    `bleu1` is defined as for MedM-VL's rows (mean, 13a), `bleu1_coco_corpus` as for CT-CHAT's rows (white space).
    """
    return _ct_rate_words()


@PROFILES.register("ct-rate-short")
def ct_rate_short() -> tuple[Column, ...]:
    """Return the columns for CT-RATE's short answers, with closed accuracy for yes/no questions."""
    return (
        *_ct_rate_words(),
        column("closed_accuracy", "closed-accuracy-strict"),
        column("open_recall", "open-recall"),
        column("open_f1", "open-f1"),
    )


@PROFILES.register("ct-rate-choice")
def ct_rate_choice() -> tuple[Column, ...]:
    """Return the columns for CT-RATE's multiple choice, with the letter read strictly and by MedM-VL's rule."""
    return (
        *_ct_rate_words(),
        column("letter_accuracy", "letter-accuracy-strict"),
        column("letter_accuracy_published", "letter-accuracy-medm-vl"),
    )


@PROFILES.register("ct-rate-report")
def ct_rate_report() -> tuple[Column, ...]:
    """Return the columns for CT-RATE's reports, with F1 of the 18 findings."""
    return (*_ct_rate_words(), *label_columns("rule-based-ct-rate"))


@PROFILES.register("m3d")
def m3d() -> tuple[Column, ...]:
    """Return M3D-Bench's columns.

    They are mean HF BLEU-1, ROUGE-1 and METEOR of open answers and captions, and M3D's letter rule for closed answers;
    `..._over_types` is the mean over M3D-VQA's five question types, as Med-2E3 reports it.
    """

    def worded(item: Item) -> bool:
        return not has_letter(item)

    def lettered(item: Item) -> bool:
        return not worded(item)

    columns = (
        column("bleu1", "bleu1-hf-mean-13a", worded),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a", worded),
        column("rouge_1", "rouge-1", worded),
        column("rouge_l", "rouge-l", worded),
        column("meteor", "meteor-exact-stem", worded),
        column("letter_accuracy_published", "letter-accuracy-m3d", lettered),
        column("letter_accuracy", "letter-accuracy-strict", lettered),
    )
    return (*columns, *(_over_types(one) for one in columns if one.key in M3D_OVER_TYPES))


#: Columns of M3D-VQA that are also given as the mean over question types.
M3D_OVER_TYPES = ("bleu1", "rouge_1", "meteor", "letter_accuracy_published", "letter_accuracy")


def _over_types(one: Column) -> Column:
    """Return a column's mean over M3D-VQA's question types, of the items that have such a type."""
    types = tuple(QUESTION_TYPES.values())

    def typed(item: Item) -> bool:
        return item.record.get("question_type") in types and (one.where is None or one.where(item))

    return Column(f"{one.key}_over_types", mean_over_types(one.metric, types), typed)


@PROFILES.register("llava-med")
def llava_med() -> tuple[Column, ...]:
    """Return LLaVA-Med v1's columns: token recall of open answers (the headline), and its rule for closed answers."""
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
    return replace(benchmark, columns=columns, headline=columns[0].key, closed_headline="", profile=name)
