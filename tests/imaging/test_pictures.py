"""Picture files whose values Pillow alone would change: TIFF types, WhiteIsZero, MPF, EXIF orientation, transparency."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medmvl.errors import ImagingError
from medmvl.imaging import read_image
from medmvl.imaging.metadata import RescaleTable


def write_tiff(path: Path, values: np.ndarray, photometric: int) -> Path:
    """Write an uncompressed gray TIFF of any number type (TIFF 6.0), little endian, in one strip."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, values.dtype.itemsize * 8), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(pixels)), (339, 3, kind),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in entries)
    padding = b"\0" * (len(pixels) % 2)
    at = 8 + len(pixels) + len(padding)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, at) + pixels + padding + struct.pack("<H", len(entries)) + directory + b"\0" * 4
    )
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
def test_tiff_values_of_every_type(dtype: str, tmp_path: Path) -> None:
    values = np.arange(48).reshape(6, 8).astype(dtype)
    limits = (-5.5, 1e6) if dtype == "f4" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values[0, :2] = limits
    np.testing.assert_array_equal(read_image(write_tiff(tmp_path / "p.tif", values, 1)).array, values)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4"])
def test_white_is_zero_is_shown_inverted(dtype: str, tmp_path: Path) -> None:
    rising = np.tile(np.linspace(0, 0.999 * np.iinfo(dtype).max, 16).astype(dtype), (4, 1))
    gray = read_image(write_tiff(tmp_path / "p.tif", rising, 0)).to_uint8()[0]
    assert gray[0] == 255
    assert gray[-1] <= 1
    assert (np.diff(gray.astype(int)) < 0).all()


def test_float64_tiff_is_rounded_to_single_precision(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12).reshape(3, 4)
    image = read_image(write_tiff(tmp_path / "p.tif", values, 1))
    np.testing.assert_array_equal(image.array, values.astype(np.float32))
    assert any("rounded to float32" in step for step in image.history)
    values[0, 0] = 1e300
    with pytest.raises(ImagingError, match="beyond single precision"):
        read_image(write_tiff(tmp_path / "p.tif", values, 1))


def test_first_picture_of_mpf_file_is_read(tmp_path: Path) -> None:
    large = PIL.Image.new("RGB", (64, 64), (180, 60, 40))
    large.save(tmp_path / "p.jpg", format="MPO", save_all=True, append_images=[large.resize((16, 16))])
    image = read_image(tmp_path / "p.jpg")
    assert image.shape == (64, 64, 3)
    assert image.source == "jpeg"
    assert read_image(tmp_path / "p.jpg", frame=1).shape == (16, 16, 3)


def test_exif_orientation_is_not_applied_and_warned_of(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (30, 20)).save(tmp_path / "p.jpg", exif=exif)
    image = read_image(tmp_path / "p.jpg")
    assert image.shape == (20, 30, 3)
    assert image.warnings == ("EXIF orientation 6 not applied",)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_not_applied_and_warned_of(mode: str, tmp_path: Path) -> None:
    picture = PIL.Image.new(mode, (5, 4), (200, 30, 30, 0) if mode == "RGBA" else (200, 0))
    picture.save(tmp_path / "clear.png")
    picture.putalpha(255)
    picture.save(tmp_path / "opaque.png")
    image = read_image(tmp_path / "clear.png")
    assert image.array[0, 0, 0] == 200
    assert any("transparency not applied" in warning for warning in image.warnings)
    assert not read_image(tmp_path / "opaque.png").warnings


def test_small_file_with_a_huge_picture_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("1", (12_000, 12_000)).save(tmp_path / "p.png", optimize=True)
    with pytest.raises(ImagingError, match="more than 1100 times"):
        read_image(tmp_path / "p.png")


