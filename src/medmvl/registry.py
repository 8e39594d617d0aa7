"""Registry of named parts with exact lookup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from medmvl.errors import MedMVLError, RecipeError, did_you_mean, shown

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named parts of one kind.

    Args:
        kind: the kind of part in the singular, for messages ("encoder", "benchmark", ...).
        error: the error class raised for an unknown name.
    """

    def __init__(self, kind: str, error: type[MedMVLError] = RecipeError) -> None:
        self.kind = kind
        self._error = error
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register `item` under `name` and return it; raise ValueError if the name is taken."""
        if name in self._items:
            raise ValueError(f"The {self.kind} {name!r} is registered twice.")
        self._items[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers the decorated object under `name`."""
        return lambda item: self.add(name, item)

    def get(self, name: str) -> T:
        """Return the item called exactly `name`.

        Raises:
            MedMVLError: of the registry's error class, with the closest known name and all names.
        """
        if name not in self:
            raise self._error(f"Unknown {self.kind} {shown(name)}. {did_you_mean(str(name), self._items)}")
        return self._items[name]

    __getitem__ = get

    def names(self) -> list[str]:
        """Return all names, in the order of registration."""
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
