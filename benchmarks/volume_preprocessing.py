"""Time from a chest CT on disk to the model's tensor, compared with the usual MONAI chain or with an older tree.

    python benchmarks/volume_preprocessing.py [--folder DIR] [--repeats N] [--slices N] [--before SRC] [--out FILE.md]

Draws one 512x512x300 int16 chest scan with scanner-like noise, writes it as .npy, .nii.gz and a DICOM folder, and times
both ways alternately, each in a separate process with one thread and the files in the page cache. Seconds are CPU time
(user and system), which other work on the machine disturbs least; the ratio of wall times is given as well. Memory is the
peak above the level before the call, sampled every millisecond: anonymous memory (RssAnon) plus mapped files (RssFile),
though the kernel can drop the latter at any time. The exit status is 1 if a target is missed. With `--before`, the `src`
folder of an older tree, only this comparison is made.

MONAI is no dependency of ours: `pip install --no-deps --target monai monai`, then PYTHONPATH=monai. Without it only our
side is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (32, 256, 256)
#: kind -> how many times faster than the MONAI chain we want to be; "nii.gz as int" is the chain given the stored
#: integers, where most code calls nibabel's get_fdata (float64)
TARGETS = {"npy": 20.0, "nii.gz": 8.0, "nii.gz as int": None, "dicom": 5.0}
LIGHTER = 5.0
#: most CPU time of this tree in times an older tree's
SLOWER = 1.05
CACHE_RATE = 1000.0
#: lengths of the batch job that shows how cost and memory grow
JOBS = (4, 16, 64)


# --- the scan


def draw(slices: int) -> np.ndarray:
    """(slices, 512, 512) int16 HU: a noisy body in noiseless padding outside the round field of view."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = (x / 0.85) ** 2 + (y / 0.62) ** 2 < 1
    lungs = ((np.abs(x) - 0.38) / 0.3) ** 2 + (y / 0.45) ** 2 < 1
    spine = x**2 + (y - 0.42) ** 2 < 0.09**2
    plane = np.where(body, 40.0, -1000.0)
    plane[lungs] = -850
    plane[spine] = 400
    # Real scans compress to a little under half their size: air is filtered smooth, tissue is not.
    sigma = np.where(body, 22.0, 3.0)
    outside = x**2 + y**2 > 1
    scan = np.empty((slices, 512, 512), dtype=np.int16)
    for target in scan:
        noisy = plane + sigma * rng.standard_normal(plane.shape, dtype=np.float32)
        target[...] = np.rint(noisy)
        target[outside] = -1024
        np.maximum(target, -1024, out=target)
    # air stays at or below -1000 here, as after a scanner's clipping, so that the crop has something to do
    scan[:, ~body & ~outside] = np.minimum(scan[:, ~body & ~outside], -1000)
    return scan


def write(scan: np.ndarray, folder: Path) -> None:
    """Write the scan in all formats."""
    import nibabel as nib
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    np.save(folder / "scan.npy", scan)
    nib.save(nib.Nifti1Image(scan.T, np.diag([-0.7, -0.7, 1.0, 1.0])), folder / "scan.nii.gz")
    series = generate_uid()
    (folder / "scan.dicom").mkdir()
    for index, plane in enumerate(scan):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        values = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": series, "StudyInstanceUID": generate_uid(), "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "Manufacturer": "phantom", "InstanceNumber": index + 1,
            "Rows": 512, "Columns": 512, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
            "PixelSpacing": [0.7, 0.7], "SliceThickness": 1.0, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0.0, 0.0, float(index)], "RescaleSlope": 1, "RescaleIntercept": -1024,
            "WindowCenter": 40, "WindowWidth": 400, "PixelData": (plane + 1024).astype("<u2").tobytes(),
        }  # fmt: skip
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / "scan.dicom" / f"{index:04d}.dcm", enforce_file_format=True)


# --- the two ways


@dataclass
class Way:
    """One way from a file to the tensor: `run` does it, `box` tells the crop (not timed)."""

    run: Callable[[], np.ndarray]
    box: Callable[[], Any]


def ours(path: Path, kind: str) -> Way:
    """Our way: read_volume, then the geometry medm-vl-ct."""
    from medmvl.imaging import geometry, read_volume

    prepare = geometry("medm-vl-ct", size=SIZE)
    return Way(lambda: prepare(read_volume(path))[0].numpy(), lambda: prepare.prepare(read_volume(path)).box)


