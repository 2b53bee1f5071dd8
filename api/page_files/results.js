// What the page shows of an answer: the heat map of cosines, the ranked documents.
// Texts of users become text nodes, never markup.

/** An element with its text or children. */
export function make(tag, content = [], properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...(Array.isArray(content) ? content : [content]));
  return element;
}

/** Cosines of all pairs; of a vector of zeros, 0. */
export function cosines(vectors) {
  const norms = vectors.map((v) => Math.hypot(...v) || 1);
  return vectors.map((a, i) => vectors.map((b, j) => dot(a, b) / (norms[i] * norms[j])));
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

/** A score with two digits, never "-0.00". */
export const twoDigits = (value) => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2);

export const count = (number) => Math.round(number).toLocaleString("en");

const inMs = (ms) => `${ms < 10 ? ms.toFixed(1) : count(ms)} ms`;

/** Facts in a line, which breaks behind a dot only. */
export const dotted = (parts) => parts.map((part) => part.replaceAll(" ", NBSP)).join(`${NBSP}· `);

const NBSP = "\u00a0";

/** The line below a result: which model, how much, how long. */
export function facts(parts, ms) {
  return make("p", dotted([...parts, inMs(ms)]), { className: "small facts" });
}

export function heatMap(texts, vectors) {
  const meaning = "Cosine similarity of each pair: 1.00 means the same direction.";
  const caption = make("caption", [make("span", meaning)]); // the span stays when columns scroll
  const numbers = texts.map((_, i) => heading("col", String(i + 1)));
  const corner = make("td", [make("span", "Text", { className: "hidden" })]);
  const head = make("thead", [make("tr", [corner, ...numbers])]);
  const body = make("tbody", cosines(vectors).map((row, i) => heatRow(i, texts[i], row)));
  const table = make("table", [caption, head, body], { className: "heat" });
  const scroller = make("div", [table], { className: "scroller", tabIndex: 0 });
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", "Heat map");
  return scroller;
}

function heatRow(i, text, row) {
  const number = make("span", String(i + 1), { className: "number" });
  const shortened = make("span", text, { className: "text", title: text });
  const label = make("div", [number, shortened], { className: "label" });
  return make("tr", [heading("row", [label]), ...row.map(heatCell)]);
}

function heatCell(value) {
  const cell = make("td", twoDigits(value));
  cell.style.setProperty("--strength", `${Math.round(Math.min(1, Math.abs(value)) * 100)}%`);
  cell.classList.toggle("negative", value < 0);
  return cell;
}

function heading(scope, content) {
  return make("th", content, { scope });
}

/** Documents, best first; a bar is as long as its score, at most the whole width. */
export function ranking(documents, results) {
  return make(
    "ol",
    results.map(({ index, relevance_score: score }) => {
      const bar = make("span", [], { className: "bar" });
      bar.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
      const track = make("span", [bar], { className: "track" });
      track.setAttribute("aria-hidden", "true");
      const text = make("span", documents[index], { className: "document" });
      const value = make("span", score.toFixed(3), { className: "score" });
      return make("li", [text, value, track]);
    }),
    { className: "ranking" },
  );
}
