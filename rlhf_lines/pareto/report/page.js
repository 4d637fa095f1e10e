
"use strict";

// What reacts to a person. Every text, mark and colour was made where the page was; names and texts from models, data sets
// and users stand in this one object or are in the page already, and reach it as text nodes, never as markup. What depends
// on a pair of points that the reader chooses is worked out here: the order of prompts, and which words differ.
const data = JSON.parse(document.getElementById("data").textContent);
const { completions } = data;
const byId = (id) => document.getElementById(id);
const darkScreen = matchMedia("screen and (prefers-color-scheme: dark)");
const narrowScreen = matchMedia("(max-width: 700px)");
const WORDS = 2000; // of two texts with more, the time for finding what differs would be felt
const LONG = 900; // characters, or
const LINES = 14; // lines, beyond which a text is folded

let step = 0;
let compared = [];

// ---- Figures

// A copy with the colours that the style sheet has for this screen.
function coloured(value) {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(JSON.stringify(value), (_, part) =>
    (typeof part === "string" && part.startsWith("var(--") ? style.getPropertyValue(part.slice(4, -1)).trim() : part));
}

function draw(id) {
  const { figure, narrow, choices } = coloured(data.figures[id]);
  const changes = Object.entries(choices[Number(narrowScreen.matches)]).map(([control, options]) => {
    const { type, checked, value } = byId(control);
    return options[type === "checkbox" ? Number(checked) : value];
  });
  for (const change of narrowScreen.matches ? [narrow, ...changes] : changes) {
    change.data.forEach((changed, i) => Object.assign(figure.data[i], changed));
    Object.assign(figure.layout, change.layout);
  }
  // A finger scrolls the page; a mouse draws the region to look at.
  figure.layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  const traces = figure.data.filter(({ meta = [] }) => meta.every((box) => byId(box)?.checked ?? true));
  for (const trace of traces) {
    if (trace.meta?.includes("ring")) putAround(trace, traces, data.steps[step]?.points ?? []);
    if (trace.meta?.includes("compared")) putAround(trace, traces, compared);
  }
  Plotly.react(id, traces, figure.layout, { responsive: true, displayModeBar: false, displaylogo: false });
}

// Rings around these points, as far as they are drawn.
function putAround(ring, traces, ids) {
  for (const trace of traces) {
    (trace.customdata ?? []).forEach((id, i) => {
      if (ids.includes(id)) for (const axis of ["x", "y", "a", "b", "c"]) if (axis in ring) ring[axis].push(trace[axis][i]);
    });
  }
}

function drawAll() {
  Object.keys(data.figures).forEach(draw);
}

function drawMarked() {
  for (const id of ["front-figure", "pair-figure", "kl-figure", "ternary-figure"]) if (id in data.figures) draw(id);
}

// ---- The sliders: one over all weights, or one a policy

function setUpWeights() {
  const sliders = [...document.querySelectorAll("#weight, .part")];
  if (!sliders.length) return;
  const single = byId("weight");
  const [body] = byId("weight-table").querySelector("table").tBodies;
  const rows = [...body.rows];
  const show = () => {
    const { text, parts } = data.steps[step];
    byId("weight-text").textContent = text;
    for (const [k, slider] of sliders.entries()) {
      slider.value = single ? step : data.values[k].indexOf(parts[k]);
      slider.setAttribute("aria-valuetext", text);
    }
    body.replaceChildren(...rows.filter((row) => (row.dataset.step ?? String(step)) === String(step)));
  };
  // Of the weights with this value for one policy, those nearest to where the sliders were.
  const nearest = (k, value) => {
    const { parts } = data.steps[step];
    const far = (other) => other.parts.reduce((sum, part, j) => sum + (part - parts[j]) ** 2, 0);
    return data.steps.filter((other) => other.parts[k] === value).reduce((a, b) => (far(b) < far(a) ? b : a));
  };
  for (const [k, slider] of sliders.entries()) {
    slider.addEventListener("input", () => {
      step = single ? Number(slider.value) : data.steps.indexOf(nearest(k, data.values[k][slider.value]));
      show();
      if (completions) moveTo(data.steps[step].points);
      drawMarked();
    });
  }
  step = data.steps.length >> 1;
  show();
}

// The points of the compared groups among these.
function moveTo(ids) {
  for (const side of ["left", "right"]) {
    const group = data.groups[byId(side).value];
    const found = ids.find((id) => data.groups[id] === group && id in completions.spec_of);
    if (found !== undefined) byId(side).value = found;
  }
  choose();
}

