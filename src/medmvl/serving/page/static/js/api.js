// Requests to the server. The session's token lives in this module only: a reload or another tab is another visitor.

const API = "/page/api/";
let token = null;

/** A refusal of the server: its message, and its code, by which the page says it in the visitor's language. */
export class Refusal extends Error {
  constructor(body, status) {
    super(body.error || `HTTP ${status}`);
    this.code = body.code;
    this.status = status;
    this.body = body;
  }
}

function headers(more = {}) {
  return token ? { "x-session": token, ...more } : more;
}

async function request(name, options) {
  let response;
  try {
    response = await fetch(API + name, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ error: String(error), code: "offline" }, 0);
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // The body is no JSON; the status says what there is to say.
  }
  throw new Refusal(body, response.status);
}

/** Begin a session; returns what the server says of the model. */
export async function begin(password) {
  const response = await request("session", { method: "POST", body: JSON.stringify({ password }) });
  const facts = await response.json();
  token = facts.session;
  addEventListener("pagehide", leave);
  setInterval(() => post("ping").catch(() => {}), 30000);
  return facts;
}

/** End the session; its files are removed at once. */
export function leave() {
  if (token) fetch(API + "leave", { method: "POST", headers: headers(), keepalive: true });
  token = null;
}

/** Send JSON and return the answer's. */
export async function post(name, body = {}, signal = undefined) {
  const response = await request(name, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  return response.json();
}

/** Send JSON and return the answer's bytes. */
export async function postForBlob(name, body) {
  const response = await request(name, { method: "POST", headers: headers(), body: JSON.stringify(body) });
  return response.blob();
}

/** Return the bytes of a file of the session. */
export async function load(name) {
  const response = await request(name, { headers: headers() });
  return response.blob();
}

/** Send JSON and call `onEvent` for each line of JSON that comes back. */
export async function follow(name, body, onEvent, signal) {
  const response = await request(name, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter(Boolean)) {
      const event = JSON.parse(line);
      if (event.error) throw new Refusal(event, response.status);
      onEvent(event);
    }
  }
}

/** Send a file; `onProgress` gets the bytes sent so far. XMLHttpRequest, since fetch tells no progress of uploads. */
export function upload(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("PUT", API + "file");
    sending.setRequestHeader("x-session", token);
    sending.setRequestHeader("x-name", encodeURIComponent(file.name.slice(-200)));
    sending.upload.onprogress = (event) => onProgress(event.loaded);
    sending.onerror = () => reject(new Refusal({ code: "offline" }, 0));
    sending.onabort = () => reject(new DOMException("", "AbortError"));
    sending.onload = () => {
      if (sending.status === 200) return resolve();
      let body = {};
      try {
        body = JSON.parse(sending.responseText);
      } catch {
        // As in `request`.
      }
      reject(new Refusal(body, sending.status));
    };
    signal.addEventListener("abort", () => sending.abort());
    sending.send(file);
  });
}
