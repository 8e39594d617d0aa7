// The left half of the page: the open studies, their views, and the tools above and below them.

import { load } from "./api.js";
import { byId, make, press, show } from "./dom.js";
import { ImageView } from "./image_view.js";
import { graphics } from "./niivue_renderer.js";
import { VolumeView } from "./volume_view.js";
import { word } from "./words.js";

/** Display windows in HU, the same as the server's. */
const PRESETS = {
  lung: [-1350, 150],
  mediastinum: [-125, 225],
  bone: [-500, 1300],
  brain: [0, 80],
  abdomen: [-150, 250],
};

export class Stage {
  /** @param options {onBox(number): a box on the picture was chosen} */
  constructor(options) {
    this.options = options;
    this.studies = [];
    this.active = 0;
    this.beside = null; // what the second view shows: null, "model", or the number of another study
    this.views = [];
    this.tool = "cross";
    this.gpu = wantsNiivue();
    this.connect();
  }

  /** Show studies; an empty list shows the invitation to open one. */
  async open(studies) {
    this.studies = studies;
    this.active = studies.length ? studies.length - 1 : 0;
    this.beside = null;
    show(byId("welcome"), !studies.length);
    for (const id of ["tools", "status"]) show(byId(id), studies.length > 0);
    await this.refresh();
  }

  get study() {
    return this.studies[this.active];
  }

  get view() {
    return this.views[0];
  }

  /** Build the views anew. */
  async refresh() {
    const turn = (this.turn = (this.turn ?? 0) + 1); // a later call overtakes this one
    for (const view of this.views) view.close();
    this.views = [];
    byId("stage").replaceChildren();
    this.listStudies();
    this.showTools();
    if (!this.study) return;
    const first = await this.addView(this.active, "view", this.captionOfFirst());
    if (this.turn !== turn) return;
    if (this.beside === "model") await this.addView(this.active, "model", this.captionOfSecond(), first);
    else if (this.beside !== null) await this.addView(this.beside, "view", this.captionOfSecond(), first);
    if (this.turn !== turn) return;
    this.describe();
    this.options.onRefreshed?.();
  }

  async addView(number, what, caption, linked = null) {
    const facts = this.studies[number];
    const options = {
      gpu: this.gpu,
      tool: () => this.tool,
      onMove: (view) => this.moved(view),
      onHover: (text) => (byId("hover").textContent = text),
      onWindow: (low, high) => this.windowed(low, high),
      onBox: (box) => this.options.onBox(box),
    };
    const frame = make("div", { class: "frame" });
    byId("stage").append(frame);
    if (caption) frame.append(make("div", { class: "caption" }, caption));
    const view = facts.kind === "volume" ? new VolumeView(frame, options) : new ImageView(frame, options);
    this.views.push(view);
    const blob = await load(`study/${number}/${what}`);
    if (!this.views.includes(view)) return view;
    if (facts.kind === "image") {
      await view.load(blob, what === "model" ? { ...facts, spacing: null } : facts);
    } else {
      const own = what === "model" ? { ...facts, units: "arbitrary", window: null } : facts;
      const buffer = await blob.arrayBuffer();
      await view.load(buffer, own, what === "model" ? extremes(buffer) : linked?.window);
      view.role = what;
      if (linked) view.moveTo(linked.mm);
    }
    return view;
  }

  /** Let the other view follow: to the same place of the patient, or in another study to the same share of the volume. */
  moved(view) {
    for (const other of this.views) {
      if (other === view || !other.volume) continue;
      if (this.beside === "model") other.moveTo(view.mm);
      else other.setCross(view.cross, true);
    }
    this.describeSlices();
  }

  windowed(low, high) {
    byId("preset").value = "custom";
    byId("window-text").textContent = `${Math.round(low)} … ${Math.round(high)}`;
  }

  setWindow(low, high) {
    for (const view of this.views) if (view.role !== "model") view.setWindow(low, high);
    this.windowed(low, high);
  }

  describe() {
    const { study } = this;
    const sizes = study.shape.join(" × ");
    const mm = study.spacing ? ` · ${study.spacing.map((one) => Number(one.toPrecision(3))).join(" × ")} mm` : "";
    const unit = study.units === "HU" ? " · HU" : "";
    byId("facts").textContent = `${sizes}${mm}${unit}`;
    byId("facts").title = [...study.history, ...study.warnings].join("\n");
    const warnings = study.warnings.concat(study.spacing ? [] : [word(study.kind === "image" ? "no_spacing_image" : "no_spacing")]);
    byId("warnings").textContent = warnings.length ? `⚠ ${warnings.join("; ")}` : "";
    byId("warnings").title = byId("warnings").textContent;
    if (study.kind === "volume") {
      const [low, high] = this.view.window;
      const name = Object.keys(PRESETS).find((key) => String(PRESETS[key]) === String([low, high]));
      this.windowed(low, high);
      byId("preset").value = name ?? "custom";
    } else {
      byId("window-text").textContent = "";
    }
    this.describeSlices();
  }

  describeSlices() {
    if (this.view?.volume) this.view.hover(null);
    else byId("hover").textContent = ""; // the value below the pointer was the last picture's
    this.options.onSlice?.(this.view);
  }

