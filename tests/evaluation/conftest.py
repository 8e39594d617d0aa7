from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from medmvl.evaluation.items import Item, make_item
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.scoring import score_metric


def _item(prediction: str, reference: str, question: str = "What is seen?", **extra: Any) -> Item:
    """Make an item as a predictions file would give it."""
    record = {
        "id": extra.pop("id", f"{question}|{reference}|{prediction}"),
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reference}],
        "prediction": prediction,
        **extra,
    }
    return make_item(record)


@pytest.fixture(scope="session")
def item() -> Callable[..., Item]:
    """The maker of items: item(prediction, reference, question=..., **record keys)."""
    return _item


@pytest.fixture(scope="session")
def score() -> Callable[..., float]:
    """The value of a metric, by the name of its definition, over (prediction, reference) pairs."""

    def value(name: str, *pairs: tuple[str, str], **extra: Any) -> float:
        items = [_item(*pair, id=str(index), **extra) for index, pair in enumerate(pairs)]
        return score_metric(METRICS[name], items).value

    return value


@pytest.fixture(scope="session")
def phantom_rows() -> list[dict[str, Any]]:
    """Rows of a small phantom-2d predictions file: ten patients, every kind of question, a model that is mostly right."""
    rows = []
    for index in range(10):
        side, other = ("left", "right") if index % 2 else ("right", "left")
        truth = "yes" if index % 2 else "no"
        size = [200, 100]
        common = {"patient": f"p{index}", "image_size": size, "synthetic": True, "image": [f"p{index}.png"]}
        report = f"There is a pleural effusion on the {side}." if index % 2 else "No pleural effusion."
        rows += [
            _row(f"{index}-closed", "<image>\nIs there an effusion?", truth, truth, task="vqa", answer_type="CLOSED", **common),
            _row(f"{index}-side", "<image>\nOn which side is the device, left or right?", side, side if index else other,
                 task="vqa", answer_type="CLOSED", **common),
            _row(f"{index}-open", "<image>\nWhere is the nodule?", f"{side} upper lobe", f"the {side} lobe", task="vqa",
                 answer_type="OPEN", **common),
            _row(f"{index}-report", "<image>\nDescribe.", report, report, task="report",
                 labels={"Pleural effusion": index % 2, "Consolidation": 0}, **common),
            _row(f"{index}-refer", "<image>\nGive me the location of the heart.", "{<10><10><50><60>}",
                 "{<10><10><50><60>}" if index else "nothing", task="refer", boxes=[[20, 10, 80, 50]], **common),
            _row(f"{index}-identify", "<image>\nWhat object is in this location {<10><10><50><60>}", "heart", "Heart.",
                 task="identify", **common),
        ]  # fmt: skip
    return rows


def _row(identifier: str, question: str, answer: str, prediction: str, **extra: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identifier, "conversations": turns, "prediction": prediction, **extra}
