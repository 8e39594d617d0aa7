"""Cost of decoding compressed DICOM slices in a child process, against decoding them in the process itself.

    python benchmarks/compressed_slices.py [--slices N] [--repeats N] [--before SRC] [--only TEXT] [--out FILE.md]

Draws a 512x512 chest scan, writes it as a compressed series in several transfer syntaxes, and measures two things. Per frame:
the CPU time of `Decoder.decode` (both processes, with the transfer of the pixels) over the CPU time of the same decoder in
this process. Per series: CPU and wall time of `read_volume`, each reading in a fresh process, with the child, with the same
decoders called in the process itself ("without the child"), and with `--before` in an older tree that has no child; they take
turns. The time of the child and of its start is included.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "src"), str(_ROOT / "tests")]
from fuzz.pixels import by_gdcm  # noqa: E402
from medmvl.imaging.decoder_process import FIXED  # noqa: E402

#: name -> transfer syntax, or the name of GDCM's encoder; RLE is decoded in this process
SYNTAXES = {
    "JPEG 2000": JPEG2000Lossless,
    "JPEG 2000 lossy": "JPEG2000",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG lossless": "JPEGLosslessProcess14_1",
    "RLE": RLELossless,
}
#: targets: transfer to and from the child below 10 % of decoding, a series not slower than before
MOST_OVERHEAD, MOST_RATIO = 0.10, 1.05
#: reads a series; with a second argument, the decoders are called in the process itself
READ = """
import os, sys, time
from pathlib import Path
from medmvl.imaging import read_volume
if sys.argv[2:]:
    from medmvl.imaging.decoder import DECODER
    from medmvl.imaging.decoder_process import _decode
    DECODER.start = lambda: None
    DECODER.decode = lambda syntax, frame, size, options: _decode({"syntax": syntax, "options": options}, frame)[1]
start, before = time.perf_counter(), sum(os.times()[:4])
volume = read_volume(Path(sys.argv[1]))
wall = time.perf_counter() - start
try:
    from medmvl.imaging.decoder import DECODER
    DECODER.close()
except ImportError:
    pass
print(sum(os.times()[:4]) - before, wall, int(volume.array.sum(dtype="int64")))
"""


def draw(slices: int) -> np.ndarray:
    """Return (slices, 512, 512) uint16 stored values: a noisy body in air."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = (x / 0.85) ** 2 + (y / 0.62) ** 2 < 1
    plane = np.where(body, 1064.0, 24.0)
    sigma = np.where(body, 22.0, 3.0)
    return np.stack([np.clip(plane + sigma * rng.standard_normal(plane.shape), 0, 4095) for _ in range(slices)]).astype(
        np.uint16
    )


def write(scan: np.ndarray, folder: Path, syntax: str) -> None:
    """Write (D, H, W) stored values as a compressed CT series; `syntax` is a UID or the name of GDCM's encoder."""
    folder.mkdir()
    series = generate_uid()
    for index, plane in enumerate(scan):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.TransferSyntaxUID = syntax if syntax.startswith("1.") else ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        values: dict[str, Any] = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": series, "StudyInstanceUID": generate_uid(), "Modality": "CT",
            "Rows": 512, "Columns": 512, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
            "PixelSpacing": [0.7, 0.7], "SliceThickness": 1.0, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0.0, 0.0, float(index)], "RescaleSlope": 1, "RescaleIntercept": -1024,
        }  # fmt: skip
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        path = folder / f"{index:04d}.dcm"
        if not syntax.startswith("1."):  # GDCM compresses an uncompressed file
            dataset.PixelData = plane.tobytes()
            dataset["PixelData"].VR = "OW"
        elif syntax == RLELossless:
            dataset.compress(RLELossless, plane, generate_instance_uid=False)
        else:
            stream = io.BytesIO()
            PIL.Image.fromarray(plane).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
            dataset.PixelData = encapsulate([stream.getvalue()])
            dataset["PixelData"].VR = "OB"
        dataset.save_as(path, enforce_file_format=True)
        if not syntax.startswith("1."):
            by_gdcm(path, syntax)


