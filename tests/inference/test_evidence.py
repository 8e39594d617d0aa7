"""Evidence: occlusion finds the region that decides, in the input's own place, and likelihoods follow the chain rule."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from medmvl import Predictor, read_volume
from medmvl.errors import CancelledError, DataError, ModelError, RecipeError
from medmvl.imaging import geometry
from medmvl.inference.evidence import heat_nifti, legend, overlay, save_evidence, writing
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.modeling import MedMVLOutput
from medmvl.processing import ImageProcessor, MedMVLProcessor, VolumeProcessor
from tiny import LLM, SIGLIP, make_tokenizer

VIT3D = {"name": "vit3d", "size": [8, 32, 32], "patch": [2, 8, 8], "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 2}


class PatchMeans(nn.Module):
    """An encoder that sees nothing but the mean of each patch: (N, C, [D,] H, W) -> (N, patches, 32)."""

    def __init__(self, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch, self.unused = patch, nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        pool = torch.nn.functional.avg_pool2d if len(self.patch) == 2 else torch.nn.functional.avg_pool3d
        return pool(pixels.mean(1, keepdim=True), self.patch).flatten(1)[..., None].expand(-1, -1, 32)


class Straight(nn.Module):
    """A connector that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling, self.unused = nn.Identity(), nn.Parameter(torch.zeros(1))

    def forward(self, features):
        return features


