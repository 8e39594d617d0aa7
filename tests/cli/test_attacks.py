"""Every attack of `tests/attacks.py` is refused in one line, with bounded time and memory, and does nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from attacks import ATTACKS, Outcome, Place, fault, run
from processes import run_in_a_clean_process
from writing import import_everything, prepare_in_a_fork


def _run_all(folder: Path) -> None:
    import_everything()
    inputs = folder / "inputs"
    inputs.mkdir()
    prepare_in_a_fork(inputs)
    for number, attack in enumerate(ATTACKS):
        outcome = run(attack, Place(inputs, folder / str(number)))
        (folder / f"{number}.json").write_text(json.dumps(asdict(outcome)))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacks")
    run_in_a_clean_process(_run_all, folder, seconds=500)  # 40 on an idle machine
    return folder


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=[f"{attack.door}: {attack.text}" for attack in ATTACKS])
def test_attack_is_refused(outcomes, number):
    outcome = Outcome(**json.loads((outcomes / f"{number}.json").read_text()))
    assert fault(ATTACKS[number], outcome) == ""


def test_lock_that_is_a_link_leaves_its_target(outcomes):
    number = next(i for i, attack in enumerate(ATTACKS) if attack.text.startswith("the lock next to --out is a link"))
    assert (outcomes / str(number) / "precious").read_text() == "kept"
