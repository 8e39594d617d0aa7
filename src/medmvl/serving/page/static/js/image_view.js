// An image: zoom, pan, window, invert, boxes of an answer and a heat map.

import { heat } from "./canvas_renderer.js";
import { make, makeSvg } from "./dom.js";
import { View } from "./view.js";

export class ImageView extends View {
  /** @param options {onHover(text), onBox(number), onWindow(low, high), tool()} */
  constructor(parent, options) {
    super(parent, options);
    this.boxes = [];
    this.window = [0, 255];
  }

  get loaded() {
    return Boolean(this.source);
  }

  async load(blob, facts) {
    const picture = await createImageBitmap(blob);
    this.facts = facts;
    this.source = make("canvas", { width: picture.width, height: picture.height });
    const context = this.source.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    this.pixels = context.getImageData(0, 0, picture.width, picture.height);
    this.shown = null;
    this.overlay = null;
    this.boxes = [];
    this.window = [0, 255];
    this.reset();
  }

  /** Lay a map over the image: `map` has width, height, values from 0 to 1, and the region of the image that it covers. */
  async setOverlay(map) {
    this.overlay = null;
    if (map) {
      const canvas = make("canvas", { width: map.width, height: map.height });
      const picture = new ImageData(map.width, map.height);
      const pixels = new Uint32Array(picture.data.buffer);
      map.values.forEach((value, place) => (pixels[place] = heat(value)));
      canvas.getContext("2d").putImageData(picture, 0, 0);
      this.overlay = { canvas, region: map.region ?? [0, 0, 1, 1] };
    }
    this.redraw();
  }

  /** Draw boxes: [{box: [x1, y1, x2, y2] in shares, number, color: a class, chosen: whether it is drawn strongly}]. */
  setBoxes(boxes) {
    this.boxes = boxes;
    this.redraw();
  }

  reset() {
    this.zoom = 1;
    this.center = [0.5, 0.5];
    this.redraw();
  }

  setWindow(low, high) {
    this.shown = null;
    super.setWindow(low, high);
  }

  /** The rectangle that the whole image takes on the screen, parts of it perhaps beyond the view. */
  rect() {
    const [w, h] = [this.box.clientWidth, this.box.clientHeight];
    const [across, down] = this.facts.spacing ?? [1, 1];
    const [width, height] = [this.source.width * across, this.source.height * down];
    const scale = Math.min(w / width, h / height) * this.zoom;
    const [rw, rh] = [width * scale, height * scale];
    return { x: w / 2 - this.center[0] * rw, y: h / 2 - this.center[1] * rh, w: rw, h: rh };
  }

  draw() {
    if (!this.source || !this.box.clientWidth) return;
    this.applyWindow();
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    const rect = this.rect();
    context.imageSmoothingEnabled = rect.w < 12 * this.source.width;
    context.drawImage(this.shown, rect.x, rect.y, rect.w, rect.h);
    if (this.overlay && this.opacity > 0) {
      const [x, y, w, h] = this.overlay.region;
      context.globalAlpha = this.opacity;
      context.imageSmoothingEnabled = true;
      context.drawImage(this.overlay.canvas, rect.x + x * rect.w, rect.y + y * rect.h, w * rect.w, h * rect.h);
      context.globalAlpha = 1;
    }
    this.drawMarks(rect);
  }

  applyWindow() {
    const key = `${this.window} ${this.invert}`;
    if (this.shown && this.shownKey === key) return;
    const [low, high] = this.window;
    const table = new Uint8ClampedArray(256);
    for (let level = 0; level < 256; level += 1) {
      const gray = ((level - low) / (high - low)) * 255;
      table[level] = this.invert ? 255 - gray : gray;
    }
    const picture = new ImageData(this.pixels.width, this.pixels.height);
    for (let place = 0; place < picture.data.length; place += 4) {
      for (let channel = 0; channel < 3; channel += 1) {
        picture.data[place + channel] = table[this.pixels.data[place + channel]];
      }
      picture.data[place + 3] = 255;
    }
    this.shown = make("canvas", { width: picture.width, height: picture.height });
    this.shown.getContext("2d").putImageData(picture, 0, 0);
    this.shownKey = key;
  }

  drawMarks(rect) {
    const parts = [];
    for (const { box: [x1, y1, x2, y2], number, color, chosen } of this.boxes) {
      const shape = makeSvg("rect", {
        class: `box ${color}${chosen ? " chosen" : ""}`,
        x: rect.x + x1 * rect.w,
        y: rect.y + y1 * rect.h,
        width: Math.max((x2 - x1) * rect.w, 2),
        height: Math.max((y2 - y1) * rect.h, 2),
        "data-box": number,
      });
      shape.addEventListener("pointerdown", (event) => {
        event.stopPropagation();
        this.options.onBox(number);
      });
      const label = { class: `box-number ${color}`, x: rect.x + x1 * rect.w + 4, y: rect.y + y1 * rect.h + 14 };
      parts.push(shape, makeSvg("text", label, String(number)));
    }
    parts.push(...this.sideLetters(rect));
    this.marks.replaceChildren(...parts);
  }

  /** The patient's sides at the edges of the image, or of the view where the image reaches beyond it; none if the file states none. */
  sideLetters(rect) {
    if (!this.facts.sides) return [];
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    const within = (value, most) => Math.min(Math.max(value, 12), most - 12);
    const [midX, midY] = [within(rect.x + rect.w / 2, width), within(rect.y + rect.h / 2, height)];
    const places = [
      [within(rect.x + 12, width), midY],
      [within(rect.x + rect.w - 12, width), midY],
      [midX, within(rect.y + 9, height) + 5],
      [midX, within(rect.y + rect.h - 12, height) + 5],
    ];
    const names = ["left", "right", "top", "bottom"];
    return places.map(([x, y], edge) =>
      makeSvg("text", { class: "side", x, y, "data-side": `image-${names[edge]}` }, this.facts.sides[edge]),
    );
  }

  /** Keep the place under the pointer, or the middle of the view, where it is. */
  zoomed(hit, old) {
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    const { x, y } = hit ?? { x: width / 2, y: height / 2 };
    const after = this.rect();
    const before = { w: (after.w * old) / this.zoom, h: (after.h * old) / this.zoom };
    this.center = [
      this.center[0] + (x - width / 2) * (1 / before.w - 1 / after.w),
      this.center[1] + (y - height / 2) * (1 / before.h - 1 / after.h),
    ];
  }

  dragPan(last, dx, dy) {
    const rect = this.rect();
    this.center = [this.center[0] - dx / rect.w, this.center[1] - dy / rect.h];
    this.redraw();
  }

  wheelAt(hit, event) {
    this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, hit);
  }

  hover(hit) {
    if (!hit) return;
    const rect = this.rect();
    const x = Math.floor(((hit.x - rect.x) / rect.w) * this.pixels.width);
    const y = Math.floor(((hit.y - rect.y) / rect.h) * this.pixels.height);
    if (x < 0 || y < 0 || x >= this.pixels.width || y >= this.pixels.height) return this.options.onHover("");
    const place = 4 * (x + y * this.pixels.width);
    const levels = [...this.pixels.data.slice(place, place + (this.facts.color ? 3 : 1))].join(" ");
    const [across, down] = this.facts.spacing ?? [];
    const mm = across ? `   ${(x * across).toFixed(1)}, ${(y * down).toFixed(1)} mm` : "";
    this.options.onHover(`${levels}   x ${x + 1}, y ${y + 1}${mm}`);
  }

  keyImages() {
    return [{ boxes: this.boxes.map(({ box, number }) => ({ box, number })) }];
  }
}
