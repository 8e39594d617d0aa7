// The geometry of slices: how a plane is laid out in a tile, and where a position of the volume is on the screen.
//
// Positions are shares of the volume, (x, y, z) towards the patient's right, front and head, from 0 to 1. In every plane the
// horizontal axis runs from a larger to a smaller share, so that the patient's right (axial, coronal) or front (sagittal)
// is at the left edge, and the vertical axis likewise, so that front or head is at the top.

export const PLANES = ["axial", "coronal", "sagittal"];

/** Plane -> its horizontal, vertical and normal axis, and the sides at its left, right, top and bottom edge. */
export const AXES = {
  axial: { across: 0, down: 1, normal: 2, sides: ["R", "L", "A", "P"] },
  coronal: { across: 0, down: 2, normal: 1, sides: ["R", "L", "S", "I"] },
  sagittal: { across: 1, down: 2, normal: 0, sides: ["A", "P", "S", "I"] },
};

/** Return the largest rectangle of true aspect inside a tile {x, y, w, h}, in whole pixels. */
export function fit(plane, volume, tile) {
  const { across, down } = AXES[plane];
  const width = volume.dims[across] * volume.spacing[across];
  const height = volume.dims[down] * volume.spacing[down];
  const scale = Math.min(tile.w / width, tile.h / height);
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  return { x: tile.x + Math.floor((tile.w - w) / 2), y: tile.y + Math.floor((tile.h - h) / 2), w, h };
}

/** Return the place on the screen of a position. `scene` has `center` (shares) and `zoom`; `rect` is from `fit`. */
export function project(plane, frac, scene, rect) {
  const { across, down } = AXES[plane];
  const u = (scene.center[across] - frac[across]) * scene.zoom + 0.5;
  const v = (scene.center[down] - frac[down]) * scene.zoom + 0.5;
  return [rect.x + u * rect.w, rect.y + v * rect.h];
}

/** Return the position of a place on the screen in a plane through `scene.cross`. */
export function locate(plane, x, y, scene, rect) {
  const { across, down } = AXES[plane];
  const frac = [...scene.cross];
  frac[across] = scene.center[across] - ((x - rect.x) / rect.w - 0.5) / scene.zoom;
  frac[down] = scene.center[down] - ((y - rect.y) / rect.h - 0.5) / scene.zoom;
  return frac;
}

/** Return the number of a slice, from 1: axial from the feet, coronal from the front, sagittal from the right. */
export function sliceNumber(plane, index, count) {
  return plane === "axial" ? index + 1 : count - index;
}

/** Return the index along the normal axis of the slice with a number. */
export function sliceIndex(plane, number, count) {
  return plane === "axial" ? number - 1 : count - number;
}
