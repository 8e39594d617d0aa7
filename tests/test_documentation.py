"""What the documents promise: every `medmvl` command in them parses, every link and path leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from medmvl.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


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


def test_no_document_or_source_names_this_workplace():
    tracked = [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    words = ("/work/", "../shared", "farm-", ".library")
    found = {f"{file.name}: {word}" for file in tracked for word in words if word in file.read_text(encoding="utf-8")}
    assert not found
