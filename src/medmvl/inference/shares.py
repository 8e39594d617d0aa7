"""Shares of the processes that torchrun started for one file of records."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from medmvl.errors import DataError, MedMVLError

#: Time that processes wait for the slowest one.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Share:
    """One of several processes that work on the same file.

    Attributes:
        rank: number of this process.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """Return the share that torchrun's variables name, and connect the processes; a single one without torchrun."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or "RANK" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def first(self, action: Callable[[], None]) -> None:
        """Run an action in the first process while the others wait; its error is raised in all of them."""
        failure: MedMVLError | None = None
        if self.rank == 0:
            try:
                action()
            except MedMVLError as error:
                failure = error
        if self.world > 1:
            messages = [None if failure is None else str(failure)]
            dist.broadcast_object_list(messages)
            if failure is None and messages[0] is not None:
                failure = DataError(messages[0])
        if failure is not None:
            raise failure

    def of(self, indices: Sequence[int], group: Callable[[int], Hashable]) -> Sequence[int]:
        """Return this process's part of the work: about an equal number, cut only where a group ends.

        Args:
            indices: the work, groups in one piece.
            group: of an index; an image or volume, so that it is read by one process.
        """
        if self.world == 1:
            return indices
        keys = [group(index) for index in indices]
        ends = [place for place in range(1, len(keys)) if keys[place] != keys[place - 1]]
        places = [0, *ends, len(keys)]
        cuts = [_nearest(places, len(keys) * rank / self.world) for rank in (self.rank, self.rank + 1)]
        return indices[cuts[0] : cuts[1]]


def _nearest(places: Sequence[int], wanted: float) -> int:
    return min(places, key=lambda place: abs(place - wanted))
