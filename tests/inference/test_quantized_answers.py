"""Answers of a model whose LLM is stored in few bits."""

from __future__ import annotations

import json

import pytest

from medmvl import Predictor
from medmvl.data.roots import MediaRoots
from medmvl.errors import RecipeError
from medmvl.inference import GenerationOptions, predict_file
from medmvl.models.quantized import QuantizedLinear


def test_an_unknown_quantizer_is_refused(model_folder):
    with pytest.raises(RecipeError, match="int8"):
        Predictor.from_pretrained(model_folder, quantize="int3")


@pytest.mark.parametrize(("quantizer", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantized_models_answer_and_their_files_are_their_own(model_folder, media, tmp_path, quantizer, package):
    pytest.importorskip(package)
    quantized = Predictor.from_pretrained(model_folder, quantize=quantizer)
    layers = [type(layer) for layer in quantized.model.language_model.modules()]
    assert layers.count(QuantizedLinear) == 14
    assert not any(isinstance(layer, QuantizedLinear) for layer in quantized.model.towers.modules())
    data = tmp_path / "data.jsonl"
    record = {
        "id": "a",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}],
        "image": ["a.png"],
        "answer": "b",
    }
    data.write_text(json.dumps(record))
    settings = {"roots": MediaRoots(media), "options": GenerationOptions(max_new_tokens=4)}
    assert predict_file(quantized, data, tmp_path / "out.jsonl", **settings) == 1
    assert predict_file(quantized, data, tmp_path / "out.jsonl", **settings) == 0
    plain = Predictor.from_pretrained(model_folder)
    with pytest.raises(Exception, match="another model"):
        predict_file(plain, data, tmp_path / "out.jsonl", **settings)
    exact = plain.choice_probabilities("What?", ["Yes.", "No."], images=[str(media / "a.png")])
    found = quantized.choice_probabilities("What?", ["Yes.", "No."], images=[str(media / "a.png")])
    assert found["Yes."] == pytest.approx(exact["Yes."], abs=0.1)