@pytest.mark.parametrize("limit", ["4 GiB", "-1", "0", "1e9"])
def test_limit_that_is_no_number_is_an_error(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("L", (4, 4)).save(tmp_path / "p.png")
    monkeypatch.setenv("MEDMVL_MAX_BYTES", limit)
    with pytest.raises(ImagingError, match="MEDMVL_MAX_BYTES must be a number"):
        read_image(tmp_path / "p.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_metadata_table_saved_by_a_spreadsheet(delimiter: str, encoding: str, tmp_path: Path) -> None:
    header = "VolumeName,RescaleSlope,RescaleIntercept,XYSpacing,ZSpacing".replace(",", delimiter)
    row = delimiter.join(["v_1.nii.gz", "1.0", "-8192.0", '"[0.7, 0.7]"', "1.5"])
    (tmp_path / "m.csv").write_text(f"{header}\n{row}\n", encoding=encoding)
    options = RescaleTable(tmp_path / "m.csv").options("v_1.nii.gz")
    assert options == {"slope": 1.0, "intercept": -8192.0, "spacing": (1.5, 0.7, 0.7)}


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_of_a_tiff_is_not_applied(tmp_path: Path, dtype: type, orientation: int) -> None:
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    for name, compression in (("raw", "raw"), ("lzw", "tiff_lzw")):
        path = tmp_path / f"{name}.tif"
        PIL.Image.fromarray(values).save(path, tiffinfo={274: orientation}, compression=compression)
        image = read_image(path)
        assert np.array_equal(image.array, values)
        assert image.warnings == (f"EXIF orientation {orientation} not applied",)


def test_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (20, 20)).astype(np.uint8)
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") + 30] ^= 4
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImagingError, match=r"a\.png .*(checksum|broken)"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("maxval", [1, 100, 255, 256, 1023, 4095, 65535])
def test_gray_values_of_pgm_are_the_stored_ones(tmp_path, maxval, plain):
    stored = np.random.default_rng(maxval).integers(0, maxval + 1, (5, 7))
    stored[0, :2] = 0, maxval
    if plain:
        content = f"P2\n# made by code\n7 5\n{maxval}\n{' '.join(map(str, stored.ravel()))}\n".encode()
    else:
        content = f"P5 7 5 {maxval}\n".encode() + stored.astype(">u2" if maxval > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(content)
    image = read_image(tmp_path / "a.pgm")
    np.testing.assert_array_equal(image.array, stored)
    np.testing.assert_allclose(image.to_uint8(), stored * 255 / maxval, atol=0.51)


def test_colors_of_ppm_are_stretched_to_white(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 100\n" + bytes([100, 50, 0, 0, 20, 100]))
    image = read_image(tmp_path / "a.ppm")
    assert image.array.tolist() == [[[255, 128, 0], [0, 51, 255]]]
    assert "colors stretched from 0 to 100 to 0 to 255" in image.history


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5 2 1 100\n\x64\x65", "above its maxval of 100"),
        (b"P5 2 1 255\n\x01\x02" * 2, "several pictures"),
        (b"P6 1 1 255\n\x01\x02\x03\n" * 2, "several pictures"),
        (b"P5 2 1 4095\n\x01\x02\x01\x02" * 2, "several pictures"),
        (b"P2 2 1 100\n1 101\n", "above its maxval"),
        (b"P2 2 1 4095\n1 65536\n", "too large"),
        (b"P5 2 1 100\n\x01", "not a whole picture"),
    ],
)
def test_pgm_that_is_not_one_picture_is_refused(tmp_path, content, message):
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(ImagingError, match=message):
        read_image(tmp_path / "a.pgm")


def write_png(path: Path, color_type: int, values: np.ndarray) -> Path:
    """Write a 16-bit PNG of values (H, W, samples) of any color type (PNG, sections 5 and 11)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def test_deep_values_of_a_png_are_kept_reported_or_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 4)).astype(np.uint16)
    gray = read_image(write_png(tmp_path / "gray.png", 0, values[..., :1]))
    np.testing.assert_array_equal(gray.array, values[..., 0])
    for name, color_type, samples in (("rgb.png", 2, 3), ("rgba.png", 6, 4)):
        image = read_image(write_png(tmp_path / name, color_type, values[..., :samples]))
        assert "16-bit values reduced to 8 bits" in image.warnings
    with pytest.raises(ImagingError, match="16-bit gray with transparency"):
        read_image(write_png(tmp_path / "alpha.png", 4, values[..., :2]))


def test_signed_jpeg2000_is_refused(tmp_path: Path) -> None:
    """Pillow would add half of the range to its values."""
    path = tmp_path / "a.jp2"
    values = np.random.default_rng(0).integers(0, 65536, (12, 15)).astype(np.uint16)
    PIL.Image.fromarray(values).save(path, irreversible=False)
    np.testing.assert_array_equal(read_image(path).array, values)
    content = bytearray(path.read_bytes())
    content[content.find(b"\xff\x4f\xff\x51") + 42] |= 0x80  # Ssiz (ISO 15444-1, A.5.1)
    path.write_bytes(content)
    with pytest.raises(ImagingError, match="signed values"):
        read_image(path)
