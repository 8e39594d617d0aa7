"""Findings of known truth, and the pieces that draw them.

Every finding is present in half of the patients, independently of the others, and a sided finding is left as often as
right. Patients come in pairs of neighbors (2k, 2k + 1) with opposite findings, so that any set of whole pairs
holds exactly as many "yes" as "no": a model that
ignores the picture cannot gain from the questions alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medmvl.phantoms.anatomy import AORTA, SIDES, Body, aorta_path
from medmvl.phantoms.shapes import Below, Box, Capsule, Ellipsoid, Outside, Piece, Point

# The 18 abnormalities of CT-RATE, in the order of its label files.
CT_RATE_LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)

# Those that are drawn, by the name used in questions and boxes.
FINDINGS = {
    "pleural effusion": "Pleural effusion",
    "consolidation": "Consolidation",
    "lung nodule": "Lung nodule",
    "cardiomegaly": "Cardiomegaly",
    "emphysema": "Emphysema",
    "pacemaker": "Medical material",
    "arterial wall calcification": "Arterial wall calcification",
    "coronary artery calcification": "Coronary artery wall calcification",
}
SIDED = ("pleural effusion", "consolidation", "lung nodule", "pacemaker")
IN_LOBE = ("consolidation", "lung nodule")


@dataclass(frozen=True)
class Finding:
    """One finding that is present.

    Attributes:
        name: a key of `FINDINGS`.
        side: "left" or "right" of the patient; None where it has no side.
        lobe: "upper" or "lower"; None where it has no lobe.
        size: diameter in mm, for a nodule.
    """

    name: str
    side: str | None = None
    lobe: str | None = None
    size: int | None = None

    @property
    def place(self) -> str | None:
        """The place in words, such as "left upper lobe" or "left"; None if it has no side."""
        if self.side is None:
            return None
        return f"{self.side} {self.lobe} lobe" if self.lobe else self.side


def decide(seed: int, index: int) -> dict[str, Finding]:
    """Return the findings of one patient by name; absent ones are missing.

    A nodule and a consolidation in one lung are in different lobes, so that neither hides the other.
    """
    rng = np.random.default_rng([seed, index // 2, 1])
    opposite = bool(index % 2)
    present = rng.random(len(FINDINGS)) < 0.5
    left = rng.random(len(FINDINGS)) < 0.5
    upper = rng.random(len(FINDINGS)) < 0.5
    size = int(rng.integers(26, 31))
    findings: dict[str, Finding] = {}
    for name, here, is_left, is_upper in zip(
        FINDINGS, present ^ opposite, left ^ opposite, upper ^ opposite, strict=True
    ):
        if not here:
            continue
        side = SIDES[0 if is_left else 1] if name in SIDED else None
        lobe = ("upper" if is_upper else "lower") if name in IN_LOBE else None
        other = findings.get("consolidation")
        if name == "lung nodule" and other and other.side == side:
            lobe = "lower" if other.lobe == "upper" else "upper"
        findings[name] = Finding(name, side, lobe, size if name == "lung nodule" else None)
    return findings


def ct_rate_labels(findings: dict[str, Finding]) -> dict[str, int]:
    """Return the 18 labels as 0/1, in CT-RATE's order; a finding that is never drawn is 0."""
    drawn = {FINDINGS[name] for name in findings}
    return {label: int(label in drawn) for label in CT_RATE_LABELS}


def build_findings(body: Body, findings: dict[str, Finding], rng: np.random.Generator) -> dict[str, list[Piece]]:
    """Return the pieces that show each of `findings` in `body`, in painting order."""
    draw = {
        "emphysema": _emphysema,
        "consolidation": _consolidation,
        "pleural effusion": _effusion,
        "lung nodule": _nodule,
        "cardiomegaly": _cardiomegaly,
        "arterial wall calcification": _arterial_calcification,
        "coronary artery calcification": _coronary_calcification,
        "pacemaker": _pacemaker,
    }
    return {name: make(body, findings[name], rng) for name, make in draw.items() if name in findings}


def _in_lung(body: Body, side: str | None, across: float, back: float, up: float) -> Point:
    """Return a point of a lung in units of its half-axes: `across` outwards, `back` to posterior, `up`."""
    cx, cy, cz = body.lung_center(side)
    sign = 1.0 if side == "left" else -1.0
    return cx + sign * across * body.lung[0], cy + back * body.lung[1], cz + up * body.lung[2]


