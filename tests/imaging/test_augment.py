"""Augmentation is deterministic by (seed, epoch, id) and preserves patient sides."""

from __future__ import annotations

import pytest
import torch

from medmvl.imaging.preprocessing.augment import Augmentation, names_a_side

NOTHING = {"rotate": 0, "scale": 0, "shift": 0, "contrast": 0, "brightness": 0, "noise": 0}


def volume() -> torch.Tensor:
    """A body with a bright marker in its left half (W grows to the left in SPL)."""
    tensor = torch.zeros(1, 6, 40, 40, dtype=torch.uint8)
    tensor[:, :, 6:34, 4:36] = 90
    tensor[:, 2:4, 16:22, 26:32] = 250
    return tensor


def side_of_the_marker(tensor: torch.Tensor) -> str:
    weights = (tensor.float() - 150).clamp(min=0).sum((0, 1, 2))
    center = float((weights * torch.arange(40)).sum() / weights.sum())
    return "left" if center > 19.5 else "right"


def test_result_depends_on_seed_epoch_and_id_only() -> None:
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
        ("Узел слева", True),
        ("Consolidation, R > basal", True),
        ("Atelectasis of the middle lobe", True),
        ("The nodule is at {<12><30><40><61>}.", True),
        ("[0.12, 0.30, 0.40, 0.61]", True),
        ("dort trägt die linke Lunge", True),
        ("Nodulo polmonare destro", True),
        ("A 7 (mm) nodule, [sic]; destruction of bone, linked to it", False),
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


def test_volumes_of_a_sample_are_mirrored_together() -> None:
    augment = Augmentation(noise=0)
    one, other = (augment(volume(), seed=0, epoch=0, sample_id="a", item=n) for n in range(2))
    assert not torch.equal(one, other)
    mirror = Augmentation(**NOTHING, mirror=0.5)
    sides = [
        [side_of_the_marker(mirror(volume(), seed=0, epoch=epoch, sample_id="a", item=n)) for n in range(2)]
        for epoch in range(20)
    ]
    assert all(first == second for first, second in sides)
    assert {first for first, _ in sides} == {"left", "right"}


def test_the_mirror_runs_along_the_axis_between_the_sides() -> None:
    turned = volume().transpose(-1, -2)  # as a geometry with H from side to side gives it, such as merlin's
    changed = Augmentation(**NOTHING, mirror=1.0)(turned, seed=0, epoch=0, sample_id="a", mirror_axis=-2)
    assert torch.equal(changed.transpose(-1, -2), volume().flip(-1))


def test_a_normalization_may_come_before_it() -> None:
    augment = Augmentation(brightness=0.3, contrast=0.5, noise=0.1)
    gray = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.48, 0.45, 0.40])[:, None, None], torch.tensor([0.26, 0.27, 0.21])[:, None, None]
    settings = {"seed": 0, "epoch": 0, "sample_id": "a"}
    after = (augment(gray, value_range=(0.0, 1.0), **settings) - mean) / std
    before = augment((gray - mean) / std, value_range=((0 - mean) / std, (1 - mean) / std), **settings)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def test_the_number_of_threads_does_not_matter() -> None:
    scan = torch.rand(2, 16, 128, 128, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(Augmentation()(scan, seed=0, epoch=0, sample_id="a", value_range=(0.0, 1.0)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
