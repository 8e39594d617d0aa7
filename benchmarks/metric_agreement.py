"""Agreement of the metrics with their originals, run side by side.

    python benchmarks/metric_agreement.py [--out FILE.md]

Needs Java and the packages pycocoevalcap and scikit-learn, besides the extra `eval`; nothing is downloaded. The sentences and
pairs are those of the tests (`tests/evaluation/ptb_java.jsonl`, `coco_edge_pairs.json`), with drawn labels and scores for
the metrics of labels. Each row states the largest difference of all values compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from medmvl.evaluation.items import make_item
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.metrics.auroc import auroc
from medmvl.evaluation.metrics.meteor import meteor, word_tokens
from medmvl.evaluation.metrics.ptb import ptb_tokens
from medmvl.evaluation.scoring import score_metric
from medmvl.evaluation.statistics import mcnemar
from medmvl.evaluation.text import normalize_word
from medmvl.evaluation.vlm3d import CT_RATE_FINDINGS, classification_scores

TESTS = Path(__file__).parents[1] / "tests" / "evaluation"
PACKAGES = ("pycocoevalcap", "rouge-score", "sacrebleu", "nltk", "scikit-learn", "scipy")
Row = tuple[str, str, str, str]
"""Ours, the original, the data, the agreement."""


def score(name: str, pairs: Sequence[tuple[str, str]]) -> float:
    """Return our metric over (answer, reference) pairs."""
    turns = [[{"from": "human", "value": "?"}, {"from": "gpt", "value": reference}] for _, reference in pairs]
    items = [
        make_item({"id": str(number), "conversations": turns[number], "prediction": answer})
        for number, (answer, _) in enumerate(pairs)
    ]
    return score_metric(METRICS[name], items).value


def largest(pairs: Iterator[tuple[float, float]]) -> str:
    """Return the largest difference of pairs of values and their number, in words."""
    differences = [abs(ours - theirs) for ours, theirs in pairs]
    return f"{len(differences)} values, largest difference {max(differences):.1e}"


def ptb_rows(texts: list[str], pairs: list[tuple[str, str]]) -> Iterator[Row]:
    """Yield the rows of pycocoevalcap: its Java tokenizer and its scorers."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def java(lines: list[str]) -> list[str]:
        captions = {number: [{"caption": line}] for number, line in enumerate(lines)}
        return [cut[0] for _, cut in sorted(PTBTokenizer().tokenize(captions).items())]

    found = java(texts)
    equal = sum(" ".join(ptb_tokens(text)) == cut for text, cut in zip(texts, found, strict=True))
    yield "PTB tokens", "Java tokenizer (CoreNLP 3.4.1)", f"{len(texts)} sentences", f"{equal} cut in the same way"
    answers, references = (java([pair[side] for pair in pairs]) for side in (0, 1))
    said, right = ({number: [text] for number, text in enumerate(side)} for side in (answers, references))
    bleu = Bleu(4).compute_score(right, said, verbose=0)[0]
    values = {f"bleu{order}-coco-corpus-ptb": bleu[order - 1] for order in range(1, 5)}
    values["rouge-l-coco-ptb"] = Rouge().compute_score(right, said)[0]
    values["cider-d-corpus-ptb"] = Cider().compute_score(right, said)[0]
    agreement = largest((score(name, pairs), float(value)) for name, value in values.items())
    yield "corpus BLEU-1 to 4, ROUGE-L, CIDEr-D on PTB tokens", "pycocoevalcap", f"{len(pairs)} pairs", agreement


