"""Declarations of benchmarks: their questions, the scorer of each column, and the source of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medmvl.errors import EvaluationError, did_you_mean, shown
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics import METRICS, Metric, label_f1
from medmvl.evaluation.metrics.labels import label_f1_kind
from medmvl.evaluation.metrics.vqa import is_closed
from medmvl.inference.answering import CONTROLS
from medmvl.registry import Registry

Where = Callable[[Item], bool]


def everything(item: Item) -> bool:
    """Return True: the whole file is the benchmark."""
    return True


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a benchmark.

    Attributes:
        key: the key in results.json ("bleu1"); short, and common to all benchmarks.
        metric: the definition behind it.
        where: which items it scores; None means all. A column none of whose items occur is left out of the results.
    """

    key: str
    metric: Metric
    where: Where | None = None

    def select(self, items: list[Item]) -> list[Item]:
        """Return the items this column scores."""
        return items if self.where is None else [item for item in items if self.where(item)]


@dataclass(frozen=True, slots=True)
class Grouping:
    """A breakdown of some columns by a property of the questions, the controls in further columns.

    Attributes:
        name: of the property ("finding").
        value: the property of an item; "" leaves the item out.
        columns: keys of the columns that are broken down.
    """

    name: str
    value: Callable[[Item], str]
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named set of questions with its scorers.

    Attributes:
        name: the name on the command line.
        title: the name in a table.
        about: what is asked, of which split, and what a reader must know to compare.
        columns: the numbers, the headline first.
        headline: key of the number that a table of several benchmarks shows.
        files: names under `--data-root` of the records file, tried in order.
        license: of the data.
        belongs: which records of those files are its questions; the others are counted, not scored.
        profile: name of the scorer profile its columns come from.
        synthetic: whether the data are drawn, so that no number is a clinical claim.
        closed_headline: key of the headline instead, if more than half of the questions are closed; "" keeps `headline`.
        groups: record keys that the report breaks the scores down by.
        groupings: properties of the questions that it also breaks some scores down by.
        retrieval: whether a dual encoder looks for the records' texts, instead of a model answering questions.
        chance: items -> the same items with the expected result of random guessing; None: the baseline is the most
            frequent answer.
        answer: (predictor, records, out, roots=, batch_size=, control=, on_row=) -> rows written, where a row is more than
            an answer; its controls are always run.
        controls: names of the controls that ask a model.
        gain: what the model's gain over the strongest of them is called.
        charts: (items, items of each control) -> charts of the report, see `parts.html.j2`.
    """

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    headline: str
    files: tuple[str, ...]
    license: str
    belongs: Where = everything
    profile: str | None = None
    synthetic: bool = False
    groups: tuple[str, ...] = ("task", "question_type", "content_type", "answer_type", "modality")
    closed_headline: str = ""
    groupings: tuple[Grouping, ...] = ()
    retrieval: bool = False
    chance: Callable[[Sequence[Item]], list[Item]] | None = None
    answer: Callable[..., int] | None = None
    controls: tuple[str, ...] = CONTROLS
    gain: str = "owed to the image"
    charts: Callable[[Sequence[Item], Mapping[str, Sequence[Item]]], list[dict[str, Any]]] | None = None

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        if len(set(keys)) != len(keys):
            raise ValueError(f"Benchmark {self.name!r} has two columns of one key: {keys}.")
        for headline in (self.headline, self.closed_headline or self.headline):
            if headline not in keys:
                raise ValueError(f"Benchmark {self.name!r} has no column {headline!r} for its headline.")

    def column(self, key: str) -> Column:
        """Return the column with this key."""
        return next(column for column in self.columns if column.key == key)

    def with_headline_for(self, items: Sequence[Item]) -> Benchmark:
        """Return the benchmark with the headline for these items: `closed_headline` if more than half are closed questions."""
        mostly_closed = 2 * sum(map(is_closed, items)) > len(items)
        return replace(self, headline=self.closed_headline) if self.closed_headline and mostly_closed else self

    def with_labeler(self, name: str) -> Benchmark:
        """Return the benchmark with its label F1 read by another labeler.

        Raises:
            EvaluationError: if the labeler is not known, or the benchmark has no label F1.
        """
        columns = []
        for column in self.columns:
            kind = label_f1_kind(column.metric)
            columns.append(column if kind is None else replace(column, metric=label_f1(kind, name)))
        if not any(label_f1_kind(column.metric) for column in columns):
            raise EvaluationError(f"The benchmark {self.name!r} has no label F1, so --labeler has nothing to do here.")
        return replace(self, columns=tuple(columns))


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", EvaluationError)


def column(key: str, metric: str, where: Where | None = None) -> Column:
    """Make a column of a metric by its name."""
    return Column(key, METRICS[metric], where)


def of_task(*names: str) -> Where:
    """Return a filter for records whose `task` is one of `names`; records without a task pass."""
    return lambda item: item.record.get("task") in (None, "", *names)


def usual_files(data_set: str, split: str, also: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names under a data root at which `medmvl data convert` leaves the records of a split."""
    folders = [f"{name}/" for name in (data_set, *also)] + [""]
    return tuple(f"{folder}{split}.{suffix}" for folder in folders for suffix in ("jsonl", "json", "parquet"))


# Several benchmarks under one name: the columns of the paper's two tables.
GROUPS: dict[str, tuple[str, ...]] = {}


def expand_benchmarks(names: Iterable[str]) -> list[str]:
    """Return benchmark names with groups (`paper-2d`) replaced by their members, each once, in order.

    Raises:
        EvaluationError: for a name that is neither.
    """
    expanded: dict[str, None] = {}
    for name in names:
        for part in name.split(","):
            if part not in GROUPS and part not in BENCHMARKS:
                raise EvaluationError(f"Unknown benchmark {shown(part)}. {did_you_mean(part, [*BENCHMARKS, *GROUPS])}")
            expanded.update(dict.fromkeys(GROUPS.get(part, (part,))))
    return list(expanded)
