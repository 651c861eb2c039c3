// The cluster at a glance.

import { ago, card, chip, clock, count, duration, h, legend, outside, percent, phaseChip, requestLink, seconds, table,
  PHASES, PHASE_NAMES } from "/static/dom.js";
import { bars, line, phaseStack, track, SERIES } from "/static/charts.js";

const RANGES = [[600, "10 min"], [3600, "1 h"]];
let rangeS = 600;

const TURNED_AWAY = "turned away";
const BINDINGS = {
  PREFILL_TIME: "no time to prefill", DECODE_RATE: "decode steps too slow", KV_MEMORY: "KV memory full",
  PRICE: "too much work at present", FAIR_SHARE: "tenant has its share", NO_WORKER: "no worker", IMPOSSIBLE_CONTRACT: "impossible contract",
  INVALID_REQUEST: "invalid request", OVERLOADED: "queue full", DUPLICATE_REQUEST_ID: "id in use",
  UNKNOWN_MODEL: "unknown model", DRAINING: "router drains",
  CANCELLED: "cancelled while held",
};

export function overview(model, redraw) {
  const { cluster, now } = model.state;
  return [
    cluster.warnings.map((warning) => h("div", { class: "warning" }, warning)),
    tiles(cluster, model),
    promises(model, redraw),
    h("div", { class: "two" }, phases(cluster), refusals(cluster)),
    pool(cluster, "WORKER_ROLE_PREFILL", "Prefill workers", model),
    pool(cluster, "WORKER_ROLE_DECODE", "Decode workers", model),
    trouble(model, now),
    latest(model, now),
    refused(model, now),
  ];
}

function sums(cluster) {
  const sum = { kept: 0, missed: 0, failed: 0, best_effort: 0, cancelled: 0, refused: 0 };
  for (const profile of cluster.profiles) {
    for (const key of Object.keys(sum)) if (key !== "refused") sum[key] += Number(profile[key]);
    for (const amount of Object.values(profile.refused)) sum.refused += Number(amount);
  }
  return sum;
}

function tiles(cluster, model) {
  const recent = sums(cluster), lately = `last ${duration(cluster.recent_s)}`;
  const broken = recent.missed, promised = recent.kept + broken;
  const share = promised ? recent.kept / promised : NaN;
  const samples = model.windows.filter((window) => window.sample);
  const busy = cluster.running_requests + cluster.queued_requests + cluster.held_requests;
  const total = { kept: Number(cluster.counters.kept), missed: Number(cluster.counters.missed) };
  const tile = (name, value, note, kind = "") =>
    h("div", { class: "tile" }, h("div", { class: "name" }, name), h("div", { class: `value ${kind}` }, value), h("div", { class: "note" }, note));
  const kvUsed = cluster.workers.reduce((sum, worker) => sum + worker.kv_blocks_used, 0);
  const kvTotal = cluster.workers.reduce((sum, worker) => sum + worker.kv_blocks_total, 0);
  return h("div", { class: "tiles", id: "tiles" },
    tile(`Promises kept, ${lately}`, promised ? percent(share, share === 1 ? 0 : 2) : "–",
      promised ? `${count(recent.kept)} kept, ${count(broken)} missed; since start ${count(total.kept)} and ${count(total.missed)}`
        : "nothing was promised", promised ? (broken ? "bad" : "good") : ""),
    tile("Requests at work", [count(busy), " ", h("small", {}, "now")],
      `${cluster.running_requests} on workers, ${cluster.queued_requests} queued, ${cluster.held_requests} without verdict`),
    tile("KV cache in use", kvTotal ? percent(kvUsed / kvTotal) : "–",
      samples.length > 1 ? line(samples.map((window) => [window.began, window.sample.kv_blocks_used])) : `${count(kvUsed)} of ${count(kvTotal)} blocks`),
    tile(`Without a promise, ${lately}`, count(recent.best_effort), "served best effort"),
    tile(`Refused, ${lately}`, count(recent.refused), `${count(recent.failed)} failed, ${count(recent.cancelled)} cancelled`,
      recent.failed ? "bad" : ""));
}

