"""Conversion, export, merging and inspection of checkpoints."""

from medmvl.checkpoints.adapters import adapt, load_adapted, lora_config, merge
from medmvl.checkpoints.convert import Conversion, convert
from medmvl.checkpoints.export_llava import export_llava
from medmvl.checkpoints.export_llm import export_llm
from medmvl.checkpoints.gguf.export import export_gguf
from medmvl.checkpoints.inspection import inspect_folder, print_inspection
from medmvl.checkpoints.resolve import parse_resolutions

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
