"""Slips in calls from Python: each is refused with one clear sentence, as on the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from medmvl import Predictor, geometry, read_image, read_volume
from medmvl.data.check import check_records
from medmvl.data.converters import convert
from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import write_records
from medmvl.data.sample import Message, Sample
from medmvl.errors import MedMVLError
from medmvl.imaging import list_series
from medmvl.inference.batch import predict_file
from tiny import VOLUME_SIZE

SAMPLE = Sample("s", (Message("user", "<image>\nq"),))
PICTURE = Image.new("L", (4, 4))


@pytest.fixture(scope="module")
def door(model_folder: Path) -> SimpleNamespace:
    predictor = Predictor.from_pretrained(model_folder)
    return SimpleNamespace(
        predictor=predictor, ask=predictor.answer, many=predictor.answer_many, process=predictor.processor
    )


SLIPS = {
    "volumes must be a list, not str. Write volumes=['ct.nii.gz']": lambda d: d.ask("q", volumes="ct.nii.gz"),
    "images must be a list, not PosixPath. Write images=['a.png']": lambda d: d.ask("q", images=Path("a.png")),
    "volumes must be a list": lambda d: list(d.predictor.stream("q", volumes="ct.nii.gz")),
    "images must be a list, not ndarray": lambda d: d.ask("q", images=np.zeros((2, 4, 4))),
    "images must be a list, not str. ": lambda d: d.process.encode(SAMPLE, train=False, images="a.png"),
    "Write volumes=['v.npy']": lambda d: d.process.encode_visual_inputs([], "v.npy"),
    "PIL.Image.fromarray": lambda d: d.ask("q", images=[np.zeros((4, 4), np.uint8)]),
    "not a Volume": lambda d: d.ask("q", images=[read_volume("v.npy", units="HU")]),
    "prepared tensor, not a Image": lambda d: d.ask("q", volumes=[PICTURE]),
    f"shape (1, {', '.join(map(str, VOLUME_SIZE))}) here": lambda d: d.ask("q", volumes=[torch.zeros(3, 4, 4)]),
    "three axes": lambda d: d.ask("q", volumes=[np.zeros((4, 4), np.int16)]),
    "A question is a text, not a list": lambda d: d.ask(["q"]),
    "A question is a text, not a NoneType": lambda d: d.ask(None),
    "The question is empty": lambda d: d.ask(" \n"),
    "half of a surrogate pair": lambda d: d.ask("Nodule \ud800?"),
    "DICOM folder must be a path, not int": lambda d: list_series(3),
    "nowhere does not exist": lambda d: list_series("nowhere"),
    "window must be a Window": lambda d: read_image("a.png").to_uint8("lung"),
    "texts must be a list of questions, not str": lambda d: d.many("What?"),
    "batch size must be at least 1": lambda d: d.many(["What?"], batch_size=0),
    "options must be a list of texts, not 'yes'": lambda d: d.predictor.choose("q", "yes"),
    "options must be a list of texts, not a list": lambda d: d.predictor.choose("q", [1, 2]),
    "no option 'max_tokens'. Did you mean 'max_new_tokens'": lambda d: d.ask("q", max_tokens=4),
    "max_new_tokens must be a whole number, not '4'": lambda d: d.ask("q", max_new_tokens="4"),
    "temperature must be a number, not 'hot'": lambda d: d.ask("q", temperature="hot"),
    "text must be a text or a list of texts, not int": lambda d: d.process(text=3),
    "list of texts, not list": lambda d: d.process(text=[["a"]]),
    "padding_side must be 'left' or 'right'": lambda d: d.process(text=["a"], padding_side="middle"),
    "encode takes a Sample, not a dict": lambda d: d.process.encode({"id": "a"}),
    "A conversation is a list of turns, not a str": lambda d: d.process.apply_chat_template("hello"),
    "A conversation is a list of turns, not a dict": lambda d: d.process.apply_chat_template(
        {"role": "user", "content": "x"}
    ),
    "A turn is an object": lambda d: d.process.apply_chat_template(["hello"]),
    "There is no device 'cuda:99' here": lambda d: Predictor.from_pretrained("model", device="cuda:99"),
    "checkpoint folder must be a path, not NoneType": lambda d: Predictor.from_pretrained(None),
    "must be a path, not ndarray": lambda d: read_volume(np.zeros((3, 3, 3))),
    "must be a path, not list": lambda d: read_image(["a.png"]),
    "The path of the file is empty": lambda d: read_volume(""),
    "gaps='drop' is not known. Use 'refuse', 'fill', 'keep'": lambda d: read_volume("v.npy", units="HU", gaps="drop"),
    "spacing must be three numbers (z, y, x) in mm, not 1.0": lambda d: read_volume("v.npy", units="HU", spacing=1.0),
    "cannot be right": lambda d: read_volume("v.npy", units="HU", spacing=(1, 0, 1)),
    "frame must be a whole number from 0, not '1'": lambda d: read_image("a.png", frame="1"),
    "A geometry prepares a Volume, not a str": lambda d: geometry("medm-vl-ct", size=VOLUME_SIZE)("v.npy"),
    "roots must be MediaRoots": lambda d: SampleDataset("r.jsonl", "images"),
    "roots must be MediaRoots(image=..., volume=...), not a str": lambda d: check_records("r.jsonl", "images"),
    "data file must be a path, not list": lambda d: SampleDataset(["r.jsonl"]),
    "options must be GenerationOptions": lambda d: predict_file(d.predictor, "r.jsonl", "o.jsonl", options={"seed": 2}),
    "options must be a dictionary": lambda d: convert("folder", ".", "o", options=["image"]),
    "records must be a list of records, not a dict": lambda d: write_records("w.jsonl", {"id": "a"}),
}


@pytest.mark.parametrize("message", SLIPS)
def test_slip_is_one_clear_sentence(door, tmp_path, monkeypatch, message):
    monkeypatch.chdir(tmp_path)
    PICTURE.save("a.png")
    np.save("v.npy", np.zeros((6, 8, 8), np.int16))
    write_records("r.jsonl", [{"id": "a", "conversations": [{"from": "human", "value": "q"}]}])
    with pytest.raises(MedMVLError) as caught:
        SLIPS[message](door)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA")
def test_cuda_without_cuda_is_refused_by_name(model_folder):
    with pytest.raises(MedMVLError, match="There is no device 'cuda' here. Known: cpu"):
        Predictor.from_pretrained(model_folder, device="cuda")


def test_paths_may_be_path_objects(door, media):
    assert isinstance(door.ask("q", images=[media / "a.png"], max_new_tokens=2), str)
    given = door.process(text="<image>", images=media / "a.png")["pixel_values"]
    assert torch.equal(given, door.process(text="<image>", images=str(media / "a.png"))["pixel_values"])
