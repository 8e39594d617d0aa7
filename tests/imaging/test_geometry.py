"""Geometries against independent computations, and the stability of their hashes."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.dicom_writing import random_hu
from medmvl.errors import GeometryError, ImagingError
from medmvl.imaging import Geometry, Volume, geometry, geometry_names
from medmvl.imaging.preprocessing.resample import Resampling, foreground_box, plan_axis, resample, value_range

MM = (2.0, 0.8, 0.7)
SMALL = (6, 20, 24)


def scan(shape: tuple[int, int, int] = (9, 30, 34), seed: int = 0, **options: object) -> Volume:
    """A body of tissue values in air, so that the foreground box is smaller than the volume."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1024, dtype=np.int16)
    inner = tuple(slice(n // 8, n - n // 6) for n in shape)
    hu[inner] = rng.integers(-900, 1400, [s.stop - s.start for s in inner])
    return Volume.from_array(hu, units="HU", **{"spacing": MM, "orientation": "SPL", **options})  # type: ignore[arg-type]


# --- the pieces


def brute_box(mask: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    where = np.argwhere(mask)
    return tuple(map(int, where.min(0))), tuple(int(v) + 1 for v in where.max(0))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    seed=st.integers(0, 10**6),
    order=st.sampled_from(list(permutations(range(3)))),
    flips=st.tuples(*[st.booleans()] * 3),
    dtype=st.sampled_from(["int16", "uint8", "float32"]),
)
def test_box_equals_brute_force_on_every_memory_layout(
    shape: tuple[int, int, int], seed: int, order: tuple[int, ...], flips: tuple[bool, ...], dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.random(shape) < 0.05).astype(dtype) * 100
    view = array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    box = foreground_box(view, lambda values: values > 50)
    assert box == (brute_box(view > 50) if (view > 50).any() else None)
    assert value_range(view) == (float(view.min()), float(view.max()))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    size=st.tuples(st.integers(1, 20), st.integers(1, 80), st.integers(1, 80)),
    seed=st.integers(0, 10**6),
)
def test_resampling_equals_torch_bit_for_bit(
    shape: tuple[int, int, int], size: tuple[int, int, int], seed: int
) -> None:
    array = np.random.default_rng(seed).random(shape, dtype=np.float32) * 255
    out = np.empty((1, *size), dtype=np.float32)
    box = ((0, 0, 0), shape)
    resample(array, Resampling(box, size, size), lambda plane: plane[None], lambda plane: plane, out)
    expected = F.interpolate(torch.from_numpy(array)[None, None], size=size, mode="trilinear")[0].numpy()
    # exact where the machine fuses multiply and add, within one unit in the last place elsewhere
    np.testing.assert_allclose(out, expected, rtol=2e-7, atol=0)


def test_plan_of_centers_keeps_the_first_voxel() -> None:
    plan = plan_axis(10, 19, 19, "centers", step=0.5)
    np.testing.assert_allclose(plan.low + plan.weight, np.arange(19) * 0.5)
    assert plan.inside.all()


# --- every geometry against an independent computation on whole arrays


def windowed(hu: np.ndarray, low: float, high: float, bottom: float, top: float) -> torch.Tensor:
    values = (np.clip(hu.astype(np.float64), low, high) - low) / (high - low) * (top - bottom) + bottom
    return torch.from_numpy(values)[None, None]


def cropped(values: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    (z0, y0, x0), (z1, y1, x1) = brute_box(mask)
    return values[..., z0:z1, y0:y1, x0:x1]


def centerd(values: torch.Tensor, size: tuple[int, ...], pad: float) -> torch.Tensor:
    """Center crop or pad (1, 1, d, h, w) to size."""
    for dim, want in zip((2, 3, 4), size, strict=True):
        have = values.shape[dim]
        if have >= want:
            values = values.narrow(dim, (have - want) // 2, want)
        else:
            before = (want - have) // 2
            widths = [0] * 6
            widths[2 * (4 - dim)], widths[2 * (4 - dim) + 1] = before, want - have - before
            values = F.pad(values, widths, value=pad)
    return values


def test_medm_vl_ct() -> None:
    volume = scan()
    gray = windowed(volume.array, -1000, 1000, 0, 255)
    part = cropped(gray, volume.array > -1000).float()
    expected = F.interpolate(part, size=SMALL, mode="trilinear")[0].to(torch.uint8)
    assert torch.equal(geometry("medm-vl-ct", size=SMALL)(volume), expected)


def test_m3d() -> None:
    volume = Volume.from_array(scan().array + 1024, units="arbitrary")
    values = torch.from_numpy(volume.array.astype(np.float64))[None, None]
    values = (values - values.min()) / (values.max() - values.min())
    expected = F.interpolate(cropped(values, volume.array > 0), size=SMALL, mode="trilinear")[0]
    torch.testing.assert_close(geometry("m3d", size=SMALL)(volume), expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 0.7), (0.7, 1.9, 1.1), (5.0, 0.4, 0.4)])
def test_ct_clip(spacing: tuple[float, float, float]) -> None:
    volume = scan(spacing=spacing)
    target, size = (1.5, 0.75, 0.75), (12, 40, 36)
    stored = volume.to_orientation("SLP")
    clipped = torch.from_numpy(np.clip(stored.array.astype(np.float64), -1000, 1000))[None, None]
    have = stored.spacing
    assert have is not None
    new = [int(n * (h / t)) for n, h, t in zip(stored.shape, have, target, strict=True)]
    resampled = F.interpolate(clipped, size=new, mode="trilinear") / 1000
    expected = centerd(resampled, size, -1.0)[0].float()
    got = geometry("ct-clip", size=size)(volume)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # measured 3e-6: the reference works in float64


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 0.7), (4.0, 1.9, 1.1)])
def test_merlin(spacing: tuple[float, float, float]) -> None:
    volume = scan(spacing=spacing)
    stored = volume.to_orientation("RAS")  # (x, y, z)
    values, have, target = stored.array.astype(np.float64), stored.spacing, (1.5, 1.5, 3.0)
    assert have is not None
    for axis in range(3):
        n = values.shape[axis]
        at = np.arange(round((n - 1) * have[axis] / target[axis]) + 1) * target[axis] / have[axis]
        values = np.apply_along_axis(lambda line, at=at, n=n: np.interp(at, np.arange(n), line), axis, values)
    scaled = np.clip((values + 1000) / 2000, 0, 1)
    expected = centerd(torch.from_numpy(scaled.transpose(2, 0, 1).copy())[None, None], (8, 24, 20), 0.0)[0]
    got = geometry("merlin", size=(8, 24, 20))(volume)
    # positions are single precision: 1e-6 of a voxel times 2400 HU between neighbors
    torch.testing.assert_close(got, expected.float(), rtol=0, atol=1e-5)