def _nodule(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return a round nodule as dense as a calcified granuloma, above the base of the lung, where effusions are."""
    assert finding.size is not None
    back, up = (-0.05, 0.52) if finding.lobe == "upper" else (0.30, 0.0)
    jitter = rng.uniform(-0.04, 0.04, 3)
    center = _in_lung(body, finding.side, 0.30 + jitter[0], back + jitter[1], up + jitter[2])
    radius = finding.size / 2
    return [Piece(Ellipsoid(center, (radius, radius, radius)), rng.uniform(700, 900), name=finding.name)]


def _consolidation(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return a lobe without air between slanting fissures, with air in the bronchi that run through it."""
    sign = 1.0 if finding.side == "left" else -1.0
    lung = body.lung_shape(finding.side)
    up, back = (0.58, 0.0) if finding.lobe == "upper" else (0.02, 0.30)
    center = _in_lung(body, finding.side, 0.15, back, up + rng.uniform(-0.04, 0.04))
    half = rng.uniform(0.30, 0.36) * body.lung[2]
    slope_x, slope_y = sign * rng.uniform(-0.25, -0.1), rng.uniform(0.1, 0.25)
    middle = center[2] - slope_x * center[0] - slope_y * center[1]
    floor = Below(middle - half, slope_x, slope_y)
    roof = Below(middle + half * (1.6 if finding.lobe == "upper" else 1.0), slope_x, slope_y)
    limits = (lung, roof, Outside(floor), Outside(body.heart_shape), Outside(body.dome(finding.side)))
    pieces = [Piece(lung, rng.uniform(-40, 20), name=finding.name, within=limits[1:], rough=35.0)]
    for lift in rng.uniform(-14, 14, 3):
        start = (center[0] - sign * 28, center[1] + rng.uniform(-8, 8), center[2] + lift)
        end = (center[0] + sign * 22, center[1] + rng.uniform(-14, 14), center[2] + lift * 1.5)
        pieces.append(Piece(Capsule(start, end, 2.2), -600.0, within=limits))
    return pieces


def _effusion(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return fluid in the lowest part of one side, higher towards the back and the chest wall."""
    (cx, cy, cz), (rx, ry, rz) = body.lung_center(finding.side), body.lung
    space = Ellipsoid((cx, cy, cz), (rx + 2.5, ry + 2.5, rz + 2.5))  # the pleura outside the lung
    sign = 1.0 if finding.side == "left" else -1.0
    slope_x, slope_y = sign * 0.30, 0.35
    level = body.diaphragm + body.shift[2] + rng.uniform(34, 48)
    plane = Below(level - slope_x * cx - slope_y * cy, slope_x, slope_y)
    return [
        Piece(
            space,
            rng.uniform(5, 20),
            name=finding.name,
            within=(plane, Outside(body.dome(finding.side)), Outside(body.heart_shape)),
        )
    ]


def _emphysema(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return bullae in the upper lungs; the low density of the whole lung is part of the anatomy."""
    pieces = []
    for side in SIDES:
        for _ in range(4):
            center = _in_lung(body, side, rng.uniform(-0.3, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.75))
            radius = rng.uniform(8, 13)
            shell = Ellipsoid(center, (radius, radius, radius))
            pieces.append(Piece(shell, -1000.0, within=(body.lung_shape(side),)))
    return pieces


def _cardiomegaly(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return a piece that only marks the place of the box; the anatomy already has the large heart."""
    return [Piece(body.heart_shape, body.blood_hu, name=finding.name, rough=6.0)]


def _arterial_calcification(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return the calcified wall of the arch and the descending aorta (a "porcelain aorta")."""
    path = aorta_path(body)[2:]
    density = rng.uniform(900, 1200)
    wall = [Piece(Capsule(a, b, AORTA + 2.0), density, name=finding.name) for a, b in pairwise(path)]
    lumen = [Piece(Capsule(a, b, AORTA - 5.0), body.blood_hu) for a, b in pairwise(path)]
    return [*wall, *lumen]


# (across, front, from, to) on the heart, in units of its half-axes: descending, right, circumflex, distal descending
_CORONARY_COURSE = (
    (0.15, -0.75, 0.05, 0.6),
    (-0.62, -0.30, -0.4, 0.4),
    (0.60, -0.20, -0.1, 0.6),
    (0.40, -0.62, -0.55, 0.0),
)


def _coronary_calcification(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return plaques along the left anterior descending and the right coronary artery."""
    (cx, cy, cz), (rx, ry, rz) = body.heart_shape.center, body.heart_shape.radii
    density = rng.uniform(900, 1200)
    pieces = []
    for across, front, low, high in _CORONARY_COURSE:
        x, y = cx + across * rx, cy + front * ry
        start = (x, y, cz + (low + rng.uniform(-0.05, 0.05)) * rz)
        end = (x + 5.0, y, cz + (high + rng.uniform(-0.05, 0.05)) * rz)
        pieces.append(Piece(Capsule(start, end, 7.0), density, name=finding.name))
    return pieces


def _pacemaker(body: Body, finding: Finding, rng: np.random.Generator) -> list[Piece]:
    """Return a generator under the skin below the clavicle, and a lead into the heart."""
    sign = 1.0 if finding.side == "left" else -1.0
    x, z = sign * rng.uniform(84, 94), rng.uniform(70, 82)
    can = body.at(x, -0.74 * body.depth, z)
    hx, hy, hz = body.heart_shape.center
    turn = body.at(-16, -0.1 * body.depth, 75)
    tip = (hx, hy, hz - 0.55 * body.heart[2])
    lead = [
        (can, turn),
        (turn, (turn[0], turn[1], hz + 0.3 * body.heart[2])),
        ((turn[0], turn[1], hz + 0.3 * body.heart[2]), tip),
    ]
    pieces = [Piece(Capsule(a, b, 3.0), 2600.0) for a, b in lead]
    return [*pieces, Piece(Box(can, (25.0, 7.5, 22.0)), 3000.0, name=finding.name)]
