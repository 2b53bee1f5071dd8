// The page for people: two forms over the server's own routes, and its state.
// No framework, nothing from elsewhere.

import { Refused, post, readKey, saveKey } from "./server.js";
import { count, facts, heatMap, ranking } from "./results.js";
import { refresh, watch } from "./status.js";

const MAX_TEXTS = 40; // what a matrix can show; the routes themselves take thousands

const $ = (id) => document.getElementById(id);

/** What is wrong with a form as it was filled in. */
class Incomplete extends Error {}

async function compare() {
  const texts = linesOf($("texts"));
  if (texts.length < 2) throw new Incomplete("Write at least two texts, one a line.");
  if (texts.length > MAX_TEXTS) {
    throw new Incomplete(`At most ${MAX_TEXTS} texts fit here; these are ${texts.length}.`);
  }
  const { body, ms } = await post("api/embed", { ...chosen("compare-model"), input: texts });
  const { embeddings, model, prompt_eval_count: tokens } = body;
  const sizes = [`${count(embeddings[0].length)} dimensions`, `${count(tokens)} tokens`];
  return [heatMap(texts, embeddings), facts([bare(model), ...sizes], ms)];
}

async function rank() {
  const query = $("query").value.trim();
  const documents = linesOf($("documents"));
  if (!query) throw new Incomplete("Write a query.");
  if (!documents.length) throw new Incomplete("Write at least one document, one a line.");
  const asked = { ...chosen("rank-model"), query, documents, return_documents: false };
  const { body, ms } = await post("rerank", asked);
  const parts = [bare(body.model), `${count(body.usage.total_tokens)} tokens`];
  return [ranking(documents, body.results), facts(parts, ms)];
}

/** Run `work` when the form is sent, its button off meanwhile; show what it gives or why not. */
function onSubmit(name, work) {
  const form = $(name);
  const result = $(`${name}-result`);
  const button = form.querySelector("button");
  const error = form.querySelector(".error");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    form.setAttribute("aria-busy", "true");
    error.textContent = "";
    try {
      result.replaceChildren(...(await work()));
    } catch (reason) {
      result.replaceChildren();
      error.textContent = inWords(reason);
    }
    form.removeAttribute("aria-busy");
    button.disabled = false;
    if (document.activeElement === document.body) button.focus({ preventScroll: true });
    refresh();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

function inWords(reason) {
  if (reason.status === 401) {
    $("key-box").open = true;
    return `${reason.message} The field for it is below, under Models.`;
  }
  if (reason instanceof Refused || reason instanceof Incomplete) return reason.message;
  console.error(reason);
  return "The page could not read the answer.";
}

/** Lines with something on them. */
function linesOf(area) {
  return area.value.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
}

/** The model's field of a request; absent for the server's default. */
function chosen(id) {
  const name = $(id).value;
  return name ? { model: name } : {};
}

const bare = (name) => name.replace(/:latest$/, "");

function useKey(event) {
  event.preventDefault();
  const key = $("key").value.trim();
  saveKey(key);
  $("key-note").textContent = key
    ? "Sent with each request from now on; kept in this tab until it is closed."
    : "No key is sent.";
  refresh();
}

$("key").value = readKey();
$("key-form").addEventListener("submit", useKey);
onSubmit("compare", compare);
onSubmit("rank", rank);
watch();
