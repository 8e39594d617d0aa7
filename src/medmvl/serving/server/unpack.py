"""Uploaded bytes as files that the readers of images and volumes open, told by their content."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import IO

from medmvl.errors import ImagingError
from medmvl.imaging.limits import check_bytes, check_ratio

#: First bytes -> suffix by which the readers know formats that look alike.
_SUFFIXES = (
    (b"\x93NUMPY", ".npy"),
    (b"\x1f\x8b", ".nii.gz"),
    (b"NRRD", ".nrrd"),
    (b"ObjectType", ".mha"),
)
#: Files of one series.
_MOST_FILES = 5000


def unpack(data: bytes, folder: Path, max_bytes: int) -> Path:
    """Write an upload into an empty folder; returns the file, or the folder of a DICOM series.

    Args:
        data: NIfTI, npy, npz, NRRD, MHA, DICOM, a picture, or a zip archive of a DICOM series.
        folder: private to this upload.
        max_bytes: largest size of what an archive holds.

    Raises:
        ImagingError: if an archive is damaged, too large, or holds no DICOM files.
    """
    if data[:2] == b"PK":
        return _unpack_archive(data, folder, max_bytes)
    path = folder / f"upload{suffix_of(data[:16]) or '.bin'}"
    path.write_bytes(data)
    return path


def suffix_of(head: bytes) -> str | None:
    """Return the suffix by which the readers know a format that looks like another, from a file's first bytes."""
    return next((suffix for beginning, suffix in _SUFFIXES if head.startswith(beginning)), None)


def extract(archive: Path | IO[bytes], target: Path, max_bytes: int) -> list[Path]:
    """Write the files of a zip archive into a new folder as 00000.dcm, 00001.dcm, ..., and return them.

    Raises:
        ImagingError: if the archive is damaged or too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check_members(members, max_bytes)
            target.mkdir()
            written = []
            for number, member in enumerate(members):
                # Names in an archive may lead anywhere; they are not used.
                written.append(target / f"{number:05d}.dcm")
                written[-1].write_bytes(_content(opened, member))
            return written
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _unreadable(error) from None


def _unpack_archive(data: bytes, folder: Path, max_bytes: int) -> Path:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise _unreadable(error) from None
    if members and all(member.filename.endswith(".npy") for member in members):
        path = folder / "upload.npz"
        path.write_bytes(data)
        return path
    target = folder / "series"
    extract(io.BytesIO(data), target, max_bytes)
    return target


def _unreadable(error: Exception) -> ImagingError:
    return ImagingError(f"The zip archive cannot be read: {type(error).__name__}.")


def _check_members(members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not members:
        raise ImagingError("The zip archive is empty. Send the files of one DICOM series.")
    if len(members) > _MOST_FILES:
        raise ImagingError(f"The zip archive holds {len(members)} files; a series has at most {_MOST_FILES} here.")
    wanted = sum(member.file_size for member in members)
    check_bytes(wanted, "The zip archive", max_bytes)
    check_ratio(wanted, sum(member.compress_size for member in members), "The zip archive")


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a member's bytes, no more than its header states."""
    with archive.open(member) as handle:
        content = handle.read(member.file_size + 1)
    if len(content) > member.file_size:
        raise ImagingError("The zip archive holds more than it states.")
    return content
