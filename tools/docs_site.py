"""Hook of mkdocs.

Links of guides to files outside docs/, which work in the repository, become the files' names in the site. Words of code that hold a
hyphen are kept whole: browsers break lines after hyphens, and no CSS rule forbids it within a text that wraps at spaces.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")

_CODE = re.compile(r"(<code\b[^>]*>)(.*?)(</code>)", re.DOTALL)
#: A word with a hyphen between the tags that color it; a longer one would not fit a phone.
_HYPHENATED = re.compile(r"(?<![^\s>])[^\s<>]*-[^\s<>]*(?![^<]*>)")
_LONGEST_WHOLE = 60


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's text with such links replaced; pages in folders of docs/ are left alone."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    label, path = link[1].strip("`"), link[2]
    return f"`{path}`" if path.endswith(label) else f"{label} (`{path}`)"


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Return a page's HTML in which hyphenated words of code are marked as whole; notebooks are left alone."""
    return html if page.file.src_uri.endswith(".ipynb") else _CODE.sub(_with_whole_words, html)


def _with_whole_words(code: re.Match[str]) -> str:
    return code[1] + _HYPHENATED.sub(_whole, code[2]) + code[3]


def _whole(word: re.Match[str]) -> str:
    return word[0] if len(word[0]) > _LONGEST_WHOLE else f'<span class="whole">{word[0]}</span>'
