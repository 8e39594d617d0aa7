"""Phantoms for recipes without data, drawn once and converted by the converters of the real data sets."""

from __future__ import annotations

from pathlib import Path

from medmvl.data.converters import convert
from medmvl.data.synthetic import write_note
from medmvl.errors import RecipeError
from medmvl.files import read_json, write_json
from medmvl.phantoms import VERSION, split_patients, write_ct_rate, write_slake
from medmvl.phantoms.warmup_texts import write_captions, write_closed, write_text_only_patients
from medmvl.remote import RemotePath
from medmvl.training.recipe import Recipe


def draw_phantoms(recipe: Recipe) -> None:
    """Draw the recipe's phantoms below its `data_root` if they are not there.

    Raises:
        RecipeError: if phantoms with other settings are there.
    """
    section = recipe.phantoms
    if section is None:
        return
    drawn = recipe.path("phantoms")
    if isinstance(drawn, RemotePath):
        raise RecipeError("`phantoms` are drawn below `data_root`, which must then be a folder and not a URL.")
    root = Path(drawn)
    settings = {**section.model_dump(mode="json"), "version": VERSION}
    done = root / "phantoms.json"
    if done.is_file():
        if read_json(done) != settings:
            raise RecipeError(
                f"{root} holds phantoms that were drawn with other settings, or by another version. Remove that folder, or choose another "
                "place with --set data_root=DIR."
            )
        return
    patients = split_patients(
        section.seed,
        {"train": section.train, "val": section.val, "test": section.test},
        section.size,
        section.radiograph,
    )
    write_note(root, "SLAKE and CT-RATE")  # for the records below it that have no media
    write_slake(root / "slake", patients)
    write_ct_rate(root / "ct-rate", {"train": patients["train"], "valid": patients["test"]})
    convert("slake", root / "slake", root / "2d", options={"multi_turn": True})
    convert("ct-rate", root / "ct-rate", root / "ct")
    if section.text_only_patients:
        radiographs, scans = root / "2d" / "train.jsonl", root / "ct" / "train.jsonl"
        write_text_only_patients(root / "text-only-patients.jsonl", section.seed, section.text_only_patients)
        write_captions(root, patients["train"], radiographs, scans)
        write_closed(radiographs, root / "radiograph-closed.jsonl")
        write_closed(scans, root / "ct-closed.jsonl")
    write_json(done, settings)
