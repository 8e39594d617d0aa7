// Draws slices on a 2D canvas. It needs no graphics card: where WebGL runs in software, it is much faster than NiiVue.

import { fracOf, mmOf } from "./nifti.js";
import { AXES, project } from "./planes.js";

export class CanvasRenderer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.slice = document.createElement("canvas");
  }

  async load(volume) {
    this.volume = volume;
    this.overlay = null;
  }

  async setOverlay(overlay) {
    this.overlay = overlay;
  }

  /** Draw a scene: tiles [{plane, rect, tile}], cross, center, zoom, window [low, high], invert, opacity of the overlay. */
  draw(scene) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (this.canvas.width !== Math.round(width * ratio)) this.canvas.width = Math.round(width * ratio);
    if (this.canvas.height !== Math.round(height * ratio)) this.canvas.height = Math.round(height * ratio);
    const { context } = this;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (!this.volume) return;
    for (const { plane, rect, tile } of scene.tiles) {
      context.save();
      context.beginPath();
      context.rect(tile.x, tile.y, tile.w, tile.h);
      context.clip();
      this.drawSlice(plane, this.volume, scene.cross[AXES[plane].normal], grayTable(scene));
      this.place(plane, [0, 0, 0], [1, 1, 1], scene, rect, scene.zoom * rect.w < 12 * this.slice.width);
      if (this.overlay && scene.opacity > 0) this.drawOverlay(plane, scene, rect);
      context.restore();
    }
  }

  /** Draw the slice at a share of the normal axis into the auxiliary canvas, with `color` [r, g, b, a] of a value. */
  drawSlice(plane, volume, share, color) {
    const { across, down, normal } = AXES[plane];
    const steps = [1, volume.dims[0], volume.dims[0] * volume.dims[1]];
    const [columns, rows] = [volume.dims[across], volume.dims[down]];
    const depth = Math.min(Math.max(Math.floor(share * volume.dims[normal]), 0), volume.dims[normal] - 1);
    this.slice.width = columns;
    this.slice.height = rows;
    const picture = new ImageData(columns, rows);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let row = 0; row < rows; row += 1) {
      let place = depth * steps[normal] + (rows - 1 - row) * steps[down] + (columns - 1) * steps[across];
      for (let column = 0; column < columns; column += 1, place -= steps[across]) {
        pixels[row * columns + column] = color(volume.data[place]);
      }
    }
    this.slice.getContext("2d").putImageData(picture, 0, 0);
  }

  /** Draw the auxiliary canvas where the part of the volume from `low` to `high` (shares) is. */
  place(plane, low, high, scene, rect, smooth) {
    const [left, top] = project(plane, high, scene, rect);
    const [right, bottom] = project(plane, low, scene, rect);
    this.context.imageSmoothingEnabled = smooth;
    this.context.drawImage(this.slice, left, top, right - left, bottom - top);
  }

  drawOverlay(plane, scene, rect) {
    const low = fracOf(this.volume, mmOf(this.overlay, [0, 0, 0]));
    const high = fracOf(this.volume, mmOf(this.overlay, [1, 1, 1]));
    const { normal } = AXES[plane];
    const share = (scene.cross[normal] - low[normal]) / (high[normal] - low[normal]);
    if (share < 0 || share > 1) return;
    this.drawSlice(plane, this.overlay, share, heat);
    this.context.globalAlpha = scene.opacity;
    this.place(plane, low, high, scene, rect, true);
    this.context.globalAlpha = 1;
  }

  close() {
    this.volume = this.overlay = null;
  }
}

/** Return a function from a value to an opaque gray pixel. */
function grayTable({ window: [low, high], invert }) {
  const scale = 255 / Math.max(high - low, 1e-6);
  return (value) => {
    let gray = Math.min(Math.max((value - low) * scale, 0), 255) & 255;
    if (invert) gray = 255 - gray;
    return (255 << 24) | (gray << 16) | (gray << 8) | gray;
  };
}

/** Return the pixel of an importance from 0 to 1: transparent, then red to yellow. */
export function heat(value) {
  const share = Math.min(Math.max(value, 0), 1);
  if (share < 0.1) return 0;
  const [red, green] = [255, Math.round(230 * share * share)];
  return ((Math.round(255 * Math.min(1, share * 1.4)) << 24) | (20 << 16) | (green << 8) | red) >>> 0;
}
