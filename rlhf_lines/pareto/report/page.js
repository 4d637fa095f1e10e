
"use strict";

// Everything below reads this one object. Names and texts in it come from models, data sets and users: they reach the
// page as text nodes and never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const { front, groups, completions, made } = data;
const rewards = front.rewards;
const pointById = new Map(front.points.map((point) => [point.id, point]));
const groupByName = new Map(groups.map((group) => [group.name, group]));
const nondominated = new Set(Object.values(front.fronts).flatMap((entry) => entry.nondominated));
const darkScreen = matchMedia("screen and (prefers-color-scheme: dark)");
const narrowScreen = matchMedia("(max-width: 700px)");

// What the reader has chosen; every draw... function shows it.
const state = {
  hidden: new Set(),
  intervals: true,
  hulls: false,
  bands: false,
  x: rewards[0],
  y: rewards[1] ?? rewards[0],
  weight: 0,
  left: null,
  right: null,
  prompt: 0,
  forgettingReward: rewards[0],
  surrogateReward: rewards[0],
};

// ---- Texts and numbers

// Control characters have pictures (U+2400), so that nothing that was written is invisible.
function visible(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) =>
    c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)));
}

function shortened(text, width) {
  const line = visible(text).replace(/\s+/g, " ");
  const characters = Array.from(line);
  return characters.length > width ? characters.slice(0, width - 1).join("") + "…" : line;
}

// Plotly reads a few tags and entities in its texts; this leaves none to read.
function plain(text, width = 60) {
  const escaped = shortened(text, width).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // Isolated, so that text that runs from right to left does not turn its neighbours around.
  return `\u2068${escaped}\u2069`;
}

// The decimals that show about four significant digits of the largest value.
function decimals(values) {
  const largest = Math.max(0, ...values.map(Math.abs));
  const found = [[1, 100], [2, 10], [3, 0.1], [4, 0.01]].find(([, bound]) => largest >= bound);
  return found ? found[0] : largest === 0 ? 3 : 6;
}

function number(value, digits) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

function centre(estimate) {
  return estimate.mean ?? estimate.value;
}

function estimateText(estimate, digits) {
  if (!estimate) return "–";
  return `${number(centre(estimate), digits)} [${number(estimate.low, digits)}, ${number(estimate.high, digits)}]`;
}

function setting(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" ? String(Number(value.toPrecision(4))).replace("-", "−") : String(value);
}

function share(weight) {
  return String(Number(weight.toFixed(3)));
}

// ---- Points, by name

function groupLabel(name) {
  return groupByName.get(name)?.label ?? name;
}

function policyName(index) {
  return data.policies[index] ?? `policy ${index + 1}`;
}

// The weights without the zeros at the end: a spec may have fewer weights than there are policies.
function weightsOf(point) {
  const weights = [...(point.spec.weights ?? [])];
  while (weights.length && weights.at(-1) === 0) weights.pop();
  return weights;
}

function onePolicy(point) {
  const weights = weightsOf(point);
  const single = weights.length > 0 && weights.at(-1) === 1 && weights.slice(0, -1).every((weight) => weight === 0);
  return single && ["rewarded_soup", "morlhf"].includes(point.group) ? policyName(weights.length - 1) : null;
}

function weightsText(point) {
  const weights = point.spec.weights ?? [];
  return weights.some((weight) => weight !== 0) ? weights.map(share).join(" / ") : "–";
}

function pointLabel(point) {
  const policy = onePolicy(point);
  const name = policy === null ? groupLabel(point.group) : `${groupLabel(point.group)}, ${policy} alone`;
  const weights = weightsText(point);
  return weights === "–" ? name : `${name}, ${weights}`;
}

function specText(point) {
  const spec = point.spec;
  const parts = [`weights ${weightsText(point)}`];
  if (spec.alpha !== undefined) parts.push(`alpha ${setting(spec.alpha)}`, `beta ${setting(spec.beta)}`);
  if (spec.schedule && spec.schedule !== "linear") parts.push(`schedule ${spec.schedule}`);
  if (spec.rule && spec.rule !== "linear") parts.push(`rule ${spec.rule}`);
  if (spec.options && Object.keys(spec.options).length) parts.push(JSON.stringify(spec.options));
  return parts.join(", ");
}

const digitsOf = Object.fromEntries(
  rewards.map((reward) => [reward, decimals(front.points.map((point) => point.scores[reward].mean))]));
const klDigits = decimals(front.points.flatMap((point) => point.kl ? [point.kl.mean] : []));
const perplexityDigits = decimals(front.points.flatMap((point) => point.perplexity ? [point.perplexity.mean] : []));
const hasSchedules = front.points.some((point) => (point.spec.schedule ?? "linear") !== "linear");
const hasKl = front.points.some((point) => point.kl);
const hasPerplexity = front.points.some((point) => point.perplexity);

