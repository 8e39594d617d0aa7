"""Throughput of prepared volumes in shards: from an S3 server on this machine against local files.

    python benchmarks/shard_throughput.py [--volumes N] [--repeats N] [--step SECONDS] [--out FILE.md]

Needs the extra `objects-test` (s3fs and moto). Writes shards of random 32x256x256 uint8 volumes into a folder and to a moto server in a
process of its own on 127.0.0.1, and reads every volume once in a random order with the read-ahead of a training run, in this process.
Three readings alternate: local files, S3 with an empty local cache (a first epoch), S3 with a filled one (every later epoch). Each
is done as fast as possible, and with a pause of `--step` seconds after each volume in place of a training step, during which
the read-ahead works. The target is a throughput from S3 of at least 90 % of that of local files.

"bare download" is the bound that the server sets: the same shards by plain HTTP requests, one after the other, into one buffer, with
nothing kept and nothing read. No reading from an empty cache can be faster.

All work shares the processors of this machine, the server's included, so only ratios of alternating readings are compared.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medmvl.imaging import geometry
from medmvl.imaging.cache import Fingerprint
from medmvl.imaging.volume_shards import ShardReader, begin_volume_shards, write_volume_manifest, write_volume_shard
from medmvl.processing.read_ahead import ReadAhead

TARGET = 0.90
PER_SHARD = 32
BATCH, AHEAD = 4, 4
#: name -> (whether from S3, whether the local cache is emptied before)
BARE = "bare download"
READINGS = {"local files": (False, False), "S3, empty cache": (True, True), "S3, filled cache": (True, False)}


@contextmanager
def s3_server() -> Iterator[None]:
    """Run a moto server in a process of its own and set the variables by which clients find it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def write_shards(target: str, volumes: int) -> None:
    """Write shards of random volumes."""
    wanted = geometry("medm-vl-ct")
    shape = (wanted.channels, *wanted.size)
    begin_volume_shards(target, wanted)
    indices = []
    for number, start in enumerate(range(0, volumes, PER_SHARD)):
        rng = np.random.default_rng(number)
        rows = [
            (f"{key:032d}", rng.integers(0, 255, shape).astype(wanted.dtype), Fingerprint(1, 1, str(key)))
            for key in range(start, min(start + PER_SHARD, volumes))
        ]
        indices.append(write_volume_shard(target, number, rows))
    write_volume_manifest(target, wanted, indices, {"salt": ""})


def read_all(source: str, step: float) -> tuple[float, int]:
    """Read every volume once in a random order; return volumes per second and a sum of their values."""
    reader = ShardReader(source)
    keys = sorted(reader.fingerprints)
    order = np.random.default_rng(0).permutation(len(keys)).tolist()
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    fetch: Callable[[int], None] = lambda number: reader._shards.read_ahead(keys[number])  # noqa: E731
    total, start = 0, time.perf_counter()
    for batch in ReadAhead(batches, fetch, AHEAD) if source.startswith("s3://") else batches:
        for number in batch:
            total += int(reader[keys[number]].sum(dtype=np.int64))
            if step:
                time.sleep(step)
    return len(keys) / (time.perf_counter() - start), total


def download(source: str, volumes: int) -> float:
    """Fetch all shards with plain requests and drop them; return volumes per second."""
    import fsspec

    system = fsspec.core.url_to_fs(source)[0]
    urls = [system.sign(path) for path in system.ls(source) if path.endswith(".tar")]
    start = time.perf_counter()
    for url in urls:
        with urllib.request.urlopen(url) as reply:
            place = memoryview(bytearray(int(reply.headers["Content-Length"])))
            while len(place):
                place = place[reply.readinto(place) :]
    return volumes / (time.perf_counter() - start)


def measure(volumes: int, repeats: int, step: float, folder: Path) -> dict[tuple[str, float], list[float]]:
    """Return volumes per second of each reading, in turn, by (reading, pause)."""
    import fsspec

    cache = folder / "copies"
    os.environ["MEDMVL_CACHE"] = str(cache)
    fsspec.core.url_to_fs("s3://shards")[0].mkdir("shards")
    places = {False: str(folder / "shards"), True: "s3://shards/set"}
    for place in places.values():
        write_shards(place, volumes)
    found: dict[tuple[str, float], list[float]] = {}
    sums = set()
    for _ in range(repeats):
        for pause in (0.0, step):
            for name, (remote, empty) in READINGS.items():
                if empty:
                    shutil.rmtree(cache, ignore_errors=True)
                speed, total = read_all(places[remote], pause)
                found.setdefault((name, pause), []).append(speed)
                sums.add(total)
        found.setdefault((BARE, 0.0), []).append(download(places[True], volumes))
    assert len(sums) == 1, "the readings gave different volumes"
    return found


def report(found: dict[tuple[str, float], list[float]], command: str) -> str:
    """Return the results as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("medmvl", "numpy", "fsspec", "s3fs", "moto"))
    lines = [
        f"# Throughput of shards, {date.today().isoformat()}",
        "",
        f"`{command}`; Python {platform.python_version()}, {packages}; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}.",
        "Ratios are medians over repeats of a reading over the local reading of the same repeat.",
        "",
        "| pause per volume | reading | volumes/s, median | ratio to local files | at least 90 % |",
        "|---|---|---|---|---|",
    ]
    for (name, pause), speeds in found.items():
        ratio = statistics.median(a / b for a, b in zip(speeds, found["local files", pause], strict=True))
        verdict = "–" if name in ("local files", BARE) else "yes" if ratio >= TARGET else "no"
        lines.append(f"| {pause:g} s | {name} | {statistics.median(speeds):.1f} | {ratio:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print; write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--volumes", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3_server():
        found = measure(given.volumes, given.repeats, given.step, Path(folder))
    words = f"--volumes {given.volumes} --repeats {given.repeats} --step {given.step:g}"
    text = report(found, f"python benchmarks/shard_throughput.py {words}")
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
