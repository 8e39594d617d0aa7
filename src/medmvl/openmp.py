"""How OpenMP's idle threads wait for work, which must be said before torch is loaded.

torch computes with the threads of GNU's OpenMP. Between two kernels they turn in a loop, so as to begin at once when the next
kernel comes. On idle cores that is fastest; on cores that other programs use as well, they take the time of those who work.
How they wait changes no result, unlike a smaller number of threads. `benchmarks/waiting_threads.py` measures both.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

#: What a user sets, who then is left alone.
_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
#: Share of all cores' time in use from which the machine is called busy, and the seconds that it is watched.
BUSY, WATCHED = 0.4, 0.1
_STATISTICS = Path("/proc/stat")


def wait_as_fits() -> None:
    """Let idle OpenMP threads of this process and its children sleep if other programs occupy the cores.

    Nothing is changed where the environment says how threads wait, and where the system does not tell how busy it is.
    """
    if not any(name in os.environ for name in _OWN) and busy_share(WATCHED) >= BUSY:
        os.environ["GOMP_SPINCOUNT"] = "0"


def busy_share(seconds: float) -> float:
    """Return the share of all cores' time that was in use while this process slept, 0 where the system does not tell."""
    before = _core_times()
    time.sleep(seconds)
    after = _core_times()
    if before is None or after is None or after[1] <= before[1]:
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1])


def _core_times() -> tuple[int, int] | None:
    """Return the time in use and all time of all cores since the start of the system, in the kernel's ticks."""
    try:
        with _STATISTICS.open() as handle:
            ticks = [
                int(word) for word in handle.readline().split()[1:9]
            ]  # user, nice, system, idle, iowait, irq, softirq, steal
    except (OSError, ValueError):
        return None
    if len(ticks) < 5:
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
