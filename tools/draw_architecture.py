"""Draw `docs/figures/architecture.svg` and `docs/figures/sample.svg` from the source.

    python tools/draw_architecture.py

The first picture shows the packages in layers: a package imports only from layers below it. Arrows are the imports that
are left when those implied by others are removed. The second one follows one sample from its file to the loss.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path

import networkx as nx

from import_graph import PACKAGE, ROOT, SOURCE, package_graph

FIGURES = ROOT / "docs" / "figures"

#: Package -> what it is for, in at most about 40 characters.
PURPOSE = {
    "cli": "one thin file per command",
    "experiments": "quickstart, comparison of recipes",
    "ward": "DICOM node, study folders, DICOMweb",
    "serving": "server and page",
    "evaluation": "benchmarks, metrics, controls, report",
    "training": "recipe, loop, objectives, checkpoints",
    "checkpoints": "import, export, merge, inspect",
    "inference": "answers: Predictor, files of questions",
    "processing": "samples to tensors and labels",
    "models": "encoder, connector, LLM",
    "cards": "model cards from what is known",
    "phantoms": "synthetic patients of known truth",
    "data": "records, data sets, converters",
    "imaging": "files to arrays in HU, geometries",
}

#: Small modules that every package may import; they are not drawn.
BASE = {
    PACKAGE,
    "errors",
    "files",
    "lazy",
    "registry",
    "pretrained",
    "openmp",
    "process_pool",
    "progress_bar",
    "auto_classes",
    "remote",
    "validation",
    "__main__",
}


@dataclass(frozen=True)
class Step:
    """One step of a sample's way.

    Attributes:
        title: what happens.
        file: the file below `src/medmvl` that does it.
        result: what the sample is afterwards.
    """

    title: str
    file: str
    result: str


#: The way of one sample, in order.
WAY = (
    Step("Read the file", "imaging/read.py", "Volume: array in HU, spacing in mm, orientation, history"),
    Step("Read the record", "data/dataset.py", "Sample: messages with placeholders, paths"),
    Step("Draw it for a step", "data/mixture.py", "record number per step and device"),
    Step("Apply the geometry", "imaging/preprocessing/geometry.py", "tensor (C, D, H, W), uint8 or float32"),
    Step("Count visual tokens", "models/grid.py", "number of tokens of the image or volume"),
    Step("Apply the chat template", "processing/chat.py", "input_ids (T,), labels (T,)"),
    Step("Collate or pack", "processing/collate.py", "batch (B, T), visual inputs (N, C, D, H, W)"),
    Step("Encode and connect", "models/tower.py", "embeddings (N, tokens, width)"),
    Step("Scatter and run the LLM", "models/modeling.py", "logits (B, T, V)"),
    Step("Compare with the labels", "models/head_loss.py", "loss, nats per supervised token"),
)

BOX = (236, 54)
GAP = (28, 44)
STYLE = """
  text { font-family: system-ui, 'DejaVu Sans', sans-serif; fill: #1c2b3a }
  .name { font-size: 15px; font-weight: 600 } .note { font-size: 11px; fill: #4a5b6c }
  .box { fill: #f3f7fb; stroke: #5b7c99; stroke-width: 1.2 } .arrow { stroke: #8aa1b5; stroke-width: 1.2; fill: none }
  .file { font-size: 12px; font-family: ui-monospace, 'DejaVu Sans Mono', monospace } .title { font-size: 14px; font-weight: 600 }
"""
MARKER = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#8aa1b5"/></marker>'
)


def layers(graph: nx.DiGraph) -> list[list[str]]:
    """Return the packages in layers, top first; a package stands one layer above the highest that it imports."""
    level: dict[str, int] = {}
    for name in reversed(list(nx.topological_sort(graph))):
        level[name] = max((level[other] + 1 for other in graph.successors(name)), default=0)
    rows = [sorted(name for name in level if level[name] == number) for number in range(max(level.values()) + 1)]
    return rows[::-1]


def architecture() -> str:
    """Return the SVG of the packages.

    Raises:
        ValueError: if a package has no line in `PURPOSE`, or packages import each other in a circle.
    """
    graph = package_graph().copy()
    graph.remove_nodes_from(BASE & set(graph))
    if missing := sorted(set(graph) - set(PURPOSE)):
        raise ValueError(f"PURPOSE has no line for the package {missing[0]!r}. Add one.")
    if not nx.is_directed_acyclic_graph(graph):
        raise ValueError(f"Packages import each other in a circle: {nx.find_cycle(graph)}.")
    rows = layers(graph)
    routes = _with_waypoints(rows, sorted(nx.transitive_reduction(graph).edges))
    _order(rows, routes)
    width = max(sum(map(_width, row)) + GAP[0] * (len(row) + 1) for row in rows)
    middle = _middles(rows, width)
    arrows = [_arrow([middle[stop] for stop in route]) for route in routes]
    boxes = [_package(name, middle[name]) for name in sorted(set(middle) & set(PURPOSE))]
    return _svg(width, len(rows) * (BOX[1] + GAP[1]), [*arrows, *boxes], "Packages of medmvl and their imports")


def _with_waypoints(rows: list[list[str]], edges: list[tuple[str, str]]) -> list[list[str]]:
    """Return the stops of every edge, after adding to `rows` an invisible stop in each layer that an edge passes."""
    row_of = {name: number for number, row in enumerate(rows) for name in row}
    routes = []
    for start, end in edges:
        route = [start]
        for number in range(row_of[start] + 1, row_of[end]):
            route.append(f"{start}>{end}@{number}")
            rows[number].append(route[-1])
        routes.append([*route, end])
    return routes


def _order(rows: list[list[str]], routes: list[list[str]]) -> None:
    """Order every layer by the mean position of what leads to it, in place, so that few arrows cross."""
    before: dict[str, list[str]] = {}
    for route in routes:
        for upper, lower in itertools.pairwise(route):
            before.setdefault(lower, []).append(upper)
    for upper_row, row in itertools.pairwise(rows):
        position = {name: (number + 0.5) / len(upper_row) for number, name in enumerate(upper_row)}
        row.sort(key=lambda name: (statistics.fmean(position[upper] for upper in before.get(name, upper_row)), name))


def _width(name: str) -> int:
    return BOX[0] if name in PURPOSE else 12


def _middles(rows: list[list[str]], width: float) -> dict[str, tuple[float, float]]:
    """Return stop -> (x of its middle, y of its upper edge)."""
    middles = {}
    for number, row in enumerate(rows):
        x = (width - sum(map(_width, row)) - GAP[0] * (len(row) - 1)) / 2
        for name in row:
            middles[name] = (x + _width(name) / 2, 20.0 + number * (BOX[1] + GAP[1]))
            x += _width(name) + GAP[0]
    return middles


def _package(name: str, middle: tuple[float, float]) -> str:
    x, y = middle
    return (
        f'<rect class="box" x="{x - BOX[0] / 2:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="7"/>'
        f'<text class="name" x="{x:.0f}" y="{y + 23:.0f}" text-anchor="middle">{name}</text>'
        f'<text class="note" x="{x:.0f}" y="{y + 41:.0f}" text-anchor="middle">{escape(PURPOSE[name])}</text>'
    )


def _arrow(stops: list[tuple[float, float]]) -> str:
    """Return a curve through the stops, from below the first box to above the last one."""
    x, y = stops[0][0], stops[0][1] + BOX[1]
    path = f"M{x:.0f} {y:.0f}"
    for number, (next_x, next_y) in enumerate(stops[1:], start=1):
        bend = (next_y - y) / 2
        path += f"C{x:.0f} {y + bend:.0f} {next_x:.0f} {next_y - bend:.0f} {next_x:.0f} {next_y:.0f}"
        x, y = next_x, next_y
        if number < len(stops) - 1:
            path += f"L{x:.0f} {y + BOX[1]:.0f}"
            y += BOX[1]
    return f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>'


def sample() -> str:
    """Return the SVG of one sample's way.

    Raises:
        FileNotFoundError: if a file named in `WAY` does not exist.
    """
    height, parts = 58, []
    for number, step in enumerate(WAY):
        if not (SOURCE / PACKAGE / step.file).is_file():
            raise FileNotFoundError(f"WAY names {step.file}, which does not exist.")
        y = 16 + number * height
        parts.append(f'<rect class="box" x="16" y="{y}" width="460" height="40" rx="7"/>')
        parts.append(f'<text class="title" x="28" y="{y + 25}">{number + 1}. {escape(step.title)}</text>')
        parts.append(f'<text class="file" x="464" y="{y + 25}" text-anchor="end">{escape(step.file)}</text>')
        parts.append(f'<text class="note" x="492" y="{y + 25}">{escape(step.result)}</text>')
        if number:
            parts.append(f'<path class="arrow" d="M40 {y - height + 40}L40 {y - 1}" marker-end="url(#tip)"/>')
    return _svg(860, len(WAY) * height + 16, parts, "One sample, from its file to the loss")


def _svg(width: float, height: float, parts: list[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
    ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    body = [f"<title>{title}</title>", f"<style>{STYLE}</style>", f"<defs>{MARKER}</defs>", ground, *parts]
    return "\n".join([head, *body, "</svg>\n"])


def main() -> None:
    """Write both pictures."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, text in (("architecture", architecture()), ("sample", sample())):
        file: Path = FIGURES / f"{name}.svg"
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
