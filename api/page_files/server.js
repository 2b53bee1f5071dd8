// How the page talks to its server: JSON in and out, the API key, errors in words.
// Knows nothing of the document.

const KEY = "api-key";
let keyWithoutStorage = ""; // where the browser allows no storage

export function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return keyWithoutStorage;
  }
}

export function saveKey(key) {
  keyWithoutStorage = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // kept in this page alone
  }
}

/** An answer that is no success; `status` is 0 when there was none. */
export class Refused extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

export const get = (path, timeoutMs) => ask(path, { signal: AbortSignal.timeout(timeoutMs) });

export const post = (path, body) => ask(path, { method: "POST", body: JSON.stringify(body) });

/** → {body, headers, ms}. Raises Refused. */
async function ask(path, options) {
  const start = performance.now();
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  const key = readKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  let body;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
    body = await answer.json().catch(() => ({}));
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Refused(0, late ? "The server takes too long." : "The server does not answer.");
  }
  if (!answer.ok) throw new Refused(answer.status, inWords(answer, body), body);
  const ms = Number(answer.headers.get("x-total-time")) || performance.now() - start;
  return { body, headers: answer.headers, ms };
}

/** The text of an error, whichever dialect the route speaks. */
function inWords(answer, body) {
  const inner = body.error?.message ?? body.error ?? body.reason ?? body.detail;
  const text = typeof inner === "string" && inner ? inner : `status ${answer.status}`;
  const wait = Number(answer.headers.get("retry-after"));
  const again = wait ? ` Try again in ${wait} s.` : "";
  return `${capital(text)}${/[.!?]$/.test(text) ? "" : "."}${again}`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
