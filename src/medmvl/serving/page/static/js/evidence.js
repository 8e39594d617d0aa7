// Why the model said so: a heat map over the picture, a bar for each slice, and what they mean in words.

import { follow, load } from "./api.js";
import { byId, make, makeSvg, show } from "./dom.js";
import { clock, percent, word, wordOfRefusal } from "./words.js";

const BAR_HEIGHT = 44;

export class EvidencePanel {
  /** @param options {stage, chat, version()} */
  constructor(options) {
    this.options = options;
    this.running = null;
    this.shown = null;
    options.stage.options.onSlice = () => this.markSlice();
  }

  /** Stop and remove what is shown. */
  reset() {
    this.running?.abort();
    this.running = null;
    this.shown = null;
    show(byId("heat"), false);
    this.options.stage.setOverlay(null);
  }

  /** Offer the explanation of a turn's sentences at a place in the conversation. */
  offer(turn, place) {
    const answer = turn.answers[0];
    const choice = make("select", { "aria-label": word("explain") });
    choice.append(make("option", { value: "" }, word("explain_whole")));
    const sentences = sentencesOf(answer);
    if (sentences.length > 1) choice.append(...sentences.map((one) => make("option", { value: one }, one)));
    const say = make("div", { class: "note", role: "status" });
    const begin = (method) => this.explain(turn, choice.value || null, method, say);
    place.replaceChildren(
      make(
        "div",
        { class: "row" },
        choice,
        make("button", { type: "button", class: "occlusion", onclick: () => begin("occlusion") }, word("explain_occlusion")),
        make("button", { type: "button", onclick: () => begin("attention-preview") }, word("explain_preview")),
      ),
      say,
    );
    say.scrollIntoView({ block: "nearest" });
  }

  async explain(turn, sentence, method, say) {
    this.reset();
    const running = (this.running = new AbortController());
    const bar = make("progress", { max: 1 });
    const text = make("span", {}, word("explain_waits"));
    const cancel = make("button", { type: "button", onclick: () => this.reset() }, word("cancel"));
    say.replaceChildren(bar, text, cancel);
    const study = (this.study = this.options.stage.active);
    this.progress = "";
    let begun = null;
    const request = { version: this.options.version(), turn: turn.id, method, study };
    if (sentence) request.sentence = sentence;
    const waiting = [];
    const on = (event) => {
      if (event.progress) {
        const [done, total] = event.progress;
        begun ??= performance.now(); // before, it waited for others
        bar.value = done / Math.max(total, 1);
        this.progress = progressOf(done, total, (performance.now() - begun) / 1000);
        const count = total > 1 ? `${word("explaining", { done, total })} · ` : "";
        text.textContent = count + this.progress;
        this.markProgress();
      } else if (event.map) {
        waiting.push(this.showMap(event.map, running));
      }
    };
    try {
      await follow("explain", request, on, running.signal);
      await Promise.all(waiting);
      say.replaceChildren(...this.meaning());
    } catch (error) {
      say.replaceChildren(error.name === "AbortError" ? word("stopped") : wordOfRefusal(error));
    } finally {
      if (this.running === running) this.running = null;
    }
  }

  /** Lay the map over views that were built anew, if they show the study that it is about. */
  reapply() {
    if (!this.shown) return;
    if (this.options.stage.active !== this.study) this.reset();
    else this.options.stage.setOverlay(this.blob, this.shown.id);
  }

  async showMap(map, running) {
    const blob = await load(`evidence/${map.id}`);
    if (this.running !== running) return; // another explanation was asked for
    const first = !this.shown;
    [this.shown, this.blob] = [map, blob];
    await this.options.stage.setOverlay(blob, map.id);
    const { view } = this.options.stage;
    // Where no place matters, the peak is chance: the planes stay where the reader has them.
    if (view?.volume && !map.doubts.includes("none") && (first || map.final)) view.setCross(map.peak);
    this.drawBars();
  }

