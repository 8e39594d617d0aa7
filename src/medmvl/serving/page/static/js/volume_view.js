// A volume in three linked planes: one large, two small. Drawing is a renderer's.

import { CanvasRenderer } from "./canvas_renderer.js";
import { makeSvg } from "./dom.js";
import { fracOf, mmOf, parseNifti, valueAt, voxelAt } from "./nifti.js";
import { NiivueRenderer } from "./niivue_renderer.js";
import { AXES, fit, locate, PLANES, project, sliceIndex, sliceNumber } from "./planes.js";
import { View } from "./view.js";
import { word } from "./words.js";

const GAP = 4;

export class VolumeView extends View {
  /**
   * @param parent element that the view fills
   * @param options {gpu: whether NiiVue draws, onMove(view), onHover(text), onWindow(low, high), tool(): the left button's}
   */
  constructor(parent, options) {
    super(parent, options);
    this.renderer = options.gpu ? new NiivueRenderer(this.canvas) : new CanvasRenderer(this.canvas);
    this.large = "axial";
    this.single = false;
    this.reset();
  }

  get loaded() {
    return Boolean(this.volume);
  }

  /** Show a volume. `facts` are the server's: units, sides_known, window. */
  async load(buffer, facts, window) {
    this.volume = parseNifti(buffer);
    this.facts = facts;
    this.window = window ?? facts.window;
    this.overlay = null;
    this.reset();
    await this.renderer.load(this.volume);
    this.draw();
  }

  /** Lay a heat map over the slices; null removes it. */
  async setOverlay(buffer) {
    this.overlay = buffer ? parseNifti(buffer) : null;
    await this.renderer.setOverlay(this.overlay);
    if (this.overlay) this.renderer.window = null;
    this.draw();
  }

  reset() {
    this.cross = [0.5, 0.5, 0.5];
    this.center = [0.5, 0.5, 0.5];
    this.zoom = 1;
    this.redraw();
  }

  setCross(frac, told = false) {
    this.cross = frac.map((share) => Math.min(Math.max(share, 0), 1));
    this.redraw();
    if (!told) this.options.onMove(this);
  }

  /** The crosshair's place in the patient, by which views of different volumes of one patient are linked. */
  get mm() {
    return mmOf(this.volume, this.cross);
  }

  moveTo(mm) {
    if (this.volume) this.setCross(fracOf(this.volume, mm), true);
  }

  /** Return number and count of the slice of a plane. */
  slice(plane) {
    const { normal } = AXES[plane];
    const count = this.volume.dims[normal];
    return { number: sliceNumber(plane, voxelAt(this.volume, this.cross)[normal], count), count };
  }

  setSlice(plane, number) {
    const { normal } = AXES[plane];
    const count = this.volume.dims[normal];
    const index = sliceIndex(plane, Math.min(Math.max(number, 1), count), count);
    const frac = [...this.cross];
    frac[normal] = (index + 0.5) / count;
    this.setCross(frac);
  }

  /** Keep the position at a place, or the crosshair, where it is. */
  zoomed(hit, old) {
    const tile = this.tiles().find((one) => one.plane === (hit?.plane ?? this.large));
    const kept = hit ? locate(hit.plane, hit.x, hit.y, { ...this.scene(), zoom: old }, tile.rect) : this.cross;
    this.center = this.center.map((share, axis) => kept[axis] + ((share - kept[axis]) * old) / this.zoom);
  }

  /** The tiles of the layout: {plane, tile, rect}, where `rect` holds the slice at true aspect. */
  tiles() {
    const [w, h] = [this.box.clientWidth, this.box.clientHeight];
    const others = PLANES.filter((plane) => plane !== this.large);
    let places = [{ x: 0, y: 0, w, h }];
    if (!this.single && w > 1.15 * h) {
      const [wide, high] = [Math.round(w * 0.64), Math.round(h / 2)];
      places = [
        { x: 0, y: 0, w: wide - GAP, h },
        { x: wide, y: 0, w: w - wide, h: high - GAP },
        { x: wide, y: high, w: w - wide, h: h - high },
      ];
    } else if (!this.single) {
      const [high, half] = [Math.round(h * 0.64), Math.round(w / 2)];
      places = [
        { x: 0, y: 0, w, h: high - GAP },
        { x: 0, y: high, w: half - GAP, h: h - high },
        { x: half, y: high, w: w - half, h: h - high },
      ];
    }
    return [this.large, ...others].slice(0, places.length).map((plane, number) => {
      const tile = places[number];
      const inner = { x: tile.x + 18, y: tile.y + 20, w: tile.w - 36, h: tile.h - 40 };
      return { plane, tile, rect: fit(plane, this.volume, inner) };
    });
  }

  scene() {
    const { cross, center, zoom, window, invert, opacity } = this;
    return { tiles: this.tiles(), cross, center, zoom, window, invert, opacity };
  }

