"""Uploaded volumes: vLLM's videos, kept as bytes until our processor reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medmvl.data.read_options import ReadOptions
from medmvl.errors import DataError

#: Options of vLLM's readers of videos, which say nothing about volumes.
_OF_VIDEOS = {"num_frames", "fps", "max_duration", "frame_recovery", "backend"}


@dataclass(frozen=True)
class Upload:
    """A file that came over HTTP.

    Attributes:
        data: its bytes; the content decides what it is.
        read: options for reading, as in records.
    """

    data: bytes
    read: dict[str, Any] = field(default_factory=dict)


class UploadLoader:
    """Reader of videos in vLLM's registry: keeps the bytes, since the checkpoint's processor is not known here."""

    @classmethod
    def load_bytes(cls, data: bytes, num_frames: int = -1, **options: Any) -> Upload:
        """Return an upload.

        Args:
            data: NIfTI, npz, a zipped DICOM series, ...
            num_frames: of vLLM; a volume is not sampled.
            options: `media_io_kwargs` of the request for videos: reading options such as `units`.

        Raises:
            ValueError: for an unknown option.
        """
        read = {name: value for name, value in options.items() if name not in _OF_VIDEOS}
        try:
            ReadOptions.parse(read, "media_io_kwargs.video")
        except DataError as error:
            raise ValueError(str(error)) from None
        return Upload(data, read)