// ---- Elements

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.map((child) => child instanceof Node ? child : document.createTextNode(visible(child))));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function write(id, text) {
  byId(id).replaceChildren(document.createTextNode(visible(text)));
}

function show(id, ...nodes) {
  byId(id).replaceChildren(...nodes);
}

// A text from outside, isolated from the direction of what stands around it; long ones are cut by the style sheet.
function name(text) {
  return element("bdi", { title: visible(text) }, text);
}

function estimateCell(estimate, digits) {
  if (!estimate) return "–";
  const range = ` [${number(estimate.low, digits)}, ${number(estimate.high, digits)}]`;
  return element("span", {}, number(centre(estimate), digits), element("span", { class: "range" }, range));
}

// columns: [{head, start: whether it is set to the left}]; rows: arrays of strings or nodes.
function table(label, columns, rows, rowClass = () => "") {
  const kind = (column) => (column.start ? { class: "start" } : {});
  const head = element("tr", {}, ...columns.map((column) => element("th", { scope: "col", ...kind(column) }, column.head)));
  const body = rows.map((row, i) =>
    element("tr", { class: rowClass(i) }, ...row.map((cell, k) => element("td", kind(columns[k]), cell))));
  const whole = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, whole);
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
}

function symbol(group) {
  const node = element("span", { class: "symbol", "aria-hidden": "true" }, group.character);
  node.style.setProperty("--light", group.colour);
  node.style.setProperty("--dark", group.dark_colour);
  return node;
}

function groupName(groupKey) {
  const group = groupByName.get(groupKey);
  return element("span", {}, symbol(group), " ", name(group.label));
}

// ---- Figures

function ink(group) {
  return darkScreen.matches ? group.dark_colour : group.colour;
}

function faded(colour, opacity) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

function style(property) {
  return getComputedStyle(document.documentElement).getPropertyValue(property).trim();
}

function axis(title) {
  return {
    title: { text: title, standoff: 10 },
    gridcolor: style("--line"),
    linecolor: style("--faint"),
    zeroline: false,
    automargin: true,
  };
}

// The title of an axis; a phone has room for less of it on each of two lines.
function axisTitle(quantity, note) {
  return narrowScreen.matches ? `${plain(quantity, 28)}<br>(${note})` : `${plain(quantity)} (${note})`;
}

function scoreTitle(reward) {
  return axisTitle(`${shortened(reward, 34)}: mean score`, "higher is better");
}

function layout(xTitle, yTitle, more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: style("--ink") },
    margin: { l: 56, r: 12, t: 12, b: 52 },
    xaxis: axis(xTitle),
    yaxis: axis(yTitle),
    showlegend: false,
    hovermode: "closest",
    // A finger scrolls the page; a mouse draws the region to look at.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: { align: "left", bgcolor: style("--raised"), bordercolor: style("--faint"), font: { color: style("--ink") } },
    ...more,
  };
}

function draw(id, traces, arrangement) {
  return Plotly.react(id, traces, arrangement, { responsive: true, displayModeBar: false, displaylogo: false });
}

function bars(points, reward) {
  return {
    type: "data",
    symmetric: false,
    array: points.map(({ scores }) => Math.max(0, scores[reward].high - scores[reward].mean)),
    arrayminus: points.map(({ scores }) => Math.max(0, scores[reward].mean - scores[reward].low)),
    thickness: 1,
    width: 0,
  };
}

function hoverText(point) {
  const policy = onePolicy(point);
  const head = groupLabel(point.group) + (policy === null ? "" : `: ${policy} alone`);
  const lines = [`<b>${plain(head)}</b>`, plain(specText(point), 90)];
  for (const reward of rewards) lines.push(`${plain(reward, 30)} ${estimateText(point.scores[reward], digitsOf[reward])}`);
  if (point.kl) lines.push(`KL to SFT ${estimateText(point.kl, klDigits)} nats`);
  if (point.perplexity) lines.push(`perplexity ${estimateText(point.perplexity, perplexityDigits)}`);
  return lines.join("<br>");
}

function cloud(points, x, y, group, look) {
  return {
    type: "scatter",
    mode: "markers",
    x: points.map(x),
    y: points.map(y),
    customdata: points.map((point) => point.id),
    text: points.map(hoverText),
    hovertemplate: "%{text}<extra></extra>",
    marker: { color: ink(group), symbol: group.symbol, size: (group.symbol === "star" ? 15 : 10) * (narrowScreen.matches ? 0.75 : 1) },
    ...look,
  };
}

// ---- The front

