"""Names under which the page and the server show a model if none is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def model_names(folders: Sequence[Path]) -> list[str]:
    """Return the name of each folder as it is given: of a link its own name, not that of its target.

    Folders of one name, such as `runs/a/model` and `runs/b/model`, get those above them as well: `a/model` and `b/model`.
    """
    parts = [folder.absolute().parts[1:] for folder in folders]
    deepest = max((len(path) for path in parts), default=1)
    for count in range(1, deepest + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
