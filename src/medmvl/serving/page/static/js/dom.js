// Elements made by code. Text is always set as text, so that names and answers cannot become markup.

/** Return an element. Attributes that begin with "on" are listeners; children are elements or texts. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

/** Return an SVG element. */
export function makeSvg(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, attributes);
  if (text) element.textContent = text;
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
}

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Show or hide an element. */
export function show(element, visible) {
  element.hidden = !visible;
}

/** Press or release a button that stays pressed. */
export function press(button, pressed) {
  button.setAttribute("aria-pressed", String(Boolean(pressed)));
}
