// What all views share: the element, drawing once a frame, mouse, touch and keys, the window and the zoom.

import { make, makeSvg } from "./dom.js";

const MOST_ZOOM = 20;

/**
 * Base of the views. A view of one kind has: `loaded`, whether there is something to draw; draw(), reset(), wheelAt(hit, event),
 * and hover(hit), zoomed(hit, old zoom), dragPan(last, dx, dy), which get places as `hit` returns them.
 */
export class View {
  /**
   * @param parent element that the view fills
   * @param options {onHover(text), onWindow(low, high), tool(): the left button's}
   */
  constructor(parent, options) {
    this.options = options;
    this.canvas = make("canvas", { class: "picture" });
    this.marks = makeSvg("svg", { class: "marks" });
    this.box = make("div", { class: "view", tabindex: "0" }, this.canvas, this.marks);
    parent.append(this.box);
    this.zoom = 1;
    this.invert = false;
    this.opacity = 0.5;
    this.overlay = null;
    this.pointers = new Map();
    this.resizing = new ResizeObserver(() => this.redraw());
    this.resizing.observe(this.box);
    this.listen();
  }

  /** Draw with the next frame; many changes become one drawing. */
  redraw() {
    if (this.pending || !this.loaded) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  setWindow(low, high) {
    this.window = [low, Math.max(high, low + 1)];
    this.redraw();
  }

  /** Zoom by a factor; the position at a place, by default that in the middle, stays where it is. */
  zoomBy(factor, hit = null) {
    if (!this.loaded) return;
    const old = this.zoom;
    this.zoom = Math.min(Math.max(old * factor, 1), MOST_ZOOM);
    this.zoomed(hit, old);
    if (this.zoom === 1) this.center = this.center.map(() => 0.5);
    this.redraw();
  }

  // --- mouse, touch, keys ---------------------------------------------------------------------------------------------

  listen() {
    this.box.addEventListener("pointerdown", (event) => this.down(event));
    this.box.addEventListener("pointermove", (event) => this.moved(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.box.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    this.box.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const hit = this.hit(event);
        if (hit && event.deltaY) this.wheelAt(hit, event);
      },
      { passive: false },
    );
    this.box.addEventListener("contextmenu", (event) => event.preventDefault());
    this.box.addEventListener("dblclick", (event) => this.doubleClicked(this.hit(event)));
    this.box.addEventListener("keydown", (event) => {
      if (this.key(event)) event.preventDefault();
    });
  }

  /** The place {x, y} of an event in the view. */
  place(event) {
    const bounds = this.box.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  }

  /** What is at the place of an event: {x, y} and what a kind of view adds; null if there is nothing. */
  hit(event) {
    return this.loaded ? this.place(event) : null;
  }

  down(event) {
    const hit = this.hit(event);
    if (!hit) return;
    this.box.focus();
    this.box.setPointerCapture(event.pointerId);
    const tool = event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : this.options.tool();
    this.pointers.set(event.pointerId, { ...hit, tool });
    if (tool === "cross" && this.pointers.size === 1) this.dragCross(hit, hit.x, hit.y);
  }

  moved(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return this.hover(this.hit(event));
    const { x, y } = this.place(event);
    if (this.pointers.size === 2) this.pinch(last, x, y);
    else if (last.tool === "cross") this.dragCross(last, x, y);
    else if (last.tool === "window") this.dragWindow(x - last.x, y - last.y);
    else this.dragPan(last, x - last.x, y - last.y);
    [last.x, last.y] = [x, y];
  }

  /** The crosshair's tool; without a crosshair it moves the picture. */
  dragCross(last, x, y) {
    this.dragPan(last, x - last.x, y - last.y);
  }

  /** Right: wider; up: brighter. A drag over 300 pixels changes the window by its width, at least by 40 steps. */
  dragWindow(dx, dy) {
    const [low, high] = this.window;
    const step = Math.max(high - low, 40) / 300;
    const [middle, width] = [(low + high) / 2 + dy * step, Math.max(high - low + dx * step, 1)];
    this.setWindow(middle - width / 2, middle + width / 2);
    this.options.onWindow(...this.window);
  }

  pinch(moving, x, y) {
    const other = [...this.pointers.values()].find((one) => one !== moving);
    const before = Math.hypot(moving.x - other.x, moving.y - other.y);
    const after = Math.hypot(x - other.x, y - other.y);
    if (before > 10) this.zoomBy(after / before, { ...moving, x: (x + other.x) / 2, y: (y + other.y) / 2 });
  }

  doubleClicked() {
    this.reset();
  }

  /** Follow a key; returns whether it means something here. */
  key(event) {
    const keys = { "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(0.8), 0: () => this.reset() };
    keys[event.key]?.();
    return event.key in keys;
  }

  close() {
    this.resizing.disconnect();
    this.box.remove();
  }
}
