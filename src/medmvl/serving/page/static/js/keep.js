// What the visitor takes away: key images, exports, copies.

import { postForBlob } from "./api.js";
import { byId, make } from "./dom.js";
import { currentLanguage, word, wordOfRefusal } from "./words.js";

const MOST_IMAGES = 12;

export class Keep {
  /** @param options {stage, chat, version()} */
  constructor(options) {
    this.options = options;
    this.images = [];
    byId("mark").addEventListener("click", () => this.mark());
    byId("copy").addEventListener("click", () => this.copy());
    for (const format of ["pdf", "markdown", "json"]) {
      byId(`export-${format}`).addEventListener("click", () => this.export(format));
    }
    this.reset();
  }

  reset() {
    this.images = [];
    this.count();
  }

  /** Mark the shown picture as a key image of the export. */
  mark() {
    if (this.images.length >= MOST_IMAGES) return this.options.chat.say(word("enough_images", { most: MOST_IMAGES }), true);
    this.images.push(...this.options.stage.keyImages());
    this.count();
  }

  count() {
    byId("mark-count").textContent = this.images.length ? String(this.images.length) : "";
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.options.chat.text());
      this.options.chat.say(word("copied"));
    } catch {
      this.options.chat.say(word("not_copied"), true);
    }
  }

  /** The marked pictures; and the shown one, if none is marked or it has a heat map that no marked one has. */
  pictures() {
    const shown = this.options.stage.keyImages();
    if (!this.images.length) return shown;
    const unseen = shown.filter((one) => one.evidence && !this.images.some((other) => other.evidence === one.evidence));
    return [...this.images, ...unseen].slice(0, MOST_IMAGES);
  }

  /** Save the conversation as a file. */
  async export(format) {
    const images = this.pictures();
    const request = { format, images, language: currentLanguage(), version: this.options.version() };
    try {
      const blob = await postForBlob("export", request);
      const address = URL.createObjectURL(blob);
      const suffix = { pdf: "pdf", markdown: "md", json: "json" }[format];
      make("a", { href: address, download: `medmvl-conversation.${suffix}` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
    } catch (error) {
      this.options.chat.say(wordOfRefusal(error), true);
    }
  }
}
