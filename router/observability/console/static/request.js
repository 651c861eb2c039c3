// One request: its way through the phases, and what the planner said about it.

import { ago, card, chip, count, h, legend, percent, phaseChip, requestLink, seconds, table, PHASES, PHASE_NAMES } from "/static/dom.js";
import { timeline } from "/static/charts.js";
import { trace } from "/static/overview.js";

export function requestPage(request, id, now) {
  if (!request)
    return [card("Request not known", "", h("p", { class: "empty mono" }, id),
      h("p", {}, "It is neither running on this router nor among the last that ended here. ", h("a", { href: "#/" }, "Back to the cluster")))];
  return [heading(request, now), way(request), h("div", { class: "two" }, targets(request), phases(request)), late(request), planner(request)];
}

function heading(r, now) {
  const fact = (name, value) => (value === null || value === "" ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  return h("section", { class: "card" },
    h("h1", { class: "headline" }, h("span", { class: "mono" }, r.request_id), chip(r.ending), r.guaranteed ? chip("guaranteed") : "",
      r.broken_by ? [h("span", { class: "light" }, "lost in"), phaseChip(r.broken_by)] : ""),
    r.missed || r.detail ? h("p", { class: "bad what" }, r.detail || r.missed) : h("p", {}),
    h("dl", { class: "facts" },
      fact("profile", r.profile), fact("tenant", r.tenant), fact("application", r.application),
      fact("arrived", `${new Date(r.arrived * 1e3).toLocaleString()} (${ago(Math.max(0, now - r.arrived))})`),
      fact(r.ending === "running" ? "running for" : "took", seconds(r.took_s)),
      fact("tokens", `${count(r.prompt_tokens)} in (${count(r.cached_tokens)} cached), ${count(r.completion_tokens)} out`),
      fact("prefill worker", r.prefill_worker_id), fact("decode worker", r.decode_worker_id),
      fact("restarts", r.restarts ? String(r.restarts) : ""), fact("KV computed again", r.kv_recomputes ? `${r.kv_recomputes} times` : ""),
      fact("KV pull", r.kv_pull ? `${(Number(r.kv_pull.bytes) / 1e6).toFixed(1)} MB in ${seconds(r.kv_pull.transfer_s)}, waited ${seconds(r.kv_pull.wait_s)}` : ""),
      fact("trace", trace(r.trace_id, r.trace_url))));
}

function way(r) {
  if (!r.timeline.length) return card("Time by phase", "", h("p", { class: "empty" }, "It was never taken, so no time was spent on it."));
  const width = Math.max(300, Math.min(1280, document.documentElement.clientWidth - 90));
  return h("section", { class: "card timeline", id: "timeline" }, h("h2", {}, "Time by phase"),
    h("p", { class: "hint" }, "From its arrival at the router; every moment belongs to one phase"),
    legend(PHASES.filter((phase) => r.timeline.some((stay) => stay.phase === phase)).map((phase) => [phase, PHASE_NAMES[phase]])),
    timeline(r.timeline, r.ttft_s, r.target_ttft_s, width, lateTokens(r)));
}

const tokenName = (x) => (x.stage === 0 ? "first token" : `token ${x.token} of stage ${x.stage}`);
const lateTokens = (r) => r.late.filter((x) => x.stage > 0).map((x) => ({ name: tokenName(x), due: x.due_s, came: x.came_s }));

function late(r) {
  return r.late.map((x) => {
    const came = x.came_s === null ? "has not come" : `came ${seconds(x.came_s - x.due_s)} late`;
    const rows = [{ what: "this request", share: x.own_s, more: "" },
      ...x.sharers.map((y) => ({ what: requestLink(y.request_id), share: y.share_s,
        more: [y.guaranteed === null ? "" : `${y.profile}, ${y.guaranteed ? "guaranteed" : "best effort"}`,
          y.prompt_tokens ? `${count(y.prompt_tokens)} prompt tokens` : "output", `${y.steps} ${y.steps === 1 ? "step" : "steps"}`].filter(Boolean).join(", ") })),
      ...(x.others || x.others_s > 0 ? [{ what: `${x.others ? `${x.others} more, and ` : ""}what this router does not know by name`, share: x.others_s, more: "" }] : [])];
    return h("section", { class: "card late" }, h("h2", {}, `Who made the ${tokenName(x)} late`),
      h("p", { class: "hint" }, `It was due after ${seconds(x.due_s)} and ${came}. ${x.steps} ${x.steps === 1 ? "step" : "steps"} of ${x.worker_id || "no worker"} ` +
        `until then took ${seconds(x.steps_s)}, shared here by tokens`),
      x.steps ? table([["request", "", (y) => y.what], ["time", "num", (y) => seconds(y.share)], ["", "sub", (y) => y.more]], rows)
        : h("p", { class: "empty" }, "None of these steps is remembered."),
      x.kept_since_s !== null ? h("p", { class: "sub" }, `Steps before ${seconds(x.kept_since_s)} are forgotten.`) : null);
  });
}

function targets(r) {
  const predicted = r.predicted ?? {};
  const late = (achieved, target) => (achieved !== null && target !== null && target !== undefined && achieved > target ? "bad" : "");
  const rows = [{ name: "TTFT", target: r.target_ttft_s, expected: predicted.ttft_s, bound: predicted.ttft_bound_s, got: r.ttft_s, more: "" },
    ...(r.stages.length ? r.stages : r.target_tpot_s.map((tpot) => ({ target_tpot_s: tpot, required_tpot_s: null, tokens: 0 }))).map((stage, index) => ({
      name: r.stages.length > 1 ? `TPOT, stage ${index + 1}` : "TPOT", target: stage.target_tpot_s,
      expected: predicted.tpot_s, bound: predicted.tpot_bound_s, got: stage.tokens ? stage.required_tpot_s : null,
      more: stage.tokens ? `mean ${seconds(stage.mean_tpot_s)}, ${stage.late_tokens} of ${stage.tokens} tokens late` : "" }))];
  return card("Asked for, predicted, achieved", "Promises are made against the bound",
    table([["", "nowrap", (x) => [x.name, h("div", { class: "sub" }, x.more)]], ["asked", "num", (x) => seconds(x.target)],
      ["predicted", "num", (x) => seconds(x.expected)], ["bound", "num", (x) => seconds(x.bound)],
      ["achieved", "num", (x) => h("b", { class: late(x.got, x.target) }, seconds(x.got))]], rows),
    r.worst_gap_s ? h("p", { class: "sub" }, `Longest time between two tokens: ${seconds(r.worst_gap_s)}`) : null);
}

function phases(r) {
  if (!r.phases_s) return card("Phases", "", h("p", { class: "empty" }, "None."));
  return card("Phases", "", table([
    ["phase", "nowrap", ([phase]) => phaseChip(phase)], ["time", "num", ([, spent]) => seconds(spent)],
    ["share", "num", ([, spent]) => percent(r.took_s ? spent / r.took_s : 0, 1)],
  ], PHASES.map((phase) => [phase, r.phases_s[phase] ?? 0]).filter(([, spent]) => spent > 0)));
}

function planner(r) {
  const left = r.rounds_total - r.rounds.length;
  const place = (read) => (x) => (x.placement ? read(x.placement) : "–");
  return h("section", { class: "card", id: "planner" }, h("h2", {}, "What the planner said"),
    h("p", { class: "hint" }, `${r.rounds_total} ${r.rounds_total === 1 ? "round" : "rounds"}; times count from its arrival`),
    r.rounds.length ? table([
      ["round", "num", (x) => String(x.number)], ["at", "num", (x) => seconds(x.at_s)], ["took", "num", (x) => seconds(x.took_s)],
      ["candidates", "num", (x) => String(x.candidates)],
      ["answer", "nowrap", (x) => [chip(x.outcome), x.binding ? h("span", { class: "sub" }, ` ${x.binding} binds`) : "",
        x.detail ? h("div", { class: "sub what" }, x.detail) : ""]],
      ["TTFT predicted", "num", place((p) => seconds(p.ttft_s))], ["bound", "num", place((p) => seconds(p.ttft_bound_s))],
      ["TPOT predicted", "num", place((p) => seconds(p.tpot_s))], ["bound", "num", place((p) => seconds(p.tpot_bound_s))],
      ["due", "num", place((p) => seconds(p.due_s))],
      ["would be guaranteed", "num", (x) => (x.earliest_guarantee_s === null ? "–" : `in ${seconds(x.earliest_guarantee_s)}`)],
      ["workers", "nowrap sub", place((p) => `${p.prefill_worker_id} → ${p.decode_worker_id}`)],
    ], r.rounds) : h("p", { class: "empty" }, "It was turned away before a round could look at it."),
    left > 0 ? h("p", { class: "sub" }, `${left} rounds in between are not kept.`) : null);
}