// ---- Completions

let prompt = 0;
let order = [];

function copyOf(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

const specOf = (id) => completions.spec_of[id];
const sides = () => ["left", "right"].map((id) => byId(id).value);

// The mean over samples of a score of a prompt, in units of its spread; null where there is none.
function score({ values, ranks }, spec, number) {
  const known = ranks[spec][number].filter((rank) => rank !== null).map((rank) => values[rank]);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function differences(a, b, number) {
  const found = [];
  for (const measure of completions.measures.filter(({ values }) => values)) {
    const pair = [a, b].map((spec) => score(measure, spec, number));
    if (!pair.includes(null)) found.push(pair[1] - pair[0]);
  }
  return found;
}

// The prompts in the order that the reader asks for.
function arrange() {
  const [left, right] = sides().map(specOf);
  const sft = specOf(data.sft);
  const how = byId("order").value;
  const count = completions.prompts.length;
  const weigh = {
    difference: (number) => differences(left, right, number).reduce((sum, value) => sum + Math.abs(value), 0),
    loss: (number) => (sft === undefined ? 0 : -differences(sft, right, number).reduce((sum, value) => sum + value, 0)),
    run: () => 0,
  }[how];
  const keys = Array.from({ length: count }, (_, number) => weigh(number));
  order = [...keys.keys()].sort((a, b) => keys[b] - keys[a] || a - b);
}

const words = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}'’_-]+|[^\s]/gu) ?? [];

// Which words of each text are in no longest common subsequence of both; null where that would take too long.
function unlike(texts) {
  const [a, b] = texts.map(words);
  if (a.length > WORDS || b.length > WORDS) return null;
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const parts = [[], []];
  const put = (side, word, marked) => {
    const last = parts[side].at(-1);
    if (last && last.marked === marked) last.text += word;
    else parts[side].push({ text: word, marked });
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      put(0, a[i], false);
      put(1, b[j], false);
      [i, j] = [i + 1, j + 1];
    } else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      put(0, a[i], true);
      i += 1;
    } else {
      put(1, b[j], true);
      j += 1;
    }
  }
  return parts;
}

function write(element, text, parts) {
  element.replaceChildren(...(parts ?? [{ text, marked: false }]).map(({ text: own, marked }) => {
    if (!marked) return document.createTextNode(own);
    const mark = document.createElement("mark");
    mark.textContent = own;
    return mark;
  }));
}

// A long text shows its beginning; its button the rest.
function fold(box) {
  const [text, button] = [box.querySelector("p"), box.querySelector(".unfold")];
  const { length } = text.textContent;
  const long = length > LONG || text.textContent.split("\n").length > LINES;
  const set = (folded) => {
    box.classList.toggle("folded", folded);
    button.setAttribute("aria-expanded", String(!folded));
    [button.children[0].hidden, button.children[1].hidden] = [!folded, folded];
  };
  button.hidden = !long;
  set(long);
  button.onclick = () => set(!box.classList.contains("folded"));
}

function sample(spec, other, index, number, parts) {
  const shown = copyOf("sample");
  const text = shown.querySelector(".text");
  if (index !== null) write(text, completions.texts[index] || text.dataset.empty, completions.texts[index] ? parts : null);
  fold(shown.querySelector(".fold"));
  shown.querySelectorAll("dl > div").forEach((measure, k) => {
    const { texts, ranks } = completions.measures[k];
    const [own, others] = [spec, other].map((of) => ranks[of][prompt][number] ?? null);
    if (own !== null) measure.querySelector("dd > span").textContent = texts[own];
    // A KL has no mark: it is neither good nor bad.
    const higher = own !== null && others !== null && own > others;
    measure.classList.toggle("higher", higher && measure.querySelector(".mark") !== null);
  });
  return shown;
}

function side(id, otherId, marked) {
  const [spec, other] = [id, otherId].map(specOf);
  const shown = copyOf(`side-${id}`);
  const written = completions.written[spec][prompt];
  shown.querySelector("h3").after(...written.map((index, i) => sample(spec, other, index, i, marked[i])));
  return shown;
}