def monai_chain(path: Path, kind: str) -> Way:
    """The usual way: read whole, clip to 0..255 in float32, crop the foreground, resize trilinearly, truncate."""
    import nibabel as nib
    import pydicom
    import torch
    from monai.transforms import Compose, CropForeground, Resize, ScaleIntensityRange

    scale, crop = ScaleIntensityRange(-1000, 1000, 0, 255, clip=True), CropForeground(allow_smaller=True)
    chain = Compose([scale, crop, Resize(SIZE, mode="trilinear")])

    def read() -> np.ndarray:
        if path.suffix == ".npy":
            return np.load(path)
        if path.suffix == ".gz":
            image = nib.load(path)
            return (np.asanyarray(image.dataobj) if "int" in kind else image.get_fdata()).transpose(2, 1, 0)
        slices = [pydicom.dcmread(file) for file in sorted(path.iterdir())]
        slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
        return np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])

    def values() -> torch.Tensor:
        return torch.as_tensor(read().astype(np.float32))[None]

    def box() -> Any:
        return [[int(v) for v in corner] for corner in crop.compute_bounding_box(scale(values()))]

    return Way(lambda: chain(values())[0].to(torch.uint8).numpy(), box)


WAYS = {"ours": ours, "monai": monai_chain}


def measure(name: str, path: Path, kind: str, result: Path) -> dict[str, Any]:
    """Run one way on one file a few times in this process; return seconds, megabytes and box, save the tensor."""
    import torch

    torch.set_num_threads(1)
    way = WAYS[name](path, kind)
    memory = peak_of(way.run)  # the first run also warms imports, lazy tables and page cache
    cpu, wall = [], []
    for _ in range(3):
        starts = time.process_time(), time.perf_counter()
        tensor = way.run()
        cpu.append(time.process_time() - starts[0])
        wall.append(time.perf_counter() - starts[1])
    np.save(result, tensor)
    return {"cpu": statistics.median(cpu), "wall": statistics.median(wall), "mb": memory, "box": way.box()}


def peak_of(run: Callable[[], Any]) -> float:
    """Return the peak of resident memory above the level before the call, in MB."""
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peak[0]


def resident() -> float:
    """Return anonymous and mapped resident memory in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssFile")) / 1024


# --- many volumes


def job(source: Path, count: int) -> dict[str, Any]:
    """Prepare `count` links to one .nii.gz with `build_cache` in this process; return seconds and megabytes."""
    import torch

    from medmvl.imaging import geometry
    from medmvl.processing.cache import build_cache

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        folder = Path(name)
        rows = []
        for index in range(count):
            (folder / f"{index}.nii.gz").hardlink_to(source)
            turns = [{"from": "human", "value": "<image3d>"}, {"from": "gpt", "value": "."}]
            rows.append({"id": str(index), "image3d": [f"{index}.nii.gz"], "conversations": turns})
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spent = [0.0]

        def run() -> None:
            start = time.process_time()
            report = build_cache(folder / "rows.jsonl", geometry("medm-vl-ct", size=SIZE), folder / "cache")
            spent[0] = time.process_time() - start
            assert report.prepared == count, report

        memory = peak_of(run)
    return {"cpu": spent[0], "mb": memory}


def cache_rates(folder: Path, seconds: float = 2.0) -> dict[str, float]:
    """Return volumes per CPU second from a cache of 32x256x256 uint8 tensors in random order, one thread.

    "read" is the bytes copied into fresh memory; "training" is what a training step takes: found by its path, read, and
    normalized to float32.
    """
    import torch

    from medmvl.imaging import geometry
    from medmvl.imaging.cache import CacheReader, CacheWriter, Fingerprint, key_of
    from medmvl.processing import VolumeProcessor

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    chain = geometry("medm-vl-ct", size=SIZE)
    writer, paths = CacheWriter(folder / "cache", chain), []
    salt = [writer.salt] if hasattr(writer, "salt") else []  # earlier versions have none
    for index in range(64):
        path = folder / f"{index}.npy"
        np.save(path, np.zeros(1))
        paths.append(str(path))
        tensor = rng.integers(0, 256, (1, *SIZE), dtype=np.uint8)
        writer.add(key_of(path, folder, *salt), tensor, Fingerprint.of(path))
    writer.close()
    reader, processor = CacheReader(folder / "cache", root=folder), VolumeProcessor(chain)
    processor.use_cache(folder / "cache", folder)
    order = rng.permutation(64)

    def rate(take: Callable[[int], Any]) -> float:
        for index in order:
            take(index)  # pages in, and the one look at each source
        count, start = 0, time.process_time()
        while time.process_time() - start < seconds:
            take(order[count % 64])
            count += 1
        return count / (time.process_time() - start)

    keys = [key_of(path, folder, *salt) for path in paths]
    return {"read": rate(lambda i: np.array(reader[keys[i]])), "training": rate(lambda i: processor(paths[i]))}


# --- the comparison


def in_own_process(*arguments: str, source: Path | None = None) -> dict[str, Any]:
    """Run this script with `arguments` in a process with one thread; return the JSON it prints.

    Args:
        source: `src` folder whose medmvl is imported, instead of the environment's.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(output.stdout))


