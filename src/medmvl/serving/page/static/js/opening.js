// Opening of studies: drop or choose files, send them, read them, choose a series, or take a remedy.

import { post, upload } from "./api.js";
import { byId, make, show } from "./dom.js";
import { word, wordOfRefusal } from "./words.js";

export class Opening {
  /** @param options {onCleared(version): picture and conversation are gone, onOpened(studies, version), add(): keep the open ones} */
  constructor(options) {
    this.options = options;
    this.read = {};
    this.connect();
  }

  connect() {
    byId("open").addEventListener("click", () => this.choose(false));
    byId("open-more").addEventListener("click", () => this.choose(true));
    byId("welcome-open").addEventListener("click", () => this.choose(false));
    byId("files").addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = "";
      this.send(files, this.adding);
    });
    byId("clear").addEventListener("click", () => this.clear());
    byId("give-up").addEventListener("click", () => this.clear());
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", async (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      this.send(await filesOf(event.dataTransfer), false);
    });
    byId("reading").addEventListener("submit", (event) => {
      event.preventDefault();
      const values = Object.fromEntries(new FormData(event.target));
      this.again(Object.fromEntries(Object.entries(values).filter(([, value]) => value !== "")));
    });
  }

  choose(add) {
    this.adding = add;
    byId("files").click();
  }

  /** Close everything that is open, also what is being sent. */
  async clear() {
    this.sending?.abort();
    this.sending = null;
    this.dismiss();
    const { version } = await post("clear");
    this.options.onCleared(version);
  }

  /** Send files and read them. What was open before is closed first, so that nobody asks about the picture before. */
  async send(files, add) {
    if (!files.length) return;
    const sending = (this.sending = new AbortController());
    const signal = sending.signal;
    this.read = {};
    this.add = add;
    this.names = files.map((file) => file.name);
    this.dismiss();
    this.working(true);
    try {
      const { version } = await post(add ? "forget" : "clear");
      this.options.onCleared(version, add);
      const total = files.reduce((sum, file) => sum + file.size, 0);
      let done = 0;
      for (const [number, file] of files.entries()) {
        const tell = (sent) => this.progress((done + sent) / Math.max(total, 1), number + 1, files.length);
        await upload(file, tell, signal).catch((error) => {
          error.file = file.name;
          throw error;
        });
        done += file.size;
      }
      await this.open();
    } catch (error) {
      if (error.name !== "AbortError") this.refuse(error);
    } finally {
      if (this.sending === sending) this.working(false);
    }
  }

  progress(share, number, count) {
    byId("progress").value = share;
    byId("progress-text").textContent = word("sending", { number, count, percent: Math.round(100 * share) });
  }

  /** Read what was sent, by the remedies that were chosen. */
  async open() {
    byId("progress").removeAttribute("value");
    const begun = Date.now();
    const tick = () => {
      byId("progress-text").textContent = word("reading", { seconds: Math.round((Date.now() - begun) / 1000) });
    };
    tick();
    const timer = setInterval(tick, 1000);
    try {
      const found = await post("open", { read: this.read, add: this.add });
      if (found.series) this.offerSeries(found);
      else await this.options.onOpened(found.studies, found.version);
    } finally {
      clearInterval(timer);
    }
  }

  /** Read the same files again in another way. */
  async again(read) {
    this.read = { ...this.read, ...read };
    this.dismiss();
    this.working(true);
    try {
      await this.open();
    } catch (error) {
      this.refuse(error);
    } finally {
      this.working(false);
    }
  }

  working(on) {
    show(byId("working"), on);
    document.body.classList.toggle("busy", on);
  }

  /** Say why the files were refused, with a button for each remedy that the message advises. */
  refuse(error) {
    if (error.body?.version) this.options.onCleared(error.body.version, this.add);
    const buttons = (error.body?.remedies ?? []).map(({ option, value }) =>
      make("button", { class: "remedy", onclick: () => this.again({ [option]: value }) }, remedyWord(option, value)),
    );
    this.ask(word("could_not_open"), this.named(error), buttons, Boolean(error.body?.remedies));
  }

  /** Return a refusal with the name of the file that it is about; where none is named, that of the first one. */
  named(error) {
    const text = wordOfRefusal(error);
    const [first, ...more] = this.names;
    if (!error.file && this.names.some((name) => text.includes(name))) return text;
    return `${error.file ?? (more.length ? `${first} (+${more.length})` : first)}: ${text}`;
  }

  offerSeries({ series, version }) {
    this.options.onCleared(version, this.add);
    const buttons = series.map((one) => {
      const choose = () => this.again({ series: one.series });
      return make("button", { class: "series", onclick: choose }, `${one.description} (…${one.series})`);
    });
    this.ask(word("choose_series"), "", buttons, false);
  }

  ask(title, text, buttons, withReading) {
    byId("question-title").textContent = title;
    byId("question-text").textContent = text;
    byId("question-buttons").replaceChildren(...buttons);
    show(byId("reading"), withReading);
    show(byId("opening-question"), true);
  }

  dismiss() {
    show(byId("opening-question"), false);
  }
}

function remedyWord(option, value) {
  const key = `remedy_${option}_${value}`;
  const known = word(key);
  return known === key ? `${word(`read_${option}`)}: ${value}` : known;
}

/** Return all files that were dropped, those in folders too. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    for (const one of batch) await collect(one, files);
  }
}