function staircase(points, group) {
  const corners = points
    .map(({ scores }) => [scores[state.x].mean, scores[state.y].mean])
    .sort((a, b) => a[0] - b[0]);
  const [floorX, floorY] = [state.x, state.y].map((reward) => front.reference_point[rewards.indexOf(reward)]);
  const inside = corners.filter(([x, y]) => x > floorX && y > floorY);
  if (!inside.length) return [];
  return [{
    type: "scatter",
    mode: "lines",
    x: [floorX, ...inside.map(([x]) => x), inside.at(-1)[0]],
    y: [inside[0][1], ...inside.map(([, y]) => y), floorY],
    line: { shape: "vh", color: ink(group), dash: group.dash, width: 2 },
    hoverinfo: "skip",
  }];
}

function hull(group) {
  const points = (front.fronts[group.name].hull ?? []).map((id) => pointById.get(id));
  return {
    type: "scatter",
    mode: "lines",
    x: points.map(({ scores }) => scores[state.x].mean),
    y: points.map(({ scores }) => scores[state.y].mean),
    line: { color: ink(group), width: 1, dash: "dot" },
    hoverinfo: "skip",
  };
}

// The edge of what 2.5 % of the resampled fronts attain, and back along the edge of what 97.5 % attain.
function band(group) {
  const attainment = front.fronts[group.name].attainment;
  if (!attainment) return [];
  const swap = state.x === rewards[0] ? (corner) => corner : ([x, y]) => [y, x];
  const [outer, inner] = ["0.025", "0.975"].map((level) => steps(attainment[level].map(swap)));
  const edge = [...outer, ...inner.reverse()];
  return [{
    type: "scatter",
    mode: "lines",
    x: edge.map(([x]) => x),
    y: edge.map(([, y]) => y),
    fill: "toself",
    fillcolor: faded(ink(group), 0.13),
    line: { width: 0 },
    hoverinfo: "skip",
  }];
}

function steps(corners) {
  const sorted = [...corners].sort((a, b) => a[0] - b[0]);
  return sorted.flatMap(([x, y], i) => (i === 0 ? [[x, y]] : [[sorted[i - 1][0], y], [x, y]]));
}

function groupTraces(group) {
  const points = front.points.filter((point) => point.group === group.name);
  const entry = front.fronts[group.name];
  const best = points.filter((point) => !entry || nondominated.has(point.id));
  const dominated = points.filter((point) => !best.includes(point));
  const x = (point) => point.scores[state.x].mean;
  const y = (point) => point.scores[state.y].mean;
  const withBars = (some, opacity) => state.intervals
    ? { error_x: { ...bars(some, state.x), color: faded(ink(group), opacity) },
        error_y: { ...bars(some, state.y), color: faded(ink(group), opacity) } }
    : {};
  const hollow = { symbol: `${group.symbol}-open`, color: faded(ink(group), 0.5), size: 8 };
  const flat = rewards.length === 2 && state.x !== state.y && entry;
  return [
    ...(flat && state.bands ? band(group) : []),
    ...(flat ? staircase(best, group) : []),
    ...(flat && state.hulls ? [hull(group)] : []),
    cloud(dominated, x, y, group, { marker: hollow, ...withBars(dominated, 0.2) }),
    cloud(best, x, y, group, withBars(best, 0.45)),
  ];
}

function ring(points) {
  return {
    type: "scatter",
    mode: "markers",
    x: points.map(({ scores }) => scores[state.x].mean),
    y: points.map(({ scores }) => scores[state.y].mean),
    marker: { symbol: "circle-open", size: narrowScreen.matches ? 15 : 20, color: style("--ink"), line: { width: 2 } },
    hoverinfo: "skip",
  };
}

function drawFront() {
  const shown = groups.filter((group) => !state.hidden.has(group.name)).reverse();
  const atWeight = pointsAtWeight().filter((point) => !state.hidden.has(point.group));
  draw("front-figure", [...shown.flatMap(groupTraces), ring(atWeight)], layout(scoreTitle(state.x), scoreTitle(state.y)));
}

function checkbox(text, checked, change, ...before) {
  const box = element("input", { type: "checkbox" });
  box.checked = checked;
  box.addEventListener("change", () => { change(box.checked); drawFront(); });
  return element("label", {}, box, ...before, text instanceof Node ? text : element("span", {}, text));
}

function drawGroupBoxes() {
  const legend = byId("groups").querySelector("legend");
  const boxes = groups.map((group) => checkbox(name(group.label), !state.hidden.has(group.name), (on) => {
    if (on) state.hidden.delete(group.name); else state.hidden.add(group.name);
    drawForgetting();
  }, symbol(group)));
  byId("groups").replaceChildren(legend, ...boxes);
}

