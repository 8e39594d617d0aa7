"""`medmvl` commands in forks of this process, which has imported everything: a start takes no time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

#: Exit status of a command that raised anything but SystemExit; `medmvl` itself never ends with it.
CRASHED = 97


#: The arguments, or what returns them when called in the fork, whose folder and environment it may set.
Arguments = Sequence[Any] | Callable[[], Sequence[Any]]


def start(arguments: Arguments, log: Path, limit: Callable[[], None] | None = None) -> int:
    """Run `medmvl ARGUMENTS` in a fork, as the head of a process group of its own; return the process id.

    Args:
        arguments: the arguments, or a function that returns them.
        log: file that gets the standard output and the standard error of the command.
        limit: called last before the command, to restrict what this process may use.
    """
    child = os.fork()
    if not child:
        _command(arguments, log, limit)
    return child


def wait(process: int) -> int:
    """Return the exit status of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _command(arguments: Arguments, log: Path, limit: Callable[[], None] | None) -> NoReturn:
    from medmvl.cli import main as command_line

    status = CRASHED
    try:
        os.setpgid(0, 0)
        words = [str(word) for word in (arguments() if callable(arguments) else arguments)]
        handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["medmvl", *words]
        if limit is not None:
            limit()
        command_line.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
