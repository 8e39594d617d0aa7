"""Checkpoints of others in, deployable formats out, adapters merged, folders inspected."""

from medmvl.checkpoints.adapters import adapt, load_adapted, lora_config, merge
from medmvl.checkpoints.convert import Conversion, convert
from medmvl.checkpoints.export_gguf import export_gguf
from medmvl.checkpoints.export_llava import export_llava
from medmvl.checkpoints.inspection import inspect_folder, print_inspection
from medmvl.checkpoints.resolve import parse_resolutions

__all__ = [
    "Conversion",
    "adapt",
    "convert",
    "export_gguf",
    "export_llava",
    "inspect_folder",
    "load_adapted",
    "lora_config",
    "merge",
    "parse_resolutions",
    "print_inspection",
]
