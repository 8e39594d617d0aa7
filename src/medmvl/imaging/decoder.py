"""A child process in which C++ libraries decode DICOM frames and NRRD files, kept warm, with limits on time and memory.

These libraries can abort, crash or run for minutes on damaged data. In a child process this becomes an error of one
file: the child is replaced and the next file is decoded. Frames and pixels of usual sizes go through shared memory, because
copying them through a pipe costs a tenth of decoding them; larger ones, and all of them where the system has no such
memory, go through pipes.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

#: seconds that a frame may take, plus some per decoded MiB; measured are 0.01 to 0.1 s per MiB
SECONDS, SECONDS_PER_MIB = 10.0, 0.5
#: seconds until a new child process must be ready, generous for a busy machine
_START_SECONDS = 120.0
_PROGRAM = Path(__file__).with_name("decoder_process.py")
_PIPE_BYTES = 2**20
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ of Linux
_F_ADD_SEALS, _F_SEAL_SHRINK = 1033, 2  # of Linux
#: bytes of the shared memory; the system provides those that are written to
_SHARED_BYTES = 2**24
#: settings of glibc's malloc for the child: memory that is freed is kept for the next frame. Giving it back and taking it
#: anew costs some hundred page faults per frame, a third of the decoding of a JPEG lossless frame.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**27), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


class DecoderError(Exception):
    """A frame or file could not be decoded.

    Attributes:
        no_decoder: whether every installed decoder refused it.
    """

    def __init__(self, reason: str, no_decoder: bool = False) -> None:
        super().__init__(reason)
        self.no_decoder = no_decoder


class ItkError(DecoderError):
    """SimpleITK refuses a file; the message is its own."""


class Decoder:
    """Handle of the child process; starts it when it is needed and replaces it when it dies.

    Args:
        seconds: time limit of a small frame.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._buffer = bytearray()
        self._shared: mmap.mmap | None = None

    def start(self) -> None:
        """Start the child process without waiting for it."""
        with self._lock:
            self._start()

    def decode(self, syntax: str, frame: bytes, decoded: int, options: dict[str, Any]) -> np.ndarray:
        """Decode one frame.

        Args:
            syntax: transfer syntax UID.
            frame: the encoded frame.
            decoded: its decoded size in bytes by the header.
            options: attributes for pydicom's decoder (rows, columns, bits_allocated ...).

        Returns:
            (rows, columns) or (rows, columns, samples).

        Raises:
            DecoderError: if it cannot be decoded, takes too long, or ends the child process.
        """
        _, pixels = self._ask({"syntax": syntax, "decoded": decoded, "options": options}, frame)
        assert pixels is not None
        return pixels

    def itk_header(self, path: Path) -> dict[str, Any]:
        """Return what SimpleITK reads in the header of a file.

        Returns:
            size (i, j, k), components, and the numbers of direction, spacing and origin in ITK's order.

        Raises:
            ItkError: if SimpleITK refuses the file.
            DecoderError: if it takes too long or ends the child process.
        """
        head, _ = self._ask({"path": str(path), "decoded": 0, "voxels": False})
        return head

    def itk_voxels(self, path: Path, voxels: int) -> np.ndarray:
        """Return the voxels (k, j, i) of a file that SimpleITK reads.

        Args:
            voxels: their number by the header, which limits time and memory.

        Raises:
            ItkError, DecoderError: as for `itk_header`.
        """
        _, array = self._ask({"path": str(path), "decoded": voxels, "voxels": True})
        assert array is not None
        return array

    def _ask(self, request: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], np.ndarray | None]:
        """Send a request and return the answer with its array, if it has one."""
        decoded = request["decoded"]
        with self._lock:
            self._start()
            shared = self._shared is not None and len(body) + decoded <= _SHARED_BYTES
            request = {**request, "bytes": len(body), "shared": shared}
            deadline = time.monotonic() + self.seconds + SECONDS_PER_MIB * decoded / 2**20
            try:
                if not self._ready:
                    self._await_ready()
                    deadline = time.monotonic() + self.seconds + SECONDS_PER_MIB * decoded / 2**20
                if shared and self._shared is not None:
                    self._shared[: len(body)] = body
                    body = b""
                self._write(json.dumps(request).encode() + b"\n" + body, deadline)
                answer: dict[str, Any] = json.loads(self._read_line(deadline))
                if "error" in answer:
                    raise _error(answer)
                if "shape" not in answer:
                    return answer, None
                shape, dtype = tuple(answer["shape"]), np.dtype(answer["dtype"])
                size = math.prod(shape) * dtype.itemsize
                data = self._copy(size) if answer["shared"] else self._read(size, deadline)
                return answer, data.view(dtype).reshape(shape)
            except DecoderError:
                raise
            except BaseException as error:
                reason = self._stop(error)
                if isinstance(error, OSError | ValueError | EOFError):
                    raise DecoderError(reason) from None
                raise

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._stop(None)

    def forget(self) -> None:
        """Drop the handle without ending the process, in a forked copy of this process."""
        self._lock = threading.Lock()
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        os.close(pipe.fileno())
            self._child.returncode = 0  # so that subprocess does not wait for a process that is not a child of this one
        self._child, self._ready, self._buffer, self._shared = None, False, bytearray(), None

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self._stop(None)
        memory = _shared_memory()
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), *(() if memory is None else (str(memory), str(_SHARED_BYTES)))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, **_MALLOC, "OMP_NUM_THREADS": "1"},
                pass_fds=() if memory is None else (memory,),
                start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
            )
        except OSError as error:
            raise DecoderError(f"the decoder process cannot be started ({error.strerror})") from None
        finally:
            if memory is not None:
                self._shared = mmap.mmap(memory, _SHARED_BYTES)
                os.close(memory)
        assert child.stdin is not None
        assert child.stdout is not None
        for pipe in (child.stdin, child.stdout):
            os.set_blocking(pipe.fileno(), False)
            with contextlib.suppress(OSError, ImportError):
                import fcntl

                fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
        self._child, self._ready, self._buffer = child, False, bytearray()

    def _await_ready(self) -> None:
        self._read_line(time.monotonic() + _START_SECONDS)
        self._ready = True

    def _stop(self, error: BaseException | None) -> str:
        """End the child and return the reason as a phrase."""
        child, self._child, self._ready, self._shared = self._child, None, False, None
        if child is None:
            return "the decoder process is not running"
        late = isinstance(error, TimeoutError)
        try:
            code = None if error is None or late else child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            code = None
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if late:
            return "decoding takes too long"
        return "the decoder crashed" if code is None or code < 0 else f"the decoder ended with status {code}"

    def _wait(self, pipe: Any, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError

    def _write(self, data: bytes, deadline: float) -> None:
        assert self._child is not None
        pipe = self._child.stdin
        assert pipe is not None
        view = memoryview(data)
        while len(view):
            try:
                view = view[os.write(pipe.fileno(), view) :]
            except BlockingIOError:
                self._wait(pipe, select.POLLOUT, deadline)

    def _receive(self, target: memoryview, deadline: float) -> int:
        """Read some bytes into `target` and return their number."""
        assert self._child is not None
        pipe = self._child.stdout
        assert pipe is not None
        while True:
            try:
                count = os.readv(pipe.fileno(), [target])
            except BlockingIOError:
                self._wait(pipe, select.POLLIN, deadline)
                continue
            if not count:
                raise EOFError
            return count

    def _read_line(self, deadline: float) -> bytes:
        piece = bytearray(2**16)
        while (end := self._buffer.find(b"\n")) < 0:
            count = self._receive(memoryview(piece), deadline)
            self._buffer += piece[:count]
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _copy(self, size: int) -> np.ndarray:
        """Return the first `size` bytes of the shared memory."""
        if self._shared is None or size > _SHARED_BYTES:
            raise ValueError("the child process names shared memory that there is not")
        return np.frombuffer(self._shared, dtype=np.uint8, count=size).copy()

    def _read(self, size: int, deadline: float) -> np.ndarray:
        data = np.empty(size, dtype=np.uint8)
        view = data.data
        filled = min(len(self._buffer), size)
        view[:filled] = self._buffer[:filled]
        del self._buffer[:filled]
        while filled < size:
            filled += self._receive(view[filled:], deadline)
        return data


def _shared_memory() -> int | None:
    """Return a file descriptor of new shared memory that the child cannot shrink, or None if the system has none."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        import fcntl

        memory = os.memfd_create("medmvl-decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, _SHARED_BYTES)
        fcntl.fcntl(memory, _F_ADD_SEALS, _F_SEAL_SHRINK)
    except OSError:
        return None
    return memory


def _error(answer: dict[str, Any]) -> DecoderError:
    if answer["error"] in ("MemoryError", "_ArrayMemoryError"):
        return DecoderError("it needs too much memory")
    if answer["reason"]:
        return ItkError(answer["reason"])
    return DecoderError("the data are damaged", bool(answer["no_decoder"]))


#: the decoder of this process
DECODER = Decoder()
os.register_at_fork(after_in_child=DECODER.forget)
