"""The phantom benchmarks: every kind of question of the real ones, on drawn anatomy. No number here is clinical."""

from __future__ import annotations

from medmvl.data.synthetic import LICENSE
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.boxes import is_located
from medmvl.evaluation.metrics.choice import has_letter
from medmvl.evaluation.metrics.vqa import is_closed
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, Column, Grouping, Where, column, usual_files
from medmvl.phantoms.texts import finding_asked, is_new_wording


def of_task(*names: str) -> Where:
    """Return a filter for records whose `task` is one of `names`: a phantom file mixes tasks, so a task is needed."""
    return lambda item: item.record.get("task") in names


def _word_columns() -> tuple[Column, ...]:
    worded = of_task("vqa", "report", "identify", "choice", "long", "short")
    vqa = of_task("vqa", "short")
    return (
        column("closed_accuracy", "closed-accuracy-strict", vqa),
        column("token_f1_unimed", "token-f1-unimed", worded),
        column("bleu1", "bleu1-nltk-mean", worded),
        column("bleu1_nltk_mean", "bleu1-nltk-mean", worded),
        column("bleu1_hf_mean", "bleu1-hf-mean-13a", worded),
        column("rouge_l", "rouge-l", worded),
        column("open_recall", "open-recall", vqa),
        column("accuracy", "accuracy", of_task("identify")),
        column("bleu1_coco_corpus", "bleu1-coco-corpus-ptb", of_task("report", "long")),
        column("bleu4_coco_corpus", "bleu4-coco-corpus-ptb", of_task("report", "long")),
        column("label_f1_macro", "label-f1-macro-rule-based-ct-rate", of_task("report")),
        column("label_f1_micro", "label-f1-micro-rule-based-ct-rate", of_task("report")),
        column("letter_accuracy", "letter-accuracy-strict", has_letter),
    )


def _box_columns() -> tuple[Column, ...]:
    refer = of_task("refer")
    return (
        column("miou", "miou", lambda item: refer(item) and is_located(item)),
        column("acc_iou50", "acc-iou50", lambda item: refer(item) and is_located(item)),
        column("miou_published", "miou-unimed", lambda item: refer(item) and is_located(item)),
    )


def _finding(item: Item) -> str:
    """Return the finding that a question names; "" if it names none."""
    return finding_asked(item.question) or ""


def _object(item: Item) -> str:
    """Return the object that a question about a box is about; "" for other questions."""
    return str(item.record.get("object") or "")


def _language(item: Item) -> str:
    """Return the language of a question."""
    return "Chinese" if item.chinese else "English"


def _wording(item: Item) -> str:
    """Return whether a closed question has a wording that training patients are asked in; "" for open questions."""
    if not is_closed(item):
        return ""
    return "new wording" if is_new_wording(item.question) else "wording of the training"


_CLOSED_GROUPINGS = (
    Grouping("finding", _finding, ("closed_accuracy",)),
    Grouping("wording", _wording, ("closed_accuracy",)),
    Grouping("language", _language, ("closed_accuracy",)),
)

PHANTOM_2D = BENCHMARKS.add(
    "phantom-2d",
    Benchmark(
        name="phantom-2d",
        title="Phantom radiographs",
        about="Projected chest phantoms in SLAKE's layout, held-out patients: closed and open questions, boxes "
        "(refer) and names of boxes (identify). Synthetic; no clinical claim.",
        columns=(*_word_columns(), *_box_columns()),
        headline="closed_accuracy",
        files=usual_files("phantom-2d", "test", also=("slake",)),
        license=LICENSE,
        synthetic=True,
        groupings=(*_CLOSED_GROUPINGS, Grouping("object", _object, ("miou", "accuracy"))),
    ),
)
PHANTOM_CT = BENCHMARKS.add(
    "phantom-ct",
    Benchmark(
        name="phantom-ct",
        title="Phantom chest CT",
        about="Chest-CT phantoms in CT-RATE's layout, held-out patients: closed, short, long and multiple-choice "
        "questions and reports with labels of the 18 CT-RATE findings. Synthetic; no clinical claim.",
        columns=_word_columns(),
        headline="closed_accuracy",
        files=usual_files("phantom-ct", "test") + usual_files("ct-rate", "valid"),
        license=LICENSE,
        synthetic=True,
        groupings=_CLOSED_GROUPINGS,
    ),
)
