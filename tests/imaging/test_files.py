"""Reading and refusal of NIfTI files, numpy arrays and pictures."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from imaging.dicom_writing import random_hu, write_series
from medmvl.errors import ImagingError
from medmvl.imaging import Volume, Window, read_image, read_volume
from medmvl.imaging.units import UnitsError

AFFINE = np.diag([-0.7, -0.8, 2.0, 1.0])  # x to the left, y to the back: no flip on the way to SPL


def write_nifti(
    path: Path, zyx: np.ndarray, *, slope: float = 1.0, inter: float = 0.0, affine: np.ndarray = AFFINE
) -> Path:
    image = nib.Nifti1Image(zyx.T, affine)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


def raw_nifti(path: Path, stored: np.ndarray, slope: float, inter: float) -> Path:
    """A file whose stored integers and scl fields are exactly these (nibabel would rescale on saving)."""
    image = nib.Nifti1Image(stored.T, AFFINE)
    header = image.header
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = slope, inter, 352, b"n+1"
    path.write_bytes(header.binaryblock + b"\0" * 4 + stored.tobytes())
    return path


# --- NIfTI


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_nifti_round_trip(name: str, tmp_path: Path) -> None:
    hu = random_hu()
    volume = read_volume(write_nifti(tmp_path / name, hu))
    np.testing.assert_array_equal(volume.array, hu)
    assert (volume.units, volume.array.dtype) == ("HU", np.int16)
    assert volume.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert "HU" in repr(volume)
    assert "2x0.8x0.7 mm" in repr(volume)


def test_uncompressed_nifti_and_npy_are_memory_mapped(tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii", random_hu())
    np.save(tmp_path / "v.npy", random_hu())
    for name in ("v.nii", "v.npy"):
        base = read_volume(tmp_path / name).array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap), name


def test_header_slope_is_applied_once(tmp_path: Path) -> None:
    stored = np.arange(0, 4000, 16, dtype=np.int16).reshape(10, 5, 5)
    whole = read_volume(raw_nifti(tmp_path / "a.nii", stored, 1.0, -1024.0))
    np.testing.assert_array_equal(whole.array, stored - 1024)
    assert whole.array.dtype == np.int16
    part = read_volume(raw_nifti(tmp_path / "b.nii", stored, 0.5, -1024.0))
    np.testing.assert_allclose(part.array, stored * 0.5 - 1024)
    none = read_volume(raw_nifti(tmp_path / "c.nii", stored - 1024, 0.0, 7.0))  # slope 0 means "no scaling"
    np.testing.assert_array_equal(none.array, stored - 1024)


def test_ct_rate_rescale_is_applied_once(tmp_path: Path) -> None:
    hu = random_hu()
    raw = write_nifti(tmp_path / "raw.nii.gz", (hu.astype(np.int32) + 1024).astype(np.int16))
    with pytest.raises(UnitsError, match="slope=.*CT-RATE"):
        read_volume(raw)  # 0..2524 may be anything
    volume = read_volume(raw, slope=1.0, intercept=-1024.0)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.units == "HU"

    fixed = write_nifti(tmp_path / "fixed.nii.gz", hu)
    with pytest.raises(ImagingError, match="already reach down to -1024.*already_rescaled"):
        read_volume(fixed, slope=1.0, intercept=-1024.0)
    np.testing.assert_array_equal(read_volume(fixed, slope=1.0, intercept=-1024.0, already_rescaled=True).array, hu)
    forced = read_volume(fixed, slope=1.0, intercept=-1024.0, already_rescaled=False)
    np.testing.assert_array_equal(forced.array, hu.astype(np.int32) - 1024)


def test_unsigned_nifti_with_negative_intercept_does_not_wrap(tmp_path: Path) -> None:
    stored = np.array([0, 1000, 4000] * 9, dtype=np.uint16).reshape(3, 3, 3)
    volume = read_volume(write_nifti(tmp_path / "v.nii.gz", stored), slope=1.0, intercept=-1024.0)
    assert volume.array.min() == -1024


def test_units_are_asked_for_and_taken(tmp_path: Path) -> None:
    mr = write_nifti(tmp_path / "mr.nii.gz", random_hu() + 1024)
    with pytest.raises(UnitsError, match="units='arbitrary'"):
        read_volume(mr)
    assert read_volume(mr, units="arbitrary").units == "arbitrary"
    assert read_volume(mr, units="HU").units == "HU"
    with pytest.raises(ImagingError, match="Units 'hu'"):
        read_volume(mr, units="hu")  # type: ignore[arg-type]
    picture = write_nifti(tmp_path / "8bit.nii.gz", (random_hu() % 256).astype(np.uint8))
    assert read_volume(picture).units == "arbitrary"


def test_spacing_can_be_corrected(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", random_hu(), affine=np.diag([-0.7, -0.8, 500.0, 1.0]))
    with pytest.raises(ImagingError, match="spacing="):
        read_volume(path)
    assert read_volume(path, spacing=(1.5, 0.8, 0.7)).spacing == pytest.approx((1.5, 0.8, 0.7))
    with pytest.raises(ImagingError, match="cannot be right"):
        read_volume(path, spacing=(0.0, 1.0, 1.0))


def damaged(path: Path, **fields: object) -> Path:
    """Set raw header fields of an uncompressed file."""
    raw = path.read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + raw[348:])
    return path


def test_spacing_of_zero_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", random_hu())
    damaged(path, pixdim=[1, 0, 0.8, 2, 0, 0, 0, 0], sform_code=0, qform_code=0)
    with pytest.raises(ImagingError, match="no usable voxel size"):
        read_volume(path)
    volume = read_volume(path, spacing=(2.0, 0.8, 0.7))
    assert volume.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert not volume.sides_known


def test_sform_and_qform_that_disagree(tmp_path: Path) -> None:
    hu = random_hu()
    path = write_nifti(tmp_path / "v.nii.gz", hu)
    image = nib.load(path)
    image.set_sform(AFFINE, code=1)
    image.set_qform(np.diag([-0.7, -0.8, 5.0, 1.0]), code=1)  # the same sides, another spacing
    nib.save(image, tmp_path / "spacing.nii.gz")
    volume = read_volume(tmp_path / "spacing.nii.gz")
    assert volume.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert any("other voxel sizes, 2x0.8x0.7 and 5x0.8x0.7" in warning for warning in volume.warnings)
    image.set_qform(np.diag([0.7, -0.8, 2.0, 1.0]), code=1)  # left and right changed places
    nib.save(image, tmp_path / "sides.nii.gz")
    with pytest.raises(ImagingError, match="LPS and RPS.*orientation='SPL' or orientation='SPR'"):
        read_volume(tmp_path / "sides.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "sides.nii.gz", orientation="SPL").array, hu)
    mirrored = read_volume(tmp_path / "sides.nii.gz", orientation="SPR")
    np.testing.assert_array_equal(mirrored.array, hu[:, :, ::-1])
    assert mirrored.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert mirrored.sides_known


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vox_offset": 0}, "begin at byte 0"),
        ({"vox_offset": 1e30}, "cannot be right"),
        ({"vox_offset": np.nan}, "not a whole NIfTI"),
        ({"datatype": 9999}, "data type 9999"),
        ({"dim": [3, -5, 10, 10, 1, 1, 1, 1]}, "three axes"),
        ({"dim": [0, 5, 10, 10, 1, 1, 1, 1]}, "three axes"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "no usable voxel size"),
        ({"srow_x": [0, 0.8, 0, 0]}, "no usable voxel size"),  # two axes the same way
        ({"srow_z": [0, 0, 0, 0]}, "no usable voxel size"),
        ({"srow_x": [-700, 0, 0, 0]}, "cannot be right"),
        ({"xyzt_units": 1}, "cannot be right"),  # meters
    ],
)
def test_damaged_headers(fields: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = damaged(write_nifti(tmp_path / "v.nii", random_hu()), **fields)
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, tmp_path / "v.nii.gz"):
        with pytest.raises(ImagingError, match=words):
            read_volume(file)
    assert capsys.readouterr() == ("", "")  # nibabel's remarks are held back


def test_units_of_no_meaning_are_millimetres(tmp_path: Path) -> None:
    path = damaged(write_nifti(tmp_path / "v.nii", random_hu()), xyzt_units=7)
    assert read_volume(path).spacing == pytest.approx((2.0, 0.8, 0.7))
    path = damaged(write_nifti(tmp_path / "v.nii", random_hu(), affine=AFFINE * 1000), xyzt_units=3 + 8)  # micron, s
    assert read_volume(path).spacing == pytest.approx((2.0, 0.8, 0.7))


def test_four_axes(tmp_path: Path) -> None:
    hu = random_hu()
    nib.save(nib.Nifti1Image(hu.T[..., None], AFFINE), tmp_path / "one.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "one.nii.gz").array, hu)
    nib.save(nib.Nifti1Image(np.stack([hu.T, hu.T], -1), AFFINE), tmp_path / "two.nii.gz")
    with pytest.raises(ImagingError, match="three axes"):
        read_volume(tmp_path / "two.nii.gz")


def test_truncated_and_foreign_nifti(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", random_hu((20, 30, 30)))
    whole = path.read_bytes()
    for name, content in {
        "half.nii.gz": whole[: len(whole) // 2],
        "head.nii.gz": gzip.compress(gzip.decompress(whole)[:200]),
        "short.nii.gz": gzip.compress(gzip.decompress(whole)[:-100]),
        "crc.nii.gz": whole[:-8] + b"\0" * 8,
        "text.nii.gz": gzip.compress(b"hello, this is a letter and not a scan" * 20),
        "short.nii": gzip.decompress(whole)[:-100],
        "empty.nii": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImagingError, match=name.replace(".", r"\.")) as caught:
            read_volume(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 30_000))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 4))
    with pytest.raises(ImagingError, match="MEDMVL_MAX_BYTES"):
        read_volume(tmp_path / "huge.nii.gz")
    header.set_data_shape((800, 800, 800))  # below the limit, but more than these bytes can hold
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 4))
    with pytest.raises(ImagingError, match="promises"):
        read_volume(tmp_path / "lie.nii.gz")


def test_nan_and_infinity_are_counted(tmp_path: Path) -> None:
    values = random_hu().astype(np.float32)
    values[0, 1, 2], values[3, 4, 5] = np.nan, np.inf
    np.save(tmp_path / "v.npy", values)
    write_nifti(tmp_path / "v.nii.gz", values)
    for name in ("v.npy", "v.nii.gz"):
        with pytest.raises(ImagingError, match="holds 2 NaN or infinite values"):
            read_volume(tmp_path / name)


# --- arrays


def test_npy_units(tmp_path: Path) -> None:
    np.save(tmp_path / "hu.npy", random_hu())
    np.save(tmp_path / "unit.npy", np.random.default_rng(0).random((3, 4, 5), dtype=np.float32))
    np.save(tmp_path / "unclear.npy", random_hu() + 1024)
    assert read_volume(tmp_path / "hu.npy").units == "HU"
    assert read_volume(tmp_path / "unit.npy").units == "arbitrary"
    with pytest.raises(UnitsError, match=r"unclear\.npy"):
        read_volume(tmp_path / "unclear.npy")
    with pytest.raises(ImagingError, match="slope= has no meaning"):
        read_volume(tmp_path / "hu.npy", slope=2.0)


def test_bad_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "plane.npy", np.zeros((4, 5)))
    np.save(tmp_path / "complex.npy", np.zeros((2, 4, 5), dtype=complex))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 5)))
    np.savez(tmp_path / "two.npz", a=random_hu(), b=random_hu())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "plane.npy").read_bytes()[:140])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:300])
    for name in ("objects.npy", "plane.npy", "complex.npy", "empty.npy", "two.npz", "cut.npy", "cut.npz"):
        with pytest.raises(ImagingError, match=name.replace(".", r"\.")):
            read_volume(tmp_path / name)


def test_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "v.npz", arr=random_hu())
    np.testing.assert_array_equal(read_volume(tmp_path / "v.npz").array, random_hu())
    with pytest.raises(ImagingError, match="limit"):
        read_volume(tmp_path / "v.npz", max_bytes=100)


def test_from_array_refuses_what_is_no_volume() -> None:
    with pytest.raises(ImagingError, match="three axes"):
        Volume.from_array(np.zeros((2, 3, 4, 5)), units="HU")
    with pytest.raises(ImagingError, match="empty"):
        Volume.from_array(np.zeros((0, 4, 5)), units="HU")
    with pytest.raises(ImagingError, match="cannot be right"):
        Volume.from_array(np.zeros((2, 4, 5)), units="HU", spacing=(1, -1, 1))
    with pytest.raises(ImagingError, match="real numbers"):
        Volume.from_array(np.zeros((2, 4, 5), dtype="U3"), units="HU")


# --- pictures


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_equal_pillow(suffix: str, mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).convert(mode).save(tmp_path / f"p.{suffix}")
    with PIL.Image.open(tmp_path / f"p.{suffix}") as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"p.{suffix}").to_pil()), expected)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "CMYK"])
def test_other_modes_become_rgb_as_pillow_does(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    path = tmp_path / "p.tiff"
    PIL.Image.fromarray(pixels).convert(mode).save(path)
    with PIL.Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(path).to_pil()), expected)


def test_deep_gray_keeps_its_depth(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)
    PIL.Image.fromarray(values).save(tmp_path / "p.png")
    image = read_image(tmp_path / "p.png")
    np.testing.assert_array_equal(image.array, values)
    assert image.array.dtype == np.uint16
    assert image.to_uint8().tolist() == [[0, 64], [128, 255]]
    assert image.to_uint8(Window(2000, 2000)).tolist() == [[0, 0], [128, 255]]


def test_multi_page_tiff(tmp_path: Path) -> None:
    pages = [PIL.Image.fromarray(np.full((4, 5), 40 * i, dtype=np.uint8)) for i in range(3)]
    pages[0].save(tmp_path / "p.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(ImagingError, match="holds 3 frames"):
        read_image(tmp_path / "p.tiff")
    assert read_image(tmp_path / "p.tiff", frame=2).array.max() == 80


def test_bad_pictures(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "p.png")
    whole = (tmp_path / "p.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    bomb = whole[:16] + struct.pack(">II", 60_000, 60_000) + whole[24:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    for name in ("cut.png", "text.jpg", "empty.png", "bomb.png", "absent.png"):
        with pytest.raises(ImagingError, match=name.replace(".", r"\.")) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImagingError, match="folder"):
        read_image(tmp_path)


def test_image_and_volume_readers_point_to_each_other(tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii.gz", random_hu())
    PIL.Image.new("L", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(ImagingError, match="read_volume"):
        read_image(tmp_path / "v.nii.gz")
    with pytest.raises(ImagingError, match="not a volume"):
        read_volume(tmp_path / "p.png")


def test_array_images(tmp_path: Path) -> None:
    np.save(tmp_path / "gray.npy", np.arange(12, dtype=np.int16).reshape(3, 4))
    np.save(tmp_path / "rgb.npy", np.zeros((3, 4, 3), dtype=np.uint8))
    np.save(tmp_path / "stack.npy", np.zeros((5, 3, 4)))
    assert read_image(tmp_path / "gray.npy").to_uint8().max() == 255
    assert read_image(tmp_path / "rgb.npy").shape == (3, 4, 3)
    with pytest.raises(ImagingError, match=r"stack\.npy"):
        read_image(tmp_path / "stack.npy")


def test_sigmoid_window() -> None:
    window = Window(40, 400, "SIGMOID")
    assert window.unit(np.array([40.0]))[0] == pytest.approx(0.5)
    assert window.unit(np.array([140.0]))[0] == pytest.approx(1 / (1 + np.exp(-1.0)))
    with pytest.raises(ValueError, match="width 0"):
        Window(40, 0)


def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Files with random bytes among the first 3000 are read or refused in one sentence."""
    write_nifti(tmp_path / "a.nii", random_hu())
    write_nifti(tmp_path / "b.nii.gz", random_hu())
    np.save(tmp_path / "c.npy", random_hu())
    np.savez_compressed(tmp_path / "d.npz", random_hu())
    PIL.Image.fromarray((random_hu()[0] % 256).astype(np.uint8)).save(tmp_path / "e.tiff")
    write_series(tmp_path / "f", random_hu(), shuffle=False)
    rng = np.random.default_rng(0)
    for original in ("a.nii", "b.nii.gz", "c.npy", "d.npz", "e.tiff", "f/0002.dcm"):
        path = tmp_path / original
        whole = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 3000), 4):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                read_image(path) if original == "e.tiff" else read_volume(path.parent if "/" in original else path)
            except ImagingError as error:
                message = str(error)
            else:
                message = ""
            assert "\n" not in message
        path.write_bytes(whole)