function setUpFront() {
  const flat = rewards.length === 2;
  const confidence = front.confidence === undefined ? "" : `${setting(100 * front.confidence)} % `;
  write("front-text", "Each mark is one merged policy. Hover over it for its settings and scores" +
    (completions ? "; click on it to read what it wrote." : "."));
  write("front-caption", `Bars: ${confidence}intervals over prompts. Faint, hollow marks: dominated by a point of their own ` +
    "group." + (flat ? " The steps join the points that are not: what lies below them, down to the reference point, is the " +
    "hypervolume." : " With more than two rewards such a point can lie anywhere in a figure of two.") +
    " Drag to look closer, double-click to come back.");
  const layers = [checkbox("intervals", state.intervals, (on) => { state.intervals = on; })];
  const entries = Object.values(front.fronts);
  if (flat && entries.some((entry) => entry.hull)) {
    layers.push(checkbox("convex hull", state.hulls, (on) => { state.hulls = on; }));
  }
  if (flat && entries.some((entry) => entry.attainment)) {
    layers.push(checkbox("where resampled fronts lie", state.bands, (on) => { state.bands = on; }));
  }
  byId("layers").append(...layers);
  drawGroupBoxes();
  if (flat) byId("axes").remove();
  else for (const [key, id] of [["x", "axis-x"], ["y", "axis-y"]]) {
    options(byId(id), rewards.map((reward, i) => [i, reward]), rewards.indexOf(state[key]));
    byId(id).addEventListener("change", (event) => { state[key] = rewards[event.target.value]; drawFront(); });
  }
}

// ---- The slider

// Points at weights of their group's choosing. Those of MORLHF runs only say which run it is.
const sweptPoints = front.points.filter((point) => front.fronts[point.group] && point.group !== "morlhf" && weightsOf(point).length);

// The distinct weights, from the first policy's lowest to its highest.
const sweptWeights = [...new Map(sweptPoints.map((point) => [weightsOf(point).join(), weightsOf(point)])).entries()]
  .sort(([, a], [, b]) => {
    const k = a.findIndex((weight, i) => weight !== (b[i] ?? 0));
    return k < 0 ? a.length - b.length : a[k] - (b[k] ?? 0);
  });

function pointsAtWeight() {
  if (!sweptWeights.length) return [];
  const [key] = sweptWeights[state.weight];
  return sweptPoints.filter((point) => weightsOf(point).join() === key);
}

function drawWeight() {
  const [, weights] = sweptWeights[state.weight];
  const shown = Array.from({ length: longestWeights }, (_, k) => weights[k] ?? 0);
  const text = shown.map((weight, k) => `${share(weight)} ${policyName(k)}`).join(" · ");
  write("weight-text", text);
  byId("weight").setAttribute("aria-valuetext", visible(text));
  const rows = [...pointsAtWeight(), ...front.points.filter((point) => point.group === "sft")];
  const order = (point) => groups.findIndex((group) => group.name === point.group);
  rows.sort((a, b) => order(a) - order(b));
  show("weight-table", pointTable("Scores at these weights", rows, false));
}

const longestWeights = Math.max(0, ...sweptPoints.map((point) => point.spec.weights.length));

function setUpWeights() {
  if (sweptWeights.length < 2) return byId("weights")?.remove();
  state.weight = Math.floor(sweptWeights.length / 2);
  const slider = byId("weight");
  slider.max = sweptWeights.length - 1;
  slider.value = state.weight;
  slider.addEventListener("input", () => {
    state.weight = Number(slider.value);
    drawWeight();
    drawFront();
  });
  drawWeight();
}

// ---- Tables

// all: with what tells the points of one group apart.
function pointTable(label, points, all) {
  const columns = [
    ...(all ? [{ head: "" }, { head: "id" }] : []),
    { head: "group", start: true }, ...(all ? [{ head: "weights" }] : []), { head: "alpha" }, { head: "beta" },
    ...(hasSchedules ? [{ head: "schedule", start: true }] : []),
    ...rewards.map((reward) => ({ head: name(reward) })),
    ...(hasKl ? [{ head: "KL to SFT, nats" }] : []),
    ...(hasPerplexity ? [{ head: "perplexity" }] : []),
  ];
  const rows = points.map((point) => [
    ...(all ? [nondominated.has(point.id) ? "★" : "", String(point.id)] : []),
    groupName(point.group), ...(all ? [weightsText(point)] : []), setting(point.spec.alpha), setting(point.spec.beta),
    ...(hasSchedules ? [name(point.spec.schedule ?? "linear")] : []),
    ...rewards.map((reward) => estimateCell(point.scores[reward], digitsOf[reward])),
    ...(hasKl ? [estimateCell(point.kl, klDigits)] : []),
    ...(hasPerplexity ? [estimateCell(point.perplexity, perplexityDigits)] : []),
  ]);
  return table(label, columns, rows);
}

