"""Common parts of all converters: declaration, options, conversion report, and helpers that build records.

A converter is a generator: it walks a data set in its published layout and yields `(split, record)` one at a time, so
memory stays flat however large the data set is. What it leaves out is counted in the `ConversionReport`: on purpose (`skip`)
or because something is wrong with the source (`fault`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from medmvl.data.converters.option_faults import option_fault
from medmvl.data.synthetic import is_synthetic
from medmvl.data.tables import iter_table
from medmvl.errors import DataError, did_you_mean
from medmvl.registry import Registry

Record = dict[str, Any]
Rows = Iterator[tuple[str, Record]]

#: License of data whose owner has stated none.
NOT_STATED = "not stated"

NAMED = 20  # how many examples of each kind of fault the report names
#: Files of each kind of fault that a message names, and items of each.
_SHOWN_PATHS, _SHOWN_ITEMS = 3, 5


class Options(BaseModel):
    """The settings of a converter; unknown names are refused. A child adds its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass
class ConversionReport:
    """The counts of skipped and faulty items of a conversion, with reasons and notes.

    Attributes:
        strict: raise at the first fault.
        left_out: reason -> how many items were left out on purpose.
        faults: reason -> how many items could not be converted.
        examples: reason -> names of the first of these items.
        notes: what was assumed where the published facts are uncertain, each once.
        exported: pictures were written below `out`, and the paths in the records are relative to it.
        read_as: name and settings of the converter that read the source, if it holds another data set than the one asked for.
        title: what the records were made of, if the converter's own title does not say it.
        hints: reason of a fault -> what to do about it.
        sections: further sections of report.json, by their keys.
    """

    strict: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    exported: bool = False
    read_as: tuple[str, Options] | None = None
    title: str | None = None
    hints: dict[str, str] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    _paths: dict[str, dict[str, tuple[int, list[str]]]] = field(default_factory=dict)

    def skip(self, reason: str, count: int = 1) -> None:
        """Count items that the options or the data set's own rules exclude."""
        self.left_out[reason] += count

    def fault(self, reason: str, name: str, path: str = "") -> None:
        """Count and name an item that is broken or missing.

        Args:
            reason: what is wrong.
            name: of the item, such as its row.
            path: the file that it is about, if it is not the name; items of one file are described together.

        Raises:
            DataError: at once, with `strict`.
        """
        named = f"{name}: {path}" if path else name
        if self.strict:
            hint = f" {self.hints[reason]}" if reason in self.hints else ""
            raise DataError(
                f"{named}: {reason}.{hint} Repair the source, or convert without --strict to drop such items."
            )
        self.faults[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < NAMED:
            names.append(named)
        self._add_path(reason, path or name, name if path else "")

    def _add_path(self, reason: str, path: str, name: str) -> None:
        """Count an item of a file, for `describe_fault`."""
        paths = self._paths.setdefault(reason, {})
        count, names = paths.get(path, (0, []))
        if path in paths or len(paths) < NAMED:
            paths[path] = (count + 1, names if len(names) >= _SHOWN_ITEMS or not name else [*names, name])

    def describe_fault(self, reason: str) -> str:
        """Return one kind of fault as text: how many items, the reason, and the first files with their items."""
        paths = self._paths.get(reason, {})
        shown = dict(list(paths.items())[:_SHOWN_PATHS])
        texts = [f"{path} ({_some(names, count)})" if names else path for path, (count, names) in shown.items()]
        more = self.faults[reason] - sum(count for count, _ in shown.values())
        return f"{self.faults[reason]} × {reason}: {', '.join(texts)}{f' and {more} more' if more else ''}"

    def note(self, text: str) -> None:
        """Record an assumption; a repeated note is kept once."""
        if text not in self.notes:
            self.notes.append(text)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for report.json."""
        faults: dict[str, dict[str, Any]] = {
            reason: {"count": n, "first": self.examples.get(reason, [])} for reason, n in self.faults.items()
        }
        for reason, hint in self.hints.items():
            faults[reason]["hint"] = hint
        return {"left_out": dict(self.left_out), "faults": faults, "notes": self.notes, **self.sections}


def _some(names: list[str], count: int) -> str:
    """Return the first of `count` names as text; "rows 2, 3, 4 and 7 more"."""
    numbers = [name.removeprefix("row ") for name in names]
    rows = count > 1 and all(map(str.isdigit, numbers))
    text = f"rows {', '.join(numbers)}" if rows else ", ".join(names)
    return f"{text} and {count - len(names)} more" if count > len(names) else text


@dataclass(frozen=True)
class Job:
    """One run of a converter.

    Attributes:
        source: the folder of the data set as it was unpacked.
        out: the folder of the records; converters that must export pictures write them below it.
        options: the converter's own settings.
        report: counts what is dropped, with reasons.
        file: the one file that the user named instead of a folder; `source` is then its folder.
    """

    source: Path
    out: Path
    options: Any
    report: ConversionReport
    file: Path | None = None

    @cached_property
    def synthetic(self) -> bool:
        """Whether the source bears the mark of phantoms."""
        return is_synthetic(self.source)

    def rows(
        self, table: Path, required: Iterable[str] = (), *, any_encoding: bool = False, encoding: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a csv, xlsx or parquet table; broken rows are faults. The encodings are those of `iter_csv`."""
        report = self.report
        return iter_table(
            table, required, report.fault, any_encoding=any_encoding, encoding=encoding, on_note=report.note
        )

    def find(self, pattern: str) -> list[Path]:
        """Return the files that match in the source or one folder below; a deeper search would walk millions of images."""
        return [*sorted(self.source.glob(pattern)), *sorted(self.source.glob(f"*/{pattern}"))]


@dataclass(frozen=True)
class Converter:
    """A data set that can be turned into records.

    Attributes:
        name: the name on the command line.
        title: the name in full.
        license: license and conditions, in one or two sentences.
        homepage: where a user gets the data.
        layout: what `source` must hold.
        run: the generator that yields (split, record).
        options: its settings.
    """

    name: str
    title: str
    license: str
    homepage: str
    layout: str
    run: Callable[[Job], Rows]
    options: type[Options] = Options

    def parse_options(self, values: Mapping[str, Any]) -> Options:
        """Check settings given as text or values.

        Raises:
            DataError: for an unknown name (with the closest one) or a value of the wrong kind.
        """
        for key in values:
            if key not in self.options.model_fields:
                raise DataError(f"{self.name} has no option {key!r}. {did_you_mean(key, self.options.model_fields)}")
        try:
            return self.options.model_validate(dict(values))
        except ValidationError as error:
            faults = " ".join(option_fault(self.options, detail) for detail in error.errors())
            raise DataError(f"Options of {self.name}: {faults}") from error


DATASETS: Registry[Converter] = Registry("data set", DataError)


def qa_record(
    identifier: str,
    question: str,
    answer: str,
    *,
    image: str | None = None,
    volume: str | None = None,
    evaluation: bool = False,
    **extra: Any,
) -> Record:
    """Return a record of one question.

    Training records end with the answer as a turn; evaluation records keep it under `answer`. Extra keys whose value is
    None are left out.
    """
    return dialog_record(identifier, [(question, answer)], image=image, volume=volume, evaluation=evaluation, **extra)


def dialog_record(
    identifier: str,
    turns: list[tuple[str, str]],
    *,
    image: str | None = None,
    volume: str | None = None,
    evaluation: bool = False,
    **extra: Any,
) -> Record:
    """Return a record of several questions about one picture; its placeholder stands in the first question.

    With `evaluation` the last answer becomes `answer`, and the turns before it are history.
    """
    lead = "".join(mark for mark, path in (("<image>\n", image), ("<image3d>\n", volume)) if path)
    conversation: list[dict[str, str]] = []
    for number, (question, answer) in enumerate(turns):
        conversation.append({"from": "human", "value": (lead if number == 0 else "") + question})
        conversation.append({"from": "gpt", "value": answer})
    record: Record = {"id": identifier, "conversations": conversation[:-1] if evaluation else conversation}
    if image:
        record["image"] = [image]
    if volume:
        record["image3d"] = [volume]
    if evaluation:
        record["answer"] = turns[-1][1]
    return record | {key: value for key, value in extra.items() if value is not None}


def yes_or_no(answer: str) -> bool:
    """Return whether an answer is exactly yes or no, whatever its case and closing full stop."""
    return answer.strip().rstrip(".").lower() in ("yes", "no")
