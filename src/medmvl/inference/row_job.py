"""A file with one row per record, written batch by batch and continued after an interruption."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import NOTED_ROOTS, relative_roots, run_note
from medmvl.errors import DataError, shown
from medmvl.files import OutputLock, atomic, read_json, write_json, write_text
from medmvl.inference.shares import Share
from medmvl.processing.read_ahead import ReadAhead

#: Batches whose files are fetched while an earlier one is worked on.
_BATCHES_AHEAD = 4


class RowJob:
    """Writes one row per record; a rerun writes only the missing ones.

    Rows are appended as they come. When all are there, the file is in the order of the records. Several processes write a part
    each, `<out>.part<rank>`, which the first one adds to `out` in the end; parts that a killed run has left are added first.
    The job holds the lock of `out` from its construction to the end of `run`.

    Args:
        out: JSON Lines file.
        dataset: the records; the folders of its media are noted in `<out>.run.json`, so that a report finds the pictures.
        facts: what the rows depend on (model, data, settings); kept in the same note and compared on a rerun.
        on_row: called with (rows done, rows in all) after each batch.
        share: of this process.

    Raises:
        DataError: if `out` was begun with other facts, is damaged, or two records have the same id.
        BusyError: if another process writes to `out`.
    """

    def __init__(
        self,
        out: Path,
        dataset: SampleDataset,
        facts: dict[str, Any],
        on_row: Callable[[int, int], None] | None,
        share: Share | None = None,
    ) -> None:
        self.out, self.dataset, self.on_row = out, dataset, on_row
        self.ids = _unique_ids(dataset)
        self._share = share or Share()
        self._lock: OutputLock | None = None
        self._share.first(lambda: self._begin(facts))
        self.done = self._finished_ids()

    def run(
        self,
        work: Callable[[Sequence[int]], Iterable[dict[str, Any]]],
        batch_size: int,
        order: Sequence[int] | None = None,
        group: Callable[[int], Hashable] = int,
        fetch: Callable[[int], None] | None = None,
    ) -> int:
        """Write the missing rows and release the lock; returns how many this process has written.

        Args:
            work: yields the rows of the records with the given indices.
            batch_size: number of records per call of `work`.
            order: indices of all records in the order of the work; default: that of the file.
            group: of an index; the records of a group are the work of one process.
            fetch: brings the files of an index into the local cache; called for coming batches if the media are in an object store.
        """
        if batch_size < 1:
            self._release()
            raise DataError(f"The batch size must be at least 1, got {batch_size}.")
        mine = self._share.of(self.missing(order), group)
        batches: Iterable[Sequence[int]] = [
            mine[start : start + batch_size] for start in range(0, len(mine), batch_size)
        ]
        if fetch is not None and self.dataset.has_remote_media:
            batches = ReadAhead(batches, fetch, _BATCHES_AHEAD)
        return self.write(map(work, batches))

    def missing(self, order: Sequence[int] | None = None) -> list[int]:
        """Return the indices of the records without a row, in the order of the work."""
        indices = range(len(self.ids)) if order is None else order
        return [index for index in indices if self.ids[index] not in self.done]

    def write(self, batches: Iterable[Iterable[dict[str, Any]]]) -> int:
        """Write the rows of batches, bring the finished file in order, and release the lock; returns the number of rows."""
        try:
            written = self._append(batches)
            self._share.wait()
            self._share.first(self._finish)
            return written
        finally:
            self._release()

    def _append(self, batches: Iterable[Iterable[dict[str, Any]]]) -> int:
        share, written = self._share, 0
        path = self.out if share.world == 1 else self._part(share.rank)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as handle:
            for rows in batches:
                for row in rows:
                    handle.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written += 1
                handle.flush()
                if self.on_row and share.rank == 0:
                    self.on_row(min(len(self.done) + written * share.world, len(self.ids)), len(self.ids))
        return written

    def _begin(self, facts: dict[str, Any]) -> None:
        self._lock = OutputLock(self.out)
        try:
            self._check_same_run(facts)
            self._add_parts()
        except BaseException:
            self._release()
            raise

    def _finish(self) -> None:
        self._add_parts()
        self._sort()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _part(self, rank: int) -> Path:
        return self.out.with_name(f"{self.out.name}.part{rank}")

    def _add_parts(self) -> None:
        """Append the complete rows of all parts to `out`, each id once, and remove the parts."""
        parts = sorted(self.out.parent.glob(f"{glob.escape(self.out.name)}.part*"))
        if not parts:
            return
        done, known = self._finished_ids(), set(self.ids)
        with self.out.open("ab") as handle:
            for part in parts:
                content = part.read_bytes()
                for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
                    name = self._row_id(line, 0, known)
                    if name not in done:
                        done.add(name)
                        handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        for part in parts:
            part.unlink()

    def _sort(self) -> None:
        """Rewrite a complete file in the order of the records, if it is in another one."""
        places: dict[str, tuple[int, int]] = {}
        with self.out.open("rb") as handle:
            start = 0
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    places[self._row_id(line, number, set())] = (start, len(line))
                start += len(line)
            if list(places) == self.ids or len(places) < len(self.ids):
                return
            with atomic(self.out) as temporary, temporary.open("wb") as target:
                for name in self.ids:
                    handle.seek(places[name][0])
                    target.write(handle.read(places[name][1]))

    def _check_same_run(self, facts: dict[str, Any]) -> None:
        note = run_note(self.out)
        roots = {NOTED_ROOTS: relative_roots(self.out, self.dataset.image_root, self.dataset.volume_root)}
        if not self.out.exists():
            write_json(note, facts | roots)
            return
        if not note.exists():
            raise DataError(
                f"{self.out} exists and was not written by this command. Choose another --out or remove it."
            )
        before = read_json(note)
        if not isinstance(before, dict):
            raise DataError(
                f"{note} is damaged: it must hold a JSON object. Choose another --out, or remove both files."
            )
        compared = (facts.keys() | before.keys()) - roots.keys()
        changed = sorted(key for key in compared if facts.get(key) != before.get(key))
        if changed:
            raise DataError(
                f"{self.out} was begun with another {', '.join(changed)[:200]}. Choose another --out, or remove the file to "
                "start over."
            )
        if before.get(NOTED_ROOTS) != roots[NOTED_ROOTS]:  # the media were moved, or an older version noted none
            write_json(note, facts | roots)

    def _finished_ids(self) -> set[str]:
        """Return the ids in the file; remove an incomplete last line, which a killed process leaves.

        Raises:
            DataError: with the line number, if another line is not a row of this job.
        """
        if not self.out.exists():
            return set()
        text = self.out.read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        known: set[str] = set(self.ids)
        ids: set[str] = set()
        for number, line in enumerate(complete.split(b"\n"), start=1):
            if line.strip():
                name = self._row_id(line, number, known)
                if name in ids:
                    raise DataError(
                        f"{self.out}, line {number}: the record {shown(name)} has two rows. Remove one of them, or choose "
                        "another --out."
                    )
                ids.add(name)
        if complete != text:
            write_text(self.out, complete.decode("utf-8"))
        return ids

    def _row_id(self, line: bytes, number: int, known: set[str]) -> str:
        try:
            name = str(json.loads(line.decode())["id"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.out}, line {number}: this is not a row of this job (the file is damaged). Remove that line and run the "
                "same command again, or choose another --out."
            ) from error
        if known and name not in known:
            raise DataError(
                f"{self.out}, line {number}: the data file has no record {shown(name)}. Choose another --out."
            )
        return name


def _unique_ids(dataset: SampleDataset) -> list[str]:
    """Return the ids of all records.

    Raises:
        DataError: if two records have the same id.
    """
    ids = [dataset.sample(index).id for index in range(len(dataset))]
    seen: set[str] = set()
    for index, name in enumerate(ids):
        if name in seen:
            raise DataError(
                f"{dataset.where(index)}: the id {name!r} stands twice in the file. Give every record its own."
            )
        seen.add(name)
    return ids