function drawPoints() {
  show("points-table", pointTable("All points", front.points, true));
}

function drawVolumes() {
  const entries = groups.filter((group) => front.fronts[group.name]).map((group) => [group.name, front.fronts[group.name]]);
  if (!entries.length) return byId("volumes")?.remove();
  const hasUtility = entries.some(([, entry]) => entry.expected_utility);
  const digits = decimals(entries.map(([, entry]) => entry.hypervolume.value));
  const columns = [{ head: "group", start: true }, { head: "hypervolume" },
    ...(hasUtility ? [{ head: "expected utility" }] : []), { head: "points" }, { head: "not dominated" }];
  show("volumes-table", table("Hypervolumes", columns, entries.map(([key, entry]) => [
    groupName(key), estimateCell(entry.hypervolume, digits),
    ...(hasUtility ? [estimateCell(entry.expected_utility, 4)] : []),
    String(front.points.filter((point) => point.group === key).length), String(entry.nondominated.length),
  ])));
  drawDifferences(hasUtility);
  const rules = [`Reference point: ${front.reference_point.map((value) => setting(value)).join(", ")} (${front.reference_point_rule}).`];
  if (front.utility_rule) rules.push(`Expected utility: ${front.utility_rule}.`);
  rules.push("P(> 0) is the share of resamples of the prompts in which the first group is ahead.");
  write("volumes-caption", rules.join(" "));
  return undefined;
}

function drawDifferences(hasUtility) {
  const keys = [["hypervolume_difference", "hypervolume"], ...(hasUtility ? [["expected_utility_difference", "expected utility"]] : [])];
  const columns = [{ head: "difference", start: true }, ...keys.flatMap(([, head]) => [{ head }, { head: "P(> 0)" }])];
  const digits = Object.fromEntries(keys.map(([key]) => [key, decimals(front.comparisons.map((entry) => entry[key]?.value ?? 0))]));
  const rows = front.comparisons.map((entry) => [
    element("span", {}, name(groupLabel(entry.a)), " − ", name(groupLabel(entry.b))),
    ...keys.flatMap(([key]) => [estimateCell(entry[key], digits[key]), number(entry[key]?.probability_positive, 3)]),
  ]);
  show("differences-table", table("Differences between groups", columns, rows));
}

// ---- Completions

// What is lower for the better policy has no mark: a KL is neither good nor bad.
function scoresOf(spec, prompt, sample, otherSpec) {
  const items = rewards.filter((reward) => completions.scores[reward]).map((reward) => {
    const value = (of) => completions.scores[reward][of][prompt][sample] ?? null;
    const [own, other] = [value(spec), value(otherSpec)];
    const higher = own !== null && other !== null && own > other;
    return score(reward, number(own, digitsOf[reward]) + (higher ? " ▲" : ""), higher);
  });
  return element("dl", { class: "scores" }, ...items, score("KL", number(completions.kl[spec][prompt][sample], klDigits)));
}

function score(label, value, higher = false) {
  return element("div", higher ? { class: "higher" } : {}, element("dt", {}, name(label)), element("dd", {}, value));
}

function side(id, otherId) {
  const [spec, other] = [id, otherId].map((key) => completions.spec_of[key]);
  const point = pointById.get(id);
  const samples = completions.written[spec][state.prompt].map((index, sample) => element("div", { class: "sample" },
    element("p", { class: "text", dir: "auto" }, index === null ? "(not sampled)" : completions.texts[index] || "(empty)"),
    scoresOf(spec, state.prompt, sample, other)));
  return element("article", { class: "side", "aria-label": visible(pointLabel(point)) },
    element("h3", {}, symbol(groupByName.get(point.group)), " ", element("bdi", {}, pointLabel(point))),
    ...samples, ...mergeCommand(id));
}

function mergeCommand(id) {
  const command = made.merges?.[id];
  if (command === undefined) return [];
  return [element("details", {}, element("summary", {}, "Make this policy"), element("pre", {}, command))];
}

function drawComparison() {
  const count = completions.prompts.length;
  byId("prompt-number").value = state.prompt + 1;
  byId("previous").disabled = state.prompt === 0;
  byId("next").disabled = state.prompt === count - 1;
  byId("left").value = state.left;
  byId("right").value = state.right;
  show("comparison",
    element("p", { class: "prompt", dir: "auto" }, completions.prompts[state.prompt]),
    element("div", { class: "sides" }, side(state.left, state.right), side(state.right, state.left)));
}

function goTo(prompt) {
  if (!Number.isInteger(prompt)) return;
  state.prompt = Math.min(Math.max(prompt, 0), completions.prompts.length - 1);
  drawComparison();
}