@pytest.mark.parametrize("suffix", ["npy", "nii"])
def test_only_remedies_that_the_file_takes_are_advised(tmp_path, suffix):
    values = np.random.default_rng(0).integers(0, 900, (8, 8, 8)).astype(np.int16)
    path = tmp_path / f"a.{suffix}"
    np.save(path, values) if suffix == "npy" else nib.save(nib.Nifti1Image(values, np.diag([-1, -1, 1, 1])), path)
    with pytest.raises(UnitsError, match="units='HU'") as caught:
        read_volume(path)
    assert ("slope=" in str(caught.value)) == (suffix == "nii")


def test_infinite_slope_of_a_nifti_header_is_refused(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([-1, -1, 1, 1])), path)
    content = bytearray(path.read_bytes())
    content[112:116] = struct.pack("<f", float("inf"))
    path.write_bytes(content)
    with pytest.raises(ImagingError, match="scl_slope inf"):
        read_volume(path, units="HU")


def test_gzip_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", random_hu())
    whole = gzip.decompress(path.read_bytes())
    for more in (b"", b"\0" * 16):
        packed = bytearray(gzip.compress(whole + more))
        path.write_bytes(packed)
        read_volume(path)
        packed[-6] ^= 1
        path.write_bytes(packed)
        with pytest.raises(ImagingError, match=r"v\.nii\.gz .*CRC"):
            read_volume(path)


