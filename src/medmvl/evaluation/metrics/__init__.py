"""The scorers, by the name of their definition. A benchmark picks from here and gives each a short key."""

from __future__ import annotations

from medmvl.errors import EvaluationError
from medmvl.evaluation.metrics import bleu, boxes, choice, cider, measured, meteor, rouge, vqa
from medmvl.evaluation.metrics.labeler import LABELERS
from medmvl.evaluation.metrics.labels import label_f1
from medmvl.evaluation.metrics.metric import Metric
from medmvl.registry import Registry

__all__ = ["METRICS", "Metric", "label_f1"]

METRICS: Registry[Metric] = Registry("metric", EvaluationError)

for _metric in (
    bleu.BLEU1_NLTK_MEAN,
    bleu.BLEU1_HF_MEAN,
    *bleu.COCO_BLEU,
    rouge.ROUGE_1,
    rouge.ROUGE_2,
    rouge.ROUGE_L,
    rouge.ROUGE_L_COCO_PTB,
    rouge.ROUGE_L_COCO_WHITESPACE,
    meteor.METEOR,
    cider.CIDER_PTB,
    cider.CIDER_WHITESPACE,
    vqa.TOKEN_F1,
    vqa.OPEN_PRECISION,
    vqa.OPEN_RECALL,
    vqa.OPEN_F1,
    vqa.ACCURACY,
    vqa.CLOSED_ACCURACY,
    vqa.CLOSED_ACCURACY_PUBLISHED,
    vqa.CLOSED_ACCURACY_LLAVA_MED,
    choice.LETTER_ACCURACY,
    choice.LETTER_ACCURACY_PUBLISHED,
    choice.LETTER_ACCURACY_M3D,
    boxes.MIOU,
    measured.BRIER,
    measured.ECE,
    measured.COVERAGE,
    measured.SELECTIVE_ACCURACY,
    boxes.ACC_IOU50,
    boxes.MIOU_PUBLISHED,
    *(label_f1(kind, name) for name in LABELERS for kind in ("macro", "micro")),
):
    METRICS.add(_metric.name, _metric)
