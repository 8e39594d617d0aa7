"""Conversion, export, merging and inspection of checkpoints. Names are imported at first use: inspection needs no torch."""

from typing import TYPE_CHECKING

from medmvl.lazy import lazy_names

if TYPE_CHECKING:
    from medmvl.checkpoints.adapters import adapt, load_adapted, lora_config, merge
    from medmvl.checkpoints.conversion import Conversion, convert
    from medmvl.checkpoints.gguf.export import export_gguf
    from medmvl.checkpoints.inspection import inspect_folder, print_inspection
    from medmvl.checkpoints.llava_export import export_llava
    from medmvl.checkpoints.llm_export import export_llm
    from medmvl.checkpoints.resolve import parse_resolutions

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Conversion": "medmvl.checkpoints.conversion",
        "adapt": "medmvl.checkpoints.adapters",
        "convert": "medmvl.checkpoints.conversion",
        "export_gguf": "medmvl.checkpoints.gguf.export",
        "export_llava": "medmvl.checkpoints.llava_export",
        "export_llm": "medmvl.checkpoints.llm_export",
        "inspect_folder": "medmvl.checkpoints.inspection",
        "load_adapted": "medmvl.checkpoints.adapters",
        "lora_config": "medmvl.checkpoints.adapters",
        "merge": "medmvl.checkpoints.adapters",
        "parse_resolutions": "medmvl.checkpoints.resolve",
        "print_inspection": "medmvl.checkpoints.inspection",
    },
)

__all__ = [
    "Conversion",
    "adapt",
    "convert",
    "export_gguf",
    "export_llava",
    "export_llm",
    "inspect_folder",
    "load_adapted",
    "lora_config",
    "merge",
    "parse_resolutions",
    "print_inspection",
]