  captionOfFirst() {
    if (this.beside === null) return "";
    return this.beside === "model" ? word("sent") : this.nameOf(this.active);
  }

  captionOfSecond() {
    return this.beside === "model" ? word("seen_by_model") : this.nameOf(this.beside);
  }

  /** Write the words around the views in the present language; the views stay as they are. */
  relabel() {
    if (!this.view?.loaded) return; // what is being loaded is described when it is there
    this.showTools();
    const captions = byId("stage").querySelectorAll(".caption");
    if (captions.length) captions[0].textContent = this.captionOfFirst();
    if (captions.length > 1) captions[1].textContent = this.captionOfSecond();
    this.describe();
    for (const view of this.views) view.redraw();
  }

  nameOf(number) {
    return `${number + 1}: ${this.studies[number].name}`;
  }

  listStudies() {
    const several = this.studies.length > 1;
    const tabs = this.studies.map((study, number) => {
      const choose = () => {
        this.active = number;
        if (this.beside !== "model") this.beside = null;
        this.refresh();
      };
      const tab = make("button", { class: "tab", title: study.name, onclick: choose });
      tab.textContent = several ? this.nameOf(number) : study.name;
      press(tab, number === this.active);
      return tab;
    });
    byId("studies").replaceChildren(...tabs);
    show(byId("beside-study"), several);
  }

  showTools() {
    const volume = this.study?.kind === "volume";
    show(byId("preset"), volume && this.study.units === "HU");
    show(byId("planes"), volume);
    show(byId("invert"), Boolean(this.study));
    press(byId("beside-model"), this.beside === "model");
    press(byId("beside-study"), this.beside !== null && this.beside !== "model");
    const renderer = volume ? (this.gpu ? "NiiVue" : word("drawn_without_gpu")) : "";
    byId("renderer").textContent = renderer;
  }

  setTool(tool) {
    this.tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) press(button, button.dataset.tool === tool);
  }

  each(change) {
    for (const view of this.views) {
      change(view);
      view.redraw();
    }
  }

  toggleInvert() {
    this.inverted = !this.inverted;
    press(byId("invert"), this.inverted);
    this.each((view) => (view.invert = this.inverted));
  }

  connect() {
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.setTool(button.dataset.tool));
    }
    for (const button of document.querySelectorAll("[data-plane-button]")) {
      button.addEventListener("click", () => this.each((view) => (view.large = button.dataset.planeButton)));
    }
    byId("single").addEventListener("click", () => {
      this.single = !this.single;
      press(byId("single"), this.single);
      this.each((view) => (view.single = this.single));
    });
    byId("preset").addEventListener("change", (event) => {
      const preset = PRESETS[event.target.value];
      if (preset) {
        this.setWindow(...preset);
        event.target.value = Object.keys(PRESETS).find((key) => PRESETS[key] === preset);
      }
    });
    byId("invert").addEventListener("click", () => this.toggleInvert());
    byId("reset-view").addEventListener("click", () => this.views.forEach((view) => view.reset()));
    byId("beside-model").addEventListener("click", () => {
      this.beside = this.beside === "model" ? null : "model";
      this.refresh();
    });
    byId("beside-study").addEventListener("click", () => {
      const other = this.active > 0 ? this.active - 1 : 1;
      this.beside = this.beside !== null && this.beside !== "model" ? null : other;
      this.refresh();
    });
    this.setTool("cross");
  }

  /** Lay a heat map over the first view, by its bytes and the id that an export names it by; null removes it. */
  async setOverlay(blob, id = null) {
    this.heat = blob ? id : null;
    if (!this.view) return;
    if (!blob) return this.view.setOverlay(null);
    if (this.study.kind === "volume") return this.view.setOverlay(await blob.arrayBuffer());
    return this.view.setOverlay(await mapOf(blob));
  }

  /** The picture that is shown, with its heat map, for an export. */
  keyImages() {
    if (!this.view?.loaded) return [];
    const heat = this.heat && this.view.opacity > 0 ? { evidence: this.heat } : {};
    return this.view.keyImages().map((one) => ({ ...one, ...heat, study: this.active }));
  }
}

/** Whether NiiVue draws: on a graphics card, or if the address asks for it (`?viewer=niivue`; `?viewer=canvas` forbids it). */
function wantsNiivue() {
  const asked = new URLSearchParams(location.search).get("viewer");
  const { webgl, card } = graphics();
  return asked === "canvas" ? false : webgl && (card || asked === "niivue");
}

/** Return the values from 0 to 1 of a gray picture. */
async function mapOf(blob) {
  const picture = await createImageBitmap(blob);
  const { width, height } = picture;
  const context = make("canvas", { width, height }).getContext("2d");
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { width, height, values: Float32Array.from({ length: width * height }, (_, place) => data[4 * place] / 255) };
}

/** Return the least and greatest value of a NIfTI file. */
function extremes(buffer) {
  const type = { 2: Uint8Array, 4: Int16Array, 16: Float32Array }[new DataView(buffer).getInt16(70, true)];
  const data = new type(buffer, new DataView(buffer).getFloat32(108, true));
  let [low, high] = [Infinity, -Infinity];
  for (const value of data) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}
