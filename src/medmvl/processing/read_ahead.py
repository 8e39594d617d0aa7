"""Read-ahead of the files of coming records, for data in object stores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import Sampler

from medmvl.data.sample import Sample
from medmvl.remote import RemotePath, local_copy

#: Downloads at a time.
THREADS = 8


class ReadAhead(Sampler[list[int]]):
    """Yields the batches of a sampler unchanged, and fetches the files of the following ones meanwhile.

    The order is that of the sampler, so a resumed run sees what an uninterrupted one sees.

    Args:
        batches: lists of record numbers; its order is known in advance.
        fetch: record number -> None: brings the record's files into the local cache. Its errors are left to the reader.
        ahead: number of batches to fetch in advance.
    """

    def __init__(self, batches: Iterable[Sequence[int]], fetch: Callable[[int], None], ahead: int) -> None:
        self._batches, self._fetch, self._ahead = batches, fetch, max(ahead, 1)

    def __iter__(self) -> Iterator[list[int]]:
        waiting: deque[list[int]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead") as pool:
            under_way: deque[Future[None]] = deque()
            try:
                for batch in self._batches:
                    under_way.extend(pool.submit(self._fetch, number) for number in batch)
                    waiting.append(list(batch))
                    if len(waiting) > self._ahead:
                        yield waiting.popleft()
                    while under_way and under_way[0].done():
                        under_way.popleft()
                yield from waiting
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def media_fetcher(processor: Any) -> Callable[[Sample], None]:
    """Return a function that fetches what the processor will read of a sample; local files are left alone.

    Args:
        processor: with `volume_processor`, whose prepared volumes take the place of files.
    """
    volumes = getattr(processor, "volume_processor", None)

    def fetch(sample: Sample) -> None:
        for path in sample.images:
            if isinstance(path, RemotePath):
                local_copy(RemotePath(path))
        for path in sample.volumes:
            if volumes is not None:
                volumes.read_ahead(path)

    return fetch
