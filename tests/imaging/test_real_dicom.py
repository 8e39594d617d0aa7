"""The scans inside pydicom and pydicom-data are read or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.data import get_testdata_file

from medmvl.errors import ImagingError
from medmvl.imaging import Image, read_image, read_volume

data_store = pytest.importorskip("data_store", reason="pydicom-data is a test dependency")
ROOTS = [Path(pydicom.data.__file__).parent, Path(data_store.__file__).parent / "data"]
FILES = sorted(
    path for root in ROOTS for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
)
#: refused although they have pixels: what no installed decoder reads, and what is damaged
REFUSED_WITH_PIXELS = {
    "JPEG-lossy.dcm": "none of the installed decoders",  # 12-bit JPEG Extended
    "JPGExtended.dcm": "none of the installed decoders",
    "JPEG2000-embedded-sequence-delimiter.dcm": "none of the installed decoders",
    "MR_truncated.dcm": "less than expected",
    "badVR.dcm": "NumberOfFrames is not a number",
    "meta_missing_tsyntax.dcm": "no Rows",
    "nested_priv_SQ.dcm": "no Rows",
}


def read_any_frame(path: Path) -> Image:
    try:
        return read_image(path)
    except ImagingError as error:
        if "Say which one: frame=" not in str(error):
            raise
        return read_image(path, frame=0)


def path_of(name: str) -> Path:
    path = get_testdata_file(name)
    assert isinstance(path, str)
    return Path(path)


def test_every_file_is_read_or_refused() -> None:
    read, refused = 0, {}
    for path in FILES:
        try:
            image = read_any_frame(path)
            if image.array.size < 2**19:  # the large radiographs take most of the time and have tests of their own
                gray = image.to_uint8()
                assert gray.dtype == np.uint8
                assert gray.shape[:2] == image.shape[:2]
                assert image.to_pil().mode == "RGB"
            assert image.array.dtype.isnative
            read += 1
        except ImagingError as error:
            refused[path.name] = str(error) if str(path) in str(error) else "names no file"
    assert read >= 165
    assert not any("\n" in message for message in refused.values())
    for name, words in REFUSED_WITH_PIXELS.items():
        assert words in refused.pop(name, ""), name
    for name, message in refused.items():
        no_pixels = "without pixels" in message
        no_dicom = "not a whole picture file" in message or "is a volume, not an image" in message
        assert no_pixels or no_dicom, f"{name}: {message}"


def test_every_file_is_volume_or_refused() -> None:
    read, messages = [], {}
    for path in (p for p in FILES if p.suffix == ".dcm"):
        try:
            read.append((path.name, read_volume(path)))
        except ImagingError as error:
            messages[path] = str(error)
    assert all(str(path) in message and "\n" not in message for path, message in messages.items())
    assert {name for name, _ in read} >= {"eCT_Supplemental.dcm", "liver.dcm"}
    enhanced = dict(read)["eCT_Supplemental.dcm"]
    assert (enhanced.units, enhanced.orientation, enhanced.shape) == ("HU", "SPL", (2, 512, 512))


def test_enhanced_multi_frame_agrees_with_pydicom() -> None:
    path = path_of("eCT_Supplemental.dcm")
    dataset = pydicom.dcmread(path)
    frames = dataset.PerFrameFunctionalGroupsSequence
    values = []
    for stored, groups in zip(dataset.pixel_array, frames, strict=True):
        item = (groups.get("PixelValueTransformationSequence") or [None])[0] or (
            dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
        )
        values.append(stored.astype(np.float64) * float(item.RescaleSlope) + float(item.RescaleIntercept))
    volume = read_volume(path)
    expected = np.sort(np.stack(values).reshape(2, -1).sum(axis=1))
    np.testing.assert_allclose(np.sort(volume.array.astype(np.float64).reshape(2, -1).sum(axis=1)), expected)


def test_series_with_localizer() -> None:
    folder = ROOTS[0] / "test_files" / "dicomdirtests" / "98892001"
    volume = read_volume(folder)
    assert volume.shape == (5, 16, 16)
    assert any("localizers" in step for step in volume.history)
    one = pydicom.dcmread(sorted((folder / "CT5N").iterdir())[0])
    stored = one.pixel_array.astype(np.int32)
    expected = np.where(stored == one.PixelPaddingValue, -1024, stored + int(one.RescaleIntercept))
    assert any(np.array_equal(plane, expected) for plane in volume.array)


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("SC_rgb_rle.dcm", "SC_rgb.dcm"),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm"),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),
        ("OBXXXX1A_rle.dcm", "OBXXXX1A.dcm"),
        ("693_J2KR.dcm", "693_UNCR.dcm"),
    ],
)
def test_lossless_transfer_syntaxes_agree(compressed: str, plain: str) -> None:
    np.testing.assert_array_equal(read_image(path_of(compressed)).array, read_image(path_of(plain)).array)


def test_ct_slice_in_hounsfield_units() -> None:
    image = read_image(path_of("CT_small.dcm"))
    dataset = pydicom.dcmread(path_of("CT_small.dcm"))
    np.testing.assert_array_equal(image.array, dataset.pixel_array.astype(np.int32) - 1024)
    assert image.units == "HU"
    assert image.spacing == pytest.approx((0.661468, 0.661468))


def test_monochrome1_is_shown_with_low_values_white() -> None:
    image = read_image(path_of("RG1_UNCR.dcm"))
    assert image.inverted
    gray = image.to_uint8()
    low, high = np.percentile(image.array, (5, 95))
    assert gray[image.array <= low].mean() > 200
    assert gray[image.array >= high].mean() < 120  # the file's window is wide


def test_palette_and_ybr_become_rgb() -> None:
    palette = read_image(path_of("examples_palette.dcm"))
    assert palette.array.dtype == np.uint8
    assert palette.array.shape[2] == 3
    assert palette.array.max() > 128  # 16-bit palette entries are not cut to their low byte
    ybr, rgb = read_image(path_of("SC_ybr_full_uncompressed.dcm")), read_image(path_of("SC_rgb.dcm"))
    assert np.abs(ybr.array.astype(int) - rgb.array).max() <= 6  # rounding of 8-bit YBR


def test_window_of_the_file_is_the_standards_formula() -> None:
    image = read_image(path_of("MR_small.dcm"))
    x = image.array.astype(np.float64)
    center, width = 600.0, 1600.0
    expected = np.clip(((x - (center - 0.5)) / (width - 1) + 0.5), 0, 1) * 255
    assert np.abs(image.to_uint8() - expected).max() <= 0.5 + 1e-3


def test_voi_table() -> None:
    path = path_of("vlut_04.dcm")
    image = read_image(path)
    dataset = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_voi_lut(dataset.pixel_array, dataset)
    bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
    assert np.abs(image.to_uint8() - expected / (2**bits - 1) * 255).max() <= 0.5 + 1e-3


def test_frames_must_be_named() -> None:
    path = path_of("examples_ybr_color.dcm")
    with pytest.raises(ImagingError, match=r"holds 30 frames\. Say which one: frame=0 to 29"):
        read_image(path)
    with pytest.raises(ImagingError, match="frame 30 is not among"):
        read_image(path, frame=30)
    assert read_image(path, frame=29).array.shape == (240, 320, 3)