def text_rows(texts: list[str]) -> Iterator[Row]:
    """Yield the rows of rouge-score, nltk and sacrebleu over neighboring sentences."""
    from nltk.translate.bleu_score import sentence_bleu
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score import rouge_scorer
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    class NoSynonyms:
        def synsets(self, word: str) -> list[str]:
            return []

    ascii_pairs = list(pairwise(text for text in texts if text.isascii()))
    package = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
    rouge = largest(
        (score(name, [pair]), package.score(pair[1], pair[0])[key].fmeasure)
        for pair in ascii_pairs
        for name, key in names.items()
    )
    yield "ROUGE-1, -2, -L", "rouge-score", f"{len(ascii_pairs)} neighbors", rouge
    pairs = list(pairwise(texts))
    found = largest(
        (meteor(*pair), single_meteor_score(word_tokens(pair[1]), word_tokens(pair[0]), wordnet=NoSynonyms()))
        for pair in pairs
    )
    yield "METEOR without synonyms", "nltk without WordNet", f"{len(pairs)} neighbors", found
    for name, cut, source in (
        ("bleu1-nltk-mean", lambda text: normalize_word(text).split(), "nltk sentence_bleu"),
        ("bleu1-hf-mean-13a", lambda text: Tokenizer13a()(text).split(), "nltk on sacrebleu's 13a tokens"),
    ):
        found = largest(
            (score(name, [pair]), float(sentence_bleu([cut(pair[1])], cut(pair[0]), weights=(1,))))
            for pair in ascii_pairs
        )
        yield name, source, f"{len(ascii_pairs)} neighbors", found


def label_rows(seed: int = 0) -> Iterator[Row]:
    """Yield the rows of scikit-learn and scipy over drawn labels, probabilities and right or wrong answers."""
    from scipy.stats import binomtest
    from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

    rng = np.random.default_rng(seed)
    truths, scores = rng.integers(0, 2, (200, 50)), rng.integers(0, 20, (200, 50)) / 20
    areas = largest(
        (auroc(s.tolist(), t.tolist()), float(roc_auc_score(t, s))) for s, t in zip(scores, truths, strict=True)
    )
    yield "AUROC with ties", "scikit-learn", "200 drawn sets of 50", areas
    findings = list(CT_RATE_FINDINGS)
    values: list[tuple[float, float]] = []
    for _ in range(20):
        truth, given = rng.integers(0, 2, (60, 18)), rng.random((60, 18)).round(2)
        tables = [
            {f"scan{row}": dict(zip(findings, line, strict=True)) for row, line in enumerate(table.tolist())}
            for table in (given, truth)
        ]
        ours = classification_scores(*tables)
        said = (given >= 0.5).astype(int)
        kinds = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        for key, value in ours.items():
            kind = next((kind for name, kind in kinds.items() if name in key.lower()), None)
            if kind is not None:
                values.append((value, float(kind(truth, said, average="macro", zero_division=0))))
            elif "auroc" in key.lower():
                values.append((value, float(roc_auc_score(truth, given, average="macro"))))
    yield (
        "macro AUROC, precision, recall, F1 (VLM3D)",
        "scikit-learn",
        "20 drawn tables of 60 x 18",
        largest(iter(values)),
    )
    draw = random.Random(seed)
    tests = []
    for _ in range(200):
        first, second = ({str(n): float(draw.random() < 0.6) for n in range(40)} for _ in range(2))
        found = mcnemar(first, second)
        assert found is not None
        only = int(found["only_first"]), int(found["only_second"])
        tests.append((found["p_value"], binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0))
    yield "McNemar's exact test", "scipy binomtest", "200 drawn pairs of runs", largest(iter(tests))


def main() -> None:
    """Measure and print; write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    texts = [json.loads(line)[0] for line in (TESTS / "ptb_java.jsonl").read_text().splitlines()]
    edges = [(str(a), str(b)) for a, b in json.loads((TESTS / "coco_edge_pairs.json").read_text())["pairs"]]
    rows = [*ptb_rows(texts, edges), *text_rows(texts), *label_rows()]
    lines = [
        f"# Agreement of metrics with their originals, {date.today().isoformat()}",
        "",
        f"`python benchmarks/metric_agreement.py`; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + ".",
        "",
        "| ours | original | data | agreement |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
