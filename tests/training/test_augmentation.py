"""Augmentation in a run: new in each pass, the same for any number of workers and after a kill, never frozen by a cache."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medmvl.data.dataset import SampleDataset
from medmvl.data.mixture import Mixture
from medmvl.errors import RecipeError
from medmvl.imaging import geometry
from medmvl.imaging.preprocessing.augment import Augmentation
from medmvl.processing import VolumeProcessor
from medmvl.processing.cache import build_cache
from medmvl.training.augmentation import Augmenter
from medmvl.training.build import build
from medmvl.training.engine.dataset import TrainingDataset
from medmvl.training.engine.sampling import BatchLayout, SampleVisit, StepSampler
from medmvl.training.recipe_io import parse_recipe
from medmvl.training.run import TrainingInterruptedError, train
from medmvl.training.run_folder import read_log
from processes import BeforeStep

AUGMENT = {"image": {}, "volume": {"noise": 0.05}}


@pytest.fixture
def processor(recipe):
    return build(parse_recipe(recipe({"augment": AUGMENT})))[1]


@pytest.fixture
def mixture(data_folder):
    return Mixture({"d": SampleDataset(data_folder / "d.jsonl")}, seed=3)


def augmenter(processor, **settings):
    both = {"image": Augmentation(**settings), "volume": Augmentation(**settings)}
    return Augmenter.of(both, processor, seed=5)


def losses(folder):
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def same_weights(one, other):
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)


def test_augmentation_differs_per_pass_and_is_not_cached(processor, mixture):
    plain = TrainingDataset(mixture, processor.encode)
    records = TrainingDataset(mixture, processor.encode, augment=augmenter(processor))
    kept = TrainingDataset(mixture, processor.encode, cache_bytes=2**30, augment=augmenter(processor))
    number = 2  # a row with an image and a volume
    for key in ("pixel_values", "volume_values"):
        passes = [records[SampleVisit(number, epoch)].inputs[key] for epoch in range(3)]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert not torch.equal(passes[first], passes[second])
        assert not any(torch.equal(one, plain[number].inputs[key]) for one in passes)
        for epoch in (0, 1, 2, 0):
            assert torch.equal(kept[SampleVisit(number, epoch)].inputs[key], passes[epoch])
    assert torch.equal(kept[SampleVisit(number, 1)].inputs["labels"], plain[number].inputs["labels"])
    assert set(records[SampleVisit(3, 0)].inputs) == set(plain[3].inputs)  # a row of text alone


def test_values_stay_in_the_range_that_the_normalization_leaves(processor, mixture):
    records = TrainingDataset(mixture, processor.encode, augment=augmenter(processor, brightness=0.5, noise=0.5))
    changed = [records[SampleVisit(2, epoch)].inputs for epoch in range(5)]
    for key in ("pixel_values", "volume_values"):
        assert min(float(one[key].min()) for one in changed) == pytest.approx(-1)
        assert max(float(one[key].max()) for one in changed) == pytest.approx(1)


def test_a_visit_crosses_processes_with_its_pass(mixture):
    visit = pickle.loads(pickle.dumps(SampleVisit(7, 3)))
    assert (visit, visit.epoch) == (7, 3)
    sampler = StepSampler(mixture, 6, BatchLayout(9, accumulation=2), cost=lambda number: ("a", 1.0))
    shown = [(int(v), v.epoch) for batch in sampler for v in batch]
    assert len(shown) == len(set(shown)) == 54
    assert {epoch for _, epoch in shown} == {0, 1, 2}


def test_mirroring_needs_texts_without_sides(processor, mixture):
    only_mirror = Augmentation(rotate=0, scale=0, shift=0, contrast=0, brightness=0, noise=0, mirror=1)
    augment = Augmenter.of({"volume": only_mirror}, processor, seed=0)
    plain, records = (
        TrainingDataset(mixture, processor.encode),
        TrainingDataset(mixture, processor.encode, augment=augment),
    )
    number = next(n for n in range(len(mixture)) if n % 4 == 1 and n % 5)  # "Is there a nodule in it?", "no indeed"
    torch.testing.assert_close(records[number].inputs["volume_values"], plain[number].inputs["volume_values"].flip(-1))
    asked = next(n for n in range(len(mixture)) if n % 4 in (1, 2) and n % 5 == 0)  # "And where?", "On the left."
    torch.testing.assert_close(records[asked].inputs["volume_values"], plain[asked].inputs["volume_values"])


@pytest.mark.parametrize(("name", "axis"), [("medm-vl-ct", -1), ("merlin", -2), ("ct-clip", -2)])
def test_the_mirror_axis_is_the_geometrys(name, axis, processor):
    processor.volume_processor = VolumeProcessor(geometry(name))
    assert Augmenter.of({}, processor, 0).mirror_axes["volume"] == axis


def test_workers_and_caches_do_not_change_training(recipe, tmp_path, data_folder):
    stage = {"epochs": 2, "batch_size": 6, "augment": AUGMENT}
    run = {"progress": False, "device": "cpu"}
    train(recipe(stage, run=run), tmp_path / "plain")
    train(recipe(stage, run={**run, "workers": 2, "cache_megabytes": 64}), tmp_path / "workers")
    build_cache(data_folder / "d.jsonl", geometry("medm-vl-ct", size=(4, 16, 16)), tmp_path / "cache")
    train(recipe(stage, run={**run, "volume_cache": str(tmp_path / "cache")}), tmp_path / "cached")
    assert losses(tmp_path / "plain") == losses(tmp_path / "workers") == losses(tmp_path / "cached")
    assert same_weights(tmp_path / "plain", tmp_path / "workers")
    train(recipe({"epochs": 2, "batch_size": 6}, run=run), tmp_path / "without")
    assert losses(tmp_path / "without")[0] != losses(tmp_path / "plain")[0]


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(recipe, tmp_path):
    settings = recipe({"max_steps": 6, "save_every": 2, "augment": AUGMENT})
    train(settings, tmp_path / "whole")
    stop = BeforeStep(3, lambda loop: setattr(loop, "stop_requested", True))
    with pytest.raises(TrainingInterruptedError):
        train(settings, tmp_path / "halved", callbacks=[stop])
    train(settings, tmp_path / "halved", resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "halved")
    assert same_weights(tmp_path / "whole", tmp_path / "halved")


def test_held_out_data_are_not_changed(recipe, tmp_path, data_folder):
    looks = []
    data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
    for number, augment in enumerate(({}, {"augment": {"volume": {"noise": 0.5}, "image": {"noise": 0.5}}})):
        stage = {"max_steps": 1, "lr": 1e-30, "data": ["d"], "evaluate": {"data": ["held"], "generate": 0}, **augment}
        train(recipe(stage, data=data), tmp_path / str(number))
        looks.append([row["loss"] for row in read_log(tmp_path / str(number) / "evaluation.jsonl")])
    assert looks[0]
    np.testing.assert_allclose(looks[0], looks[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"augment": AUGMENT, "feature_cache": True}, "remove one of them"),
        ({"augment": {"volume": {"rotat": 3}}}, r"augment\.volume\.rotat: unknown key\. .*rotate"),
        ({"augment": {"volume": {"rotate": 90}}}, r"augment\.volume\.rotate: .*30"),
        ({"augment": {"volumes": {}}}, r"augment\.volumes: unknown key\. .*volume"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, stage, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(recipe(stage))


def test_a_tower_that_is_not_there_is_refused(recipe):
    settings = recipe({"augment": {"image": {}}, "train": {"llm": "full"}})
    del settings["model"]["image"]
    with pytest.raises(RecipeError, match="no image tower"):
        parse_recipe(settings)