def test_chest_multiwindow() -> None:
    volume = scan()
    got = geometry("chest-multiwindow", size=SMALL)(volume)
    assert got.shape == (3, *SMALL)
    for channel, (low, high) in enumerate(((-1350, 150), (-125, 225), (-500, 1300))):
        part = cropped(windowed(volume.array, low, high, 0, 255), volume.array > -500).float()
        expected = F.interpolate(part, size=SMALL, mode="trilinear")[0, 0]
        assert (got[channel].float() - expected.floor()).abs().max() <= 1


@pytest.mark.parametrize(
    "name", ["medm-vl-ct", "medm-vl-ct-medmclip", "medm-vl-ct-m3dclip", "m3d", "ct-clip", "merlin"]
)
def test_stored_orientation_does_not_matter(name: str) -> None:
    """The same scan stored in different orientations gives the same tensor."""
    shaped = geometry(name, size=(8, 24, 20))
    volume = scan()
    expected = shaped(volume)
    for letters in list(product("RL", "AP", "SI"))[:4]:
        for code in list(permutations(letters))[:3]:
            turned = volume.to_orientation("".join(code))
            copy = Volume(np.ascontiguousarray(turned.array), "HU", turned.affine)
            assert torch.equal(shaped(copy), expected), code


# --- the promises


@pytest.mark.parametrize("name", geometry_names())
def test_round_trip_and_hash(name: str) -> None:
    original = geometry(name)
    again = Geometry.from_dict(json.loads(json.dumps(original.to_dict())))
    assert again == original
    assert again.hash == original.hash
    assert len(original.hash) == 16
    assert original.source
    assert geometry(name, size=(4, 8, 8)).hash != original.hash
    assert geometry(name, source="elsewhere").hash == original.hash


def test_hashes_are_pinned() -> None:
    """Checkpoints and caches store these hashes; if one changes, raise the geometry's version and note it in the changelog."""
    assert {name: geometry(name).hash for name in geometry_names()} == PINNED


