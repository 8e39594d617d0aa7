"""Draw the figures of `docs/how-it-works.md`: towers, volume, stages, packing.

    python tools/draw_guide.py

The numbers in them come from the code: token counts from a tower's specification, packed rows from the packing of a batch.
"""

from __future__ import annotations

from html import escape
from itertools import accumulate

from draw_architecture import FIGURES, _svg
from medmvl.imaging import geometry
from medmvl.models.connectors import ConnectorSpec
from medmvl.models.tower import TowerSpec, count_visual_tokens

COLORS = ("#cfe2f3", "#d9ead3", "#fce5cd", "#ead1dc", "#fff2cc")


def box(x: float, y: float, width: float, height: float, lines: list[str], fill: str = "#f3f7fb") -> str:
    """Return a box with centered lines; the first one is its name."""
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="#5b7c99" stroke-width="1.2"/>'
    ]
    top = y + height / 2 - 8 * (len(lines) - 1) + 5
    for number, line in enumerate(lines):
        kind = "title" if number == 0 else "note"
        parts.append(
            f'<text class="{kind}" x="{x + width / 2}" y="{top + 17 * number}" text-anchor="middle">{escape(line)}</text>'
        )
    return "".join(parts)


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Return a straight arrow."""
    return f'<path class="arrow" d="M{x} {y}L{to_x} {to_y}" marker-end="url(#tip)"/>'


def text(x: float, y: float, line: str, kind: str = "note", anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(line)}</text>'


def towers() -> str:
    """Return the SVG of a model with two towers, with the token counts of real settings."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 768, "image_size": 256, "patch_size": 16}
    image = TowerSpec(
        encoder={"name": "siglip", "vision_config": vision}, connector=ConnectorSpec(projector="mlp2x_gelu")
    )
    slices = {"name": "slicewise", "slices": 32, "encoder": {"name": "siglip", "vision_config": vision}}
    pooling = {"name": "attention", "heads": 8}
    volume = TowerSpec(encoder=slices, connector=ConnectorSpec(pooling=pooling, projector="mlp2x_gelu"))
    parts = []
    rows = ((40, "image", "SigLIP", "none", image), (190, "CT", "SigLIP on 32 slices", "attention", volume))
    for y, name, encoder, pooled, tower in rows:
        before, after = tower.encoder_spec.grid(tower.input_size).tokens, count_visual_tokens(tower)
        size = " × ".join(map(str, tower.input_size))
        parts += [
            box(16, y, 130, 64, [name, size], COLORS[0]),
            box(186, y, 190, 64, ["encoder", encoder, f"{before:,} tokens × 768"], COLORS[1]),
            box(416, y, 210, 64, ["connector", f"pooling {pooled}, MLP", f"{after:,} tokens × LLM width"], COLORS[2]),
            arrow(146, y + 32, 184, y + 32),
            arrow(376, y + 32, 414, y + 32),
            arrow(626, y + 32, 694, 148 if y < 100 else 176),
        ]
    parts += [
        box(16, 310, 610, 40, ["Is there a pleural effusion?  →  token embeddings of the question"], COLORS[4]),
        arrow(626, 330, 704, 206),
        box(696, 120, 150, 84, ["LLM", "visual tokens and", "text in one sequence"], COLORS[3]),
        arrow(771, 204, 771, 252),
        box(696, 254, 150, 40, ["Yes, on the left."]),
    ]
    return _svg(866, 372, parts, "Encoder, connector, LLM")


def volume() -> str:
    """Return the SVG of a volume's way to a tensor, by a named geometry."""
    chosen = geometry("medm-vl-ct")
    (low, high), size = chosen.windows[0], " × ".join(map(str, chosen.size))
    steps = [
        ("read", ["HU, or another unit that is named", "spacing in mm, sides of the axes, history"]),
        ("orient", [f"axes grow to {', '.join(_side(letter) for letter in chosen.orientation)}"]),
        ("window", [f"{low:g} to {high:g} HU become {chosen.scale[0]:g} to {chosen.scale[1]:g}"]),
        ("crop", [f"to the {chosen.crop}"]),
        ("resample", [f"trilinear, to {size} ({chosen.fit})"]),
        ("tensor", [f"{chosen.dtype}, identified by the hash {chosen.hash}"]),
    ]
    parts = []
    for number, (name, lines) in enumerate(steps):
        y = 16 + 76 * number
        parts.append(box(16, y, 120, 48, [name], COLORS[number % len(COLORS)]))
        parts += [text(156, y + (28 if len(lines) == 1 else 20) + 18 * i, line) for i, line in enumerate(lines)]
        if number:
            parts.append(arrow(76, y - 28, 76, y - 2))
    parts.append(text(156, 16 + 76 * 6, "A cache or checkpoint with another hash is refused."))
    return _svg(560, 490, parts, f"The geometry {chosen.name}, step by step")


def _side(letter: str) -> str:
    return {"S": "superior", "I": "inferior", "P": "posterior", "A": "anterior", "L": "left", "R": "right"}[letter]


def stages() -> str:
    """Return the SVG of the usual stages: what trains and what is frozen."""
    columns = ("encoder", "connector", "LLM")
    rows = (
        ("contrastive (optional)", "scans and their reports", (1, 0, 0)),
        ("connector pre-training", "captions and reports", (0, 1, 0)),
        ("instruction tuning, full", "questions and answers", (1, 1, 1)),
        ("or instruction tuning, LoRA", "questions and answers", (0, 1, 2)),
    )
    said = ("frozen", "trains", "LoRA adapters")
    parts = [text(330 + 180 * i + 80, 28, name, "title", "middle") for i, name in enumerate(columns)]
    for number, (name, data, trains) in enumerate(rows):
        y = 44 + 74 * number
        parts += [text(16, y + 24, name, "title"), text(16, y + 43, f"data: {data}")]
        for column, state in enumerate(trains):
            fill = ("#eef1f4", COLORS[1], COLORS[2])[state]
            here = said[state] if (number, column) not in ((0, 1), (0, 2)) else "not used"
            parts.append(box(330 + 180 * column, y, 160, 50, [here], fill))
    return _svg(886, 348, parts, "Stages of training")


def packing() -> str:
    """Return the SVG of a padded and a packed batch."""
    lengths = (9, 5, 7, 3)
    longest, cell, parts = max(lengths), 26, []
    parts.append(text(16, 24, f"padded: {len(lengths)} × {longest} = {len(lengths) * longest} positions", "title"))
    for row, length in enumerate(lengths):
        for column in range(longest):
            fill = COLORS[row] if column < length else "#ffffff"
            parts.append(_cell(16 + cell * column, 36 + cell * row, cell, fill))
    parts.append(text(16, 186, f"packed: {sum(lengths)} positions; attention stays within a sample", "title"))
    starts = [0, *accumulate(lengths)]
    for row, length in enumerate(lengths):
        for column in range(length):
            x = 16 + cell * (starts[row] + column)
            parts += [_cell(x, 198, cell, COLORS[row]), text(x + cell / 2, 198 + 17, str(column), "note", "middle")]
    parts.append(text(16, 246, "The numbers are positions: they begin anew with every sample."))
    return _svg(32 + cell * sum(lengths), 262, parts, "Padding and packing")


def _cell(x: float, y: float, side: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{side - 2}" height="{side - 2}" rx="3" fill="{fill}" stroke="#8aa1b5"/>'


FIGURES_OF_THE_GUIDE = {"towers": towers, "volume": volume, "stages": stages, "packing": packing}


def main() -> None:
    """Write all figures."""
    for name, draw in FIGURES_OF_THE_GUIDE.items():
        (FIGURES / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
