"""Imports point one way: between packages, between files, and out of the student's reading list."""

from __future__ import annotations

import re

import networkx as nx
import pytest

from import_graph import PACKAGE, ROOT, file_graph, package_graph, source_files

GRAPH = file_graph()

#: Package -> packages that it may import besides the base modules.
ALLOWED = {
    "imaging": set(),
    "data": {"imaging"},
    "phantoms": {"data"},
    "models": set(),
    "cards": {"imaging", "data", "models"},
    "processing": {"imaging", "data", "models"},
    "inference": {"imaging", "data", "models", "processing"},
    "training": {"cards", "imaging", "data", "phantoms", "models", "processing", "inference"},
    "checkpoints": {"cards", "imaging", "data", "models", "processing"},
    "evaluation": {"imaging", "data", "phantoms", "models", "processing", "inference", "checkpoints"},
    "ward": {"imaging", "data", "models", "processing", "inference"},
    "serving": {"imaging", "data", "models", "processing", "inference", "checkpoints"},
}
EVERYTHING = {*ALLOWED, "experiments"}
ALLOWED |= {"experiments": set(ALLOWED), "cli": EVERYTHING}
BASE = {
    "auto_classes",
    "errors",
    "files",
    "lazy",
    "openmp",
    "pretrained",
    "process_pool",
    "progress_bar",
    "registry",
    "remote",
    "validation",
}

#: Modules that one need not read to understand the rest; packages are entered through their `__init__` alone.
LEAVES = re.compile(
    r"imaging\.(dicom|formats)\.|data\.converters|phantoms|models\.contrastive|models\.encoders\.(?!encoder$)"
    r"|models\.connectors\.(perceiver|pixel_shuffle)|training\.objectives\.contrastive|checkpoints|evaluation|serving|ward"
    r"|experiments|cli"
)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_package_imports_only_packages_below_it(package):
    graph = package_graph()
    assert set(graph.successors(package)) - BASE - ALLOWED[package] <= {PACKAGE}


def test_every_package_has_a_rule():
    names = {module.split(".")[1] for module in source_files() if module.count(".")}
    assert names == {*ALLOWED, *BASE, "__main__"}


def test_base_modules_import_no_package():
    assert not {name for base in BASE for name in package_graph().successors(base)} - BASE


def test_files_do_not_import_each_other_in_circles():
    circles = [sorted(group) for group in nx.strongly_connected_components(GRAPH) if len(group) > 1]
    assert not circles


def reading_list() -> list[str]:
    """Return the modules that CONTRIBUTING.md lists for a day's reading."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Read it in a day")[1].split("\n## ")[0]
    modules = []
    for folder, braced, single in re.findall(r"`([a-z_0-9/]+/)(?:\{([a-z_0-9,]+)\}|([a-z_0-9]+))\.py`", section):
        names = braced.split(",") if braced else [single]
        modules += [f"{PACKAGE}.{folder.replace('/', '.')}{name}" for name in names]
    return modules


def test_reading_list_names_existing_files_once():
    listed = reading_list()
    assert len(listed) > 40
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(source_files())


@pytest.mark.parametrize("module", reading_list())
def test_reading_list_imports_no_leaf(module):
    imported = {target.removeprefix(f"{PACKAGE}.") for target in GRAPH.successors(module)}
    assert not {name for name in imported if LEAVES.match(name)}