function promises(model, redraw) {
  const toS = model.state.now, fromS = toS - rangeS, windowS = model.state.window_s;
  const shown = model.windows.filter((window) => window.began + windowS > fromS);
  const names = [...new Set(shown.flatMap((window) => Object.keys(window.profiles)))].sort();
  const buttons = h("div", { class: "legend" }, SERIES.map(([tone, name]) => h("span", {}, h("i", { class: `tone-${tone}` }), name)),
    RANGES.map(([s, name]) => {
      const button = h("button", { class: "quiet", type: "button", "aria-pressed": String(s === rangeS) }, s === rangeS ? `● ${name}` : name);
      button.addEventListener("click", () => { rangeS = s; redraw(); });
      return button;
    }));
  const rows = names.map((name) => {
    let kept = 0, missed = 0, all = 0;
    for (const window of shown) {
      const tally = window.profiles[name];
      if (!tally) continue;
      kept += tally.ended.kept ?? 0;
      missed += tally.ended.missed ?? 0;
      all += Object.values(tally.ended).reduce((sum, part) => sum + part, 0);
    }
    const figure = kept + missed
      ? [h("span", { class: missed ? "bad" : "good" }, percent(kept / (kept + missed), missed ? 1 : 0)), h("br"), h("small", {}, `${count(all)} ended`)]
      : h("small", {}, `${count(all)} ended`);
    return h("div", { class: "row" }, h("div", { class: "label", title: name }, name), bars(shown, name, fromS, toS, windowS),
      h("div", { class: "figure" }, figure));
  });
  return h("section", { class: "card", id: "promises" }, h("h2", {}, "Promises over time, by profile"),
    h("p", { class: "hint" }, "One bar for each stretch of time; its height grows with the square root of the requests that ended in it."),
    buttons,
    rows.length ? h("div", { class: "rows" }, rows, h("div", { class: "row" }, h("span"), h("div", { class: "axis" },
      h("span", {}, clock(fromS)), h("span", {}, "now")), h("span")))
      : h("p", { class: "empty" }, "No request has ended in this time. Send one: slos-serve generate \"Hello\" --ttft-ms 500 --tpot-ms 300"));
}

function phases(cluster) {
  const rows = cluster.profiles.filter((profile) => PHASES.some((phase) => profile.mean_phases?.[`${phase}_s`] > 0));
  const hint = `Mean of the requests taken in the last ${duration(cluster.recent_s)}`;
  if (!rows.length) return card("Where the time goes", hint, h("p", { class: "empty" }, "No request was served in this time."));
  const sum = (profile) => PHASES.reduce((all, phase) => all + profile.mean_phases[`${phase}_s`], 0);
  const longest = Math.max(...rows.map(sum));
  const broken = {};
  for (const profile of cluster.profiles)
    for (const [phase, amount] of Object.entries(profile.missed_in)) broken[phase] = (broken[phase] ?? 0) + Number(amount);
  return card("Where the time goes", hint,
    legend(PHASES.map((phase) => [phase, PHASE_NAMES[phase]])),
    h("div", { class: "rows" }, rows.map((profile) => {
      const spent = Object.fromEntries(PHASES.map((phase) => [phase, profile.mean_phases[`${phase}_s`]]));
      const total = sum(profile);
      return h("div", { class: "row" }, h("div", { class: "label", title: profile.profile }, profile.profile),
        phaseStack(spent, total, longest), h("div", { class: "figure" }, seconds(total)));
    })),
    Object.keys(broken).length ? h("p", { class: "sub" }, "Promises were lost in: ",
      Object.entries(broken).map(([phase, amount]) => [phaseChip(phase), ` ${amount} `])) : null);
}

function refusals(cluster) {
  const by = {};
  for (const profile of cluster.profiles)
    for (const [reason, amount] of Object.entries(profile.refused)) by[reason] = (by[reason] ?? 0) + Number(amount);
  const entries = Object.entries(by).sort((one, other) => other[1] - one[1]);
  const most = Math.max(1, ...entries.map(([, amount]) => amount));
  return card("Refusals, by what bound", `Last ${duration(cluster.recent_s)}`,
    entries.length ? h("div", { class: "rows reasons" }, entries.map(([reason, amount]) => h("div", { class: "row" },
      h("div", { class: "label", title: reason }, BINDINGS[reason] ?? reason), track([["refused", amount]], most),
      h("div", { class: "figure" }, count(amount))))) : h("p", { class: "empty" }, "Nothing was refused."));
}

