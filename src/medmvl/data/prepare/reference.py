"""The reference part of docs/datasets.md, made from the registry so that it cannot drift from the code.

`python -m medmvl.data.prepare.reference docs/datasets.md` writes it anew below the marker.
"""

from __future__ import annotations

import sys
from pathlib import Path

import medmvl.data.prepare.all  # noqa: F401  (registers the converters)
from medmvl.data.prepare.base import DATASETS, Converter
from medmvl.files import write_text

MARKER = "<!-- Below this line the file is generated: python -m medmvl.data.prepare.reference docs/datasets.md -->"


def describe_all() -> str:
    """Return the reference of all converters as Markdown, in alphabetical order."""
    return "\n".join(_describe(DATASETS[name]) for name in sorted(DATASETS))


def _describe(converter: Converter) -> str:
    lines = [
        f"### {converter.name}",
        "",
        f"{converter.title}",
        "",
        f"- Licence: {converter.licence}",
        f"- Where: {converter.homepage}",
        f"- Layout: {converter.layout}",
        f"- Command: `medmvl data convert {converter.name} SOURCE --out DIR`",
        "",
    ]
    fields = converter.options.model_fields
    if fields:
        lines += ["| `--set` | default | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {_default(field.default)} | {field.description} |" for name, field in fields.items()]
        lines.append("")
    return "\n".join(lines)


def _default(value: object) -> str:
    return "" if value in (None, "") else f"`{value}`"


def update(path: Path) -> None:
    """Replace everything below the marker of a Markdown file by the reference."""
    guide, _, _ = path.read_text(encoding="utf-8").partition(MARKER)
    write_text(path, f"{guide}{MARKER}\n\n{describe_all()}")


if __name__ == "__main__":
    update(Path(sys.argv[1]))
