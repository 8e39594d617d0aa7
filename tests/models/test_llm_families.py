"""A part of the families of LLMs that `benchmarks/llm_families.py` tries, and the families that are refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "llm_families.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("llm_families", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma3_text", "bloom", "gpt_neox", "mixtral", "deepseek_v3"])
def test_a_family_works_in_every_check(script, kind):
    found = script.try_family(kind)
    assert script.works(found)
    assert (found["packed"] == "yes") is (kind != "bloom")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "both directions"),
        ("bart", "an encoder and a decoder"),
        ("mamba", "a state of its own kind"),
        ("siglip_text_model", "no causal LM"),
    ],
)
def test_a_family_that_cannot_work_is_refused_at_assembly(script, kind, reason):
    found = script.try_family(kind)
    assert list(found) == ["refused"]
    assert reason in found["refused"]
