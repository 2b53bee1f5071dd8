// The server's state, its queue and its models, asked for every two seconds while the tab is seen.

import { Refused, get } from "./server.js";
import { count, dotted, make } from "./results.js";

const POLL_MS = 2000;
const TIMEOUT_MS = 10000;
const MODELS_EVERY_POLLS = 5; // their list reads the disk

const $ = (id) => document.getElementById(id);

let timer = 0;
let polls = 0;
let before = null; // {tokens, at} of the poll before
let shown = ""; // which models were in memory when the list was drawn
let isAsking = false;

/** Begin; again whenever the tab comes back into sight. */
export function watch() {
  document.addEventListener("visibilitychange", poll);
  poll();
}

/** Ask at once, the models too: after a request, or with another key. */
export function refresh() {
  polls = 0;
  poll();
}

async function poll() {
  clearTimeout(timer);
  if (document.visibilityState === "hidden") {
    before = null; // no rate over a time that nobody watched
    return;
  }
  if (!isAsking) {
    isAsking = true;
    await look();
    isAsking = false;
  }
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

async function look() {
  try {
    const { body } = await get("health", TIMEOUT_MS);
    showHealth(body);
    const names = (body.resident ?? []).map((resident) => resident.model).join("\n");
    if (names !== shown || polls++ % MODELS_EVERY_POLLS === 0) await showModels(body.failed ?? {});
    shown = names;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    showTrouble(error);
  }
}

function showHealth(health) {
  showState("ready", `ready · ${health.model}`);
  showNotice(health.stand_in ?? "");
  showFigure("waiting-jobs", health.waiting_jobs);
  showFigure("waiting-tokens", health.waiting_tokens);
  showFigure("requests", health.requests);
  showFigure("rate", rate(health.computed_tokens));
}

/** Not ready, with the server's reason; or no answer at all. */
function showTrouble(error) {
  const { status, reason } = error.body;
  if (error.status) showState("waiting", status ?? "not ready");
  else showState("gone", "no answer");
  showNotice(reason ?? error.message);
  for (const id of ["waiting-jobs", "waiting-tokens", "requests", "rate"]) showFigure(id, null);
  before = null;
  polls = 0;
}

/** Tokens per second since the poll before; null while that is not known. */
function rate(tokens) {
  const last = before;
  const now = { tokens, at: performance.now() };
  before = Number.isFinite(tokens) ? now : null;
  if (!before || !last || tokens < last.tokens || now.at <= last.at) return null;
  return ((tokens - last.tokens) / (now.at - last.at)) * 1000;
}

function showState(state, text) {
  $("state").dataset.state = state;
  if ($("state").textContent !== text) $("state").textContent = text; // else read out each time
}

function showNotice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text.charAt(0).toUpperCase() + text.slice(1);
}

function showFigure(id, number) {
  $(id).textContent = Number.isFinite(number) ? count(number) : "–";
}

async function showModels(failed) {
  try {
    const asked = ["api/tags", "api/ps"].map((path) => get(path, TIMEOUT_MS));
    const [tags, running] = await Promise.all(asked);
    const now = Date.parse(running.headers.get("date")) || Date.now(); // the server's clock
    const inMemory = new Map(running.body.models.map((model) => [model.name, model]));
    const names = tags.body.models.map((model) => model.name);
    const rows = tags.body.models.map((model) => modelRow(model, inMemory.get(model.name), now));
    const failures = Object.entries(failed).map(([name, reason]) => failureRow(name, reason));
    $("models").replaceChildren(...rows, ...failures);
    offer(names);
    showModelsError("");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (showModelsError(error.message) && error.status === 401) $("key-box").open = true;
  }
}

/** Whether that is news: an alert is read out each time it is written. */
function showModelsError(text) {
  const isNew = $("models-error").textContent !== text;
  if (isNew) $("models-error").textContent = text;
  return isNew;
}

function modelRow(model, running, now) {
  const { family, parameter_size: size } = model.details;
  const about = [family, `${size} parameters`, `${bytes(model.size)} on disk`];
  const place = running
    ? dotted([`${bytes(running.size)} in memory`, leaves(running, now)])
    : "not in memory";
  return make("li", [
    make("span", bare(model.name), { className: "name" }),
    make("span", dotted(about), { className: "small" }),
    make("span", place, { className: running ? "place here" : "place" }),
  ]);
}

function failureRow(name, reason) {
  return make("li", [
    make("span", name, { className: "name" }),
    make("span", reason, { className: "small" }),
    make("span", "cannot be served", { className: "place failed" }),
  ]);
}

/** When a model leaves memory; Ollama's dialect has no "never", so the year 9999 stands for it. */
function leaves(running, now) {
  const s = Math.max(0, (Date.parse(running.expires_at) - now) / 1000);
  if (s > 1e9) return "stays";
  if (s < 90) return `leaves in ${Math.round(s)} s`;
  return s < 5400 ? `leaves in ${Math.round(s / 60)} min` : `leaves in ${Math.round(s / 3600)} h`;
}

const bare = (name) => name.replace(/:latest$/, "");

function bytes(number) {
  if (number >= 1e9) return `${(number / 1e9).toFixed(1)} GB`;
  return `${Math.max(1, Math.round(number / 1e6))} MB`;
}

/** The models to choose from, below the server's default; a choice that is still there stays. */
function offer(names) {
  for (const select of document.querySelectorAll("select.models")) {
    const chosen = select.value;
    const [byDefault] = select.options;
    const options = names.map((name) => make("option", bare(name), { value: name }));
    select.replaceChildren(byDefault, ...options);
    select.value = names.includes(chosen) ? chosen : "";
  }
}
