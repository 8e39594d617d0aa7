"""What only the developer of a model can state in its card: use, population, limits, contact."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medmvl.errors import RecipeError, did_you_mean, shown
from medmvl.files import PathLike, existing_file, load_yaml
from medmvl.validation import allowed_and_given


class Statements(BaseModel):
    """Statements of the developer; the sections of CHAI's Applied Model Card that cannot be read from a folder.

    Source of the sections: Coalition for Health AI, "Applied Model Card" (2024).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    """Name of the model; default: the recipe's, else the folder's."""
    developer: str | None = None
    contact: str | None = None
    license: str | None = None
    """Identifier of a license as the Hugging Face hub spells it, such as apache-2.0."""
    language: list[str] = []
    """ISO 639-1 codes of the languages it answers in."""
    release_stage: str | None = None
    intended_use: str | None = None
    primary_users: str | None = None
    patient_population: str | None = None
    out_of_scope: str | None = None
    known_limitations: str | None = None
    known_biases: str | None = None
    clinical_risk_level: str | None = None
    bias_mitigation: str | None = None
    maintenance: str | None = None
    publications: list[str] = []


def read_statements(path: PathLike) -> Statements:
    """Read a YAML file of statements.

    Raises:
        DataError: if the file does not exist.
        RecipeError: if it is not YAML, or a key or value is not allowed, naming the key.
    """
    file = existing_file(path, "file of statements")
    try:
        values: Any = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file} must hold keys and texts, such as `developer: ...`.")
    if unknown := [str(key) for key in values if key not in Statements.model_fields]:
        raise RecipeError(
            f"{file}: unknown key {shown(unknown[0])}. {did_you_mean(unknown[0], Statements.model_fields)}"
        )
    try:
        return Statements(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{file}: {'.'.join(map(str, first['loc']))}: {allowed_and_given(first)}.") from error
