// The conversation: questions, streamed answers, closed questions, boxes in answers, comparison of two models.

import { follow, post } from "./api.js";
import { Boxes } from "./boxes.js";
import { byId, make, press, show } from "./dom.js";
import { percent, word, wordOfRefusal } from "./words.js";

export class Chat {
  /**
   * @param options {facts: of the model, stage, onExplain(turn, answer number, parent element), version(): of the studies}
   */
  constructor(options) {
    this.options = options;
    this.turns = [];
    this.boxes = new Boxes(options.stage);
    byId("follow-up").checked = options.facts.dialogs;
    this.connect();
    this.reset();
  }

  /** Forget the conversation. */
  reset() {
    this.stop();
    this.turns = [];
    this.boxes.reset();
    byId("turns").replaceChildren();
    show(byId("chat-hint"), true);
    this.offerTasks();
    this.ready();
  }

  connect() {
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(byId("question").value);
    });
    byId("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // a Chinese input method confirms by Enter
      event.preventDefault();
      this.ask(byId("question").value);
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("regenerate").addEventListener("click", () => this.regenerate());
    byId("options").addEventListener("input", () => this.offerOptions());
    byId("follow-up").addEventListener("change", () => this.warnOfFollowUp());
    byId("compare").addEventListener("click", () => press(byId("compare"), !this.comparing));
    show(byId("compare-row"), this.options.facts.models > 1);
  }

  get comparing() {
    return byId("compare").getAttribute("aria-pressed") === "true";
  }

  /** Offer the questions that the model was trained with, one menu for each task. */
  offerTasks() {
    const kind = this.options.stage.study?.kind;
    const tasks = this.options.facts.tasks.filter((task) => !kind || task.modality === kind);
    const names = tasks.map((task) => this.taskName(task));
    const twice = (name) => names.indexOf(name) !== names.lastIndexOf(name);
    const labels = tasks.map((task, place) =>
      twice(names[place]) ? `${names[place]} (${word(`modality_${task.modality}`)})` : names[place],
    );
    byId("tasks").replaceChildren(...tasks.map((task, place) => this.taskButton(task, labels[place])));
  }

  taskName(task) {
    const name = word(`task_${task.task}`);
    return name.startsWith("task_") ? task.task : name;
  }

  /** Return the button of a task, or the menu of its questions. */
  taskButton(task, label) {
    if (task.prompts.length === 1) {
      const choose = () => this.take(task.prompts[0]);
      return make("button", { type: "button", class: "task", onclick: choose, title: task.prompts[0].text }, label);
    }
    const options = task.prompts.map((prompt, number) => make("option", { value: number }, prompt.text));
    const choose = (event) => {
      this.take(task.prompts[Number(event.target.value)]);
      event.target.value = "";
    };
    const menu = make("select", { class: "task", onchange: choose, "aria-label": label });
    menu.append(make("option", { value: "", selected: true }, label), ...options);
    return menu;
  }

  /** Put a question into the field, where it can be reworded; a closed one with its options. */
  take(prompt) {
    byId("question").value = prompt.text;
    byId("options").value = prompt.options.join(" | ");
    this.offerOptions();
    byId("question").focus();
  }

  closedOptions() {
    return byId("options").value.split("|").map((one) => one.trim()).filter(Boolean);
  }

  offerOptions() {
    show(byId("closed-note"), this.closedOptions().length > 1);
  }

  /** Warn of follow-up questions where the model is not known to have learned conversations. */
  warnOfFollowUp() {
    show(byId("follow-up-note"), byId("follow-up").checked && !this.options.facts.dialogs);
  }

  ready() {
    const busy = Boolean(this.running);
    show(byId("stop"), busy);
    show(byId("send"), !busy);
    byId("regenerate").disabled = busy || !this.turns.length;
    for (const id of ["copy", "export-pdf", "export-markdown", "export-json"]) byId(id).disabled = !this.turns.length;
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  regenerate() {
    const last = this.turns.at(-1);
    if (!last || this.running) return;
    this.ask(last.turn.text, true);
  }

  async ask(text, regenerate = false) {
    if (this.running || !text.trim()) return;
    const without = byId("without-picture").checked;
    if (!this.options.stage.study && !without) return this.say(word("refused_no_picture"), true);
    const running = (this.running = new AbortController());
    const version = this.options.version();
    const options = regenerate ? [] : this.closedOptions();
    const compare = this.comparing && options.length < 2;
    const request = { version, text, regenerate, without_picture: without, compare, blind: byId("blind").checked };
    request.follow_up = byId("follow-up").checked;
    if (regenerate) this.removeLast();
    show(byId("chat-hint"), false);
    const entry = this.newEntry(text, compare ? 2 : 1);
    this.ready();
    try {
      if (options.length > 1) this.finish(entry, (await post("chances", { ...request, options }, running.signal)).turn);
      else await follow("ask", request, (event) => this.on(entry, event), running.signal);
      if (!regenerate) this.clearField();
    } catch (error) {
      this.failed(entry, error, version);
    } finally {
      if (this.running === running) this.running = null;
      this.ready();
    }
  }

  removeLast() {
    const last = this.turns.pop();
    this.boxes.forget(last);
    last.element.remove();
  }

  clearField() {
    byId("question").value = "";
    byId("options").value = "";
    this.offerOptions();
  }

  newEntry(text, count) {
    const answers = Array.from({ length: count }, () => make("div", { class: "answer streaming", dir: "auto" }));
    const note = make("div", { class: "note" });
    const element = make("article", { class: "turn" });
    element.append(
      make("div", { class: "asked", dir: "auto" }, text),
      make("div", { class: count > 1 ? "answers two" : "answers" }, ...answers),
      note,
    );
    byId("turns").append(element);
    element.scrollIntoView({ block: "end" });
    return { element, answers, note, texts: answers.map(() => "") };
  }

  on(entry, event) {
    if (event.queue !== undefined) {
      entry.note.textContent = event.queue ? word("queue", { place: event.queue }) : word("thinking");
    } else if (event.piece) {
      entry.note.textContent = "";
      entry.texts[event.answer] += event.piece;
      entry.answers[event.answer].textContent = entry.texts[event.answer];
      entry.element.scrollIntoView({ block: "end" });
    } else if (event.turn) {
      this.finish(entry, event.turn);
    }
  }

  finish(entry, turn) {
    entry.turn = turn;
    this.turns.push(entry);
    if (turn.boxes.flat().length) this.boxes.hideAll();
    entry.answers.forEach((element, number) => {
      element.classList.remove("streaming");
      this.showAnswer(entry, element, number);
    });
    const notes = [turn.stopped && word("stopped"), turn.follow_up && word("followed")];
    if (turn.left_out) notes.push(word("left_out", { count: turn.left_out }));
    entry.note.textContent = notes.filter(Boolean).join(" ");
    if (turn.chances) this.showChances(entry);
    if (entry.answers.length > 1) this.offerPreference(entry);
    this.offerExplanation(entry);
    this.boxes.draw();
    entry.element.scrollIntoView({ block: "end" });
  }

  /** Write an answer; in place of a box is its chip. */
  showAnswer(entry, element, number) {
    const { turn } = entry;
    const text = turn.answers[number];
    const parts = [];
    let place = 0;
    for (const { box, start, end } of turn.boxes[number]) {
      parts.push(text.slice(place, start), this.boxes.add(box, entry));
      place = end;
    }
    parts.push(text.slice(place));
    element.replaceChildren(...parts.filter((part) => part !== ""));
    if (!text.trim()) element.replaceChildren(make("em", {}, withheld(turn, number) ?? word("empty_answer")));
    const confidence = turn.confidences[number];
    if (confidence !== null && turn.confidence_shown[number] && !turn.chances && !withheld(turn, number)) {
      const label = word("confidence_of", { percent: percent(confidence) });
      element.append(make("span", { class: "confidence", title: word("confidence_means") }, label));
    }
  }

  showChances(entry) {
    const rows = Object.entries(entry.turn.chances).sort((a, b) => b[1] - a[1]);
    const bars = rows.map(([option, chance]) => {
      const bar = make("progress", { max: 1, value: chance, "aria-label": option });
      const shown = make("span", { class: "chance" }, percent(chance));
      return make("div", { class: "option" }, make("span", { class: "option-name" }, option), bar, shown);
    });
    entry.answers[0].after(make("div", { class: "chances", title: word("chances_mean") }, ...bars));
  }

  offerPreference(entry) {
    const row = make("div", { class: "preference" });
    for (const choice of ["first", "second", "same", "neither"]) {
      const prefer = async () => {
        const { models } = await post("prefer", { turn: entry.turn.id, choice });
        row.replaceChildren(`${word("preferred")}: ${word(`prefer_${choice}`)} · A: ${models[0]}, B: ${models[1]}`);
      };
      row.append(make("button", { type: "button", onclick: prefer }, word(`prefer_${choice}`)));
    }
    entry.element.append(row);
  }

  offerExplanation(entry) {
    const one = entry.answers.length === 1 && entry.turn.answers[0].trim();
    if (!one || !this.options.stage.study || entry.turn.stopped) return;
    const place = make("div", { class: "explanation" });
    const explain = () => this.options.onExplain(entry.turn, place);
    entry.element.append(make("button", { class: "explain", type: "button", onclick: explain }, word("explain")), place);
  }

  failed(entry, error, version) {
    if (error.name === "AbortError") {
      if (version !== this.options.version()) return entry.element.remove();
      // The server keeps the answer as far as it came.
      entry.turn = { text: entry.element.querySelector(".asked").textContent, answers: entry.texts };
      entry.turn = { ...entry.turn, boxes: entry.texts.map(() => []), confidences: entry.texts.map(() => null) };
      entry.turn.stopped = true;
      for (const element of entry.answers) element.classList.remove("streaming");
      entry.note.textContent = word("stopped");
      this.turns.push(entry);
      return;
    }
    entry.element.remove();
    this.say(wordOfRefusal(error), true);
  }

  say(text, isError = false) {
    const note = make("div", { class: isError ? "message error" : "message", role: "alert" }, text);
    byId("turns").append(note);
    note.scrollIntoView({ block: "end" });
    setTimeout(() => note.remove(), 8000);
  }

  /** Return the conversation as text. */
  text() {
    const answers = (turn) => turn.answers.map((answer, number) => withheld(turn, number) ?? answer);
    return this.turns.map(({ turn }) => `${turn.text}\n${answers(turn).join("\n")}`).join("\n\n");
  }
}

/** Return what stands in place of an answer below the threshold; null for an answer that is shown. */
function withheld(turn, number) {
  const threshold = turn.withheld?.[number] ?? null;
  if (threshold === null) return null;
  // Rounded down, so that it is never written as the threshold that it does not reach.
  const tenths = Math.floor(1000 * turn.confidences[number]) / 10;
  const confidence = tenths < 0.1 ? "< 0.1 %" : `${tenths.toFixed(1)} %`;
  const limit = threshold > 1 ? "> 100 %" : `${Number((100 * threshold).toPrecision(4))} %`;
  return word("withheld", { confidence, threshold: limit });
}
