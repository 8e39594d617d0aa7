"""Faults of records, and the lines in which they are shown: one for each file that several records use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from medmvl.data.origins import Origins
from medmvl.errors import counted

#: Records that a line names, and warnings of one text that are shown with their files.
_NAMED, _ALIKE = 3, 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault or warning: its place, the record's id if it has one, and the message.

    Attributes:
        where: file and line of the record.
        id: of the record, None if it has none.
        message: with place and id in front.
        file: the image or volume at fault, as the record names it; "" if the record itself is.
        reason: the message without place and id.
    """

    where: str
    id: str | None
    message: str
    file: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return self.message


def fault_lines(faults: Iterable[Fault], data: str, origins: Origins | None = None) -> list[str]:
    """Return a line for each fault; those of records that use the same faulty file become one line.

    Args:
        faults: of one data file.
        data: its name, for the lines.
        origins: where linked files come from, which is said where it is known.
    """
    groups: dict[tuple[str, str], list[Fault]] = {}
    for number, fault in enumerate(faults):
        key = (fault.file, fault.reason) if fault.file else ("", f"{number}")
        groups.setdefault(key, []).append(fault)
    return [_line(members, data, origins) for members in groups.values()]


def _line(faults: Sequence[Fault], data: str, origins: Origins | None) -> str:
    first = faults[0]
    if not first.file:
        return first.message
    reason, source = first.reason, origins.of(first.file) if origins is not None else None
    if source is not None:
        reason = reason.replace(first.file, f"{first.file} (linked from {source})", 1)
    if len(faults) == 1:
        return f"{first.where}, record {first.id!r}: {reason}"
    return f"{data}, {used_by([str(fault.id) for fault in faults], len(faults))}: {reason}"


def used_by(first_ids: Sequence[str], count: int) -> str:
    """Return the records that use a file: their number and the first ids."""
    named = ", ".join(map(repr, first_ids[:_NAMED]))
    return f"{counted(count, 'record')} ({named}{', ...' if count > _NAMED else ''})"


def warning_lines(warnings: Sequence[Fault]) -> Iterator[str]:
    """Yield warnings; of those with one text (as of thousands of pictures with an EXIF orientation) the first few and a number."""
    counts: dict[str, int] = {}
    for warning in warnings:
        text = warning.message.rpartition(": ")[2]
        counts[text] = counts.get(text, 0) + 1
        if counts[text] <= _ALIKE:
            yield warning.message
    for text, count in counts.items():
        if count > _ALIKE:
            yield f"{counted(count - _ALIKE, 'more file')}: {text}"