// The next prompt, after this one and around, that has the text in itself or in one of the two columns.
function find(text) {
  const wanted = text.toLowerCase();
  const count = completions.prompts.length;
  const columns = [state.left, state.right].map((id) => completions.written[completions.spec_of[id]]);
  const holds = (prompt) => [completions.prompts[prompt],
    ...columns.flatMap((written) => written[prompt].map((index) => completions.texts[index] ?? ""))]
    .some((candidate) => candidate.toLowerCase().includes(wanted));
  const found = Array.from({ length: count }, (_, i) => (state.prompt + 1 + i) % count).find(holds);
  write("found", found === undefined ? "not found" : `in prompt ${found + 1}`);
  if (found !== undefined) goTo(found);
}

function firstChoice() {
  const readable = front.points.filter((point) => point.id in completions.spec_of);
  const ringed = pointsAtWeight().filter((point) => readable.includes(point));
  const of = (group) => ringed.find((point) => point.group === group);
  const right = of("lines") ?? ringed[0] ?? readable.at(-1);
  const left = of("rewarded_soup") ?? readable.find((point) => point !== right) ?? right;
  return [left.id, right.id];
}

function pointOptions(select) {
  const readable = front.points.filter((point) => point.id in completions.spec_of);
  select.replaceChildren(...groups.map((group) => element("optgroup", { label: visible(group.label) },
    ...readable.filter((point) => point.group === group.name)
      .map((point) => element("option", { value: point.id }, `${pointLabel(point)} (${point.id})`)))));
}

function setUpComparison() {
  if (!completions || !completions.prompts.length || !Object.keys(completions.spec_of).length) {
    byId("compare").querySelectorAll(".controls").forEach((controls) => controls.remove());
    return write("compare-text", completions ? "None of the completions fits into this page." : "There are no completions here.");
  }
  const count = completions.prompts.length;
  write("compare-text", count === completions.total
    ? `Completions of the same prompt by any two points, for all ${count} prompts. ▲ marks the higher score.`
    : `Completions of the same prompt by any two points, for ${count} of the ${completions.total} prompts, evenly spaced: ` +
      "no more fit into this page; run.sqlite has all. ▲ marks the higher score.");
  write("prompt-count", `of ${count}`);
  byId("prompt-number").max = count;
  [state.left, state.right] = firstChoice();
  for (const key of ["left", "right"]) {
    pointOptions(byId(key));
    byId(key).addEventListener("change", (event) => { state[key] = Number(event.target.value); drawComparison(); });
  }
  byId("previous").addEventListener("click", () => goTo(state.prompt - 1));
  byId("next").addEventListener("click", () => goTo(state.prompt + 1));
  byId("prompt-number").addEventListener("change", (event) => goTo(event.target.valueAsNumber - 1));
  byId("find").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.value) find(event.target.value); });
  byId("front-figure").on("plotly_click", ({ points: [clicked] }) => {
    if (!(clicked?.customdata in completions.spec_of)) return;
    state.right = clicked.customdata;
    drawComparison();
  });
  drawComparison();
  return undefined;
}

// ---- Validation

function drawValidation() {
  const validation = front.validation;
  if (!validation) return byId("validation")?.remove();
  const { grid, chosen } = validation;
  write("validation-text", `Hypervolume on ${validation.prompts} validation prompts at ${validation.weights} weights, for every ` +
    `setting that was tried. Chosen: alpha ${setting(chosen.alpha)}, beta ${setting(chosen.beta)}, schedule ${chosen.schedule}.`);
  const schedules = [...new Set(grid.map((entry) => entry.schedule))];
  const figures = schedules.map((schedule, i) => element("div", { class: "figure", id: `validation-figure-${i}`, role: "img",
    "aria-label": visible(`Validation hypervolume over alpha and beta, schedule ${schedule}; the table below has the same numbers`) }));
  show("validation-figures", ...figures);
  schedules.forEach((schedule, i) => drawMap(figures[i].id, grid, chosen, schedule));
  const digits = decimals(grid.map((entry) => entry.hypervolume.value));
  const isChosen = (entry) => ["alpha", "beta", "schedule"].every((key) => entry[key] === chosen[key]);
  show("validation-table", table("Validation hypervolumes",
    [{ head: "alpha" }, { head: "beta" }, { head: "schedule", start: true }, { head: "hypervolume" }, { head: "", start: true }],
    grid.map((entry) => [setting(entry.alpha), setting(entry.beta), name(entry.schedule), estimateCell(entry.hypervolume, digits),
      isChosen(entry) ? "chosen" : ""]),
    (i) => (isChosen(grid[i]) ? "chosen" : "")));
  return undefined;
}

