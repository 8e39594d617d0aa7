"""Messages and exit statuses of commands that fail."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from medmvl.errors import MedMVLError, printable

#: Exit status of a user's mistake or of a machine that lacks something, and of a fault of the program.
REFUSED, BUG = 2, 1

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: end of the message of a library written in Rust (safetensors, tokenizers), which hides the error in its own class
_RUST_SYSTEM_ERROR = re.compile(r"\(os error (\d{1,4})\)")
_MEMORY = "There is not enough memory. Use a smaller batch (--batch-size, micro_batch_size), a smaller input, or a larger machine."
_REPORT = (
    "This is a bug in medmvl or in a library it uses. Please report it as CONTRIBUTING.md says, with the output of the same "
    "command with --debug; remove patient data from it first."
)


@contextmanager
def one_line_failures(debug: bool = False, spell: Callable[[str], str] = str) -> Iterator[None]:
    """Print any exception as one message on standard error and exit with its status; with `debug` let it pass.

    Args:
        debug: whether the traceback is shown.
        spell: rewrites the message in the words of the command.

    Raises:
        SystemExit: with the status.
    """
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(1) from None
    except Exception as error:
        if debug:
            raise
        status, message = describe(error)
        typer.echo(f"medmvl: {printable(spell(message))}", err=True)
        raise SystemExit(status) from None


def describe(error: Exception) -> tuple[int, str]:
    """Return the exit status and the message of an exception."""
    if isinstance(error, MedMVLError):
        return REFUSED, str(error)
    if isinstance(error, MemoryError) or _is_torch_memory_error(error):
        return REFUSED, _MEMORY
    if isinstance(error, OSError):
        return REFUSED, _system_error(error)
    if match := _RUST_SYSTEM_ERROR.search(str(error)):
        number = int(match[1])
        return REFUSED, _system_error(OSError(number, os.strerror(number)))
    text = " ".join(str(error).split())
    name = type(error).__name__
    return BUG, f"{name}: {text[:500]}{'' if text.endswith('.') else '.'} {_REPORT}" if text else f"{name}. {_REPORT}"


def _system_error(error: OSError) -> str:
    """Return what the operating system refused, with the name of the file."""
    if error.errno is None:
        return " ".join(str(error).split())
    file = error.filename2 or error.filename
    where = f"{os.fsdecode(file)}: " if isinstance(file, str | bytes) else ""
    reason = error.strerror or errno.errorcode.get(error.errno, "unknown error")
    if error.errno in _FULL:
        advice = "Free some space and run the same command again, or choose another --out."
    else:
        advice = "Check that this path exists, is of the right kind and may be read or written, or choose another."
    return f"{where}{reason}. {advice}"


def _is_torch_memory_error(error: Exception) -> bool:
    """Whether torch ran out of memory; on the CPU it raises a plain RuntimeError."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def print_any_text() -> None:
    """Let standard output and error replace characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
