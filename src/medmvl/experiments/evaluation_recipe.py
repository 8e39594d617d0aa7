"""Evaluation recipes: a published table from the published layouts of its data sets, in one YAML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from medmvl.data.check import check_records
from medmvl.data.converters import DATASETS, convert
from medmvl.data.converters.conversion import too_many_faults
from medmvl.data.formats import read_records
from medmvl.data.roots import Root, conversion_report
from medmvl.errors import EvaluationError, MedMVLError, RecipeError, did_you_mean
from medmvl.evaluation import BENCHMARKS
from medmvl.evaluation.evaluate_model import records_file
from medmvl.evaluation.items import make_item
from medmvl.remote import RemotePath, join
from medmvl.training.recipe import FolderName, Section
from medmvl.training.recipe_io import read_yaml
from medmvl.validation import allowed_and_given

NAMED_FAULTS = 5  # faults of a data set that a message names


class TableDataset(Section):
    """A data set of the table."""

    source: str
    """Folder of the unpacked data set, relative to `data_root`."""
    set: dict[str, str | int | float | bool] = {}
    """Settings of the converter, as of `medmvl data convert --set`."""
    benchmarks: Annotated[list[str], Field(min_length=1)]
    """Benchmarks that it holds the questions of."""


class EvaluationRecipe(Section):
    """A table of benchmarks with the data sets they come from."""

    name: FolderName
    """Name of the table."""
    description: str = ""
    """What it shows."""
    data_root: str = "data"
    """Folder of the data sets, relative to the current folder; converted records go to `data_root/NAME`."""
    data: Annotated[dict[FolderName, TableDataset], Field(min_length=1)]
    """Name of a converter -> its source and benchmarks."""
    controls: list[str] = []
    """Controls that the model is also asked under: blank, shuffled, text_only."""


@dataclass(frozen=True)
class ReadyBenchmark:
    """A benchmark whose records are converted and checked.

    Attributes:
        name: of the benchmark.
        dataset: name of the data set.
        records: file of the records.
        count: records of the benchmark in that file.
        images: images that these records name, each counted once.
        volumes: the same for volumes.
    """

    name: str
    dataset: str
    records: Root
    count: int
    images: int
    volumes: int


def load_evaluation_recipe(path: Path) -> EvaluationRecipe:
    """Read and check an evaluation recipe.

    Raises:
        RecipeError: naming every fault with its key.
    """
    try:
        recipe = EvaluationRecipe.model_validate(read_yaml(path))
    except ValidationError as error:
        faults = " ".join(_fault(one) for one in error.errors())
        raise RecipeError(f"{path} is not a valid evaluation recipe: {faults}") from error
    named: set[str] = set()
    for dataset, entry in recipe.data.items():
        DATASETS[dataset].parse_options(entry.set)
        for benchmark in entry.benchmarks:
            if benchmark not in BENCHMARKS:
                raise RecipeError(f"{path}: unknown benchmark {benchmark!r}. {did_you_mean(benchmark, BENCHMARKS)}")
            if benchmark in named:
                raise RecipeError(f"{path}: the benchmark {benchmark!r} is named twice.")
            named.add(benchmark)
    return recipe


def _fault(detail: ErrorDetails) -> str:
    """Return one fault of a recipe as text."""
    location = detail["loc"]
    path = ".".join(str(step) for step in location if step != "[key]") or "top level"
    if detail["type"] == "extra_forbidden":
        section = TableDataset if location[0] == "data" else EvaluationRecipe
        return f"{path}: unknown key. {did_you_mean(str(location[-1]), section.model_fields)}"
    return f"{path}: {allowed_and_given(detail)}."


def chosen_benchmarks(recipe: EvaluationRecipe, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (data set, benchmark) pairs of a recipe in its order; `names` restricts them unless it is empty.

    Raises:
        RecipeError: for a name that the recipe does not hold.
    """
    pairs = [(dataset, name) for dataset, entry in recipe.data.items() for name in entry.benchmarks]
    known = [name for _, name in pairs]
    for name in names:
        if name not in known:
            raise RecipeError(f"The recipe {recipe.name!r} holds no benchmark {name!r}. It holds: {', '.join(known)}.")
    return [pair for pair in pairs if not names or pair[1] in names]


