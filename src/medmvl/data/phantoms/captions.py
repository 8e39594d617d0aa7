"""Phantom radiographs with captions in the layout of LLaVA's pretraining set: what a first stage aligns on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from medmvl.data.phantoms.phantom import Phantom
from medmvl.data.phantoms.texts import ON_FILM
from medmvl.files import PathLike, atomic, write_json

FILE = "blip_laion_cc_sbu_558k.json"
_REQUESTS = ("Describe the radiograph briefly.", "Give a short description of this image.", "What does the image show?")


def caption(phantom: Phantom, names: Iterable[str] = ON_FILM) -> str:
    """Return one terse sentence per finding, present or not, in a fixed order.

    >>> from medmvl.data.phantoms import draw_patient
    >>> caption(draw_patient(0, 1))[:44]
    'No pleural effusion. No consolidation. Lung '
    """
    sentences = []
    for name in names:
        finding = phantom.findings.get(name)
        words = f"no {name}" if finding is None else f"{name}, {finding.place}" if finding.place else name
        sentences.append(words[0].upper() + words[1:])
    return ". ".join(sentences) + "."


def write_llava_pretrain(root: PathLike, phantoms: Iterable[Phantom]) -> Path:
    """Write radiographs and their captions below `root` as the 558k pretraining set; return `root`."""
    root = Path(root)
    items = []
    for number, phantom in enumerate(map(replace, phantoms)):  # copies, so that films do not pile up
        identifier = f"{number // 1000:05d}{number % 1000:04d}"
        name = f"{identifier[:5]}/{identifier}.jpg"
        with atomic(root / name) as temporary:
            Image.fromarray(phantom.radiograph).save(temporary, quality=95)
        request = _REQUESTS[int(phantom.text_rng().integers(len(_REQUESTS)))]
        # Half of the original has the picture before the text, half after it.
        value = f"<image>\n{request}" if number % 2 else f"{request}\n<image>"
        turns = [{"from": "human", "value": value}, {"from": "gpt", "value": caption(phantom)}]
        items.append({"id": identifier, "image": name, "conversations": turns})
    write_json(root / FILE, items, indent=None)
    return root
