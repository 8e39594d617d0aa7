"""Runs damaged files in a worker process, and notes refusals, foreign exceptions, deaths, hangs and wrong results."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from medmvl.errors import MedMVLError

from .mutators import mutate
from .target import MARKER, Change, Target

#: seconds after which a case counts as a hang, and seconds for the start of a worker
HANG, START = 20.0, 240.0
#: classes of outcomes; the last five are failures
OK, REFUSED, FOREIGN, DEATH, HUNG, GARBAGE, MESSAGE = (
    "ok", "refused", "foreign exception", "process death", "hang", "silent garbage", "bad message",
)  # fmt: skip
CLASSES = (OK, REFUSED, FOREIGN, DEATH, HUNG, GARBAGE, MESSAGE)
FAILURES = CLASSES[2:]


@dataclass
class Outcome:
    """Result of one case: its number, its target and file, the mutators, the class and a text."""

    case: int
    target: str
    file: str
    mutators: list[str]
    kind: str
    text: str = ""
    seconds: float = 0.0  # CPU time of this process


@dataclass
class Summary:
    """Counts per target and class, and all failures."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)
    slowest: float = 0.0
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.counts.setdefault(outcome.target, Counter())[outcome.kind] += 1
        self.seconds[outcome.target] += outcome.seconds
        self.slowest = max(self.slowest, outcome.seconds)
        if outcome.kind in FAILURES:
            self.failures.append(outcome)


class Cases:
    """The cases of a run; a case is determined by the seed of the run and its number.

    Args:
        targets: the formats.
        seed: of the run.
        folder: where the undamaged files are written, and damaged ones take their place.
    """

    def __init__(self, targets: Sequence[Target], seed: int, folder: Path) -> None:
        self.targets, self.seed, self.folder = targets, seed, folder
        self._files: dict[str, list[Path]] = {}
        self._contents: dict[Path, bytes] = {}
        self._good: dict[Path, Any] = {}

    def draw(self, case: int) -> tuple[Target, random.Random]:
        """Return the target of a case and the generator for its changes."""
        rng = random.Random(f"{self.seed}:{case}")
        weights = [target.weight for target in self.targets]
        return rng.choices(self.targets, weights)[0], rng

    def run(self, case: int) -> Outcome:
        """Damage a file, read it, and restore it."""
        target, rng = self.draw(case)
        files = self._prepared(target)
        path, other = rng.choice(files), rng.choice(files)
        before = self._contents[path]
        after, names = mutate(rng, before, self._contents[other], target.mutators)
        outcome = Outcome(case, target.name, path.name, names, OK)
        start = time.process_time()
        try:
            _replace(path, after)
            outcome.kind, outcome.text = self._judged(target, path, Change(before, after, names))
        finally:
            _replace(path, before)
        outcome.seconds = time.process_time() - start
        return outcome

    def _judged(self, target: Target, path: Path, change: Change) -> tuple[str, str]:
        try:
            found = target.run(path)
        except MedMVLError as error:
            return _judged_message(target, path, str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "medmvl" in frame.filename]
            return FOREIGN, f"{type(error).__name__}: {str(error)[:200]} [{' '.join(ours[-4:])}]"
        wrong = target.judge(self._good[path], found, change)
        return (GARBAGE, wrong) if wrong else (OK, "")

    def _prepared(self, target: Target) -> list[Path]:
        """Write the undamaged files of a target at its first use; another worker may have written them."""
        if target.name not in self._files:
            folder = self.folder / f"{self.targets.index(target):02d}"
            listing = folder.with_suffix(".json")
            if not listing.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that died
                folder.mkdir()
                files = target.prepare(folder)
                contents = {str(file): file.read_bytes().hex() for file in files}
                listing.write_text(json.dumps(contents))
            stored = {Path(file): bytes.fromhex(text) for file, text in json.loads(listing.read_text()).items()}
            for path, content in stored.items():  # a worker that died left its damaged file
                _replace(path, content)
            for path in stored:
                self._good[path] = target.run(path)
            self._contents |= stored
            self._files[target.name] = list(stored)
        return self._files[target.name]


def _judged_message(target: Target, path: Path, message: str) -> tuple[str, str]:
    """Return whether a refusal is usable: it names the file and shows no name of a patient."""
    if MARKER in message:
        return MESSAGE, f"shows a patient's name: {message[:300]}"
    if target.names_file and path.name not in message and path.parent.name not in message:
        return MESSAGE, f"does not name the file: {message[:300]}"
    if len(message) > 4000:
        return MESSAGE, f"has {len(message)} characters: {message[:300]}"
    return REFUSED, message[:200]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"~{path.name}")
    temporary.write_bytes(content)
    temporary.replace(path)


