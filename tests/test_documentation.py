"""What the documents promise: every `medmvl` command in them parses, every link and path leads somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from medmvl.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def commands(page: Path) -> list[str]:
    """Return the medmvl command lines in a page's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if re.match(r"\s*(\$ )?medmvl\b", line)]


ALL = [(page.relative_to(ROOT), line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line[:60]}" for page, line in ALL])
def test_a_documented_command_parses(page, line):
    arguments = shlex.split(line, comments=True)[1:]
    arguments = arguments[: next((i for i, word in enumerate(arguments) if word in ("|", ">", "&&", ";")), None)]
    command = typer.main.get_command(app)
    context = None
    while True:
        context = command.make_context(command.name or "medmvl", list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        _, command, arguments = command.resolve_command(context, arguments)


def test_there_are_commands_to_test():
    assert len(ALL) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


def test_every_page_is_in_the_site():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", settings.split("\nnav:")[1]))
    assert named == {str(page.relative_to(DOCS)) for kind in ("*.md", "*.ipynb") for page in DOCS.rglob(kind)}


@pytest.mark.slow  # half a minute
def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs (extra docs)")
    pytest.importorskip("mkdocs_jupyter", reason="needs mkdocs-jupyter (extra docs)")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings (extra docs)")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    run = subprocess.run(words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)",
            page.read_text(encoding="utf-8"),
        )
        assert not fetched, page


def test_each_promise_about_security_names_its_test():
    rows = re.findall(r"^\| (?!threat|---)(.*) \|$", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 30
    for row in rows:
        threat, _, held_by = row.split(" | ")
        tests = re.findall(r"`(tests/[\w/]+\.py)`", held_by)
        assert tests, threat
        assert all((ROOT / test).is_file() for test in tests), threat


def test_no_document_or_source_names_this_workplace():
    tracked = [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    words = ("/work/", "../shared", "farm-", ".library")
    found = {f"{file.name}: {word}" for file in tracked for word in words if word in file.read_text(encoding="utf-8")}
    assert not found
