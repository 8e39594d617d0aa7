"""Phantoms for recipes that bring no data: drawn once, converted by the converters of the real data sets."""

from __future__ import annotations

from pathlib import Path

from medmvl.data.phantoms import split_patients, write_ct_rate, write_slake
from medmvl.data.phantoms.first_texts import write_captions, write_closed, write_readings
from medmvl.data.prepare import convert
from medmvl.errors import RecipeError
from medmvl.files import read_json, write_json
from medmvl.training.recipe import Recipe


def draw_phantoms(recipe: Recipe) -> None:
    """Draw the recipe's phantoms below its `data_root`, unless they are there already.

    Raises:
        RecipeError: if phantoms with other settings are there.
    """
    section = recipe.phantoms
    if section is None:
        return
    root = Path(recipe.path("phantoms"))
    settings = section.model_dump(mode="json")
    done = root / "phantoms.json"
    if done.is_file():
        if read_json(done) != settings:
            raise RecipeError(
                f"{root} holds phantoms that were drawn with other settings. Remove that folder, or choose another "
                "place with --set data_root=DIR."
            )
        return
    patients = split_patients(
        section.seed, {"train": section.train, "val": section.val, "test": section.test}, section.size, section.film
    )
    write_slake(root / "slake", patients)
    write_ct_rate(root / "ct-rate", {"train": patients["train"], "valid": patients["test"]})
    convert("slake", root / "slake", root / "2d", options={"multi_turn": True})
    convert("ct-rate", root / "ct-rate", root / "ct")
    if section.readings:
        films, scans = root / "2d" / "train.jsonl", root / "ct" / "train.jsonl"
        write_readings(root / "readings.jsonl", section.seed, section.readings)
        write_captions(root, patients["train"], films, scans)
        write_closed(films, root / "film-closed.jsonl")
        write_closed(scans, root / "ct-closed.jsonl")
    write_json(done, settings)