function drawMap(id, grid, chosen, schedule) {
  const entries = grid.filter((entry) => entry.schedule === schedule);
  const values = grid.map((entry) => entry.hypervolume.value);
  const digits = decimals(values);
  const alphas = distinct(entries.map((entry) => entry.alpha));
  const betas = distinct(entries.map((entry) => entry.beta));
  const cell = (alpha, beta) => entries.find((entry) => entry.alpha === alpha && entry.beta === beta);
  const rows = alphas.map((alpha) => betas.map((beta) => cell(alpha, beta)));
  const map = {
    type: "heatmap",
    x: betas.map((beta) => plain(setting(beta))),
    y: alphas.map((alpha) => plain(setting(alpha))),
    z: rows.map((row) => row.map((entry) => entry?.hypervolume.value ?? null)),
    text: rows.map((row) => row.map((entry) => (entry ? number(entry.hypervolume.value, digits) : ""))),
    hovertemplate: "alpha %{y}, beta %{x}: %{text}<extra></extra>",
    colorscale: "Cividis",
    zmin: Math.min(...values),
    zmax: Math.max(...values),
    xgap: 2,
    ygap: 2,
    colorbar: { title: { text: "hypervolume", side: "right" }, thickness: 12, outlinewidth: 0 },
  };
  const [column, row] = [betas.indexOf(chosen.beta), alphas.indexOf(chosen.alpha)];
  const frame = { type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5,
    line: { color: style("--ink"), width: 4 } };
  const titles = [`beta${grid.some((entry) => entry.schedule !== schedule) ? ` (schedule ${plain(schedule)})` : ""}`, "alpha"];
  const written = rows.flatMap((cells, y) => cells.flatMap((entry, x) => (entry ? [cellText(entry, x, y, values, digits)] : [])));
  const arrangement = layout(...titles, { annotations: written, shapes: schedule === chosen.schedule && column >= 0 && row >= 0 ? [frame] : [] });
  for (const side of [arrangement.xaxis, arrangement.yaxis]) Object.assign(side, { type: "category", showgrid: false });
  draw(id, [map], arrangement);
}

// On Cividis, white can be read on the darker half and black on the lighter one.
function cellText(entry, x, y, values, digits) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const value = entry.hypervolume.value;
  const color = value - low > 0.45 * (high - low) ? "#000000" : "#ffffff";
  return { x, y, text: number(value, digits), showarrow: false, font: { color } };
}

function distinct(values) {
  const numbers = values.filter((value) => typeof value === "number").sort((a, b) => a - b);
  return [...new Set([...numbers, ...values.filter((value) => typeof value !== "number")])];
}

// ---- Forgetting

function drawForgetting() {
  if (!hasPerplexity) return;
  const reward = state.forgettingReward;
  const traces = groups.filter((group) => !state.hidden.has(group.name)).reverse().map((group) => {
    const points = front.points.filter((point) => point.group === group.name && point.perplexity);
    const perplexity = points.map((point) => point.perplexity);
    return cloud(points, (point) => point.perplexity.mean, (point) => point.scores[reward].mean, group, {
      error_y: { ...bars(points, reward), color: faded(ink(group), 0.45) },
      error_x: { type: "data", symmetric: false, thickness: 1, width: 0, color: faded(ink(group), 0.2),
        array: perplexity.map(({ high, mean }) => Math.max(0, high - mean)),
        arrayminus: perplexity.map(({ low, mean }) => Math.max(0, mean - low)) },
    });
  });
  draw("forgetting-figure", traces,
    layout(axisTitle("perplexity of control texts", "lower: less forgotten"), scoreTitle(reward)));
}

function setUpForgetting() {
  if (!hasPerplexity) return byId("forgetting")?.remove();
  const { texts, tokens, source } = front.forgetting ?? {};
  const counted = texts === undefined ? "texts outside the task" : `${texts} texts outside the task (${tokens} tokens)`;
  write("forgetting-text", `Perplexity of ${counted}${source ? ` from ${source}` : ""} under every point, against its reward: ` +
    "up is more reward, left is less forgotten. The groups are those that are switched on above.");
  rewardChooser("forgetting-reward", "forgettingReward", drawForgetting);
  if (data.undone.length) drawUndone();
  return undefined;
}

function percent(share) {
  return share === null ? "–" : `${number(100 * share, 0)} %`;
}