function pool(cluster, role, title, model) {
  const workers = cluster.workers.filter((worker) => worker.role === role);
  if (!workers.length)
    return card(title, "", h("p", { class: "empty" }, "No such worker is registered: nothing can be served without one."));
  const ready = workers.filter((worker) => worker.health === "WORKER_HEALTH_READY").length;
  const health = (worker) => worker.health.replace("WORKER_HEALTH_", "").toLowerCase();
  return card(title, `${ready} of ${workers.length} ready`, table([
    ["worker", "nowrap", (w) => [h("b", {}, w.worker_id), " ", w.emulated ? chip("emulated") : "", h("div", { class: "sub" }, w.detail || w.address)]],
    ["state", "nowrap", (w) => chip(health(w))],
    ["running", "num", (w) => String(w.running_requests)],
    ["waiting", "num", (w) => String(w.waiting_requests)],
    ["KV cache", "kvcell", (w) => h("div", { class: "kv" },
      track([["accent", Math.max(0, w.kv_blocks_used - w.kv_blocks_leased)], ["handover", w.kv_blocks_leased]], w.kv_blocks_total),
      h("span", { class: "sub nowrap" }, w.kv_blocks_total ? `${percent(w.kv_blocks_used / w.kv_blocks_total)}, ${w.kv_blocks_leased} leased` : "–"))],
    ["KV over 2 min", "spark", (w) => line((model.load.get(w.worker_id) ?? []), 110, 26)],
    ["last step", "num", (w) => (Number(w.steps) ? seconds(w.last_step_s) : "–")],
    ["99 % within", "num", (w) => (Number(w.steps) ? `${w.step_time_bound.toFixed(2)} ×` : "–")],
    ["prediction off by", "num", (w) => (Number(w.steps) ? percent(w.step_time_error, 1) : "–")],
    ["bound held", "num", (w) => (Number(w.steps) ? percent(w.step_bound_coverage, 1) : "–")],
    ["steps", "num", (w) => count(w.steps)],
  ], workers));
}

function trouble(model, now) {
  const columns = [
    ["ended", "nowrap", (r) => ago(now - r.arrived - r.took_s)],
    ["request", "nowrap", (r) => [requestLink(r.request_id), who(r)]],
    ["profile", "nowrap", (r) => r.profile],
    ["ending", "nowrap", (r) => chip(r.ending)],
    ["what was missed", "what", (r) => r.detail || r.missed],
    ["lost in", "nowrap", (r) => phaseChip(r.broken_by)],
    ["workers", "nowrap sub", (r) => workers(r)],
    ["trace", "nowrap", (r) => trace(r.trace_id, model.state.trace_url)],
  ];
  return card("Missed promises and failures", "The last ones, however long ago",
    model.trouble.length ? table(columns, model.trouble.slice(0, 12)) : h("p", { class: "empty" }, "None: every promise was kept."));
}

function latest(model, now) {
  const columns = [
    ["ended", "nowrap", (r) => ago(now - r.arrived - r.took_s)],
    ["request", "nowrap", (r) => [requestLink(r.request_id), who(r)]],
    ["profile", "nowrap", (r) => r.profile],
    ["ending", "nowrap", (r) => chip(r.ending)],
    ["TTFT predicted", "num", (r) => seconds(r.predicted?.ttft_s)],
    ["achieved", "num", (r) => seconds(r.ttft_s)],
    ["target", "num", (r) => seconds(r.target_ttft_s)],
    ["TPOT predicted", "num", (r) => seconds(r.predicted?.tpot_s)],
    ["achieved", "num", (r) => seconds(r.tpot_s)],
    ["target", "num", (r) => (r.target_tpot_s.length ? r.target_tpot_s.map(seconds).join(", ") : "–")],
    ["tokens", "num", (r) => `${count(r.prompt_tokens)} + ${count(r.completion_tokens)}`],
  ];
  return card("Latest requests", "TPOT: the smallest constant rate that every token kept",
    model.latest.length ? table(columns, model.latest.slice(0, 12)) : h("p", { class: "empty" }, "No request has ended yet."));
}

function refused(model, now) {
  if (!model.refusals.length) return null;
  return card("Latest refusals", "", table([
    ["when", "nowrap", (r) => ago(now - r.arrived - r.took_s)],
    ["request", "nowrap", (r) => [requestLink(r.request_id), who(r)]],
    ["profile", "nowrap", (r) => r.profile],
    ["why", "what", (r) => r.detail],
  ], model.refusals.slice(0, 8)));
}

const who = (r) => h("div", { class: "sub who" }, [r.application, r.tenant].filter(Boolean).join(" · "));
const workers = (r) => [r.prefill_worker_id, r.decode_worker_id].filter(Boolean).join(" → ") + (r.restarts ? `, ${r.restarts} × restarted` : "");

export function trace(id, template) {
  if (!id) return "";
  const short = h("span", { class: "mono", title: id }, `${id.slice(0, 12)}…`);
  return template ? outside(template.replaceAll("{trace_id}", encodeURIComponent(id)), short) : short;
}
