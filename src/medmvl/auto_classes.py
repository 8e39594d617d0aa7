"""Our classes in transformers' Auto classes: `AutoConfig`, `AutoProcessor`, `AutoModelForImageTextToText`.

`import medmvl` is enough for `AutoProcessor.from_pretrained(folder)`, and yet imports neither torch nor transformers.
transformers has no entry point for other packages. It has tables of class names, and takes a class from the module
`transformers.models.<model type>` when it is asked for. So, once transformers has made a table, our name is added to it, and
that module is `medmvl` itself, whose public names are imported at first use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import cast

#: `model_type` of our checkpoints: a model with an LLM, or the dual encoder of a contrastive stage.
MODEL_TYPE, DUAL_ENCODER_TYPE = "medmvl", "medmvl-dual-encoder"
_AUTO = "transformers.models.auto"

#: Module of transformers -> its table of class names, and our entry.
_TABLES = {
    f"{_AUTO}.configuration_auto": ("CONFIG_MAPPING_NAMES", "MedMVLConfig"),
    f"{_AUTO}.modeling_auto": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MedMVLForConditionalGeneration"),
    f"{_AUTO}.processing_auto": ("PROCESSOR_MAPPING_NAMES", "MedMVLProcessor"),
}


class _AddAfterwards(Loader):
    """A loader that executes a module by the module's own loader, then adds our entry to its table."""

    def __init__(self, own: Loader, table: str, entry: str) -> None:
        self._own = own
        self._table = table
        self._entry = entry

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._own.exec_module(module)
        getattr(module, self._table)[MODEL_TYPE] = self._entry


class _TableFinder(MetaPathFinder):
    """A finder for the modules that make the tables, each once."""

    def __init__(self) -> None:
        self._waiting = dict(_TABLES)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        table, entry = self._waiting.pop(name)
        spec = find_spec(name)  # by the other finders, since the name waits no longer
        if spec is not None and spec.loader is not None:
            spec.loader = _AddAfterwards(spec.loader, table, entry)
        return spec


def register(package: str) -> None:
    """Make the Auto classes know ours, which `package` provides by name: at once if they exist, else when they are made."""
    if any(name in sys.modules for name in _TABLES):
        _register_now(sys.modules[package])
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.modules[f"transformers.models.{MODEL_TYPE}"] = sys.modules[package]
        sys.meta_path.insert(0, cast(MetaPathFinder, _TableFinder()))


def _register_now(package: ModuleType) -> None:
    """Register by the Auto classes' own methods, which import our classes."""
    transformers = importlib.import_module("transformers")
    config = package.MedMVLConfig
    transformers.AutoConfig.register(MODEL_TYPE, config, exist_ok=True)
    transformers.AutoModelForImageTextToText.register(config, package.MedMVLForConditionalGeneration, exist_ok=True)
    transformers.AutoProcessor.register(config, package.MedMVLProcessor, exist_ok=True)
