"""MedMNIST: a benchmark per subset, `medmnist-derma` and `medmnist-organs` among them (the paper's)."""

from __future__ import annotations

from medmvl.data.converters.medmnist_subsets import SUBSETS, Subset
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, Where, usual_files
from medmvl.evaluation.tasks.profiles import PROFILES, label_columns


def short_name(flag: str) -> str:
    """Return the benchmark's name of a subset: "dermamnist" -> "medmnist-derma", "organmnist3d" -> "medmnist-organ3d"."""
    return "medmnist-" + flag.replace("mnist", "")


def _of_subset(flag: str) -> Where:
    return lambda item: item.record.get("dataset", flag) == flag


def _add(flag: str, subset: Subset) -> None:
    columns = PROFILES["unimed-classify"]()
    if subset.multi_label:
        columns = (*columns, *label_columns(f"listed-{flag}"))
    BENCHMARKS.add(
        short_name(flag),
        Benchmark(
            name=short_name(flag),
            title=f"MedMNIST {flag}",
            about=f"Which class does this {subset.picture} show? {len(subset.classes)} classes, official test split. "
            "Accuracy is equality of normalized words; an AUC needs probabilities, which a generated answer has not."
            + (
                " Several classes may be right: equality wants all of them in order, label F1 reads the list."
                if subset.multi_label
                else ""
            ),
            columns=columns,
            headline="accuracy",
            files=usual_files("medmnist", "test", also=(flag,)),
            license=subset.license,
            belongs=_of_subset(flag),
            profile="unimed-classify",
        ),
    )


for _flag, _subset in SUBSETS.items():
    _add(_flag, _subset)
