"""A dual encoder looks for reports: ranks are those of plain cosines, controls know nothing, reruns continue."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.tiny import IMAGE_SIZE, SIGLIP, make_tokenizer

from medmvl.data.formats import write_records
from medmvl.errors import CheckpointError, DataError
from medmvl.files import iter_jsonl
from medmvl.inference import Retriever, retrieve_file
from medmvl.models.contrastive import DualEncoder, DualEncoderConfig, Pairing
from medmvl.models.contrastive.retrieval import both_ways, chance, recalls
from medmvl.models.contrastive.text import text_config
from medmvl.processing import ImageProcessor
from medmvl.processing.pairs import PairProcessor

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def retriever():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = text_config(BERT, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    tower = {"encoder": {"name": "siglip", "vision_config": SIGLIP}}
    config = DualEncoderConfig(text_config=text.to_dict(), towers={"image": tower}, contrast={"dim": 8})
    processor = PairProcessor(tokenizer, "image", ImageProcessor.for_size(IMAGE_SIZE, IMAGE_SIZE), 32)
    return Retriever(DualEncoder(config), processor)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Seven records of four patients; r0 and r4 have the same text, r1 and r5 the same image."""
    folder, rng = tmp_path_factory.mktemp("records"), np.random.default_rng(0)
    rows = []
    for i in range(7):
        PILImage.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(folder / f"{i}.png")
        turns = [
            {"from": "human", "value": "<image>\nReport?"},
            {"from": "gpt", "value": f"Finding {i % 4 if i < 5 else i}."},
        ]
        rows.append(
            {"id": f"r{i}", "conversations": turns, "image": [f"{1 if i == 5 else i}.png"], "patient": f"p{i % 4}"}
        )
    write_records(folder / "records.jsonl", rows)
    return folder / "records.jsonl"


def test_ranks_are_those_of_the_cosines(retriever, file, tmp_path):
    assert retrieve_file(retriever, file, tmp_path / "out.jsonl", batch_size=3) == 7
    rows = list(iter_jsonl(tmp_path / "out.jsonl"))
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(7)]
    model, processor = retriever.model, retriever.processor
    texts = [f"Finding {i % 4 if i < 5 else i}." for i in range(7)]
    images = [file.parent / f"{1 if i == 5 else i}.png" for i in range(7)]
    with torch.no_grad():
        visual = torch.cat([model.encode_visual(processor.visual(str(path))[None]) for path in images])
        ids = [torch.tensor([processor.tokenizer(text)["input_ids"]]) for text in texts]
        cosines = visual.double() @ torch.cat([model.encode_texts(row) for row in ids]).double().T
    # By hand: the text of r0 is that of r4 too, and the picture of r1 has the texts of r1 and r5.
    right = torch.eye(7, dtype=torch.bool)
    right[0, 4] = right[4, 0] = right[1, 5] = right[5, 1] = True
    for way, scores, match in (("image_to_text", cosines, right), ("text_to_image", cosines.T, right.T)):
        for i, row in enumerate(rows):
            order = sorted(range(7), key=lambda j, i=i: (-round(float(scores[i, j]), 6), bool(match[i, j])))
            expected = next(place for place, j in enumerate(order, start=1) if match[i, j])
            assert row["retrieval"][way]["rank"] == expected
            assert row["retrieval"][way]["right"] == int(match[i].sum())
            assert row["retrieval"][way]["candidates"] == 7
    assert rows[2]["answer"] == "Finding 2."
    assert rows[2]["prediction"] == texts[int(cosines[2].argmax())]
    assert [turn["from"] for turn in rows[2]["conversations"]] == ["human"]


