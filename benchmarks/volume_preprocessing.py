"""From a chest CT on disk to the model's tensor: this house against the usual MONAI chain, side by side in one run.

    python benchmarks/volume_preprocessing.py [--folder DIR] [--repeats N] [--slices N] [--out FILE.md]

Draws one 512x512x300 int16 chest scan with scanner-like noise, writes it as .npy, .nii.gz and a DICOM folder, reads
each once so that the files are in the page cache, and times both ways alternately, each in a process of its own with
one thread, in seconds of CPU time (user and system), which other work on the machine disturbs least. MONAI is no dependency of ours: `pip install --no-deps monai` into an environment of your own, or put it on
PYTHONPATH; without it only our side is measured. Memory is the peak of anonymous memory (RssAnon) above the level
before the call, sampled every millisecond; mapped files, which the kernel can drop at any time, are listed apart.
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
from datetime import date
from pathlib import Path

import numpy as np

SIZE = (32, 256, 256)
KINDS = ("npy", "nii.gz", "dicom")


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


def ours(path: Path) -> Callable[[], np.ndarray]:
    """Our way: read_volume, then the geometry medm-vl-ct."""
    from medmvl.imaging import geometry, read_volume

    prepare = geometry("medm-vl-ct", size=SIZE)
    return lambda: prepare(read_volume(path))[0].numpy()


def monai_chain(path: Path) -> Callable[[], np.ndarray]:
    """The usual way: read whole, clip to 0..255 in float32, crop the foreground, resize trilinearly, truncate."""
    import nibabel as nib
    import pydicom
    import torch
    from monai.transforms import Compose, CropForeground, Resize, ScaleIntensityRange

    chain = Compose(
        [
            ScaleIntensityRange(-1000, 1000, 0, 255, clip=True),
            CropForeground(allow_smaller=True),
            Resize(SIZE, mode="trilinear"),
        ]
    )

    def read() -> np.ndarray:
        if path.suffix == ".npy":
            return np.load(path)
        if path.suffix == ".gz":
            return nib.load(path).get_fdata().transpose(2, 1, 0)
        slices = [pydicom.dcmread(file) for file in sorted(path.iterdir())]
        slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
        return np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])

    def run() -> np.ndarray:
        values = torch.as_tensor(read().astype(np.float32))[None]
        return chain(values)[0].to(torch.uint8).numpy()

    return run


WAYS = {"ours": ours, "monai": monai_chain}


def measure(way: str, path: Path, result: Path) -> None:
    """Run one way on one file a few times in this process; print seconds and megabytes as JSON, save the tensor."""
    import torch

    torch.set_num_threads(1)
    run = WAYS[way](path)
    anonymous, mapped = _memory_of(run)  # the first run also warms imports, lazy tables and page cache
    start = time.process_time()
    tensor = run()
    seconds = time.process_time() - start
    np.save(result, tensor)
    print(json.dumps({"seconds": seconds, "anonymous_mb": anonymous, "mapped_mb": mapped}))


def _memory_of(run: Callable[[], np.ndarray]) -> tuple[float, float]:
    before = _status()
    peaks = [0.0, 0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            now = _status()
            for index in range(2):
                peaks[index] = max(peaks[index], now[index] - before[index])

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peaks[0], peaks[1]


def _status() -> tuple[float, float]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]


# --- the cache


def cache_rate(folder: Path, seconds: float = 2.0) -> float:
    """Volumes per second read from a cache of 32x256x256 uint8 tensors, in random order, one thread."""
    from medmvl.imaging import geometry
    from medmvl.imaging.cache import CacheReader, CacheWriter, Fingerprint

    rng = np.random.default_rng(0)
    tensors = rng.integers(0, 256, (64, 1, *SIZE), dtype=np.uint8)
    writer = CacheWriter(folder, geometry("medm-vl-ct", size=SIZE))
    for index, tensor in enumerate(tensors):
        writer.add(f"key{index}", tensor, Fingerprint(0, 0, ""))
    writer.close()
    reader = CacheReader(folder)
    keys = rng.permutation([f"key{index}" for index in range(64)])
    for key in keys:
        reader[key].sum()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        np.array(reader[keys[count % 64]])  # a copy into fresh memory, as a batch needs it
        count += 1
    return count / (time.perf_counter() - start)


# --- the comparison


def compare(folder: Path, repeats: int) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Time all ways on all formats alternately; return table rows and numbers."""
    ways = [way for way in WAYS if way == "ours" or _monai_version()]
    rows, facts = [], {}
    for kind in KINDS:
        path = folder / f"scan.{kind}"
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way in ways:
                command = [sys.executable, __file__, "--measure", way, str(path), str(folder / f"{way}.npy")]
                output = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
                runs[way].append(json.loads(output.stdout))
        median = {
            way: {key: statistics.median(run[key] for run in items) for key in items[0]} for way, items in runs.items()
        }
        row = f"| {kind} |"
        for way in ways:
            row += (
                f" {median[way]['seconds']:.3f} | {median[way]['anonymous_mb']:.0f} (+{median[way]['mapped_mb']:.0f}) |"
            )
        if "monai" in ways:
            a, b = (np.load(folder / f"{way}.npy").astype(int) for way in ways)
            faster = median["monai"]["seconds"] / median["ours"]["seconds"]
            lighter = median["monai"]["anonymous_mb"] / max(median["ours"]["anonymous_mb"], 1e-9)
            row += f" {faster:.1f}x | {lighter:.1f}x | {np.abs(a - b).max()} |"
            facts[kind] = {"faster": faster, "lighter": lighter, "difference": float(np.abs(a - b).max())}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows, facts


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _monai_version() -> str:
    try:
        import monai
    except ImportError:
        return ""
    return str(monai.__version__)


def main() -> None:
    """Parse the command line and print (and save) the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the scan (about 400 MB); default: temporary")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--out", type=Path, help="write the result as Markdown")
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "PATH", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, path, result = options.measure
        measure(way, Path(path), Path(result))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(draw(options.slices), folder)  # in this process; the measured ones start small
        rows, _ = compare(folder, options.repeats)
        rate = cache_rate(folder / "cache")
    text = report(rows, rate, options)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


def report(rows: list[str], rate: float, options: argparse.Namespace) -> str:
    """Return the result as Markdown."""
    import torch

    monai = _monai_version()
    head = "| from | ours, CPU s | ours, MB (+mapped) |"
    rule = "| --- | --- | --- |"
    if monai:
        head += " MONAI chain, CPU s | MB (+mapped) | faster | less memory | max difference of 255 |"
        rule += " --- | --- | --- | --- | --- |"
    versions = f"torch {torch.__version__}, numpy {np.__version__}, MONAI {monai or 'absent'}, Python {platform.python_version()}"
    return "\n".join(
        [
            "# From a CT on disk to the model's tensor (`medm-vl-ct`, 32x256x256)",
            "",
            f"{date.today()}, {os.cpu_count()} CPU cores (load {os.getloadavg()[0]:.1f} of other work), one thread, "
            f"{platform.machine()}; {versions}.",
            f"One {options.slices}x512x512 int16 scan, files in the page cache, median of {options.repeats} processes each, "
            "the two ways alternately.",
            "Command: `python benchmarks/volume_preprocessing.py`.",
            "",
            head,
            rule,
            *rows,
            "",
            f"From the cache (32x256x256 uint8, random order, copied): {rate:,.0f} volumes/s on one core.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
