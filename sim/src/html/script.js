"use strict";
(() => {
const run = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#3f6fd8", "#b3541e", "#2a8c82", "#a3479b", "#7a7d1f", "#c0405f", "#4b8bb0", "#6f57c9", "#5f8a3a", "#8c6a4a"];
const WORDS = [["seated", "seated: may manage and write"], ["rejoining", "rejoining: catching up"], ["isolated", "isolated: no quorum"],
  ["paused", "paused"], ["down", "down"], ["removed", "removed"]];
const LANE = 24, GAP = 7, PAD = 12, TOP = 34, HEADING = 24, FAULT = 19;

const names = document.getElementById("names"), scroll = document.getElementById("scroll");
const width = Math.max(run.end * 3, scroll.clientWidth - 2 * PAD - 2, 400);
const x = time => PAD + time / Math.max(run.end, .001) * width;
const colour = member => COLOURS[member % COLOURS.length];

function make(kind, attributes, text) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
function name(top, text, kind) {
  const span = document.createElement("span");
  span.textContent = text;
  span.style.top = top + "px";
  if (kind) span.className = kind;
  names.append(span);
}
const hint = (element, text) => { element.append(make("title", {}, text)); return element; };
const seconds = time => time.toFixed(time < 100 ? 2 : 1) + " s";
const roomFor = text => text.length * 6.6 + 10;

// Faults share as few rows as they can without touching.
const rows = [];
for (const fault of run.faults) {
  const [from, to, what] = fault;
  const right = Math.max(x(to), x(from) + roomFor(what)) + 4;
  let row = rows.findIndex(end => end <= x(from));
  if (row < 0) row = rows.push(0) - 1;
  rows[row] = right;
  fault.row = row;
}
let top = TOP;
const places = { faults: top };
top += run.faults.length ? HEADING + rows.length * (FAULT + 3) + 8 : 0;
places.members = top;
top += HEADING + run.members.length * (LANE + GAP) + 8;
places.nodes = top;
top += HEADING + run.nodes.length * (LANE + GAP) + 6;

const svg = make("svg", { width: width + 2 * PAD, height: top, role: "img", "aria-label": "Who was what, and who acted for which node; the same in words below" });
const hatch = make("pattern", { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
hatch.append(make("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 8 }));
const definitions = make("defs", {});
definitions.append(hatch);
svg.append(definitions);

// Ticks at round times, about a hundred pixels apart.
const wish = run.end / Math.max(width / 100, 1);
const step = [.1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find(step => step >= wish) || 7200;
for (let time = 0; time <= run.end + 1e-9; time += step) {
  svg.append(make("line", { class: "grid", x1: x(time), x2: x(time), y1: TOP - 8, y2: top }));
  const anchor = time === 0 ? "start" : "middle";
  svg.append(make("text", { class: "tick", x: x(time), y: 18, "text-anchor": anchor }, +time.toFixed(1) + " s"));
}

function bar(kind, from, to, y, height, text, onKind, fill) {
  const shape = { class: kind, x: x(from), y, width: Math.max(x(to) - x(from), 1.5), height, rx: 4 };
  if (fill) shape.fill = fill;
  const rectangle = make("rect", shape);
  svg.append(rectangle);
  if (roomFor(text) <= shape.width) svg.append(make("text", { class: onKind, x: shape.x + 6, y: y + height / 2 + 4 }, text));
  return rectangle;
}

if (run.faults.length) name(places.faults + 1, "faults", "heading");
for (const fault of run.faults) {
  const [from, to, what] = fault, y = places.faults + HEADING + fault.row * (FAULT + 3);
  const shape = make("rect", { class: "fault", x: x(from), y, width: Math.max(x(to) - x(from), 2), height: FAULT, rx: 4 });
  svg.append(hint(shape, `${what}, ${seconds(from)} to ${seconds(to)}`));
  svg.append(make("text", { class: "on-fault", x: x(from) + 6, y: y + 14 }, what));
}

name(places.members + 1, "members", "heading");
run.members.forEach((member, number) => {
  const y = places.members + HEADING + number * (LANE + GAP);
  name(y + 3, member);
  svg.append(make("rect", { class: "track", x: x(0), y, width: x(run.end) - x(0), height: LANE, rx: 4 }));
  for (const [from, to, word] of run.lanes[number])
    hint(bar("bar " + word, from, to, y, LANE, word, "on-" + word), `${member} ${word}, ${seconds(from)} to ${seconds(to)}`);
  for (const [from, to, what, cut] of run.faults) if (cut.includes(number)) {
    const shape = { x: x(from), y: y - 2, width: Math.max(x(to) - x(from), 2), height: LANE + 4, rx: 4 };
    svg.append(hint(make("rect", { class: "cut", ...shape }), `${what}, ${seconds(from)} to ${seconds(to)}`));
    svg.append(make("rect", { class: "cut-edge", "pointer-events": "none", ...shape }));
  }
});

name(places.nodes + 1, "nodes", "heading");
run.nodes.forEach(([node, bars], number) => {
  const y = places.nodes + HEADING + number * (LANE + GAP);
  name(y + 3, node);
  svg.append(make("rect", { class: "track", x: x(0), y, width: x(run.end) - x(0), height: LANE, rx: 4 }));
  for (const [from, to, who, lease] of bars) {
    const member = run.members[who];
    // Two that act at once share the lane, so that both are seen.
    const beside = bars.findIndex(other => other[2] !== who && other[0] < to && from < other[1]);
    const isBelow = beside >= 0 && (bars[beside][0] < from || bars[beside][0] === from && bars[beside][2] < who);
    const height = beside < 0 ? LANE : LANE / 2;
    hint(bar("acts", from, to, isBelow ? y + height : y, height, member, "on-acts", colour(who)), `${member} acts for ${node}, ${seconds(from)} to ${seconds(to)}`);
    if (lease > to) {
      const rest = make("rect", { class: "lease", x: x(to), y: y + 3, width: Math.max(x(lease) - x(to), 1), height: LANE - 6, stroke: colour(who) });
      svg.append(hint(rest, `${member}'s lease on ${node} ends at ${seconds(lease)}: until then nobody else acts`));
      svg.append(make("line", { class: "lease-end", x1: x(lease), x2: x(lease), y1: y, y2: y + LANE, stroke: colour(who) }));
    }
  }
});

run.violations.forEach(([at, what], number) => {
  svg.append(make("line", { class: "violation", x1: x(at), x2: x(at), y1: TOP - 14, y2: top }));
  if (run.violations.findIndex(other => Math.abs(other[0] - at) < run.end / 5) < number) return;
  const isRight = x(at) > width / 2;
  svg.append(make("text", { class: "on-violation", x: x(at) + (isRight ? -6 : 6), y: TOP - 4, "text-anchor": isRight ? "end" : "start" }, what));
});
const cursor = make("line", { class: "cursor", y1: TOP - 10, y2: top });
svg.append(cursor);
scroll.append(svg);
names.style.height = top + "px";

const legend = document.getElementById("legend");
function explain(shapes, text) {
  const item = document.createElement("li"), picture = make("svg", { width: 18, height: 14 });
  picture.append(...shapes);
  item.append(picture, text);
  legend.append(item);
}
const used = new Set(run.lanes.flat().map(bar => bar[2]));
for (const [word, text] of WORDS) if (used.has(word)) explain([make("rect", { class: "bar " + word, width: 18, height: 14 })], text);
if (run.faults.some(fault => fault[3].length)) explain([make("rect", { class: "cut", width: 18, height: 14 })], "cut off");
if (run.nodes.some(([, bars]) => bars.some(bar => bar[3] > bar[1])))
  explain([make("rect", { class: "lease", x: 1, y: 2, width: 14, height: 10, stroke: "currentColor" }), make("line", { class: "lease-end", x1: 16, x2: 16, y1: 0, y2: 14, stroke: "currentColor" })], "a lease that still runs, and its end");
if (run.violations.length) explain([make("line", { class: "violation", x1: 9, x2: 9, y1: 0, y2: 14 })], "violation");

const slider = document.getElementById("at"), state = document.getElementById("state");
const now = (bars, time) => bars.find(([from, to]) => from <= time && time < to) || bars.findLast(([from, to]) => from <= time && time <= to);
function column(title, lines) {
  const box = document.createElement("div"), heading = document.createElement("h2"), list = document.createElement("ul");
  heading.textContent = title;
  for (const [text, fill] of lines) {
    const item = document.createElement("li");
    if (fill) { const dot = document.createElement("i"); dot.style.background = fill; item.append(dot); }
    item.append(text);
    list.append(item);
  }
  box.append(heading, list);
  return box;
}
function show() {
  const time = +slider.value;
  document.getElementById("time").textContent = time.toFixed(3) + " s";
  cursor.setAttribute("x1", x(time));
  cursor.setAttribute("x2", x(time));
  const members = run.members.map((member, number) => {
    const bar = now(run.lanes[number], time), word = bar ? bar[2] : "down";
    return [`${member} ${word}`, `var(--${word})`];
  });
  const nodes = run.nodes.map(([node, bars]) => {
    const bar = now(bars, time), held = bars.find(([, to, , lease]) => to <= time && time < lease);
    if (bar) return [`${node}: ${run.members[bar[2]]} acts`, colour(bar[2])];
    if (held) return [`${node}: nobody; ${run.members[held[2]]}'s lease ends at ${seconds(held[3])}`, "var(--down)"];
    return [`${node}: nobody`, "var(--down)"];
  });
  const faults = run.faults.filter(([from, to]) => from <= time && time <= to).map(([, , what]) => [what]);
  state.replaceChildren(column("members", members), column("nodes", nodes), column("faults", faults.length ? faults : [["none"]]));
}
slider.max = run.end;
slider.value = run.violations.length ? run.violations[0][0] : run.faults.length ? Math.min(run.faults[0][0] + 1, run.end) : run.end / 2;
slider.addEventListener("input", show);
svg.addEventListener("click", event => {
  const box = svg.getBoundingClientRect();
  slider.value = (event.clientX - box.left - PAD) / width * run.end;
  show();
});
show();
})();
