"""The CT benchmarks: CT-RATE's four tasks and M3D."""

from __future__ import annotations

from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, of_task, usual_files
from medmvl.evaluation.tasks.profiles import PROFILES

_BOTH = (
    "Published twice, and not comparable: MedM-VL's rows are the mean of Hugging Face BLEU-1 on 13a tokens (`bleu1`), "
    "CT-CHAT's rows corpus BLEU-1 on white-space tokens (`bleu1_coco_corpus`)."
)
_CT_RATE = {
    "long": ("CT-RATE long answers", "ct-rate", _BOTH),
    "short": ("CT-RATE short answers", "ct-rate-short", f"{_BOTH} Short answers move most between the two."),
    "choice": (
        "CT-RATE multiple choice",
        "ct-rate-choice",
        f"{_BOTH} BLEU-1 pays for a wrong option's shared words; letter accuracy does not.",
    ),
    "report": (
        "CT-RATE reports",
        "ct-rate-report",
        f"{_BOTH} Label F1 reads the 18 findings by rules; give --predicted-labels for RadBERT's.",
    ),
}

for _task, (_title, _profile, _about) in _CT_RATE.items():
    BENCHMARKS.add(
        f"ct-rate-{_task}",
        Benchmark(
            name=f"ct-rate-{_task}",
            title=_title,
            about=f"CT-RATE, valid split, task {_task!r}. {_about}",
            columns=PROFILES[_profile](),
            headline="bleu1",
            files=usual_files("ct-rate", "valid"),
            license="CC BY-NC-SA 4.0, gated",
            belongs=of_task(_task),
            profile=_profile,
        ),
    )

for _name, _title, _tasks in (
    ("m3d-report", "M3D captions", ("report", "caption")),
    ("m3d-vqa", "M3D questions", ("vqa", "choice")),
):
    BENCHMARKS.add(
        _name,
        Benchmark(
            name=_name,
            title=_title,
            about="M3D-Bench, test split. Published: mean of Hugging Face BLEU-1, ROUGE-1 and METEOR per answer, and its own "
            "letter rule for closed questions; the mean over question types is Med-2E3's. METEOR here has no synonyms.",
            columns=PROFILES["m3d"](),
            headline="bleu1",
            files=usual_files(_name.replace("report", "cap"), "test", also=("m3d",)),
            license="see the data set's card (M3D-Data)",
            belongs=of_task(*_tasks),
            profile="m3d",
        ),
    )
