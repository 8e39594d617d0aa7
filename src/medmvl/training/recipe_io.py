"""Reading and writing of recipes as YAML, with overrides and readable errors."""

from __future__ import annotations

import importlib
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from medmvl.errors import RecipeError, did_you_mean, listed
from medmvl.files import PathLike, load_yaml
from medmvl.training.recipe import PART_NAMES, STAGES, Recipe, StageSection
from medmvl.training.recipe.other_names import hint_for
from medmvl.training.recipe.stages import objective_of
from medmvl.validation import allowed_and_given


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, `no` is a word, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise RecipeError(
                    f"line {key_node.start_mark.line + 1}: a key must be a word. If this is {{{{ a variable }}}} of a "
                    "template, render the template first."
                )
            if key in seen:
                raise RecipeError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice in one place.")
            seen.add(key)
        return super().construct_mapping(node, deep)


# The tables belong to the class and are shared with SafeLoader, so they are copied before they are changed.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for _REPLACED in [("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|nan))$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|false|False)$"), list("tTfF"))


def load_recipe(source: Recipe | PathLike | dict[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, a dictionary or a Recipe, with `key.path=value` overrides applied.

    Raises:
        RecipeError: for a missing file, broken YAML, an unknown key (with the closest known one) or a value that is
            not allowed, always with the path of the key.
    """
    if isinstance(source, Recipe):
        name, values = "the recipe", source.to_dict()
    elif isinstance(source, dict):
        name, values = "the recipe", source
    else:
        name, values = str(source), read_yaml(source)
    settings = list(overrides)
    return parse_recipe(apply_overrides(values, settings), f"{name} with these settings" if settings else name)


def read_yaml(path: PathLike) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        RecipeError: if the file is missing, is not YAML, or is not a mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"The recipe {file} does not exist.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not valid YAML: {error}.") from error
    try:
        values = _parse_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"{file}, {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file} must hold keys and values, such as `name: my-run`.")
    return values


def _parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        RecipeError: saying why it is not valid YAML.
    """
    try:
        return load_yaml(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number of 5000 digits; 1000 nested lists
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"not valid YAML: {reason}.") from error


def dump_recipe(recipe: Recipe) -> str:
    """Return `recipe` as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=120)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `values` with each `a.b.0.c=value` set; the value is read as YAML.

    A list item is named by its number or, for stages, by its name: `stages.pretrain.lr=1e-3`.

    Raises:
        RecipeError: if an override has no `=`, or its path runs through something that is not there.
    """
    result = _copy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"The setting {override!r} is not of the form key.path=value.")
        keys = path.strip().split(".")
        target: Any = result
        for depth, key in enumerate(keys[:-1]):
            if isinstance(target, dict) and target.get(key) is None:
                target[key] = {}
            target = target[_index(target, key, ".".join(keys[: depth + 1]))]
        if not isinstance(target, dict | list):
            raise RecipeError(f"The setting {override!r} goes into {keys[-2]!r}, which is a single value.")
        try:
            value = _parse_yaml(text)
        except RecipeError as error:
            raise RecipeError(f"The value of the setting {override!r} is {error}") from error
        target[_index(target, keys[-1], path, new=True)] = value
    return result


def _index(target: Any, key: str, path: str, new: bool = False) -> Any:
    """Return the key or index in `target` that the word `key` of an override names."""
    if isinstance(target, dict) and (new or key in target):
        return key
    if isinstance(target, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in target]
        if key in names:
            return names.index(key)
        if key.isascii() and key.isdigit() and int(key) < len(target):
            return int(key)
        known = [str(name) for name in names if name is not None] or [str(i) for i in range(len(target))]
        raise RecipeError(f"The setting {path!r}: there is no item {key!r}. {did_you_mean(key, known)}")
    raise RecipeError(f"The setting {path!r} goes through {key!r}, which is not there.")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def parse_recipe(values: dict[str, Any], name: str = "the recipe") -> Recipe:
    """Check `values` and return the recipe.

    Raises:
        RecipeError: listing every fault with the path of its key.
    """
    _import_objectives(values)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_words(detail) for detail in error.errors()]
        raise RecipeError(listed(f"{name} is not a valid recipe:", faults)) from error


def _import_objectives(values: dict[str, Any]) -> None:
    """Import the plugins of a recipe that has a stage of an objective we do not know, so that they register it."""
    stages, plugins = values.get("stages"), values.get("plugins")
    known = [objective_of(stage) in STAGES for stage in stages] if isinstance(stages, list) else []
    if isinstance(plugins, list) and not all(known):
        import_plugins([str(name) for name in plugins])


def import_plugins(names: Iterable[str]) -> None:
    """Import Python modules that register parts or objectives.

    Raises:
        RecipeError: if one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RecipeError(f"The plugin {name!r} cannot be imported: {error}.") from error


def _words(detail: ErrorDetails) -> str:
    """Return one fault as text: path, value, and what is allowed."""
    location = detail["loc"]
    path = _path(location)
    if detail["type"] == "union_tag_invalid":
        return f"{path}.objective: unknown objective. {did_you_mean(detail['ctx']['tag'], STAGES)}"
    if detail["type"] == "extra_forbidden":
        if (hint := hint_for(str(location[-1]))) is not None:
            return f"{path}: unknown key. {hint}"
        return f"{path}: unknown key. {did_you_mean(str(location[-1]), _known_keys(location[:-1]))}"
    if detail["type"] == "literal_error" and location and location[-1] == "[key]":
        return f"{_path(location[:-1])}: unknown part. {did_you_mean(str(location[-2]), PART_NAMES)}"
    return f"{path or 'top level'}: {allowed_and_given(detail)}."


def _path(location: tuple[int | str, ...]) -> str:
    """Return a location as `stages[0].train.llm`; pydantic's names of union members are left out."""
    text = ""
    for index, step in enumerate(location):
        if index == 2 and location[0] == "stages":
            continue  # the stage's objective
        if isinstance(step, int):
            text += f"[{step}]"
        elif not re.search(r"[\[\],() ]|^(str|list|dict|int|float|bool)$|Section$", step):
            text += f".{step}" if text else step
    return text


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section at `location` takes."""
    sections: list[type[BaseModel]] = [Recipe]
    for index, step in enumerate(location):
        if index == 2 and location[0] == "stages":
            sections = [STAGES[str(step)]]
            continue
        fields = [field for section in sections for name, field in _fields(section) if name == step]
        # A list's number, a dictionary's key or a union's member leads to the same sections.
        sections = [found for field in fields for found in _sections_in(field.annotation)] if fields else sections
    return [name for section in sections for name, _ in _fields(section)]


def _fields(section: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [(field.alias or name, field) for name, field in section.model_fields.items()]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes that an annotation holds, at any depth."""
    if annotation is StageSection:
        return list(STAGES.values())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for member in typing.get_args(annotation) for found in _sections_in(member)]