def compare(folder: Path, repeats: int, missed: list[str]) -> list[str]:
    """Time all ways on all formats alternately; return table rows and add missed targets to `missed`."""
    ways = [way for way in WAYS if way == "ours" or monai_version()]
    rows = []
    for kind, target in TARGETS.items():
        path = folder / f"scan.{kind.split()[0]}"
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way in ways:
                runs[way].append(in_own_process("--measure", way, str(path), kind, str(folder / f"{way}.npy")))
        median = {
            way: {key: statistics.median(run[key] for run in items) for key in ("cpu", "wall", "mb")}
            for way, items in runs.items()
        }
        row = f"| {kind} |" + "".join(f" {median[way]['cpu']:.3f} | {median[way]['mb']:.0f} |" for way in ways)
        if "monai" in ways:
            row += versus(kind, target, median, [runs[way][0]["box"] for way in ways], folder, missed)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def against_older(folder: Path, options: argparse.Namespace) -> int:
    """Compare this tree with an older one and print (and save) the table; return 1 if this one is slower."""
    trees = {"now": Path(__file__).resolve().parent.parent / "src", "before": options.before}
    rows, slower = [], False
    for kind in ("npy", "nii.gz", "dicom"):
        seconds: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(options.repeats):
            for name, source in trees.items():
                result = folder / f"{name}.npy"
                run = in_own_process(
                    "--measure", "ours", str(folder / f"scan.{kind}"), kind, str(result), source=source
                )
                seconds[name].append(run["cpu"])
        now, before = (statistics.median(seconds[name]) for name in ("now", "before"))
        same = np.array_equal(np.load(folder / "now.npy"), np.load(folder / "before.npy"))
        rows.append(f"| {kind} | {now:.3f} | {before:.3f} | {now / before:.2f} | {'equal' if same else 'DIFFERENT'} |")
        slower |= now > SLOWER * before or not same
    text = "\n".join([
        f"# Volume preprocessing against an older tree, {date.today()}", "",
        f"`python benchmarks/volume_preprocessing.py --before OLD/src --slices {options.slices} --repeats "
        f"{options.repeats}`; Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores (load "
        f"{os.getloadavg()[0]:.1f}), {platform.machine()}. Medians of CPU seconds, alternating; target: ratio at most "
        f"{SLOWER}.", "",
        "| from | now, CPU s | before | ratio | tensors |", "|---|---|---|---|---|", *rows, "",
    ])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return int(slower)


def versus(
    kind: str, target: float | None, median: dict[str, Any], boxes: list[Any], folder: Path, missed: list[str]
) -> str:
    """Return the columns that compare the two ways."""
    faster, by_wall, lighter = (median["monai"][key] / median["ours"][key] for key in ("cpu", "wall", "mb"))
    mine, other = (np.load(folder / f"{way}.npy").astype(int) for way in WAYS)
    difference = int(np.abs(mine - other).max())
    faults = {
        f"{kind}: {faster:.1f}x faster, wanted {target}x": target is not None and faster < target,
        f"{kind}: {lighter:.1f}x less memory, wanted {LIGHTER}x": lighter < LIGHTER,
        f"{kind}: gray values differ by {difference}": difference > 1,
        f"{kind}: boxes {boxes} differ": boxes[0] != boxes[1],
    }
    missed += [fault for fault, present in faults.items() if present]
    same = "identical" if boxes[0] == boxes[1] else "DIFFERENT"
    wanted = f"{target:g}x" if target is not None else "-"
    return f" **{faster:.1f}x** | {wanted} | {by_wall:.1f}x | {lighter:.1f}x | {difference} | {same} |"