def prepare_table(
    recipe: EvaluationRecipe,
    data_root: Root,
    names: Sequence[str] = (),
    announce: Callable[[str], None] = lambda text: None,
) -> list[ReadyBenchmark]:
    """Convert what is not converted yet, and check the records of every benchmark with their files.

    Args:
        recipe: the table.
        data_root: folder of the sources and of the converted records; or a URL below which all are converted already.
        names: prepare only these benchmarks; empty: all.
        announce: called with a line about each data set.

    Raises:
        EvaluationError: listing everything that is missing or faulty, after all data sets were tried.
    """
    pairs = chosen_benchmarks(recipe, names)
    ready: list[ReadyBenchmark] = []
    faults: list[str] = []
    for dataset in dict.fromkeys(dataset for dataset, _ in pairs):
        try:
            announce(_convert(dataset, recipe.data[dataset], data_root))
            wanted = [name for owner, name in pairs if owner == dataset]
            ready += [_checked(name, dataset, _below(data_root, dataset)) for name in wanted]
        except MedMVLError as error:
            faults.append(f"{dataset}: {error}")
    if faults:
        raise EvaluationError(
            f"{len(faults)} of the data sets of {recipe.name} cannot be used. Repair them, or choose others with "
            "--benchmark.\n  " + "\n  ".join(faults)
        )
    return ready


def _below(root: Root, name: str) -> Root:
    return join(root, name) if isinstance(root, RemotePath) else root / name


def _convert(dataset: str, entry: TableDataset, data_root: Root) -> str:
    """Convert a data set unless it is converted already, and return a line that says which.

    Raises:
        EvaluationError: if it was converted with other settings.
        DataError: if the source is missing or is not in its layout.
    """
    converter, out = DATASETS[dataset], _below(data_root, dataset)
    wanted = converter.parse_options(entry.set).model_dump(mode="json")
    earlier = conversion_report(_below(out, "records.jsonl"))
    if earlier.get("dataset") == dataset and not too_many_faults(earlier):
        if earlier.get("options") != wanted:
            raise EvaluationError(
                f"{out} was converted with the settings {earlier.get('options')}, and the recipe wants {wanted}. Move the "
                "folder, or give another --data-root."
            )
        return f"{dataset}: converted already in {out}"
    if isinstance(data_root, RemotePath):
        raise EvaluationError(f"{out} holds no converted records. Convert the data set in a folder, and upload both.")
    result = convert(dataset, data_root / entry.source, out, options=entry.set)
    counts = ", ".join(f"{count} {split}" for split, count in result.counts.items())
    return f"{dataset}: converted to {out} ({counts})"


def _checked(name: str, dataset: str, folder: Root) -> ReadyBenchmark:
    """Check the records file of a benchmark and count its own records.

    Raises:
        DataError: if there is no file.
        EvaluationError: if a record is faulty or none belongs to the benchmark.
    """
    benchmark = BENCHMARKS[name]
    file = records_file(benchmark, folder)
    faults = check_records(file)
    if faults:
        shown = "; ".join(str(fault) for fault in faults[:NAMED_FAULTS])
        raise EvaluationError(f"{len(faults)} faults in {file}: {shown}")
    items = [make_item({**record, "prediction": ""}) for record in read_records(file)]
    own = [item for item in items if benchmark.belongs(item)]
    if not own:
        raise EvaluationError(f"{file} holds no record of the benchmark {name!r}. Check `set` in the recipe.")
    images = {path for item in own for path in item.images}
    volumes = {path for item in own for path in item.volumes}
    return ReadyBenchmark(name, dataset, file, len(own), len(images), len(volumes))


def plan_table(ready: Sequence[ReadyBenchmark], controls: Sequence[str] = ()) -> str:
    """Return the dry run's table: benchmark, records, files, the headline metric and its definition."""
    rows = [("benchmark", "records", "images", "volumes", "headline", "scored by")]
    for one in ready:
        benchmark = BENCHMARKS[one.name]
        metric = benchmark.column(benchmark.headline).metric.name
        rows.append((one.name, str(one.count), str(one.images), str(one.volumes), benchmark.headline, metric))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    answers = sum(one.count for one in ready) * (1 + len(controls))
    return "\n".join([*lines, f"{answers} answers; nothing is predicted in a dry run."])


def evaluate_table(
    recipe: EvaluationRecipe,
    ready: Sequence[ReadyBenchmark],
    evaluate: Callable[[ReadyBenchmark], Any],
    announce: Callable[[str], None] = lambda text: None,
) -> None:
    """Evaluate every benchmark; one that fails does not stop the others.

    Args:
        recipe: the table.
        ready: benchmarks of `prepare_table`.
        evaluate: predicts and scores one benchmark; a rerun answers only what is missing.
        announce: called with a line after each benchmark.

    Raises:
        EvaluationError: naming the benchmarks that failed, after all others are finished.
    """
    failed: list[str] = []
    for number, one in enumerate(ready, start=1):
        try:
            evaluate(one)
        except MedMVLError as error:
            failed.append(f"{one.name}: {error}")
            announce(f"{number}/{len(ready)} {one.name}: failed")
            continue
        announce(f"{number}/{len(ready)} {one.name}: done")
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {len(ready)} benchmarks of {recipe.name} failed; the others are scored, and the same "
            "command tries the failed ones again.\n  " + "\n  ".join(failed)
        )
