"""`import medmvl` registers model and processor with transformers' Auto classes, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

ORDERS = {
    "before transformers": "import medmvl; from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor",
    "after transformers": "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor; import medmvl",
    "processor first": "import medmvl; from transformers import AutoProcessor, AutoConfig, AutoModelForImageTextToText",
    "by our model": "import medmvl.models; from transformers import AutoProcessor, AutoConfig, AutoModelForImageTextToText",
}

CHECK = """
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = AutoConfig.for_model("medmvl")
assert type(config).__name__ == "MedMVLConfig", type(config)
assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].__name__ == "MedMVLForConditionalGeneration"
assert PROCESSOR_MAPPING[type(config)].__name__ == "MedMVLProcessor"
"""


def run(code: str) -> None:
    # A process of its own, since this one has imported everything.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_ours(order):
    run(ORDERS[order] + CHECK)


def test_the_import_alone_brings_neither_torch_nor_transformers():
    run("import sys, medmvl; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")
