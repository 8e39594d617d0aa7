"""A schematic chest without findings: body outline, lungs, heart, vessels, bones and upper abdomen.

Sizes are rounded textbook values for adults (mm), varied from patient to patient; densities are the usual Hounsfield
units of the tissues. It is a drawing with the values of a CT, not a model of a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medmvl.phantoms.shapes import Capsule, Column, Ellipsoid, Piece, Point, Ribs, Shoulders

SIDES = ("left", "right")
AORTA = 13.5  # mm, radius of the thoracic aorta
MEDIASTINUM = 11.0  # mm from the midline to the inner edge of each lung


@dataclass(frozen=True)
class Body:
    """The parameters of one patient, from which the anatomy is built.

    Attributes (all mm unless said):
        width, depth: half-axes of the trunk.
        fat: thickness of the subcutaneous layer.
        shift: (x, y, z) of the patient on the table.
        lung: half-axes (x, y, z) of one lung before heart and diaphragm take their share.
        lung_hu: density of the lung in HU.
        heart: half-axes of the heart.
        blood_hu: density of blood in HU; higher where contrast medium was given.
        diaphragm: height of the right dome.
    """

    width: float
    depth: float
    fat: float
    shift: Point
    lung: Point
    lung_hu: float
    heart: Point
    blood_hu: float
    diaphragm: float

    def lung_center(self, side: str | None) -> Point:
        """Return the center of one lung (x, y, z)."""
        x = self.lung[0] + MEDIASTINUM
        return self.at(x if side == "left" else -x, 2.0, -12.0)

    def lung_shape(self, side: str | None) -> Ellipsoid:
        """Return the outline of one lung."""
        return Ellipsoid(self.lung_center(side), self.lung)

    def dome(self, side: str | None) -> Ellipsoid:
        """Return the shape below one half of the diaphragm; the right dome is 11 mm higher than the left."""
        x, y, _ = self.lung_center(side)
        top = self.diaphragm + self.shift[2] - (0.0 if side == "right" else 11.0)
        return Ellipsoid((x, y, top - 140.0), (self.lung[0] * 1.2, self.lung[1] * 1.12, 140.0))

    @property
    def heart_shape(self) -> Ellipsoid:
        """Return the outline of the heart: anterior, low, with two thirds left of the midline."""
        rx, ry, rz = self.heart
        return Ellipsoid(self.at(0.36 * rx, -0.36 * self.depth, self.diaphragm + 0.62 * rz + 12.0), (rx, ry, rz))

    def at(self, x: float, y: float, z: float) -> Point:
        """Return the absolute position of a point given relative to the patient's center."""
        return x + self.shift[0], y + self.shift[1], z + self.shift[2]


def draw_body(rng: np.random.Generator, *, enlarged_heart: bool, emphysema: bool) -> Body:
    """Draw the parameters of one patient at random.

    The two findings that change the anatomy itself are decided here: the normal heart spans 0.42 to 0.48 of the chest,
    an enlarged one 0.60 to 0.68 (cardiothoracic ratio; above 0.5 is called cardiomegaly), and emphysematous lungs are
    below -930 HU (the usual threshold is -950) in larger lungs over a flatter diaphragm.
    """
    width = rng.uniform(155, 170)
    depth = width * rng.uniform(0.62, 0.70)
    inflation = 1.06 if emphysema else 1.0
    lung = (
        width * rng.uniform(0.365, 0.385) * inflation,
        depth * rng.uniform(0.74, 0.79) * inflation,
        rng.uniform(125, 135) * inflation,
    )
    chest = 2 * (lung[0] * 2 + MEDIASTINUM)
    ratio = rng.uniform(0.60, 0.68) if enlarged_heart else rng.uniform(0.42, 0.47)
    half = ratio * chest / 2
    return Body(
        width=width,
        depth=depth,
        fat=rng.uniform(7, 16),
        shift=(rng.uniform(-6, 6), rng.uniform(-5, 5), rng.uniform(-6, 6)),
        lung=lung,
        lung_hu=rng.uniform(-965, -945) if emphysema else rng.uniform(-835, -790),
        heart=(half, min(half * 0.82, depth * 0.52), half * rng.uniform(0.88, 0.98)),
        blood_hu=rng.uniform(45, 150),
        diaphragm=rng.uniform(-80, -72) - (16.0 if emphysema else 0.0),
    )


