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

  /** Save the conversation as a file; without marked pictures, with the one that is shown. */
  async export(format) {
    const images = this.images.length ? this.images : this.options.stage.keyImages();
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
