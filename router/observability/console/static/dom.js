// Elements and figures. Texts only ever become text nodes: what a client calls itself cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const s = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// A link to an address made from configuration: anything but http and https stays text.
export function outside(url, ...children) {
  let safe = false;
  try { safe = ["http:", "https:"].includes(new URL(url).protocol); } catch { safe = false; }
  return safe ? h("a", { href: url, target: "_blank", rel: "noreferrer noopener" }, ...children) : h("span", {}, ...children);
}

export const requestHref = (id) => `#/requests/${encodeURIComponent(id)}`;

export function requestLink(id) {
  return h("a", { class: "id mono", href: requestHref(id), title: id }, id);
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 100) return `${value.toFixed(0)} s`;
  if (size >= 10) return `${value.toFixed(1)} s`;
  if (size >= 1) return `${value.toFixed(2)} s`;
  if (size >= 0.1) return `${(value * 1e3).toFixed(0)} ms`;
  if (size >= 0.001) return `${(value * 1e3).toFixed(1)} ms`;
  return size === 0 ? "0 ms" : `${(value * 1e6).toFixed(0)} µs`;
}

export const percent = (share, digits = 0) =>
  Number.isFinite(share) ? `${(share * 100).toFixed(digits)} %` : "–";

export function count(value) {
  const number = Number(value);
  if (number >= 1e6) return `${(number / 1e6).toFixed(1)} M`;
  return number >= 1e4 ? `${(number / 1e3).toFixed(1)} k` : String(number);
}

export function ago(s) {
  if (s < 1) return "now";
  if (s < 90) return `${s.toFixed(0)} s ago`;
  if (s < 5400) return `${(s / 60).toFixed(0)} min ago`;
  return `${(s / 3600).toFixed(1)} h ago`;
}

export function duration(s) {
  if (s < 90) return `${s.toFixed(0)} s`;
  if (s < 5400) return `${(s / 60).toFixed(0)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} d`;
}

export const clock = (unixS) => new Date(unixS * 1e3).toLocaleTimeString([], { hour12: false });

export const PHASES = ["queue", "plan", "prefill_wait", "prefill", "handover", "decode", "restart"];
export const PHASE_NAMES = {
  queue: "queue", plan: "plan", prefill_wait: "prefill wait", prefill: "prefill", handover: "hand-over",
  decode: "decode", restart: "restart",
};

export const chip = (word, kind = word) => h("span", { class: `chip ${kind.replace(/[^a-z_]/g, "-")}` }, word);

export function phaseChip(phase) {
  return phase ? h("span", { class: "chip" }, h("i", { class: `tone-${phase}` }), PHASE_NAMES[phase] ?? phase) : "";
}

export function legend(entries) {
  return h("div", { class: "legend" }, entries.map(([tone, name]) => h("span", {}, h("i", { class: `tone-${tone}` }), name)));
}

export function card(title, hint, ...children) {
  return h("section", { class: "card" }, h("h2", {}, title), hint ? h("p", { class: "hint" }, hint) : null, ...children);
}

// columns: [title, class, cell(row)]
export function table(columns, rows) {
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map(([title, kind]) => h("th", { class: kind, scope: "col" }, title)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, columns.map(([, kind, cell]) => h("td", { class: kind }, cell(row))))))));
}
