"""Spelling of reading options in messages: readers advise Python arguments, and each entry point takes them in its own way."""

from __future__ import annotations

import re

from medmvl.data.read_options import NAMES

_NAMED = re.compile(rf"\b({'|'.join(NAMES)})=(?:'([^']*)'|(\([^)]*\))|(<[^>]*>)|([^\s,;)]*[^\s,;).]))")
#: Reading options that the section `series` of a protocol takes.
PROTOCOL_KEYS = ("gaps", "units", "spacing")


def _value(match: re.Match[str]) -> str:
    return next(group for group in match.groups()[1:] if group is not None)


def remedies(message: str) -> list[dict[str, str]]:
    """Return the reading options that a message advises and that need no further input: `option` and `value` of each."""
    found = []
    for match in _NAMED.finditer(message):
        value = _value(match).rstrip(".")
        if match[4] is None and match[3] is None and value:
            found.append({"option": match[1], "value": value})
    # "series=<UID>, 'largest', 'thinnest'": the words after the first one belong to the same option.
    for match in re.finditer(r"\bseries=<[^>]*>((?:,? (?:or )?'\w+')+)", message):
        found += [{"option": "series", "value": word} for word in re.findall(r"'(\w+)'", match[1])]
    return [entry for number, entry in enumerate(found) if entry not in found[:number]]


def spell_flags(message: str) -> str:
    """Return a message in which Python arguments of the readers are spelled as flags: units='HU' as --units HU."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), _value(match)
        if name == "already-rescaled":
            return "--already-rescaled" if value.rstrip(".") == "True" else "--no-already-rescaled"
        if value.startswith("("):
            return f"--{name} {value[1:-1].replace(' ', '').upper()}"
        return f"--{name} {value}"

    return _NAMED.sub(flag, message)


def spell_recipe(message: str) -> str:
    """Return a message in which Python arguments of the readers are spelled as `read` of a recipe: gaps='fill' as `read: {gaps: fill}`.

    Where `read` stands is said once, at the end.
    """
    spelled = _NAMED.sub(lambda match: f"`read: {{{match[1]}: {_yaml(match)}}}`", message)
    return spelled if spelled == message else f"{spelled} `read` is a key of a data set in the recipe, or of a record."


def spell_protocol(message: str) -> str:
    """Return a message in which arguments that a protocol takes are spelled as its keys: gaps='fill' as `series.gaps: fill`.

    That the keys are the protocol's is said once, at the end.
    """

    def key(match: re.Match[str]) -> str:
        return f"`series.{match[1]}: {_yaml(match)}`" if match[1] in PROTOCOL_KEYS else match[0]

    spelled = _NAMED.sub(key, message)
    return spelled if spelled == message else f"{spelled} `series` is a section of the protocol."


def _yaml(match: re.Match[str]) -> str:
    return _value(match).replace("(", "[").replace(")", "]")
