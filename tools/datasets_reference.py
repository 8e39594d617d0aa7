"""Generator of the reference part of docs/datasets.md, from the registry of converters.

`python tools/datasets_reference.py` replaces everything below the marker of the guide.
"""

from __future__ import annotations

from pathlib import Path

from medmvl.data.converters import DATASETS, Converter
from medmvl.files import write_text

GUIDE = Path(__file__).parents[1] / "docs" / "datasets.md"
MARKER = "<!-- Below this line the file is generated: python tools/datasets_reference.py -->"


def describe_all() -> str:
    """Return the reference of all converters as Markdown, in alphabetical order."""
    return "\n".join(_describe(DATASETS[name]) for name in sorted(DATASETS))


def _describe(converter: Converter) -> str:
    lines = [
        f"### {converter.name}",
        "",
        f"{converter.title}",
        "",
        f"- License: {converter.license}",
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
    update(GUIDE)
