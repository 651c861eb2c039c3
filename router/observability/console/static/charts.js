// Charts in SVG, drawn by hand.

import { h, s, clock, percent, seconds, PHASES, PHASE_NAMES } from "/static/dom.js";

export const SERIES = [
  ["kept", "kept", (tally) => tally.ended.kept ?? 0],
  ["missed", "missed or failed", (tally) => (tally.ended.missed ?? 0) + (tally.ended.failed ?? 0)],
  ["effort", "no promise", (tally) => (tally.ended["no promise"] ?? 0)],
  ["refused", "refused", (tally) => tally.ended.refused ?? 0],
];

// One bar for every stretch of time, its parts stacked; taller means more requests, on a square-root scale.
export function bars(windows, profile, fromS, toS, windowS, width = 720, height = 40) {
  const merge = Math.max(1, Math.ceil((toS - fromS) / windowS / 120));
  const step = windowS * merge;
  const slots = Math.ceil((toS - fromS) / step);
  const totals = Array.from({ length: slots }, () => [0, 0, 0, 0]);
  for (const window of windows) {
    const tally = window.profiles[profile];
    const slot = Math.floor((window.began + windowS / 2 - fromS) / step);
    if (!tally || slot < 0 || slot >= slots) continue;
    SERIES.forEach(([, , read], index) => { totals[slot][index] += read(tally); });
  }
  const most = Math.max(1, ...totals.map((parts) => parts.reduce((sum, part) => sum + part, 0)));
  const pitch = width / slots;
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", height, role: "img",
    "aria-label": `requests of ${profile} over time` },
    s("line", { class: "chart-base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }));
  totals.forEach((parts, slot) => {
    const all = parts.reduce((sum, part) => sum + part, 0);
    if (!all) return;
    const tall = Math.sqrt(all / most) * (height - 3);
    const group = s("g", {}, s("title", {},
      `${clock(fromS + slot * step)} – ${clock(fromS + (slot + 1) * step)}: ` +
      SERIES.map(([, name], index) => (parts[index] ? `${parts[index]} ${name}` : "")).filter(Boolean).join(", ")));
    let y = height - 1;
    parts.forEach((part, index) => {
      // One miss among a thousand must be seen.
      const size = part ? Math.max(2, (part / all) * tall) : 0;
      y -= size;
      if (part) group.append(s("rect", { class: `tone-${SERIES[index][0]}`, x: slot * pitch + pitch * 0.1, y: Math.max(0, y),
        width: pitch * 0.8, height: size }));
    });
    svg.append(group);
  });
  return svg;
}

export function line(values, width = 200, height = 34) {
  const most = Math.max(1, ...values.map(([, value]) => value));
  const [firstS, lastS] = [values[0]?.[0] ?? 0, values.at(-1)?.[0] ?? 1];
  const points = values.map(([atS, value]) =>
    `${(((atS - firstS) / Math.max(1, lastS - firstS)) * width).toFixed(1)},${(height - 2 - (value / most) * (height - 4)).toFixed(1)}`);
  return s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", height },
    s("line", { class: "chart-base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }),
    points.length > 1 ? s("polyline", { class: "chart-line", points: points.join(" "), "vector-effect": "non-scaling-stroke" }) : null);
}

// Parts of a whole side by side; what is left of the whole stays empty. parts: [tone, size, title]
function parted(kind, parts, whole) {
  return h("div", { class: kind }, parts.filter(([, size]) => size > 0).map(([tone, size, title]) =>
    h("span", { class: `tone-${tone}`, style: { width: `${(size / Math.max(whole, 1e-9)) * 100}%` }, title })));
}

export const track = (parts, whole) => parted("track", parts, whole);

export function phaseStack(phasesS, total, whole) {
  return parted("stack", PHASES.map((phase) => [phase, phasesS[phase] ?? 0,
    `${PHASE_NAMES[phase]}: ${seconds(phasesS[phase] ?? 0)} (${percent((phasesS[phase] ?? 0) / total)})`]), whole);
}

// A request's way through its phases, the first token and when it was due.
export function timeline(stays, ttftS, dueS, width, late = []) {
  const top = 22, tall = 30, row = 16, axis = top + tall + 38 + 2 * row * late.length;
  const end = Math.max(stays.at(-1)?.to_s ?? 0, dueS ?? 0, ...late.map((token) => token.came ?? token.due)) || 1;
  const x = (atS) => (atS / end) * width;
  const mark = (atS, kind, name, y) => {
    if (atS === null || atS === undefined) return null;
    const right = x(atS) > width * 0.7;
    return s("g", {},
      s("line", { class: `mark ${kind}`, x1: x(atS), x2: x(atS), y1: top - 6, y2: top + tall + 6 }),
      s("text", { x: x(atS) + (right ? -5 : 5), y, "text-anchor": right ? "end" : "start" }, `${name} ${seconds(atS)}`));
  };
  return s("svg", { viewBox: `0 0 ${width} ${axis + 8}`, role: "img", "aria-label": "time by phase" },
    stays.map((stay) => s("rect", { class: `tone-${stay.phase}`, x: x(stay.from_s), y: top,
      width: Math.max(1, x(stay.to_s) - x(stay.from_s)), height: tall },
      s("title", {}, `${PHASE_NAMES[stay.phase]}: ${seconds(stay.to_s - stay.from_s)}, from ${seconds(stay.from_s)}`))),
    mark(ttftS, "", "first token", 11),
    mark(dueS, "due", "first token due", top + tall + 17),
    late.map((token, index) => [
      mark(token.due, "due", `${token.name} due`, top + tall + 17 + row * (2 * index + 1)),
      mark(token.came, "", token.name, top + tall + 17 + row * (2 * index + 2)),
    ]),
    s("text", { x: 0, y: axis }, "0"),
    s("text", { x: width, y: axis, "text-anchor": "end" }, seconds(end)));
}