  /** What the map means, in words and numbers. */
  meaning() {
    const map = this.shown;
    if (!map) return [];
    const lines = [make("div", { class: map.preview ? "warning-text" : "" }, word(map.preview ? "evidence_preview" : "evidence_occlusion"))];
    if (map.factor !== null) {
      lines.push(make("div", {}, word("evidence_factor", { factor: map.factor })));
    } else if (map.neutral !== null) {
      const numbers = { probability: percent(map.probability), neutral: percent(map.neutral) };
      lines.push(make("div", {}, word("evidence_numbers", numbers)));
    }
    for (const doubt of map.doubts) lines.push(make("div", { class: "warning-text" }, word(`evidence_${doubt}`)));
    return lines;
  }

  /** Draw the controls of the heat map below the picture: opacity, and the bars over slices, which can be clicked. */
  drawBars() {
    const { stage } = this.options;
    const change = (event) => stage.each((view) => (view.opacity = Number(event.target.value)));
    const opacity = make("input", {
      type: "range", min: 0, max: 1, step: 0.05, value: stage.view.opacity, oninput: change, title: word("heat_opacity"),
      "aria-label": word("heat_opacity"),
    });
    const parts = [opacity];
    if (this.shown.slices.length > 1) parts.push(make("span", { class: "quiet" }, word("heat_bars")), this.bars());
    if (this.shown.preview) parts.push(make("span", { class: "tag" }, word("explain_preview")));
    this.coarse = this.shown.final ? null : make("span", { class: "tag", role: "status" });
    if (this.coarse) parts.push(this.coarse);
    parts.push(make("button", { onclick: () => this.reset() }, word("heat_hide")));
    byId("heat").replaceChildren(...parts);
    show(byId("heat"), true);
    this.markProgress();
    this.markSlice();
  }

  /** Write beside a coarse map how far the finer one is. */
  markProgress() {
    if (this.coarse) this.coarse.textContent = word("evidence_coarse", { progress: this.progress });
  }

  /** Write the controls in the present language. */
  relabel() {
    if (this.shown) this.drawBars();
  }

  bars() {
    const { slices, plane } = this.shown;
    const top = Math.max(...slices.map(Math.abs), this.shown.preview ? 1e-9 : this.shown.scale);
    const chart = makeSvg("svg", {
      class: "bars", viewBox: `0 0 ${slices.length} ${BAR_HEIGHT}`, preserveAspectRatio: "none", role: "img",
    });
    slices.forEach((value, index) => {
      const height = (Math.abs(value) / top) * (BAR_HEIGHT - 2);
      const x = plane === "axial" ? index : slices.length - 1 - index;
      const bar = { class: value < 0 ? "bar against" : "bar", x, width: 0.9, y: BAR_HEIGHT - height, height, "data-slice": x + 1 };
      chart.append(makeSvg("rect", bar));
    });
    this.mark = makeSvg("rect", { class: "bar-mark", y: 0, width: 0.9, height: BAR_HEIGHT });
    chart.append(this.mark);
    chart.addEventListener("click", (event) => {
      const bounds = chart.getBoundingClientRect();
      const number = Math.floor(((event.clientX - bounds.left) / bounds.width) * slices.length) + 1;
      this.options.stage.view?.setSlice?.(plane, number);
    });
    return chart;
  }

  markSlice() {
    const { view } = this.options.stage;
    if (this.mark && this.shown?.plane && view?.volume) {
      this.mark.setAttribute("x", view.slice(this.shown.plane).number - 1);
    }
  }
}

/** Return the share that is done and, once it can be told, the time left. */
function progressOf(done, total, seconds) {
  const share = done / Math.max(total, 1);
  const parts = [`${Math.round(100 * share)} %`];
  if (done && seconds > 2) parts.push(word("time_left", { time: clock((seconds * (total - done)) / done) }));
  return parts.join(", ");
}

/** Split an answer into sentences, in English and Chinese. */
export function sentencesOf(text) {
  return (text.match(/[^.!?。！？]+[.!?。！？]*/g) ?? []).map((one) => one.trim()).filter((one) => one.length > 1);
}