def run_cases(
    targets: Sequence[Target], seed: int, numbers: Sequence[int], folder: Path, on_outcome: Callable[[Outcome], None]
) -> Summary:
    """Run cases in worker processes, one at a time; a worker that dies or hangs is replaced.

    Args:
        numbers: of the cases.
        folder: an empty folder for files.
        on_outcome: called after each case.
    """
    summary, position = Summary(), 0
    cases = Cases(targets, seed, folder)
    while position < len(numbers):
        for outcome in _outcomes_of_a_worker(cases, numbers[position:]):
            summary.add(outcome)
            on_outcome(outcome)
            position += 1
    return summary


def _outcomes_of_a_worker(cases: Cases, numbers: Sequence[int]) -> Iterator[Outcome]:
    """Yield outcomes until the worker has run all cases, dies or hangs; the last outcome then is that failure."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    worker = os.fork()
    if not worker:
        os.close(reading)
        _work(cases, numbers, writing)
    os.close(writing)
    done, kind, patience, preparing = 0, "", START, True
    buffer = bytearray()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while done < len(numbers):
            line = _read_line(pipe, buffer, patience)
            if not line:
                kind = HUNG if line is None else DEATH
                break
            if line.startswith(b"["):  # the files of a target are written, or a case begins
                preparing = b"prepare" in line
                patience = START if preparing else HANG
                continue
            if not line.startswith(b"{"):
                raise RuntimeError(
                    f"the harness itself failed:\n{line.decode()}{buffer.decode()}{(pipe.read(2**16) or b'').decode()}"
                )
            yield Outcome(**json.loads(line))
            done += 1
    os.kill(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    if kind:
        target, _ = cases.draw(numbers[done])
        assert not preparing, f"the files of {target.name} cannot be written"
        text = "no answer" if kind == HUNG else f"status {os.waitstatus_to_exitcode(status)}"
        yield Outcome(numbers[done], target.name, "?", [], kind, text)


def _read_line(pipe: BinaryIO, buffer: bytearray, patience: float) -> bytes | None:
    """Return a line, b"" at the end of the pipe, or None if nothing comes in time; `buffer` keeps what follows the line."""
    while (end := buffer.find(b"\n")) < 0:
        if not select.select([pipe], [], [], patience)[0]:
            return None
        block = pipe.read(2**16)
        if not block:
            return b""
        buffer += block
    line = bytes(buffer[: end + 1])
    del buffer[: end + 1]
    return line


def _work(cases: Cases, numbers: Sequence[int], writing: int) -> None:
    """Run cases in the worker and write their outcomes; never returns."""
    status = 1
    try:
        faulthandler.disable()  # pytest's would print the stack of a worker that dies, which the parent notes anyway
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # C libraries print warnings
            os.dup2(null, stream)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        with os.fdopen(writing, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as pipe:
            for count, number in enumerate(numbers):
                target, _ = cases.draw(number)
                if target.name not in cases._files:
                    pipe.write("[prepare]\n")
                    pipe.flush()
                    cases._prepared(target)
                pipe.write("[case]\n")
                pipe.flush()
                outcome = cases.run(number)
                pipe.write(json.dumps(outcome.__dict__) + "\n")
                pipe.flush()
                if count % 500 == 0:
                    gc.collect()
        status = 0
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(status)


def table(summary: Summary) -> str:
    """Return counts per format and class as a Markdown table."""
    lines = ["| format | cases | " + " | ".join(CLASSES) + " | CPU ms |", "|---|" + "---:|" * (len(CLASSES) + 2)]
    total: Counter[str] = Counter()
    for name in sorted(summary.counts):
        counts = summary.counts[name]
        total += counts
        cells = " | ".join(f"{counts[kind]:,}" for kind in CLASSES)
        lines.append(f"| {name} | {counts.total():,} | {cells} | {summary.seconds[name] / counts.total() * 1e3:.1f} |")
    cells = " | ".join(f"{total[kind]:,}" for kind in CLASSES)
    lines.append(f"| all | {total.total():,} | {cells} | {summary.seconds.total() / max(total.total(), 1) * 1e3:.1f} |")
    return "\n".join(lines) + "\n"
