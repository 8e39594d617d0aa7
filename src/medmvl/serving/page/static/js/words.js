// The page's words in the visitor's language, from words/LANGUAGE.json.

import { byId } from "./dom.js";

let known = {};
let language = "en";

/** Load a language and write its words into the document: `data-word` names an element's text, `data-title` its tooltip. */
export async function speak(name) {
  const response = await fetch(`/page/words/${name}.json`);
  known = await response.json();
  language = name;
  document.documentElement.lang = name;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll("[data-title]")) {
    element.title = word(element.dataset.title);
    element.setAttribute("aria-label", element.title);
  }
  for (const element of document.querySelectorAll("[data-placeholder]")) {
    element.placeholder = word(element.dataset.placeholder);
  }
  byId("language").value = name;
}

/** Return the words of a key, with {name} replaced by values. */
export function word(key, values = {}) {
  let text = known[key] ?? key;
  for (const [name, value] of Object.entries(values)) text = text.replaceAll(`{${name}}`, value);
  return text;
}

/** Return a refusal in the visitor's language where the page has words for it, else in the server's. */
export function wordOfRefusal(error) {
  const key = `refused_${error.code}`;
  return error.code && known[key] ? known[key] : error.message;
}

/** Return the present language. */
export const currentLanguage = () => language;

/** Return seconds as minutes and seconds. */
export function clock(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Return a probability as text; rounding must not make it impossible or certain. */
export function percent(share) {
  if (share < 0.001) return "< 0.1 %";
  return share > 0.999 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}
