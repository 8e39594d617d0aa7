"""Uploads as files: formats told by their first bytes, archives that lie."""

from __future__ import annotations

import io
import zipfile

import pytest

from medmvl.errors import ImagingError
from medmvl.serving.server.content import decode_data_uri
from medmvl.serving.server.failures import RequestError
from medmvl.serving.server.unpack import unpack
from serving.live import data_uri


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x93NUMPY...", "upload.npy"),
        (b"\x1f\x8b...", "upload.nii.gz"),
        (b"NRRD0004", "upload.nrrd"),
        (b"ObjectType = Image", "upload.mha"),
        (b"\x89PNG", "upload.bin"),
        (archive(**{"a.npy": b"x"}), "upload.npz"),
        (archive(**{"a.dcm": b"x"}), "series"),
    ],
)
def test_names_follow_from_content(tmp_path, data, name):
    assert unpack(data, tmp_path, 1000).name == name


def test_names_in_an_archive_lead_nowhere(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    folder = unpack(archive(**{"../../evil.dcm": b"a", "/etc/b": b"b", "c/d": b"c"}), inside, 1000)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.dcm")) == [
        f"inside/series/0000{number}.dcm" for number in range(3)
    ]
    assert folder == inside / "series"


def test_archives_that_are_too_large_or_damaged_are_refused(tmp_path):
    with pytest.raises(ImagingError, match="limit"):
        unpack(archive(a=bytes(2000)), tmp_path, 1000)
    with pytest.raises(ImagingError, match="empty"):
        unpack(archive(), tmp_path, 1000)
    whole = bytearray(archive(a=bytes(range(256)) * 3))
    whole[60] ^= 255
    with pytest.raises(ImagingError, match="cannot be read"):
        unpack(bytes(whole), tmp_path, 10_000)
    many = archive(**{str(number): b"" for number in range(5001)})
    with pytest.raises(ImagingError, match="5001 files"):
        unpack(many, tmp_path, 10_000)


def test_data_uris_are_base64_of_any_type():
    assert decode_data_uri(data_uri(b"abc", "application/anything"), "x") == b"abc"
    for wrong in ("data:,abc", "data:;base64", "data:;base64,", "data:;base64,a b", "data:;base64,é"):
        with pytest.raises(RequestError):
            decode_data_uri(wrong, "x")
