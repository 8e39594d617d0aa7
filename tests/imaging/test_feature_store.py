"""The feature store returns what was stored, and only to the encoder that made it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medmvl.errors import BusyError, DataError
from medmvl.files import OutputLock
from medmvl.imaging import geometry
from medmvl.imaging.feature_store import FeatureStore, pack_features, weights_hash


def encoder(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)).eval()


def test_round_trip_is_exact(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, weights_hash(encoder().state_dict()), geometry("m3d").hash)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        features = torch.randn(3, 5).to(dtype)
        store.put(f"/data/Mueller/{dtype}", features)
        back = store.get(f"/data/Mueller/{dtype}")
        assert back is not None
        assert back.dtype == dtype
        assert torch.equal(back, features)
    assert len(store) == 3
    assert store.get("absent") is None
    assert "absent" not in store
    assert not any("Mueller" in str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))


def test_hash_follows_weights_names_types_and_settings() -> None:
    state = encoder().state_dict()
    same = weights_hash(encoder().state_dict())
    assert weights_hash(state) == same
    assert weights_hash(encoder(1).state_dict()) != same
    assert weights_hash({f"x.{k}": v for k, v in state.items()}) != same
    assert weights_hash({k: v.double() for k, v in state.items()}) != same
    assert weights_hash(state, {"layer": -2}) != same
    nudged = {k: v.clone() for k, v in state.items()}
    nudged["0.weight"][0, 0] += 1e-7
    assert weights_hash(nudged) != same


def test_another_encoder_or_geometry_is_refused(tmp_path: Path) -> None:
    FeatureStore(tmp_path, "a" * 16, "b" * 16)
    FeatureStore(tmp_path, "a" * 16, "b" * 16)
    for pair in (("c" * 16, "b" * 16), ("a" * 16, "c" * 16)):
        with pytest.raises(DataError, match="c" * 16):
            FeatureStore(tmp_path, *pair)


def test_damaged_file_says_so(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "a", "b")
    store.put("k", torch.ones(2))
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"junk")
    with pytest.raises(DataError, match="damaged"):
        store.get("k")


def test_two_cannot_pack_into_one_folder(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", "encoder", "preparation")
    store.put("a", torch.ones(3))
    with OutputLock(tmp_path / "out", folder=True), pytest.raises(BusyError):
        pack_features(store.folder, tmp_path / "out")
    assert pack_features(store.folder, tmp_path / "out") == 1
