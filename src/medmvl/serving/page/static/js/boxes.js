// The boxes of a conversation, numbered through it. Each has a chip in its answer that shows or hides it on the picture.

import { make } from "./dom.js";
import { word } from "./words.js";

const COLORS = 6;

export class Boxes {
  /** @param stage draws them */
  constructor(stage) {
    this.stage = stage;
    this.known = [];
  }

  /** Forget all boxes. */
  reset() {
    this.known = [];
    this.draw();
  }

  /** Forget the boxes of an answer that is asked for again. */
  forget(entry) {
    this.known = this.known.filter((one) => one.entry !== entry);
    this.draw();
  }

  /** Hide the boxes of earlier answers, before those of a new one are added. */
  hideAll() {
    for (const one of this.known) this.set(one, false);
  }

  /** Add a box of an answer, shown, and return its chip. */
  add(box, entry) {
    const number = this.known.length + 1;
    const one = { box, entry, number, color: `color-${(number - 1) % COLORS}` };
    const toggle = () => {
      this.set(one, !one.shown);
      this.draw();
    };
    one.chip = make("button", { class: `box-chip ${one.color}`, type: "button", onclick: toggle });
    this.known.push(one);
    this.set(one, true);
    return one.chip;
  }

  set(one, shown) {
    [one.shown, one.chosen] = [shown, false];
    one.chip.setAttribute("aria-pressed", String(shown));
    one.chip.textContent = `${shown ? "▣" : "▢"} ${one.number}`;
    one.chip.title = word("box_means");
  }

  /** Draw the shown boxes on the picture. */
  draw() {
    this.stage.view?.setBoxes?.(this.known.filter((one) => one.shown));
  }

  /** A box on the picture was clicked: draw it strongly and show its answer. */
  clicked(number) {
    for (const one of this.known) one.chosen = one.number === number;
    this.known[number - 1]?.chip.scrollIntoView({ block: "nearest" });
    this.known[number - 1]?.chip.focus();
    this.draw();
  }
}