@pytest.fixture
def seeing() -> Predictor:
    """A model by hand: the brightest patch decides how likely the token of "Yes" is, and nothing else does."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = MedMVLForConditionalGeneration.from_parts(
        {**LLM, "vocab_size": len(tokenizer)},
        image=({"name": "siglip", "vision_config": SIGLIP}, "mlp2x_gelu"),
        volume=(VIT3D, "mlp2x_gelu"),
    )
    processor = MedMVLProcessor.from_parts(
        model.config,
        tokenizer,
        image=ImageProcessor.for_size(32, 32),
        volume=VolumeProcessor(geometry("medm-vl-ct", size=(8, 32, 32))),
    )
    for name, patch in (("image", (8, 8)), ("volume", (2, 8, 8))):
        model.tower(name).encoder, model.tower(name).connector = PatchMeans(patch), Straight()
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"]

    def forward(inputs_embeds, logits_to_keep=0, **_):
        visual = inputs_embeds.std(-1) < 1e-6  # every channel is the patch's mean
        brightest = torch.where(visual, inputs_embeds[..., 0], -9.0).amax(1)
        logits = torch.zeros(*inputs_embeds.shape[:2], len(tokenizer))
        logits[..., yes] = 4 * brightest[:, None, None]
        return MedMVLOutput(logits=logits[:, logits_to_keep])

    predictor = Predictor(model, processor)
    model.forward = forward
    return predictor


@pytest.mark.parametrize("size", [(32, 32), (60, 90), (200, 48)])
def test_occlusion_peaks_at_the_region_that_decides(seeing, size):
    height, width = size
    rows, columns = slice(height // 2, 3 * height // 4), slice(width // 4, width // 2)
    picture = np.full((*size, 3), 40, dtype=np.uint8)
    picture[rows, columns] = 255
    found = seeing.explain("Is there one?", images=[Image.fromarray(picture)], answer="Yes")
    assert found.heat.shape == size
    assert rows.start <= found.peak[0] < rows.stop
    assert columns.start <= found.peak[1] < columns.stop
    assert found.heat[found.peak] > 0.1
    assert found.heat[0, -1] == pytest.approx(0, abs=1e-5)
    assert found.neutral_log_probability < found.log_probability


def with_numbers(found, top, log_probability, neutral):
    """The evidence with its heat scaled to a highest value, and other probabilities."""
    shift = found.heat - found.heat.max() if top <= 0 else found.heat / found.heat.max()
    heat = (shift + top if top <= 0 else shift * top).astype(np.float32)
    return replace(found, heat=heat, log_probability=log_probability, neutral_log_probability=neutral)


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_a_drop_that_hardly_matters_is_drawn_faintly(seeing, scan, kind):
    picture = np.full((64, 64, 3), 40, dtype=np.uint8)
    picture[32:48, 16:32] = 255
    given = {"images": [Image.fromarray(picture)]} if kind == "image" else {"volumes": [scan[0]]}
    found = seeing.explain("Is there one?", **given, answer="Yes")

    def color(top):
        """How much the drawn peak differs from gray."""
        drawn = np.asarray(overlay(with_numbers(found, top, -1.0, -3.0))).astype(int)[:360]
        return (drawn.max(2) - drawn.min(2)).max()

    assert color(0.1) == color(2.0) > 80
    assert color(0.01) < 0.25 * color(0.1)
    assert color(0.0) == 0


def test_every_edge_of_a_slice_has_its_letter(seeing, scan, monkeypatch):
    written = []
    draw = legend.label
    monkeypatch.setattr(writing, "label", lambda pen, place, text, anchor: written.append((text, anchor)))
    found = seeing.explain("Is there one?", volumes=[scan[0]], answer="Yes")
    bare = overlay(found)
    assert written[:4] == [("R", "lm"), ("L", "rm"), ("A", "mt"), ("P", "mb")]
    assert ("S", "mt") in written
    assert ("I", "mb") in written
    monkeypatch.setattr(writing, "label", draw)
    assert (np.asarray(overlay(found)) != np.asarray(bare)).any()


def test_middle_slices_are_shown_if_no_place_matters(seeing, scan):
    found = seeing.explain("Is there one?", volumes=[scan[0]], answer="Yes")
    corner = np.zeros_like(found.heat)
    corner[0, 0, 0] = 0.5
    assert replace(found, heat=corner).focus == (0, 0, 0)
    assert replace(found, heat=corner / 10).focus == tuple(length // 2 for length in corner.shape)


def test_labels_can_be_read_on_white():
    picture = Image.new("RGB", (60, 30), "white")
    legend.label(ImageDraw.Draw(picture), (5, 15), "L", "lm")
    assert np.asarray(picture).min() == 0


def test_question_sentence_numbers_and_scale_stand_below_the_picture(seeing, monkeypatch):
    texts = []
    monkeypatch.setattr(writing, "with_text", lambda picture, lines, color: texts.extend(lines) or picture)
    monkeypatch.setattr(writing, "scale_bar", lambda picture, ramp, ends: texts.append(ends) or picture)
    picture = np.full((64, 64, 3), 40, dtype=np.uint8)
    picture[32:48, 16:32] = 255
    found = seeing.explain("Is there one?", images=[Image.fromarray(picture)], answer="Yes")
    overlay(with_numbers(found, 0.5, -1.0, -2.0))
    assert texts == [
        ("0", "0.5 nats: drop of the log-probability"),
        "Question: Is there one?",
        "Sentence: Yes",
        "Probability of the sentence: 0.368 (-1.00 nats); with a neutral picture: 0.135 (-2.00 nats)",
    ]
    assert legend.readable("\u6709") == "see evidence.json"
    assert legend.readable("word " * 200).endswith("see evidence.json")


@pytest.mark.parametrize(
    ("top", "log_probability", "neutral", "doubts"),
    [
        (0.5, -1.0, -2.0, ()),
        (0.5, -1.0, -1.3, ()),
        (0.5, -1.0, -1.2, ("hardly",)),
        (0.5, -1.0, -0.5, ("hardly",)),
        (0.11, -1.0, -2.0, ()),
        (0.09, -1.0, -2.0, ("none",)),
        (0.0, -1.0, -2.0, ("none",)),
        (-0.2, -800.0, -799.0, ("hardly", "none")),
    ],
)
def test_doubts_stand_in_the_numbers_and_below_the_picture(seeing, tmp_path, top, log_probability, neutral, doubts):
    picture = np.full((64, 64, 3), 40, dtype=np.uint8)
    picture[32:48, 16:32] = 255
    found = seeing.explain("Is there one?", images=[Image.fromarray(picture)], answer="Yes")
    found = with_numbers(found, top, log_probability, neutral)
    save_evidence(found, tmp_path)
    assert found.doubts == doubts
    warnings = json.loads((tmp_path / "evidence.json").read_text())["warnings"]
    assert ["hardly depends on the picture" in text for text in warnings] == [doubt == "hardly" for doubt in doubts]
    assert ["No single place matters" in text for text in warnings] == [doubt == "none" for doubt in doubts]
    plain = replace(found, log_probability=0.0, neutral_log_probability=-9.0, heat=np.abs(found.heat) + 1)
    assert (overlay(found).height > overlay(plain).height) == bool(doubts)


@pytest.fixture
def scan(tmp_path):
    """A CT of 40x64x48 (i, j, k) with axes right, anterior, superior, and a dense ball left, anterior and high."""
    values = np.full((40, 64, 24), -1000, dtype=np.int16)
    values[4:36, 6:58, 1:23] = 0
    values[8:14, 44:52, 15:19] = 1000
    affine = np.diag([-6.0, 4.0, 12.5, 1.0])  # i grows to the patient's left, j to the front, k to the head
    affine[:3, 3] = (100, -120, 30)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path, affine


@pytest.mark.parametrize("neutral", ["surroundings", "tissue", "blur"])
def test_heat_of_a_volume_is_written_in_the_place_of_the_volume(seeing, scan, tmp_path, neutral):
    path, affine = scan
    found = seeing.explain("Is there one?", volumes=[path], answer="Yes", neutral=neutral)
    save_evidence(found, tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "heat.nii.gz")
    heat = written.get_fdata()
    at_peak = np.argwhere(heat == heat.max()).mean(0)
    i, j, k = np.linalg.solve(affine, written.affine @ [*at_peak, 1])[:3]
    assert 6 <= i <= 15
    assert 42 <= j <= 53
    assert 13 <= k <= 20
    assert sorted(written.shape) == sorted(nibabel.load(path).shape)
    assert np.allclose(sorted(written.header.get_zooms()), [4, 6, 12.5])
    corners = np.array(np.meshgrid(*([0, n - 1] for n in written.shape))).reshape(3, -1)
    own = np.linalg.solve(affine, written.affine @ np.vstack([corners, np.ones(8)]))[:3]
    assert np.allclose(own.min(1), 0, atol=1e-4)
    assert np.allclose(own.max(1), [39, 63, 23], atol=1e-4)


def test_bars_are_highest_where_the_finding_is(seeing, scan):
    found = seeing.explain("Is there one?", volumes=[scan[0]], answer="Yes")
    volume = read_volume(scan[0])
    assert len(found.slices) == volume.shape[found.slice_axis] == 24
    assert 13 <= int(np.argmax(found.slices)) <= 20
    assert found.slices[15:19].min() > found.slices[:10].max()


def test_a_volume_in_another_orientation_keeps_its_own_axes(seeing, scan):
    volume = read_volume(scan[0]).to_orientation("RIA")
    found = seeing.explain("Is there one?", volumes=[volume], answer="Yes")
    straight = seeing.explain("Is there one?", volumes=[scan[0]], answer="Yes")
    assert found.heat.shape == volume.shape
    assert volume.orientation[found.slice_axis] in "SI"
    world = volume.affine @ [*found.peak, 1]
    assert np.allclose(world, straight.picture.affine @ [*straight.peak, 1], atol=13)
    assert sorted(found.patch) == pytest.approx(sorted(straight.patch))
    assert found.patch[found.slice_axis] == pytest.approx(straight.patch[straight.slice_axis])


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


def test_log_probabilities_of_sentences_add_up_to_the_answer(predictor, media):
    answer = "Findings: a nodule in the left lung. Impression: nodule."
    given = {"volumes": [str(media / "a.npy")], "read": {"units": "HU"}, "answer": answer, "levels": 1}
    parts = ["Findings: a nodule in the left lung.", " Impression: nodule."]
    found = [predictor.explain("What is seen?", sentence=part, **given) for part in parts]
    whole = predictor.explain("What is seen?", **given)
    assert sum(one.log_probability for one in found) == pytest.approx(whole.log_probability, rel=1e-5)
    assert sum(one.tokens for one in found) == whole.tokens


def test_a_prompt_whose_beginning_is_run_once_gives_the_same_evidence(predictor, media, monkeypatch):
    images = [str(media / "a.png"), str(media / "b.png")]
    given = {"answer": "Yes.", "target": "image:1", "levels": 1}
    found = predictor.explain("What is seen?", images, **given)
    monkeypatch.setattr("medmvl.inference.evidence.likelihood._SHORTEST", 10**6)
    again = predictor.explain("What is seen?", images, **given)
    assert found.log_probability == pytest.approx(again.log_probability, abs=1e-4)
    assert np.allclose(found.heat, again.heat, atol=1e-4)


def test_batches_do_not_change_the_evidence(predictor, media):
    given = {"images": [str(media / "a.png")], "answer": "Yes."}
    one = predictor.explain("What is seen?", **given, batch_size=1)
    many = predictor.explain("What is seen?", **given, batch_size=64)
    assert np.allclose(one.heat, many.heat, atol=1e-4)


def test_the_turns_of_a_conversation_can_be_explained(predictor, media):
    from medmvl.data.sample import Message

    turns = [
        Message("user", "<image>\nWhat is seen?"),
        Message("assistant", "A nodule."),
        Message("user", "Is there a pleural effusion?"),
    ]
    found = predictor.explain(turns, [str(media / "a.png")], answer="No. Yes.", sentence="Yes.", levels=1)
    assert found.question == "Is there a pleural effusion?"
    assert found.sentence == "Yes."
    assert found.tokens == len(predictor.processor.tokenizer(" Yes.", add_special_tokens=False)["input_ids"])


def test_progress_reaches_its_end_and_coarser_evidence_comes_first(predictor, media):
    steps, coarse = [], []
    found = predictor.explain(
        "What is seen?",
        [str(media / "a.png")],
        answer="Yes.",
        progress=lambda done, total: steps.append((done, total)),
        on_level=coarse.append,
        levels=3,
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (found.evaluations, found.evaluations)
    assert len(coarse) == 2
    assert coarse[0].evaluations < coarse[1].evaluations < found.evaluations


def test_a_cancelled_explanation_stops(predictor, media):
    cancel, steps = threading.Event(), []

    def progress(done, total):
        steps.append(done)
        if done:
            cancel.set()

    with pytest.raises(CancelledError):
        predictor.explain(
            "What?", [str(media / "a.png")], answer="Yes.", progress=progress, cancel=cancel, batch_size=4
        )
    assert steps[-1] == 4


def test_attention_is_labeled_as_a_preview(predictor, media):
    found = predictor.explain("What?", [str(media / "a.png")], answer="Yes.", method="attention-preview")
    assert found.is_preview
    assert "no evidence" in found.caption
    assert found.heat.shape == (40, 48)
    assert found.heat.min() >= 0
    assert found.heat.max() > 0
    assert overlay(found).width >= 360
    volume = predictor.explain("What?", volumes=[str(media / "a.npy")], answer="Yes.", method="attention-preview")
    assert volume.heat.shape == (6, 40, 40)
    assert predictor.answer("What?", [str(media / "a.png")], max_new_tokens=2) is not None


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ({}, {}, DataError, "no image or volume"),
        ({"images": "ab"}, {}, DataError, "several images.*image:0, image:1"),
        ({"images": "ab"}, {"target": "image:2"}, DataError, "no target 'image:2'"),
        ({"images": "a"}, {"sentence": "No nodule."}, DataError, "not a part of the answer"),
        ({"images": "a"}, {"method": "gradients"}, RecipeError, "Unknown method 'gradients'.*occlusion"),
        ({"images": "a"}, {"neutral": "black"}, RecipeError, "Unknown neutral 'black'.*surroundings"),
        ({"images": "a"}, {"windows": 0}, RecipeError, "windows must be a whole number"),
        ({"images": "a"}, {"windowss": 3}, RecipeError, "Did you mean 'windows'"),
        ({"images": "a"}, {"answer": " "}, DataError, "answer is empty"),
    ],
)
def test_wrong_arguments_are_refused(predictor, media, arguments, options, error, message):
    images = [str(media / f"{name}.png") for name in arguments.get("images", "")]
    with pytest.raises(error, match=message):
        predictor.explain("What?", images, **{"answer": "Yes.", **options})


def test_attention_without_places_is_refused(predictor, media, monkeypatch):
    tower = predictor.model.config.tower("image")
    mixed = tower.model_copy(
        update={"connector": tower.connector.model_copy(update={"pooling": {"name": "perceiver", "queries": [2, 2]}})}
    )
    monkeypatch.setattr(type(predictor.model.config), "tower", lambda *_: mixed)
    with pytest.raises(ModelError, match="occlusion"):
        predictor.explain("What?", [str(media / "a.png")], answer="Yes.", method="attention-preview")


def test_a_prepared_volume_has_heat_on_the_models_grid(predictor, media):
    prepared = predictor.processor.volume_processor.prepare(str(media / "a.npy"))
    found = predictor.explain("What?", volumes=[prepared], answer="Yes.", levels=1)
    assert found.heat.shape == tuple(prepared.shape[1:])
    with pytest.raises(DataError, match="volume with its own grid"):
        heat_nifti(found)
    with pytest.raises(DataError, match="no picture"):
        overlay(found)


def test_places_of_a_cropping_image_processor():
    """CLIP resizes the shorter edge to 32 and cuts the middle: of 64x128 pixels columns 32 to 96 are seen."""
    processor = ImageProcessor(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
        }
    )
    rows, columns = processor.positions(64, 128)
    assert rows == pytest.approx(np.arange(32) * 2 + 0.5, abs=0.3)
    assert columns == pytest.approx(np.arange(32) * 2 + 32.5, abs=0.5)


def test_the_numbers_are_json(predictor, media):
    found = predictor.explain("What?", [str(media / "a.png")], answer="Yes.", levels=1)
    assert json.loads(json.dumps(found.to_dict()))["shape"] == [40, 48]
