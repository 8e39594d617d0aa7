"""Compressed frames are decoded in a child process: damage, crashes, time limits, and what messages may show."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, RLELossless

from imaging.dicom_writing import random_hu, slice_dataset, write_series
from imaging.test_stored_values import compressed, jpeg2000
from medmvl.errors import ImagingError
from medmvl.imaging import read_image, read_volume
from medmvl.imaging.decoder import DECODER, Decoder, DecoderError

OPTIONS = {
    "rows": 10, "columns": 12, "samples_per_pixel": 1, "bits_allocated": 16, "bits_stored": 16,
    "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2",
}  # fmt: skip


def outcome(path: Path) -> str:
    try:
        read_image(path)
    except ImagingError as error:
        return str(error)
    return "read"


def stored() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (10, 12)).astype(np.uint16)


def test_frames_of_one_child_equal_pydicoms() -> None:
    decoder = Decoder()
    for _ in range(3):
        got = decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS)
        np.testing.assert_array_equal(got, stored())
    decoder.close()


@pytest.mark.parametrize(
    "way", ["no shared memory", "frame larger than the shared memory", "pixels larger than stated"]
)
def test_pixels_that_go_through_pipes_are_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no shared memory":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr("medmvl.imaging.decoder._SHARED_BYTES", 4096)
    large = np.random.default_rng(0).integers(0, 4000, (50, 60)).astype(np.uint16)
    decoder = Decoder()
    for values in (stored(), large, stored()):
        options = {**OPTIONS, "rows": values.shape[0], "columns": values.shape[1]}
        size = 1 if way == "pixels larger than stated" else values.nbytes
        np.testing.assert_array_equal(decoder.decode(JPEG2000Lossless, jpeg2000(values), size, options), values)
    assert (decoder._shared is None) == (way == "no shared memory")
    decoder.close()


def test_returned_pixels_are_not_overwritten_by_the_next_frame() -> None:
    decoder = Decoder()
    first = decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS)
    decoder.decode(JPEG2000Lossless, jpeg2000(stored() + 1), 240, OPTIONS)
    np.testing.assert_array_equal(first, stored())
    decoder.close()


def test_a_dead_child_is_replaced() -> None:
    decoder = Decoder()
    decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS)
    child = decoder._child
    assert child is not None
    os.kill(child.pid, 9)
    child.wait()
    np.testing.assert_array_equal(decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS), stored())
    decoder.close()


def test_a_child_that_does_not_answer_is_ended() -> None:
    decoder = Decoder()
    decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS)
    decoder.seconds = 0.5  # only now: a child that does answer may take longer on a busy machine
    child = decoder._child
    assert child is not None
    os.kill(child.pid, 19)  # SIGSTOP: it hangs
    with pytest.raises(DecoderError, match="takes too long"):
        decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS)
    assert child.poll() is not None
    decoder.close()


def test_frame_beyond_the_memory_limit_is_an_error() -> None:
    decoder = Decoder()
    huge = {**OPTIONS, "rows": 60_000, "columns": 60_000}
    with pytest.raises(DecoderError):
        decoder.decode(RLELossless, b"\0" * 64, 240, huge)
    np.testing.assert_array_equal(decoder.decode(JPEG2000Lossless, jpeg2000(stored()), 240, OPTIONS), stored())
    decoder.close()


def test_damaged_stream_names_its_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.dcm", tmp_path / "bad.dcm"
    dataset = compressed(slice_dataset(stored(), (0, 0, 0)), jpeg2000(stored()), JPEG2000Lossless)
    dataset.save_as(good, enforce_file_format=True)
    stream = bytearray(jpeg2000(stored()))
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(stream)
        for at in rng.integers(0, len(stream), 6):
            damaged[at] = rng.integers(0, 256)
        dataset.PixelData = encapsulate([bytes(damaged)])
        dataset.save_as(bad, enforce_file_format=True)
        said = outcome(bad)
        assert said == "read" or str(bad) in said
    np.testing.assert_array_equal(read_image(good).array, stored().astype(int) - 1024)


def test_the_process_survives_a_crash_of_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = compressed(slice_dataset(stored(), (0, 0, 0)), jpeg2000(stored()), JPEG2000Lossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    read_image(tmp_path / "a.dcm")
    child = DECODER._child
    assert child is not None
    monkeypatch.setattr(DECODER, "_write", lambda data, deadline: (os.kill(child.pid, 6), child.wait()))
    with pytest.raises(ImagingError, match=r"a\.dcm: its pixels cannot be decoded: .*the decoder crashed"):
        read_image(tmp_path / "a.dcm")
    monkeypatch.undo()
    assert read_image(tmp_path / "a.dcm").shape == (10, 12)


def test_a_forked_process_starts_its_own_child(tmp_path: Path) -> None:
    hu = random_hu()
    for path in write_series(tmp_path, hu).iterdir():
        dataset = pydicom.dcmread(path)
        compressed(dataset, jpeg2000(dataset.pixel_array), JPEG2000Lossless).save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)
    process = os.fork()
    if not process:
        os._exit(0 if np.array_equal(read_volume(tmp_path).array, hu) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_lossless_frames_are_decoded_one_by_one(tmp_path: Path) -> None:
    """A multi-frame file without an offset table keeps its frames apart."""
    frames = [stored(), stored() + 1, stored() + 2]
    dataset = slice_dataset(stored(), (0, 0, 0), Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    compressed(dataset, jpeg2000(frames[0]), JPEG2000Lossless)
    dataset.NumberOfFrames = 3
    dataset.PixelData = encapsulate([jpeg2000(frame) for frame in frames], has_bot=False)
    dataset.save_as(tmp_path / "m.dcm", enforce_file_format=True)
    assert len(list(generate_frames(dataset.PixelData, number_of_frames=3))) == 3
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(read_image(tmp_path / "m.dcm", frame=index).array, frame)


@pytest.mark.parametrize(
    "keyword",
    ["Modality", "PhotometricInterpretation", "RescaleType", "SeriesInstanceUID", "PixelSpacing", "NumberOfFrames",
     "WindowCenter",
        "AcquisitionNumber", "RescaleSlope", "ImageType", "VOILUTFunction"],
)  # fmt: skip
def test_names_in_wrong_tags_are_not_shown(keyword: str, tmp_path: Path) -> None:
    secret = b"ZZMARKER^NAME "
    for index in range(3):
        dataset = slice_dataset(
            stored(), (0.0, 0.0, 2.0 * index), WindowCenter=1, WindowWidth=2, VOILUTFunction="LINEAR"
        )
        dataset.pop(pydicom.tag.Tag(keyword), None)
        tag = pydicom.tag.Tag(keyword)
        vr = pydicom.datadict.dictionary_VR(tag)
        dataset.add(pydicom.dataelem.RawDataElement(tag, vr, len(secret), secret, 0, False, True))
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    for read in (lambda: read_volume(tmp_path), lambda: read_image(tmp_path / "0.dcm")):
        try:
            said = repr(read())
        except ImagingError as error:
            said = str(error)
        assert "ZZMARKER" not in said
