"""Pool of reader processes, which are replaced when they end or take too long."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import queue
import shutil
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmvl.errors import CheckpointError
from medmvl.processing import MedMVLProcessor
from medmvl.serving.protection import without_paths
from medmvl.serving.server.content import Source
from medmvl.serving.server.failures import RequestError
from medmvl.serving.server.reader import serve_reads
from medmvl.serving.server.settings import Limits

#: Readers that a file may end before it is refused: one of them may have been killed for another reason.
_TRIES = 2
#: What the process imports from which readers are forked, so that a new one starts at once.
PRELOAD = ["medmvl.serving.server.reader"]


class ReaderPool:
    """Processes that read uploads, one upload at a time each.

    Args:
        processor: of the model.
        limits: sizes and times.
        count: number of processes.
        others: processors of further models, for which the page's studies are prepared as well.
    """

    def __init__(
        self, processor: MedMVLProcessor, limits: Limits, count: int, others: Sequence[MedMVLProcessor] = ()
    ) -> None:
        self._models = [{"image": one.image, "volume": one.volume} for one in (processor, *others)]
        settings = {"image": processor.image, "volume": processor.volume, "home": tempfile.gettempdir()}
        self._settings = {**settings, "pixels": limits.pixels, "voxels": limits.voxels}
        self._seconds = limits.read_seconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="medmvl-reader")
        self._idle: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        self._all: set[_Reader] = set()
        self._closed = False
        self._starts = [self._threads.submit(self._start) for _ in range(count)]

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes."""
        return [reader.process.pid for reader in list(self._all) if reader.process.pid is not None]

    def wait(self) -> None:
        """Wait until all processes are ready.

        Raises:
            CheckpointError: if one of them cannot be started.
        """
        for start in self._starts:
            try:
                start.result()
            except (EOFError, OSError) as error:
                # Python talks to them by a socket among the temporary files, whose path may have 107 bytes.
                long = " Set TMPDIR to a folder with a shorter path." if "AF_UNIX path too long" in str(error) else ""
                raise CheckpointError(
                    f"The processes that read uploads cannot be started, or end at once.{long}"
                ) from None

    async def prepare(self, source: Source) -> Tensor:
        """Return the tensor (3, H, W) of an image or (C, D, H, W) of a volume.

        Raises:
            RequestError: if the file cannot be read, or takes too long.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._prepare, source)

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        for reader in list(self._all):
            reader.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for reader in list(self._all):
            self._drop(reader)

    async def study(self, sources: Sequence[Path], out: Path, read: dict[str, Any]) -> dict[str, Any]:
        """Read files for the page; returns the answer of `medmvl.serving.page.study.answer_request`.

        Args:
            sources: the files.
            out: an empty folder for what the page and the models need.
            read: options for reading.

        Raises:
            RequestError: if the files end their reader, or take too long.
        """
        head: dict[str, Any] = {
            "kind": "study",
            "sources": [str(source) for source in sources],
            "out": str(out),
            "read": read,
        }
        head |= {"models": self._models, "pixels": self._settings["pixels"], "voxels": self._settings["voxels"]}
        loop = asyncio.get_running_loop()
        answer, _ = await loop.run_in_executor(self._threads, self._ask, head, b"", "study")
        return answer

    def _prepare(self, source: Source) -> Tensor:
        head = {"kind": source.kind, "path": str(source.path) if source.path else None, "read": source.read.given()}
        answer, values = self._ask(head, source.data or b"", source.kind)
        return torch.from_numpy(np.frombuffer(values, dtype=np.float32).reshape(answer["shape"]).copy())

    def _ask(self, head: dict[str, Any], data: bytes, what: str) -> tuple[dict[str, Any], bytes]:
        """Return the answer of a reader and the values that it sent; a reader that ends is replaced."""
        for _ in range(_TRIES):
            reader = self._idle.get()
            while not reader.process.is_alive():  # it ended while it was idle, which is not this file's fault
                self._replace(reader)
                reader = self._idle.get()
            try:
                answer, values = reader.ask(head, data, self._seconds)
            except TimeoutError:
                self._replace(reader)
                raise RequestError(400, f"Reading the {what} took more than {self._seconds:g} seconds.") from None
            except (EOFError, OSError):
                self._replace(reader)
                continue
            self._idle.put(reader)
            if "error" in answer:
                raise RequestError(400, f"The {what} cannot be used. {without_paths(answer['error'])}")
            return answer, values
        raise RequestError(400, f"The {what} ends the program that reads it: it is damaged or made to do so.")

    def _start(self) -> None:
        reader = _Reader(self._context, self._settings)
        self._all.add(reader)
        self._idle.put(reader)

    def _replace(self, reader: _Reader) -> None:
        self._drop(reader)
        if not self._closed:
            self._start()

    def _drop(self, reader: _Reader) -> None:
        self._all.discard(reader)
        reader.end()


class _Reader:
    """One process, ready to read.

    Raises:
        EOFError, OSError: if it ends at once.
    """

    def __init__(self, context: Any, settings: dict[str, Any]) -> None:
        self._home = settings["home"]
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_reads, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()
        self._connection.recv()

    def ask(self, head: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer.

        Raises:
            TimeoutError: if it takes too long.
            EOFError, OSError: if the process has ended.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            self._connection.send(head)
            self._connection.send_bytes(data)
            answer: dict[str, Any] = self._connection.recv()
            return answer, self._connection.recv_bytes()
        except (EOFError, OSError):
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process and remove what it left."""
        self.process.kill()
        self.process.join(10)
        with contextlib.suppress(OSError):
            self._connection.close()
        for left in Path(self._home).glob(f"reader-{self.process.pid}-*"):
            shutil.rmtree(left, ignore_errors=True)
