"""What the folder of a base says of it: its README, its weights, its recipe, its stored questions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from medmvl.cards.data_facts import digest_of, json_object
from medmvl.errors import MedMVLError
from medmvl.files import load_yaml, read_json

#: All weights of a base together; larger ones are not hashed. They are read once in a run.
MAX_HASHED_WEIGHTS = 20_000_000_000
#: Characters of a README that are searched for its front matter and title.
_README_CHARACTERS = 100_000


def recipe_of(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the recipe stored in a base's folder and the stage that wrote it; empty if they cannot be read."""
    try:
        recipe = load_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"))
        file = folder / "environment.json"
        last = read_json(file).get("stage") if file.is_file() else None
        stages = recipe.get("stages") or []
        if all(isinstance(stage["name"], str) for stage in stages) and isinstance(recipe.get("data") or {}, dict):
            return recipe, last
    except (OSError, MedMVLError, yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        pass
    return {}, None


def questions_are_synthetic(folder: Path) -> bool:
    """Whether the questions that a checkpoint stores say that it was trained on synthetic data."""
    return json_object(folder / "prompts.json").get("synthetic") is True


def readme_facts(file: Path) -> tuple[str | None, str | None, set[str]]:
    """Return title, license and tags of a model's README, as far as it has them."""
    try:
        with file.open(encoding="utf-8", errors="replace") as handle:
            text = handle.read(_README_CHARACTERS)
    except OSError:
        return None, None, set()
    facts: Any = None
    if text.startswith("---\n") and (end := text.find("\n---", 3)) > 0:
        try:
            facts = load_yaml(text[4:end])
        except (yaml.YAMLError, MedMVLError, ValueError, RecursionError):
            facts = None
        text = text[end + 4 :]
    facts = facts if isinstance(facts, dict) else {}
    title = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), None)
    tags, license_ = facts.get("tags"), facts.get("license")
    return (
        title or None,
        license_ if isinstance(license_, str) else None,
        {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set(),
    )


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's weights; "" if there are none, or more than `MAX_HASHED_WEIGHTS`.

    Of several files it is the SHA-256 of the lines that `sha256sum` prints of them, sorted by name.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files or sum(file.stat().st_size for file in files) > MAX_HASHED_WEIGHTS:
        return ""
    digests = [digest_of(file.resolve(), file.stat().st_mtime_ns) for file in files]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return digests[0] if len(files) == 1 else hashlib.sha256(lines.encode()).hexdigest()
