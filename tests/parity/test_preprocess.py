"""The reference's own 3D preprocessing, as it recorded it, against the corresponding geometries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.parity.sets import HERE

from medmvl.errors import GeometryError
from medmvl.imaging import Volume, geometry, read_volume

DATA, FIXTURES = HERE / "data", HERE / "fixtures" / "preprocess"
RECORDED = np.load(FIXTURES / "preprocess.npz")
FACTS = json.loads((FIXTURES / "preprocess.json").read_text())
CT = geometry("medm-vl-ct", size=(32, 64, 64))
FLOAT_CHAINS = ("medmclip", "m3dclip")


def hu(array: np.ndarray) -> Volume:
    return Volume.from_array(array, units="HU")


@pytest.mark.parametrize("index", range(3))
def test_siglip_chain_is_exact(index: int) -> None:
    prepared = CT.prepare(read_volume(DATA / f"vol{index}.npy"))
    np.testing.assert_array_equal(prepared.tensor[0].numpy(), RECORDED[f"siglip_vol{index}_uint8"])
    assert [list(corner) for corner in prepared.box] == FACTS[f"vol{index}"]["crop_box_siglip"]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("encoder", FLOAT_CHAINS)
def test_float_chains_agree(encoder: str, index: int) -> None:
    prepared = geometry(f"medm-vl-ct-{encoder}").prepare(read_volume(DATA / f"vol{index}.npy"))
    # Measured: 7.2e-7 for medmclip (values up to 3), 1.2e-7 for m3dclip; the reference works in float64 before the crop.
    np.testing.assert_allclose(
        prepared.tensor[:, ::2, ::8, ::8].numpy(), RECORDED[f"{encoder}_vol{index}_subsample"], rtol=0, atol=1e-6
    )
    sums = prepared.tensor[0].double().sum((1, 2)).numpy()
    np.testing.assert_allclose(sums, RECORDED[f"{encoder}_vol{index}_slice_sums"], rtol=0, atol=1e-6 * 256 * 256)
    assert [list(corner) for corner in prepared.box] == FACTS[f"vol{index}"][f"crop_box_{encoder}"]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_dtype_of_the_file_does_not_matter(dtype: str) -> None:
    volume = hu(np.load(DATA / "vol0.npy").astype(dtype))
    assert int((CT(volume)[0].numpy() != RECORDED["siglip_vol0_uint8"]).sum()) == 0


def test_leading_axis_of_one(tmp_path: Path) -> None:
    np.save(tmp_path / "four.npy", np.load(DATA / "vol0.npy")[None])
    np.testing.assert_array_equal(CT(read_volume(tmp_path / "four.npy"))[0].numpy(), RECORDED["siglip_vol0_uint8"])


@pytest.mark.parametrize("name", ["medm-vl-ct", "medm-vl-ct-medmclip", "medm-vl-ct-m3dclip"])
def test_air_alone_is_refused_where_the_reference_crashes(name: str) -> None:
    with pytest.raises(GeometryError, match=r"-1024|constant"):
        geometry(name)(hu(np.full((8, 16, 16), -1024, dtype=np.int16)))


def test_single_voxel() -> None:
    array = np.full((20, 96, 80), -1024, dtype=np.int16)
    array[5, 6, 7] = 500
    for encoder in FLOAT_CHAINS:
        tensor = geometry(f"medm-vl-ct-{encoder}")(hu(array))
        expected = FACTS[f"single_voxel_{encoder}"]
        assert tensor.min().item() == pytest.approx(expected["min"], abs=1e-6)
        assert tensor.max().item() == pytest.approx(expected["max"], abs=1e-6)
    assert CT(hu(array)).unique().tolist() == [191]  # u / 255 * 2 - 1 = 0.49804 as recorded