  draw() {
    if (!this.volume || !this.box.clientWidth) return;
    const scene = this.scene();
    this.renderer.draw(scene);
    this.drawMarks(scene);
  }

  drawMarks(scene) {
    const parts = [];
    for (const { plane, tile, rect } of scene.tiles) {
      const [x, y] = project(plane, scene.cross, scene, rect);
      const [right, bottom] = [tile.x + tile.w, tile.y + tile.h];
      const line = { class: "cross" };
      if (y > tile.y && y < bottom) parts.push(makeSvg("line", { ...line, x1: tile.x, x2: right, y1: y, y2: y }));
      if (x > tile.x && x < right) parts.push(makeSvg("line", { ...line, x1: x, x2: x, y1: tile.y, y2: bottom }));
      const doubt = this.facts.sides_known ? "" : "?";
      const [left, opposite, top, under] = AXES[plane].sides.map((side) => side + doubt);
      const [midX, midY] = [rect.x + rect.w / 2, rect.y + rect.h / 2];
      const [inLeft, inRight] = [Math.max(rect.x - 9, tile.x + 9), Math.min(rect.x + rect.w + 9, right - 9)];
      parts.push(makeSvg("text", { class: "side", x: inLeft, y: midY, "data-side": `${plane}-left` }, left));
      parts.push(makeSvg("text", { class: "side", x: inRight, y: midY, "data-side": `${plane}-right` }, opposite));
      parts.push(makeSvg("text", { class: "side", x: midX, y: Math.max(rect.y - 5, tile.y + 13) }, top));
      parts.push(makeSvg("text", { class: "side", x: midX, y: Math.min(rect.y + rect.h + 15, bottom - 4) }, under));
      const { number, count } = this.slice(plane);
      const label = `${word(plane)} ${number}/${count}`;
      parts.push(makeSvg("text", { class: "label", x: tile.x + 8, y: tile.y + 16, "data-plane": plane }, label));
    }
    this.marks.replaceChildren(...parts);
  }

  // --- mouse, touch, keys ---------------------------------------------------------------------------------------------

  enlarge(plane) {
    this.large = plane;
    this.redraw();
  }

  /** The place of an event, with the tile that is there. */
  hit(event) {
    if (!this.volume) return null;
    const { x, y } = this.place(event);
    const tile = this.tiles().find((one) => inside(one.tile, x, y));
    return tile ? { ...tile, x, y } : null;
  }

  doubleClicked(hit) {
    if (hit) this.enlarge(hit.plane);
  }

  dragCross({ plane }, x, y) {
    const tile = this.tiles().find((one) => one.plane === plane);
    this.setCross(locate(plane, x, y, this.scene(), tile.rect));
    this.hover({ plane, x, y, rect: tile.rect });
  }

  dragPan({ plane }, dx, dy) {
    const { rect } = this.tiles().find((one) => one.plane === plane);
    const { across, down } = AXES[plane];
    this.center = [...this.center];
    this.center[across] += dx / rect.w / this.zoom;
    this.center[down] += dy / rect.h / this.zoom;
    this.redraw();
  }

  wheelAt(hit, event) {
    if (event.ctrlKey) return this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, hit);
    this.setSlice(hit.plane, this.slice(hit.plane).number + Math.sign(event.deltaY));
    this.hover(hit);
  }

  /** Tell the value and place under the pointer, or at the crosshair. */
  hover(hit) {
    if (!this.volume) return;
    const frac = hit ? locate(hit.plane, hit.x, hit.y, this.scene(), hit.rect) : this.cross;
    if (frac.some((share) => share < 0 || share > 1)) return this.options.onHover("");
    const value = valueAt(this.volume, frac);
    const shown = Number.isInteger(value) ? value : value.toPrecision(4);
    const [right, front, head] = mmOf(this.volume, frac);
    const sides = [right < 0 ? "L" : "R", front < 0 ? "P" : "A", head < 0 ? "I" : "S"];
    const place = [right, front, head].map((mm, axis) => `${sides[axis]} ${Math.abs(mm).toFixed(1)}`).join("  ");
    this.options.onHover(`${shown}${this.facts.units === "HU" ? " HU" : ""}   ${place} mm`);
  }

  key(event) {
    const step = { ArrowUp: 1, ArrowRight: 1, PageUp: 5, ArrowDown: -1, ArrowLeft: -1, PageDown: -5 }[event.key];
    const plane = PLANES[Number(event.key) - 1];
    if (step) this.setSlice(this.large, this.slice(this.large).number + step);
    else if (plane) this.enlarge(plane);
    else return super.key(event);
    return true;
  }

  /** What an export needs to draw this picture again. */
  keyImages() {
    return [{ plane: this.large, index: this.slice(this.large).number - 1, window: this.window }];
  }

  close() {
    super.close();
    this.renderer.close();
  }
}

function inside(tile, x, y) {
  return x >= tile.x && x < tile.x + tile.w && y >= tile.y && y < tile.y + tile.h;
}
