"""Augmentation: deterministic by (seed, epoch, id), and left stays left."""

from __future__ import annotations

import pytest
import torch

from medmvl.imaging.augment import Augmentation, names_a_side

NOTHING = {"rotate": 0, "scale": 0, "shift": 0, "contrast": 0, "brightness": 0, "noise": 0}


def volume() -> torch.Tensor:
    """A body with a bright marker in its left half (W grows to the left in SPL)."""
    tensor = torch.zeros(1, 6, 40, 40, dtype=torch.uint8)
    tensor[:, :, 6:34, 4:36] = 90
    tensor[:, 2:4, 16:22, 26:32] = 250
    return tensor


def side_of_the_marker(tensor: torch.Tensor) -> str:
    weights = (tensor.float() - 150).clamp(min=0).sum((0, 1, 2))
    centre = float((weights * torch.arange(40)).sum() / weights.sum())
    return "left" if centre > 19.5 else "right"


def test_same_seed_epoch_and_id_give_the_same_and_others_another() -> None:
    augment = Augmentation()
    first = augment(volume(), seed=1, epoch=2, sample_id="a")
    assert torch.equal(first, augment(volume(), seed=1, epoch=2, sample_id="a"))
    for other in ({"seed": 3}, {"epoch": 3}, {"sample_id": "b"}):
        assert not torch.equal(first, augment(volume(), **{"seed": 1, "epoch": 2, "sample_id": "a", **other}))


def test_left_stays_left_under_every_draw() -> None:
    augment = Augmentation(rotate=15, scale=0.2, shift=0.1, mirror=1.0)
    for number in range(50):
        changed = augment(volume(), seed=0, epoch=number, sample_id="a", texts=["Nodule in the left upper lobe."])
        assert side_of_the_marker(changed) == "left"
        assert changed.shape == volume().shape
        assert changed.dtype == torch.uint8


def test_mirror_only_where_no_text_names_a_side() -> None:
    augment = Augmentation(**NOTHING, mirror=1.0)
    plain = augment(volume(), seed=0, epoch=0, sample_id="a", texts=["Is there a nodule?", "Yes."])
    assert torch.equal(plain, volume().flip(-1))
    assert side_of_the_marker(Augmentation()(volume(), seed=0, epoch=0, sample_id="a")) == "left"  # off by default


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Effusion on the LEFT.", True),
        ("RUL consolidation", True),
        ("bilateral effusions", True),
        ("Where is the nodule?", True),
        ("Rundherd links basal", True),
        ("左肺结节", True),
        ("Is the heart enlarged?", False),
        ("Copyright notice", False),
        ("", False),
    ],
)
def test_sides_are_found_in_texts(text: str, named: bool) -> None:
    assert names_a_side([text]) is named


def test_nothing_asked_is_nothing_done() -> None:
    assert torch.equal(Augmentation(**NOTHING)(volume(), seed=5, epoch=6, sample_id="x"), volume())


def test_rotation_turns_by_the_angle_and_keeps_the_middle() -> None:
    image = torch.zeros(1, 61, 61)
    image[0, 28:33, 50:55] = 1.0
    turned = Augmentation(**{**NOTHING, "rotate": 30.0})(image, seed=0, epoch=3, sample_id="q", value_range=(0, 1))
    weights = turned[0] / turned[0].sum()
    y = float((weights.sum(1) * torch.arange(61)).sum()) - 30
    x = float((weights.sum(0) * torch.arange(61)).sum()) - 30
    assert (x**2 + y**2) ** 0.5 == pytest.approx(22, abs=0.3)
    assert abs(y) > 1


def test_values_stay_in_range_and_bad_settings_are_refused() -> None:
    strong = Augmentation(contrast=0.9, brightness=0.5, noise=0.5)
    changed = strong(volume().float() / 255, seed=1, epoch=1, sample_id="z", value_range=(0.0, 1.0))
    assert 0.0 <= float(changed.min()) <= float(changed.max()) <= 1.0
    with pytest.raises(ValueError, match="rotate"):
        Augmentation(rotate=90)