def monai_version() -> str:
    """Return MONAI's version, empty if it is not installed."""
    try:
        import monai
    except ImportError:
        return ""
    return str(monai.__version__)


def main() -> None:
    """Parse the command line and print (and save) the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the scan (about 400 MB); default: temporary")
    parser.add_argument("--repeats", type=int, default=3, help="processes per way and format, of 3 timed runs each")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--before", type=Path, help="src folder of an older tree to compare with")
    parser.add_argument("--out", type=Path, help="write the result as Markdown")
    parser.add_argument("--measure", nargs=4, metavar=("WAY", "PATH", "KIND", "RESULT"), help=argparse.SUPPRESS)
    parser.add_argument("--job", nargs=2, metavar=("PATH", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--rates", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, path, kind, result = options.measure
        print(json.dumps(measure(way, Path(path), kind, Path(result))))
    elif options.job:
        print(json.dumps(job(Path(options.job[0]), int(options.job[1]))))
    elif options.rates:
        print(json.dumps(cache_rates(options.rates)))
    else:
        raise SystemExit(whole(options))


def whole(options: argparse.Namespace) -> int:
    """Measure everything, print and save the report; return 1 if a target is missed, else 0."""
    if options.before:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            write(draw(options.slices), Path(name))
            return against_older(Path(name), options)
    if not monai_version():
        print("MONAI is absent: pip install --no-deps --target monai monai, then PYTHONPATH=monai.", file=sys.stderr)
    missed: list[str] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(draw(options.slices), folder)  # in this process; the measured ones start small
        rows = compare(folder, options.repeats, missed)
        jobs = {count: in_own_process("--job", str(folder / "scan.nii.gz"), str(count)) for count in JOBS}
        (folder / "rates").mkdir()
        rates = in_own_process("--rates", str(folder / "rates"))
    if rates["read"] < CACHE_RATE:
        missed.append(f"cache: {rates['read']:.0f} volumes/s, wanted {CACHE_RATE:.0f}")
    text = report(rows, jobs, rates, missed, load, options)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return int(bool(missed))


def report(
    rows: list[str],
    jobs: dict[int, dict[str, Any]],
    rates: dict[str, float],
    missed: list[str],
    load: float,
    options: argparse.Namespace,
) -> str:
    """Return the result as Markdown."""
    import torch

    monai = monai_version()
    columns = ["from", "ours, CPU s", "ours, MB"]
    if monai:
        columns += ["MONAI chain, CPU s", "MONAI, MB", "faster", "target", "by wall time", "less memory"]
        columns += ["max difference of 255", "crop box"]
    versions = f"torch {torch.__version__}, numpy {np.__version__}, MONAI {monai or 'absent'}, Python {platform.python_version()}"
    verdict = "All targets are met." if not missed else "Missed: " + "; ".join(missed) + "."
    lines = [
        "# From a CT on disk to the model's tensor (`medm-vl-ct`, 32x256x256)",
        "",
        f"{date.today()}, {os.cpu_count()} CPU cores (load at the start {load:.1f}), one thread on both sides, "
        f"{platform.machine()}; {versions}.",
        f"One {options.slices}x512x512 int16 scan, files in the page cache, median of {options.repeats} processes of 3 runs "
        "each, the two ways alternately. MB is the peak above the level before, mapped file pages included; for .npy they "
        'are nearly all of ours. The chain reads NIfTI with get_fdata, as most code does, and "as int" without.',
        "Command: `python benchmarks/volume_preprocessing.py`.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *rows,
        "",
        f"{verdict if monai else 'Without MONAI nothing is compared.'}",
        "",
        "A batch job (`medmvl data cache`, .nii.gz, one process) over so many scans; the memory holds one scan and a shard of "
        "64 MB, which is full from 32 volumes on:",
        "",
        "| volumes | CPU s per volume | peak MB |",
        "| --- | --- | --- |",
        *(f"| {count} | {facts['cpu'] / count:.3f} | {facts['mb']:.0f} |" for count, facts in jobs.items()),
        "",
        f"From the cache (32x256x256 uint8, random order, one core, target {CACHE_RATE:,.0f} volumes/s): "
        f"{rates['read']:,.0f} volumes/s read into fresh memory; {rates['training']:,.0f} volumes/s as training takes "
        "them, found by their path and normalized to float32.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