PINNED: dict[str, str] = {
    "medm-vl-ct": "7176fd0daf57a751",
    "medm-vl-ct-medmclip": "4168fa79706d888e",
    "medm-vl-ct-m3dclip": "1a93b321b8c7c8b8",
    "m3d": "bbaf7625afa0db69",
    "ct-clip": "093a2d19842a05af",
    "merlin": "abfd910922d34b32",
    "chest-multiwindow": "c0158742e5f6121b",
}


def test_overrides_yaml_and_errors(tmp_path: Path) -> None:
    assert geometry("medm-vl-ct", size=(32, 64, 64)).size == (32, 64, 64)
    (tmp_path / "g.yaml").write_text("base: chest-multiwindow\nname: mine\nsize: [8, 32, 32]\n")
    mine = geometry(str(tmp_path / "g.yaml"))
    assert (mine.name, mine.channels, mine.size) == ("mine", 3, (8, 32, 32))
    assert geometry(mine.to_dict()) == mine
    with pytest.raises(GeometryError, match="Did you mean 'medm-vl-ct'"):
        geometry("medm-vl-tc")
    with pytest.raises(GeometryError, match="Did you mean 'windows'"):
        geometry("medm-vl-ct", window=[[0, 1]])
    for wrong in (
        {"size": (0, 4, 4)},
        {"windows": ((5, 5),)},
        {"orientation": "XYZ"},
        {"fit": "crop_pad"},
        {"minmax": True},
        {"units": "any"},
        {"version": 0},
    ):
        with pytest.raises((GeometryError, ImagingError)):
            geometry("medm-vl-ct", **wrong)
    (tmp_path / "bad.yaml").write_text("- 1\n")
    with pytest.raises(GeometryError, match="mapping"):
        geometry(tmp_path / "bad.yaml")


def test_another_geometry_is_refused_with_both_hashes() -> None:
    ours, theirs = geometry("medm-vl-ct"), geometry("medm-vl-ct", size=(8, 32, 32))
    ours.check_same(ours.hash, "The cache")
    with pytest.raises(GeometryError, match=f"{theirs.hash}.*{ours.hash}"):
        ours.check_same(theirs.hash, "The cache")


def test_wrong_units_unknown_spacing_nan_and_constants_are_refused() -> None:
    hu = random_hu()
    with pytest.raises(GeometryError, match="units='HU'"):
        geometry("medm-vl-ct")(Volume.from_array(hu, units="arbitrary"))
    with pytest.raises(GeometryError, match="spacing"):
        geometry("ct-clip")(Volume.from_array(hu, units="HU"))
    with pytest.raises(GeometryError, match="constant"):
        geometry("m3d")(Volume.from_array(np.full((3, 4, 5), 7), units="arbitrary"))
    with pytest.raises(GeometryError, match="no voxel is above"):
        geometry("medm-vl-ct")(Volume.from_array(np.full((3, 4, 5), -1000, dtype=np.int16), units="HU"))
    constant = Volume.from_array(np.full((3, 4, 5), -1000, dtype=np.int16), units="HU", spacing=(1, 1, 1))
    for name in ("ct-clip", "merlin"):
        with pytest.raises(GeometryError, match="makes a constant"):
            geometry(name, size=(3, 4, 5))(constant)
    with pytest.raises(GeometryError, match="makes a constant"):
        geometry("medm-vl-ct")(Volume.from_array(np.full((3, 4, 5), 500, dtype=np.int16), units="HU"))
    broken = hu.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(ImagingError, match="NaN"):
        geometry("medm-vl-ct")(Volume.from_array(broken, units="HU"))


def test_story_tells_every_step() -> None:
    prepared = geometry("medm-vl-ct", size=SMALL).prepare(scan())
    text = " ".join(prepared.history)
    for word in ("window [-1000, 1000] HU", "foreground box", "interpolated to (6, 20, 24)", "uint8"):
        assert word in text
    extent = [stop - start for start, stop in zip(*prepared.box, strict=True)]
    expected = [mm * n / s for mm, n, s in zip(MM, extent, SMALL, strict=True)]
    assert prepared.spacing == pytest.approx(expected)
    assert geometry("medm-vl-ct").value_range == (0.0, 255.0)
    assert geometry("medm-vl-ct-medmclip").value_range is None
    assert geometry("m3d").value_range == (0.0, 1.0)