function drawUndone() {
  const columns = [{ head: "weights" }, { head: "policy", start: true }, { head: "damage undone" },
    ...rewards.map((reward) => ({ head: element("span", {}, "kept of ", name(reward)) }))];
  show("undone-table",
    element("h3", {}, "LiNeS beside the rewarded soup at the same weights"),
    table("Damage undone and reward kept by LiNeS", columns, data.undone.map((row) => [row.weights.map(share).join(" / "),
      row.policy === null ? "" : name(row.policy), percent(row.damage_undone),
      ...rewards.map((reward) => percent(row.reward_kept[reward]))])),
    element("p", { class: "caption" }, "Damage: the rise of the perplexity over the SFT model. Kept: of the gain in mean " +
      "score over the SFT model. – where the soup did no damage or gained nothing."));
}

function rewardChooser(id, key, redraw) {
  options(byId(id), rewards.map((reward, i) => [i, reward]), rewards.indexOf(state[key]));
  byId(id).addEventListener("change", (event) => { state[key] = rewards[event.target.value]; redraw(); });
}

// ---- Predicted and measured

// What was predicted and measured, of all groups.
const predictions = Object.values(front.surrogate ?? {}).flatMap((report) => report.predicted);

function drawSurrogate() {
  if (!predictions.length) return;
  const reward = state.surrogateReward;
  const of = new Map(predictions.map((entry) => [entry.id, entry]));
  const traces = groups.map((group) => cloud(
    front.points.filter((point) => point.group === group.name && of.has(point.id)),
    (point) => of.get(point.id).predicted[reward], (point) => of.get(point.id).measured[reward], group, {}));
  const values = predictions.flatMap((entry) => [entry.predicted[reward], entry.measured[reward]]);
  const ends = [Math.min(...values), Math.max(...values)];
  const diagonal = { type: "scatter", mode: "lines", x: ends, y: ends, hoverinfo: "skip",
    line: { color: style("--faint"), dash: "dot", width: 1 } };
  const title = (what) => plain(`${shortened(reward, 30)}: ${what} mean score`);
  draw("surrogate-figure", [diagonal, ...traces], layout(title("predicted"), title("measured")));
}

function setUpSurrogate() {
  if (!predictions.length) return byId("surrogate")?.remove();
  const fitted = Object.values(front.surrogate).reduce((sum, report) => sum + report.sampled.length, 0);
  write("surrogate-text", `A quadratic per reward and group was fitted to ${fitted} measured points; the ` +
    `${predictions.length} points that it predicts to be on the front were measured too. On the dotted line both agree.`);
  rewardChooser("surrogate-reward", "surrogateReward", drawSurrogate);
  const columns = [{ head: "id" }, { head: "group", start: true }, { head: "weights" },
    ...rewards.flatMap((reward) => [{ head: element("span", {}, name(reward), " predicted") }, { head: "measured" }])];
  show("surrogate-table", table("Predicted and measured scores", columns, predictions.map((entry) => {
    const point = pointById.get(entry.id);
    return [String(entry.id), groupName(point.group), weightsText(point),
      ...rewards.flatMap((reward) => [entry.predicted, entry.measured].map((of) => number(of[reward], digitsOf[reward])))];
  })));
  return undefined;
}

// ---- Head and foot

function drawHead() {
  document.title = visible(made.title ? `${made.title}: front` : "Front of a sweep");
  if (made.title) write("title", made.title);
  write("swept", data.swept);
  show("facts", ...data.facts.map((fact) => element("div", { class: `fact ${fact.verdict}` },
    element("h2", {}, fact.title), element("p", {}, fact.text))));
}

function drawMade() {
  const parts = [];
  const pairs = (label, rows) => table(label, [{ head: label, start: true }, { head: "", start: true }],
    rows.map(([key, value]) => [name(key), name(value)]));
  for (const [purpose, command] of made.commands ?? []) {
    parts.push(element("h3", {}, purpose), element("pre", {}, command));
  }
  if (made.facts?.length) parts.push(element("h3", {}, "The run"), pairs("setting", made.facts));
  if (made.versions) parts.push(element("h3", {}, "Versions"), pairs("package", Object.entries(made.versions)));
  if (made.config) parts.push(element("h3", {}, "config.yaml"), element("pre", {}, made.config));
  show("made-content", ...parts);
  if (!parts.length) byId("made").remove();
}

function drawContents() {
  const sections = [...document.querySelectorAll("section[data-name]")];
  show("contents", ...sections.map((section) => element("a", { href: `#${section.id}` }, section.dataset.name)));
}

// What has colours that no style sheet reaches.
function drawFigures() {
  drawFront();
  drawValidation();
  drawForgetting();
  drawSurrogate();
}

drawHead();
setUpFront();
setUpWeights();
drawVolumes();
setUpForgetting();
setUpSurrogate();
drawPoints();
drawMade();
drawFigures();
setUpComparison();
drawContents();
for (const screen of [darkScreen, narrowScreen]) screen.addEventListener("change", drawFigures);