def per_frame(folder: Path, repeats: int) -> tuple[float, float]:
    """Return the mean CPU seconds per frame in this process, and with the child process, measured alternately."""
    from medmvl.imaging.decoder import Decoder

    child = Decoder()
    inside = outside = 0.0
    frames = sorted(folder.iterdir())[:20] * repeats
    for number, path in enumerate([frames[0], *frames]):
        dataset = pydicom.dcmread(path)
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        options = {
            "rows": 512, "columns": 512, "samples_per_pixel": 1, "bits_allocated": 16, "bits_stored": 12,
            "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2",
        }  # fmt: skip
        start = time.process_time()
        expected, _ = get_decoder(syntax).as_array(encapsulate([frame]), **FIXED, **options)
        spent = time.process_time() - start
        start = time.process_time() + cpu_of(child)
        got = child.decode(syntax, frame, expected.nbytes, options)
        if number:  # the first frame starts the child
            inside += spent
            outside += time.process_time() + cpu_of(child) - start
        assert np.array_equal(got, expected)
    child.close()
    return inside / len(frames), outside / len(frames)


def cpu_of(decoder: Any) -> float:
    """Return the CPU seconds of the child process with all its threads so far, 0 before it starts."""
    if decoder._child is None:
        return 0.0
    return time.clock_gettime(~decoder._child.pid << 3 | 2)  # clock_getcpuclockid of the C library, which Python lacks


def per_series(folder: Path, source: Path, *more: str) -> tuple[float, float, str]:
    """Return CPU and wall seconds of `read_volume` in a fresh process, and the sum of the voxels as a check."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", READ, str(folder), *more], env=environment, capture_output=True, text=True, check=True
    )
    cpu, wall, total = out.stdout.split()
    return float(cpu), float(wall), total


def series_cells(series: Path, arguments: argparse.Namespace) -> tuple[list[str], float]:
    """Return the cells of a series' row and the largest CPU ratio to the readings without a child."""
    here = _ROOT / "src"
    ways: dict[str, tuple[Any, ...]] = {"now": (here,), "without": (here, "in-process")}
    if arguments.before:
        ways["before"] = (arguments.before,)
    runs: dict[str, list[tuple[float, float, str]]] = {way: [] for way in ways}
    for repeat in range(arguments.repeats):
        for way in list(ways)[:: 1 if repeat % 2 else -1]:
            runs[way].append(per_series(series, *ways[way]))
    assert len({total for found in runs.values() for *_, total in found}) == 1
    cpu, wall = ({way: statistics.median(run[i] for run in found) for way, found in runs.items()} for i in (0, 1))
    cells = [f"{cpu['now']:.2f}", f"{wall['now']:.2f}"]
    for way in list(ways)[1:]:
        cells.append(f"{cpu['now'] / cpu[way]:.2f}, {wall['now'] / wall[way]:.2f}")
    return cells, max(cpu["now"] / cpu[way] for way in list(ways)[1:])


def main() -> int:
    """Measure, print and optionally write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--only", default="", help="only syntaxes whose name holds this text")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scan = draw(arguments.slices)
    head = ["syntax", "frame in process, CPU ms", "with the child", "overhead", "series, CPU s", "wall s"]
    head += ["to in process: CPU, wall"] + ["to the older tree: CPU, wall"] * bool(arguments.before)
    lines, good = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)], True
    with tempfile.TemporaryDirectory() as folder:
        for name, syntax in SYNTAXES.items():
            if arguments.only not in name:
                continue
            series = Path(folder) / name.replace(" ", "")
            write(scan, series, syntax)
            cells, ratio = series_cells(series, arguments)
            frame = ["in process", "-", "-"]
            if syntax != RLELossless:
                inside, outside = per_frame(series, arguments.repeats)
                frame = [f"{inside * 1e3:.2f}", f"{outside * 1e3:.2f}", f"{outside / inside - 1:+.1%}"]
                good &= outside / inside - 1 < MOST_OVERHEAD
            good &= ratio <= MOST_RATIO
            lines.append("| " + " | ".join([name, *frame, *cells]) + " |")
            print(lines[-1], flush=True)
            shutil.rmtree(series)
    versions = ", ".join(f"{name} {version(name)}" for name in ("pydicom", "python-gdcm", "pillow", "numpy"))
    command = (
        f"--slices {arguments.slices} --repeats {arguments.repeats}{' --before OLD/src' if arguments.before else ''}"
    )
    text = "\n".join([
        f"# Compressed slices, {date.today()}", "", f"`python benchmarks/compressed_slices.py {command}`", "",
        f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), "
        f"{platform.machine()}. Targets: overhead below 10 %, ratios at most 1.05.", "", *lines, ""])  # fmt: skip
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
