"""Process that reads uploads and prepares them for the model.

A file that ends the process or exhausts its time costs one request, not the server.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmvl.data.read_options import ReadOptions
from medmvl.errors import DataError, MedMVLError
from medmvl.imaging import read_image, read_volume
from medmvl.processing import ImageProcessor, VolumeProcessor
from medmvl.serving.page.study import answer_request
from medmvl.serving.server.unpack import unpack

#: Bytes of a pixel or voxel at most, while a file is decoded.
_VALUE_BYTES = 8


class Preparer:
    """Reads files and prepares them as the model's processor does.

    Args:
        image, volume: settings of the processors; None without a tower.
        pixels, voxels: limits of the size.
        home: folder for temporary files.
    """

    def __init__(
        self, image: dict[str, Any] | None, volume: dict[str, Any] | None, pixels: int, voxels: int, home: str
    ) -> None:
        self._image = ImageProcessor(image) if image else None
        self._volume = VolumeProcessor.from_dict(volume) if volume else None
        self._pixels, self._voxels, self._home = pixels, voxels, home

    def prepare(self, kind: str, data: bytes, path: str | None, read: dict[str, Any]) -> Tensor:
        """Return the tensor (3, H, W) of an image or (C, D, H, W) of a volume.

        Args:
            kind: "image" or "volume".
            data: an uploaded file.
            path: a file or folder instead.
            read: options for reading.

        Raises:
            MedMVLError: if it cannot be read, is too large, or the model has no such tower.
        """
        if path is not None:
            return self._prepare(kind, Path(path), read)
        folder = Path(tempfile.mkdtemp(prefix=f"reader-{os.getpid()}-", dir=self._home))
        try:
            return self._prepare(kind, unpack(data, folder, _VALUE_BYTES * self._voxels), read)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self, kind: str, path: Path, read: dict[str, Any]) -> Tensor:
        options = ReadOptions.parse(read)
        if kind == "image":
            if self._image is None:
                raise DataError("This model has no image tower.")
            image = read_image(path, **options.for_image(), max_bytes=_VALUE_BYTES * self._pixels)
            _check_size(image.shape[0] * image.shape[1], self._pixels, "pixels")
            return self._image(image)
        if self._volume is None:
            raise DataError("This model has no volume tower.")
        volume = read_volume(path, **options.for_volume(), max_bytes=_VALUE_BYTES * self._voxels)
        _check_size(volume.array.size, self._voxels, "voxels")
        return self._volume(volume)


def _check_size(size: int, limit: int, unit: str) -> None:
    if size > limit:
        raise DataError(f"It has {size} {unit}; this server takes at most {limit}.")


def serve_reads(connection: Connection, settings: dict[str, Any]) -> None:
    """Answer requests of the server until it closes the connection.

    A request is a dict (kind, path, read) and the bytes of the file; an answer is a dict with a shape, and float32 values, or a
    dict with an error. A request of the kind "study" comes from the page, see `medmvl.serving.page.study`.
    """
    _be_silent()
    preparer = Preparer(**settings)
    connection.send({"ready": True})
    while True:
        try:
            head, data = connection.recv(), connection.recv_bytes()
        except EOFError:
            return
        answer, values = _answer(preparer, head, data)
        connection.send(answer)
        connection.send_bytes(b"" if values is None else values.numpy().tobytes())


def _answer(preparer: Preparer, head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Tensor | None]:
    try:
        if head["kind"] == "study":
            return answer_request(head), None
        values = preparer.prepare(head["kind"], data, head["path"], head["read"]).contiguous()
    except MedMVLError as error:
        return {"error": str(error)}, None
    except MemoryError:
        return {"error": "Reading it takes more memory than there is."}, None
    except Exception as error:  # readers raise any type for damaged files
        return {"error": f"It cannot be read ({type(error).__name__})."}, None
    return {"shape": list(values.shape)}, values


def _be_silent() -> None:
    """Let no library print, and leave an interrupt from the keyboard to the server."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