function compare() {
  const [left, right] = sides();
  const place = order.indexOf(prompt);
  byId("prompt-number").value = prompt + 1;
  byId("previous").disabled = place === 0;
  byId("next").disabled = place === order.length - 1;
  byId("place").firstElementChild.textContent = place + 1;
  byId("comparison").querySelector(".prompt").textContent = completions.prompts[prompt];
  fold(byId("comparison").querySelector(".prompt-fold"));
  const written = [left, right].map((id) => completions.written[specOf(id)][prompt]);
  const pairs = written[0].map((index, i) => {
    const both = [index, written[1][i] ?? null];
    return byId("words").checked && !both.includes(null) ? unlike(both.map((one) => completions.texts[one])) : null;
  });
  const marked = [0, 1].map((k) => written[k].map((_, i) => pairs[i]?.[k] ?? null));
  byId("comparison").querySelector(".sides").replaceChildren(side(left, right, marked[0]), side(right, left, marked[1]));
  byId("address").href = `#p=${prompt + 1}&a=${left}&b=${right}`;
}

function goTo(number) {
  if (!Number.isInteger(number)) return;
  prompt = Math.min(Math.max(number, 0), completions.prompts.length - 1);
  compare();
  keepAddress();
}

// The address of the window is that of the view once the reader has chosen one.
function keepAddress() {
  history.replaceState(null, "", byId("address").getAttribute("href"));
}

// Another pair, or another order: begin where it begins.
function choose({ at = null } = {}) {
  compared = sides().map(Number);
  arrange();
  prompt = at ?? order[0];
  compare();
}

// What an address such as #p=12&a=3&b=7 asks for; one without b is of no view.
function openAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!completions || !(asked.get("b") in completions.spec_of)) return;
  for (const [key, id] of [["a", "left"], ["b", "right"]]) if (asked.get(key) in completions.spec_of) byId(id).value = asked.get(key);
  const number = Number(asked.get("p")) - 1;
  choose({ at: number in completions.prompts ? number : null });
  drawMarked();
  byId("compare").scrollIntoView();
}

// The next prompt, after this one and around, that has the text in itself or in one of the two columns.
function find(text) {
  const count = completions.prompts.length;
  const columns = sides().map((id) => completions.written[specOf(id)]);
  const holds = (number) => [completions.prompts[number],
    ...columns.flatMap((written) => written[number].map((index) => completions.texts[index] ?? ""))]
    .some((candidate) => candidate.toLowerCase().includes(text.toLowerCase()));
  const found = Array.from({ length: count }, (_, i) => (prompt + 1 + i) % count).find(holds);
  const [there, nowhere] = byId("found").children;
  [there.hidden, nowhere.hidden] = [found === undefined, found !== undefined];
  if (found === undefined) return;
  there.firstElementChild.textContent = found + 1;
  goTo(found);
}

function setUpComparison() {
  if (!completions) return;
  for (const measure of completions.measures.filter(({ spread }) => spread)) {
    measure.values = measure.texts.map((text) => Number(text.replace("\u2212", "-")) / measure.spread);
  }
  const chosen = () => { choose(); keepAddress(); drawMarked(); };
  for (const id of ["left", "right"]) byId(id).addEventListener("change", chosen);
  byId("order").addEventListener("change", chosen);
  byId("words").addEventListener("change", compare);
  byId("previous").addEventListener("click", () => goTo(order[order.indexOf(prompt) - 1]));
  byId("next").addEventListener("click", () => goTo(order[order.indexOf(prompt) + 1]));
  byId("prompt-number").addEventListener("change", (event) => goTo(event.target.valueAsNumber - 1));
  byId("find").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.value) find(event.target.value); });
  for (const id of ["front-figure", "pair-figure", "kl-figure", "ternary-figure"]) {
    if (id in data.figures) byId(id).on("plotly_click", ({ points: [clicked] }) => open(clicked?.customdata));
  }
  choose();
  addEventListener("hashchange", openAddress);
}

// The completions of a point, on the right, come into view.
function open(id) {
  if (!(id in completions.spec_of)) return;
  if (byId("left").value === String(id)) byId("left").value = byId("right").value;
  byId("right").value = id;
  choose();
  keepAddress();
  drawMarked();
  byId("compare").scrollIntoView();
}

setUpWeights();
drawAll();
setUpComparison();
drawMarked();
openAddress();
for (const control of document.querySelectorAll("fieldset input, #axes select, .figures select, #ternary-measure, #forgetting-reward, #surrogate-reward")) {
  control.addEventListener("change", drawAll);
}
for (const screen of [darkScreen, narrowScreen]) screen.addEventListener("change", drawAll);
