"""Phantom radiographs with captions in the layout of LLaVA's pretraining set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from medmvl.files import PathLike, atomic, write_json
from medmvl.phantoms.phantom import Phantom
from medmvl.phantoms.texts import ON_RADIOGRAPH, caption

FILE = "blip_laion_cc_sbu_558k.json"
_REQUESTS = ("Describe the radiograph briefly.", "Give a short description of this image.", "What does the image show?")


def write_llava_pretrain(root: PathLike, phantoms: Iterable[Phantom]) -> Path:
    """Write radiographs and their captions below `root` as the 558k pretraining set; return `root`."""
    root = Path(root)
    items = []
    for number, phantom in enumerate(map(replace, phantoms)):  # copies, so that radiographs do not pile up
        identifier = f"{number // 1000:05d}{number % 1000:04d}"
        name = f"{identifier[:5]}/{identifier}.jpg"
        with atomic(root / name) as temporary:
            Image.fromarray(phantom.radiograph).save(temporary, quality=95)
        request = _REQUESTS[int(phantom.text_rng().integers(len(_REQUESTS)))]
        # Half of the original has the picture before the text, half after it.
        value = f"<image>\n{request}" if number % 2 else f"{request}\n<image>"
        turns = [{"from": "human", "value": value}, {"from": "gpt", "value": caption(phantom.findings, ON_RADIOGRAPH)}]
        items.append({"id": identifier, "image": name, "conversations": turns})
    write_json(root / FILE, items, indent=None)
    return root
