// The page: session, and what connects the parts.

import { begin, leave, Refusal } from "./api.js";
import { Chat } from "./chat.js";
import { byId, make, show } from "./dom.js";
import { EvidencePanel } from "./evidence.js";
import { Keep } from "./keep.js";
import { Opening } from "./opening.js";
import { Stage } from "./stage.js";
import { speak, word, wordOfRefusal } from "./words.js";

let version = 0;

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  remember("theme", theme);
}

/** Settings of the page are remembered by the browser; nothing of a study or a conversation is. */
function remember(key, value) {
  try {
    localStorage.setItem(`medmvl-${key}`, value);
  } catch {
    // A private window may forbid it.
  }
}

function remembered(key) {
  try {
    return localStorage.getItem(`medmvl-${key}`);
  } catch {
    return null;
  }
}

/** Begin a session; asks for the password until it is right. */
async function enter() {
  for (let password; ; ) {
    try {
      return await begin(password);
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 401) {
        byId("entry-text").textContent = wordOfRefusal(error);
        show(byId("entry"), true);
        throw error;
      }
      byId("entry-text").textContent = wordOfRefusal(error);
      show(byId("entry"), true);
      password = await new Promise((resolve) => {
        byId("entry-form").onsubmit = (event) => {
          event.preventDefault();
          resolve(byId("password").value);
        };
      });
    }
  }
}

function start(facts) {
  byId("model").textContent = facts.model;
  document.title = `MedM-VL · ${facts.model}`;
  show(byId("synthetic"), facts.synthetic);
  version = facts.version;
  let chat = null;
  let evidence = null;
  const stage = new Stage({ onBox: (number) => chat.boxes.clicked(number) });
  const onExplain = (turn, place) => evidence.offer(turn, place);
  chat = new Chat({ facts, stage, version: () => version, onExplain });
  evidence = new EvidencePanel({ stage, chat, version: () => version });
  stage.options.onRefreshed = () => {
    evidence.reapply();
    chat.boxes.draw();
  };
  const keep = new Keep({ stage, chat, version: () => version });
  const opening = new Opening({
    onCleared: async (now, keepStudies = false) => {
      version = now;
      evidence.reset();
      chat.reset();
      keep.reset();
      if (!keepStudies) await stage.open([]);
    },
    onOpened: async (studies, now) => {
      version = now;
      chat.reset();
      keep.reset();
      await stage.open(studies);
      chat.offerTasks();
      const mixed = new Set(studies.map((study) => study.kind)).size > 1;
      const most = (mixed && facts.several.together) || facts.several[studies[0].kind];
      if (most && studies.length > most) chat.say(word("more_than_trained", { most }), true);
    },
  });
  connectKeys(stage, keep, chat);
  byId("language").addEventListener("change", async (event) => {
    remember("language", event.target.value);
    await speak(event.target.value);
    chat.offerTasks();
    stage.relabel();
    evidence.relabel();
  });
  byId("end").addEventListener("click", () => {
    leave();
    document.body.replaceChildren(make("p", { class: "ended" }, word("refused_ended")));
  });
  document.body.dataset.ready = "yes";
  return opening;
}

function connectKeys(stage, keep, chat) {
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const tools = { c: "cross", w: "window", p: "pan" };
    const key = event.key.toLowerCase();
    if (tools[key]) stage.setTool(tools[key]);
    else if (key === "i") stage.toggleInvert();
    else if (key === "k") keep.mark();
    else if (key === "/") byId("question").focus();
    else if (key === "escape") chat.stop();
    else if (key === "?") byId("help").showModal();
    else return;
    event.preventDefault();
  });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());
}

async function main() {
  const preferred = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  setTheme(remembered("theme") ?? preferred);
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  });
  await speak(remembered("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  const facts = await enter();
  show(byId("entry"), false);
  start(facts);
}

main();
