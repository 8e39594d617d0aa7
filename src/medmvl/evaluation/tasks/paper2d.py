"""The 2D benchmarks of the paper: MedPix, MIMIC-CXR, PathVQA, SA-Med2D-20M and SLAKE."""

from __future__ import annotations

from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, Where, of_task, usual_files
from medmvl.evaluation.tasks.profiles import PROFILES, label_columns

_CC_BY_4 = "CC BY 4.0"
_SLAKE_ABOUT = "SLAKE 1.0, test split{language}. "


def _unimed(kind: str) -> str:
    return f"unimed-{kind}"


BENCHMARKS.add(
    "medpix",
    Benchmark(
        name="medpix",
        title="MedPix (MPx-Single)",
        about="Captions of MedPix images, test split as prepared by RadFM. Published: corpus BLEU-1 (COCO, PTB tokens).",
        columns=PROFILES[_unimed("report")](),
        headline="bleu1",
        files=usual_files("mpx-single", "test", also=("medpix",)),
        license="MedPix terms (NLM), via RadFM",
        belongs=of_task("report", "caption"),
        profile=_unimed("report"),
    ),
)
BENCHMARKS.add(
    "mimic-cxr",
    Benchmark(
        name="mimic-cxr",
        title="MIMIC-CXR",
        about="Reports of chest radiographs, test split. Published: corpus BLEU-1 (COCO, PTB tokens). Label F1 needs labels "
        "in the records or --labels with the CheXpert table, and reads the generated text by rules, not by CheXbert.",
        columns=(
            *PROFILES[_unimed("report")](),
            *label_columns("rule-based-chexpert", lambda i: bool(i.record.get("labels"))),
        ),
        headline="bleu1",
        files=usual_files("mimic-cxr", "test"),
        license="PhysioNet credentialed (no redistribution)",
        belongs=of_task("report"),
        profile=_unimed("report"),
    ),
)
BENCHMARKS.add(
    "pathvqa",
    Benchmark(
        name="pathvqa",
        title="PathVQA",
        about="Questions about pathology images, test split, open and closed together. Published: mean NLTK BLEU-1 of "
        "normalized words.",
        columns=PROFILES[_unimed("vqa")](),
        headline="bleu1",
        files=usual_files("path-vqa", "test", also=("pathvqa",)),
        license="MIT (questions); images from textbooks and PEIR",
        belongs=of_task("vqa"),
        profile=_unimed("vqa"),
    ),
)


def _boxes(name: str, title: str, folder: str, split_note: str, license: str) -> None:
    """Register the two box benchmarks of a data set."""
    BENCHMARKS.add(
        f"{name}-refer",
        Benchmark(
            name=f"{name}-refer",
            title=f"{title}: find the box",
            about=f"Where is the named object? {split_note} Published: mean IoU with inclusive pixels.",
            columns=PROFILES[_unimed("refer")](),
            headline="miou_published",
            files=usual_files(folder, "test"),
            license=license,
            belongs=of_task("refer"),
            profile=_unimed("refer"),
        ),
    )
    BENCHMARKS.add(
        f"{name}-identify",
        Benchmark(
            name=f"{name}-identify",
            title=f"{title}: name the box",
            about=f"What is inside the given box? {split_note} Published: mean NLTK BLEU-1 of normalized words.",
            columns=PROFILES[_unimed("identify")](),
            headline="bleu1",
            files=usual_files(folder, "test"),
            license=license,
            belongs=of_task("identify"),
            profile=_unimed("identify"),
        ),
    )


_boxes(
    "samed",
    "SA-Med2D-20M",
    "sa-med2d-20m",
    "The selection of images behind the published number was never published, so no other selection is comparable with it.",
    "CC BY-NC-SA 4.0",
)
_boxes("slake", "SLAKE", "slake", "SLAKE 1.0, images of the test split.", _CC_BY_4)


def _slake_vqa(name: str, language: str | None, note: str) -> None:
    in_language: Where = lambda item: language is None or item.language == language  # noqa: E731
    vqa = of_task("vqa")
    BENCHMARKS.add(
        name,
        Benchmark(
            name=name,
            title=f"SLAKE{' (' + language + ')' if language else ''}",
            about=f"SLAKE 1.0 questions, test split, open and closed together. {note}",
            columns=PROFILES[_unimed("vqa")](),
            headline="bleu1",
            files=usual_files("slake", "test"),
            license=_CC_BY_4,
            belongs=lambda item: vqa(item) and in_language(item),
            profile=_unimed("vqa"),
        ),
    )


_slake_vqa("slake-vqa", "en", "English, as in the paper. Published: mean NLTK BLEU-1 of normalized words.")
_slake_vqa("slake-vqa-zh", "zh", "Chinese, scored by character; there is no published number to compare with.")
