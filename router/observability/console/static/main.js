// Keeps the picture of the cluster, live, and draws the page that the address asks for.

import { chip, duration, h } from "/static/dom.js";
import { overview } from "/static/overview.js";
import { requestPage } from "/static/request.js";

const KEPT_S = 3600, LOAD_S = 120, RETRY_MS = 1000, SILENCE_MS = 6000;
const main = document.getElementById("main"), banner = document.getElementById("banner");
const model = { state: null, windows: [], trouble: [], latest: [], refusals: [], load: new Map() };
let lastFrameMs = 0, source = null, shownRequest = null;

function route() {
  const found = /^#\/requests\/(.+)$/.exec(location.hash);
  if (!found) return null;
  try { return decodeURIComponent(found[1]); } catch { return found[1]; }
}

function linked(state, text) {
  const link = document.getElementById("link");
  link.dataset.state = state;
  link.textContent = state;
  banner.hidden = state !== "lost";
  banner.textContent = text;
  main.classList.toggle("stale", state === "lost");
}

function facts() {
  const { cluster } = model.state;
  const emulated = cluster.workers.some((worker) => worker.emulated);
  document.title = `${cluster.model} · slos-serve`;
  document.getElementById("facts").replaceChildren(
    h("span", {}, "model ", h("b", {}, cluster.model)), h("span", {}, "router ", h("b", {}, cluster.router_id)),
    cluster.processes > 1 ? h("span", { title: "Each of them shows the requests that came to it" }, "process ",
      h("b", {}, `${cluster.process} of ${cluster.processes}`), ", its own requests only") : "",
    h("span", {}, `up ${duration(cluster.uptime_s)}`), h("span", {}, `Redis ${cluster.redis_connected ? "connected" : "unreachable"}`),
    emulated ? chip("emulated engines") : "");
}

function draw() {
  if (!model.state) return;
  facts();
  const id = route();
  if (id !== null) {
    const known = shownRequest && shownRequest.id === id;
    if (known) main.replaceChildren(...requestPage(shownRequest.found, id, model.state.now).flat(Infinity).filter(Boolean));
    return;
  }
  // Reading a wide table on a phone must survive the next second.
  const scrolled = [...main.querySelectorAll(".scroll")].map((element) => element.scrollLeft);
  main.replaceChildren(...overview(model, draw).flat(Infinity).filter(Boolean));
  main.querySelectorAll(".scroll").forEach((element, index) => { element.scrollLeft = scrolled[index] ?? 0; });
}

// Whoever is not, or no longer, signed in is led to where that can be done.
function signedIn(answer) {
  if (answer.status === 401 || answer.status === 403) location.assign("/login");
  return answer;
}

async function fetchRequest(id) {
  const answer = signedIn(await fetch(`/api/requests/${encodeURIComponent(id)}`));
  if (!answer.ok && answer.status !== 404) throw new Error(`HTTP ${answer.status}`);
  return answer.ok ? answer.json() : null;
}

async function navigate() {
  const id = route();
  if (id === null) { shownRequest = null; draw(); return; }
  try {
    const found = await fetchRequest(id);
    if (route() === id) { shownRequest = { id, found }; draw(); }
  } catch { linked("lost", "The router does not answer. Trying again …"); }
}

function keep(frame) {
  model.state = { now: frame.now, trace_url: frame.trace_url, window_s: frame.window_s, cluster: frame.cluster };
  for (const name of ["trouble", "latest", "refusals"]) model[name] = frame[name];
  merge(frame.windows);
  for (const worker of frame.cluster.workers) {
    const past = (model.load.get(worker.worker_id) ?? []).filter(([atS]) => atS > frame.now - LOAD_S);
    past.push([frame.now, worker.kv_blocks_used]);
    model.load.set(worker.worker_id, past);
  }
}

// The same window comes again until it is over; its beginning is rounded, for the router's clock and ours drift apart.
function merge(windows) {
  const known = new Map(model.windows.map((window) => [Math.round(window.began), window]));
  for (const window of windows) {
    for (const near of [-1, 0, 1]) known.delete(Math.round(window.began) + near);
    known.set(Math.round(window.began), window);
  }
  const now = model.state?.now ?? 0;
  model.windows = [...known.values()].filter((window) => window.began > now - KEPT_S).sort((one, other) => one.began - other.began);
}

async function connect() {
  linked(model.state ? "lost" : "connecting", "Connection to the router lost. Reconnecting …");
  try {
    const answer = signedIn(await fetch("/api/history"));
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    model.windows = [];
    merge((await answer.json()).windows);
  } catch {
    linked("lost", "The router does not answer. Reconnecting …");
    setTimeout(connect, RETRY_MS);
    return;
  }
  source = new EventSource("/api/events");
  lastFrameMs = performance.now();
  source.addEventListener("state", (event) => {
    lastFrameMs = performance.now();
    keep(JSON.parse(event.data));
    linked("live", "");
    if (shownRequest?.found?.ending === "running") navigate(); else draw();
  });
  source.onerror = lost;
}

function lost() {
  if (!source) return;
  source.close();
  source = null;
  linked("lost", "Connection to the router lost. Reconnecting …");
  setTimeout(connect, RETRY_MS);
}

const THEMES = ["auto", "light", "dark"];
function theme(next) {
  const button = document.getElementById("theme");
  let chosen = "auto";
  try { chosen = localStorage.getItem("theme") ?? "auto"; } catch { /* A browser that keeps nothing: the system's theme. */ }
  if (next) chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  try { localStorage.setItem("theme", chosen); } catch { /* As above. */ }
  if (chosen === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = chosen;
  button.textContent = chosen;
}

document.getElementById("theme").addEventListener("click", () => theme(true));
addEventListener("hashchange", () => { scrollTo(0, 0); navigate(); });
// A connection that stands but says nothing is lost too.
setInterval(() => { if (source && performance.now() - lastFrameMs > SILENCE_MS) lost(); }, 1000);
theme(false);
connect().then(navigate);
