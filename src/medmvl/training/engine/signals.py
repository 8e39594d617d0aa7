"""Signals by which a queue ends a run."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from medmvl.training.engine.callbacks import Loop


class StopSignal:
    """Context in which SIGTERM and SIGUSR1 (Slurm's early warning) ask the loop to stop after its step.

    Outside the main thread it does nothing, since only that thread may set signal handlers.

    Args:
        loop: the training loop.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._loop.stop_requested = True
        os.write(2, b"Stopping after this step; a checkpoint will be written.\n")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