def test_second_array_in_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as handle:
        np.save(handle, random_hu())
        np.save(handle, random_hu())
    with pytest.raises(ImagingError, match="bytes after its array"):
        read_volume(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_beyond_the_shape_of_a_nifti_header_are_refused(tmp_path: Path, name: str) -> None:
    content = nib.Nifti1Image(random_hu(), np.eye(4)).to_bytes()
    for surplus, refused in ((b"\0" * 10, False), (random_hu()[0].tobytes(), True), (random_hu().tobytes(), True)):
        data = content + surplus
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        if refused:
            with pytest.raises(ImagingError, match="the shape in its header is wrong"):
                read_volume(tmp_path / name)
        else:
            assert read_volume(tmp_path / name).shape == (12, 10, 6)


@pytest.mark.parametrize("kind", ["uint16 nifti", "int32 nifti", "float32 nifti", "int32 npy", "int32 mha"])
def test_values_that_no_scanner_makes_are_not_taken_for_hounsfield_units(kind: str, tmp_path: Path) -> None:
    """Two's complement read as unsigned: air in some places, 64536 in others."""
    wrapped = random_hu().astype(np.int32)
    wrapped[1] = 64536
    dtype, form = kind.split()
    path = tmp_path / {"nifti": "v.nii", "npy": "v.npy", "mha": "v.mha"}[form]
    if form == "npy":
        np.save(path, wrapped)
    elif form == "mha":
        sitk = pytest.importorskip("SimpleITK", reason="the extra itk")
        sitk.WriteImage(sitk.GetImageFromArray(wrapped), str(path))
    elif dtype == "uint16":
        raw_nifti(path, (wrapped + 1024).clip(0, 65535).astype(np.uint16), 1, -1024)
    else:
        raw_nifti(path, wrapped.astype(dtype), 1, 0)
    with pytest.raises(UnitsError, match="64"):
        read_volume(path)
    assert read_volume(path, units="HU").units == "HU"


@pytest.mark.parametrize(("low", "high"), [(-150, 300), (0, 300), (-1024, 1500)])
def test_hounsfield_units_are_not_rescaled_again(low: int, high: int, tmp_path: Path) -> None:
    """A volume of CT-RATE that is in HU already, cropped to a window or not, with the row of its metadata table."""
    hu = np.clip(random_hu(), low, high).astype(np.int16)
    hu[0, 0, :2] = low, high
    path = write_nifti(tmp_path / "v.nii", hu)
    with pytest.raises(ImagingError, match="already_rescaled=True"):
        read_volume(path, slope=1, intercept=-1024)
    kept = read_volume(path, slope=1, intercept=-1024, already_rescaled=True)
    np.testing.assert_array_equal(kept.array, hu)


@pytest.mark.parametrize("slope", [0, np.nan])
def test_half_a_rescale_in_a_nifti_header_has_a_warning(slope: float, tmp_path: Path) -> None:
    path = raw_nifti(tmp_path / "v.nii", random_hu(), slope, -1024)
    assert any("scl_inter -1024 of the header not applied" in warning for warning in read_volume(path).warnings)
    assert read_volume(raw_nifti(tmp_path / "w.nii", random_hu(), slope, 0)).warnings == ()


def test_negative_slope_in_a_nifti_header_has_a_warning(tmp_path: Path) -> None:
    volume = read_volume(raw_nifti(tmp_path / "v.nii", random_hu(), -1, 0))
    np.testing.assert_array_equal(volume.array, -random_hu().astype(np.int32))
    assert any("slope is negative" in warning for warning in volume.warnings)


@pytest.mark.parametrize(
    "options",
    [{"slope": "1"}, {"intercept": True}, {"already_rescaled": "no"}, {"series": 3}, {"max_bytes": "8 GB"}],
)
def test_arguments_of_another_kind_are_one_sentence(options: dict[str, object], tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", random_hu())
    with pytest.raises(ImagingError, match=f"{next(iter(options))} must be"):
        read_volume(path, **options)  # type: ignore[arg-type]