def build_anatomy(body: Body, rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of the patient in painting order, from the outside in."""
    return [
        *_trunk(body),
        *(Piece(body.lung_shape(side), body.lung_hu, name=f"{side} lung", rough=12.0) for side in SIDES),
        *_vessels(body, rng),
        *_airways(body),
        *_skeleton(body, rng),
        *_abdomen(body),
        *_heart_and_aorta(body),
    ]


def _trunk(body: Body) -> list[Piece]:
    x, y, z = body.at(0, 0, 0)
    inner = (body.width - body.fat, body.depth - body.fat)
    slopes, lower = Shoulders(x, z + 205.0, 0.62), Shoulders(x, z + 205.0 - body.fat, 0.62)
    return [
        Piece(Column((x, y), (body.width, body.depth), power=2.4), -95.0, within=(slopes,)),
        Piece(Column((x, y), inner, power=2.4), 45.0, within=(lower,)),
    ]


def _vessels(body: Body, rng: np.random.Generator) -> list[Piece]:
    """Return the lung vessels: branches from each hilum outwards, thinner with distance."""
    pieces = []
    for side in SIDES:
        sign = 1.0 if side == "left" else -1.0
        cx, cy, cz = body.lung_center(side)
        hilum = (cx - sign * 0.62 * body.lung[0], cy, cz + 0.12 * body.lung[2])
        for angle in np.linspace(-1.2, 1.2, 6) + rng.uniform(-0.12, 0.12, 6):
            reach = rng.uniform(0.55, 0.8)
            fork = (
                hilum[0] + sign * body.lung[0] * 0.55 * np.cos(angle),
                cy + body.lung[1] * rng.uniform(-0.35, 0.35),
                hilum[2] + body.lung[2] * 0.42 * np.sin(angle),
            )
            tip = (
                hilum[0] + sign * body.lung[0] * 1.5 * reach * np.cos(angle),
                fork[1] + body.lung[1] * rng.uniform(-0.3, 0.3),
                hilum[2] + body.lung[2] * reach * np.sin(angle),
            )
            pieces.append(Piece(Capsule(hilum, fork, 2.8), 40.0))
            pieces.append(Piece(Capsule(fork, tip, 1.5), 20.0))
    return pieces


def _airways(body: Body) -> list[Piece]:
    carina = body.at(0, 8, 42)
    pieces = [Piece(Column(carina[:2], (8.5, 8.5), bottom=carina[2]), -990.0, name="trachea")]
    for sign in (1.0, -1.0):
        pieces.append(Piece(Capsule(carina, body.at(sign * 34, 10, 18), 5.5), -980.0))
    return pieces


def _skeleton(body: Body, rng: np.random.Generator) -> list[Piece]:
    x, y, z = body.at(0, 0, 0)
    back = y + 0.54 * body.depth
    height, gap = 21.0, 5.0
    first = -190.0 + rng.uniform(0, height)
    spine = [Piece(Column((x, back), (17.0, 14.0)), 70.0)]
    for level in np.arange(first, 200.0, height + gap):
        spine.append(Piece(Column((x, back), (19.0, 16.0), level, level + height), 260.0, name="spine", rough=40.0))
        spine.append(Piece(Ellipsoid((x, back + 29.0, level + 6.0), (5.0, 10.0, 7.0)), 420.0))
    spine.append(Piece(Column((x, back + 21.0), (9.0, 7.0)), 25.0))
    cage = (body.lung[0] * 2 + MEDIASTINUM + 5.0, body.lung[1] + 9.0)
    ribs = Ribs((x, y + 2.0), cage, z - 150.0, z + 118.0, pitch=rng.uniform(28, 30), slant=0.42, thickness=4.2)
    sternum = Capsule((x, y - body.lung[1] - 10.0, z - 60.0), (x, y - body.lung[1] - 6.0, z + 75.0), 8.0)
    bones = [Piece(ribs, 520.0), Piece(sternum, 260.0)]
    for sign in (1.0, -1.0):
        start, end = body.at(sign * 18, -0.5 * body.depth, 98), body.at(sign * 118, -0.2 * body.depth, 122)
        bones.append(Piece(Capsule(start, end, 6.0), 500.0))
    return spine + bones


def _abdomen(body: Body) -> list[Piece]:
    """Return liver and spleen under the two domes of the diaphragm, and a gas bubble in the stomach."""
    x, y, z = body.dome("left").center
    _, _, height = body.dome("left").radii
    bubble = (x - 4.0, y - 0.35 * body.lung[1], z + height - 32.0)
    return [
        Piece(body.dome("right"), 60.0, name="liver", rough=8.0),
        Piece(body.dome("left"), 50.0, rough=8.0),
        Piece(Ellipsoid(bubble, (20.0, 17.0, 13.0)), -900.0),
    ]


def aorta_path(body: Body) -> list[Point]:
    """Return the path of the aorta: up from the heart, over the arch, down along the spine."""
    return [
        body.at(-12, -0.20 * body.depth, -10),
        body.at(-12, -0.18 * body.depth, 38),
        body.at(2, -0.04 * body.depth, 58),
        body.at(20, 0.16 * body.depth, 60),
        body.at(28, 0.34 * body.depth, 44),
        body.at(26, 0.42 * body.depth, -200),
    ]


def _heart_and_aorta(body: Body) -> list[Piece]:
    path = aorta_path(body)
    pieces = [Piece(Capsule(a, b, AORTA), body.blood_hu) for a, b in pairwise(path)]
    return [*pieces, Piece(body.heart_shape, body.blood_hu, name="heart", rough=6.0)]