def test_controls_know_nothing(retriever, file, tmp_path):
    for control in ("blank", "shuffled"):
        retrieve_file(retriever, file, tmp_path / f"{control}.jsonl", control=control)
    blank = list(iter_jsonl(tmp_path / "blank.jsonl"))
    assert len({row["prediction"] for row in blank}) == 1
    # All images are equal, so every wrong one comes before the right ones.
    assert all(
        row["retrieval"]["text_to_image"]["rank"] == 8 - row["retrieval"]["text_to_image"]["right"] for row in blank
    )
    plain = tmp_path / "plain.jsonl"
    retrieve_file(retriever, file, plain)
    assert [row["retrieval"] for row in iter_jsonl(plain)] != [
        row["retrieval"] for row in iter_jsonl(tmp_path / "shuffled.jsonl")
    ]


def test_a_rerun_adds_what_is_missing(retriever, file, tmp_path):
    out = tmp_path / "out.jsonl"
    retrieve_file(retriever, file, out)
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:3]) + '{"id": "r3", "conv')
    assert retrieve_file(retriever, file, out) == 4
    assert out.read_text() == whole
    assert retrieve_file(retriever, file, out) == 0
    with pytest.raises(DataError, match="another control"):
        retrieve_file(retriever, file, out, control="blank")


def test_a_folder_without_a_dual_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "medmvl"}))
    with pytest.raises(CheckpointError, match="holds no dual encoder"):
        Retriever.from_pretrained(tmp_path)


def test_a_dual_encoder_is_no_model_that_answers(retriever, tmp_path):
    from medmvl.inference import Predictor

    retriever.model.save_pretrained(tmp_path)
    retriever.processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds the dual encoder of a contrastive stage"):
        Predictor.from_pretrained(tmp_path)
    again = Retriever.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), retriever.model.parameters(), strict=True))


# --- ranks and chance ---------------------------------------------------------------------------------------------


def test_equal_features_find_nothing_and_perfect_ones_everything():
    keys = torch.arange(20)
    same = torch.ones(20, 3) / 3**0.5
    assert set(recalls(both_ways(same, same, Pairing(keys, keys))).values()) == {0.0}
    perfect = torch.eye(20)
    assert set(recalls(both_ways(perfect, perfect, Pairing(keys, keys))).values()) == {1.0}


def test_chance_is_the_mean_over_random_orders():
    generator = torch.Generator().manual_seed(0)
    keys = torch.arange(12)
    texts = keys.clone()
    texts[:4] = 0  # four equal texts
    found = [
        both_ways(*(torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=1) for _ in "ab"), p)
        for p in [Pairing(keys, texts)] * 400
    ]
    for way in ("image_to_text", "text_to_image"):
        expected = sum(chance(12, int(right), 5) for right in found[0][way].right) / 12
        assert np.mean([one[way].recall(5) for one in found]) == pytest.approx(expected, abs=0.02)
    assert chance(10, 1, 1) == pytest.approx(0.1)
    assert chance(10, 10, 1) == 1.0
    assert chance(3, 1, 5) == 1.0


def test_pairs_belong_together_by_medium_and_by_text():
    pairing = Pairing(torch.tensor([7, 8, 7]), torch.tensor([1, 2, 2]))
    # Medium 7 has the texts 1 and 2, medium 8 the text 2.
    assert pairing.texts_of().tolist() == [[True, True, True], [False, True, True], [True, True, True]]
    assert torch.equal(pairing.visual_of(), pairing.texts_of().T)
    assert torch.equal(pairing.texts_of(slice(1, 2)), pairing.texts_of()[1:2])


def test_a_large_set_is_ranked_piece_by_piece(monkeypatch):
    from medmvl.models.contrastive import retrieval

    generator = torch.Generator().manual_seed(1)
    visual, texts = (torch.nn.functional.normalize(torch.randn(50, 4, generator=generator), dim=1) for _ in "ab")
    pairing = Pairing(torch.arange(50) // 2, torch.arange(50) % 30)
    whole = both_ways(visual, texts, pairing)
    monkeypatch.setattr(retrieval, "_CHUNK", 7)
    pieces = both_ways(visual, texts, pairing)
    for way, found in whole.items():
        assert torch.equal(found.ranks, pieces[way].ranks)
        assert torch.equal(found.best, pieces[way].best)
        assert replace(found, right=pieces[way].right).recall(5) == found.recall(5)
