"""Hook of mkdocs: links of guides to files outside docs/, which work in the repository, become the files' names in the site."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's text with such links replaced; pages in folders of docs/ are left alone."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    label, path = link[1].strip("`"), link[2]
    return f"`{path}`" if path.endswith(label) else f"{label} (`{path}`)"
