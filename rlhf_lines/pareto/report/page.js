
"use strict";

// What reacts to a person. Every text, mark and colour was made where the page was; names and texts from models, data sets
// and users stand in this one object or are in the page already, and reach it as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const { completions } = data;
const byId = (id) => document.getElementById(id);
const darkScreen = matchMedia("screen and (prefers-color-scheme: dark)");
const narrowScreen = matchMedia("(max-width: 700px)");

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
  for (const trace of traces) if (trace.meta?.includes("ring")) putAround(trace, traces);
  Plotly.react(id, traces, figure.layout, { responsive: true, displayModeBar: false, displaylogo: false });
}

// Rings around the points at the slider's weights, as far as they are drawn.
function putAround(ring, traces) {
  const ids = data.steps[byId("weight")?.value ?? 0]?.points ?? [];
  for (const { customdata = [], x, y } of traces) {
    customdata.forEach((id, i) => { if (ids.includes(id)) { ring.x.push(x[i]); ring.y.push(y[i]); } });
  }
}

function drawAll() {
  Object.keys(data.figures).forEach(draw);
}

// ---- The slider

function setUpWeights() {
  const slider = byId("weight");
  if (!slider) return;
  const [body] = byId("weight-table").querySelector("table").tBodies;
  const rows = [...body.rows];
  const show = () => {
    const { text } = data.steps[slider.value];
    byId("weight-text").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    body.replaceChildren(...rows.filter((row) => (row.dataset.step ?? slider.value) === slider.value));
  };
  slider.addEventListener("input", () => { show(); draw("front-figure"); });
  show();
}

// ---- Completions

let prompt = 0;

function copyOf(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

function sample(spec, other, index, number) {
  const shown = copyOf("sample");
  const text = shown.querySelector(".text");
  if (index !== null) text.textContent = completions.texts[index] || text.dataset.empty;
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

function side(id, otherId) {
  const [spec, other] = [id, otherId].map((key) => completions.spec_of[key]);
  const shown = copyOf(`side-${id}`);
  shown.querySelector("h3").after(...completions.written[spec][prompt].map((index, i) => sample(spec, other, index, i)));
  return shown;
}

function compare() {
  const [left, right] = ["left", "right"].map((id) => byId(id).value);
  byId("prompt-number").value = prompt + 1;
  byId("previous").disabled = prompt === 0;
  byId("next").disabled = prompt === completions.prompts.length - 1;
  byId("comparison").querySelector(".prompt").textContent = completions.prompts[prompt];
  byId("comparison").querySelector(".sides").replaceChildren(side(left, right), side(right, left));
}

function goTo(number) {
  if (!Number.isInteger(number)) return;
  prompt = Math.min(Math.max(number, 0), completions.prompts.length - 1);
  compare();
}

// The next prompt, after this one and around, that has the text in itself or in one of the two columns.
function find(text) {
  const count = completions.prompts.length;
  const columns = ["left", "right"].map((id) => completions.written[completions.spec_of[byId(id).value]]);
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
  for (const id of ["left", "right"]) byId(id).addEventListener("change", compare);
  byId("previous").addEventListener("click", () => goTo(prompt - 1));
  byId("next").addEventListener("click", () => goTo(prompt + 1));
  byId("prompt-number").addEventListener("change", (event) => goTo(event.target.valueAsNumber - 1));
  byId("find").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.value) find(event.target.value); });
  byId("front-figure").on("plotly_click", ({ points: [clicked] }) => {
    if (!(clicked?.customdata in completions.spec_of)) return;
    byId("right").value = clicked.customdata;
    compare();
  });
  compare();
}

setUpWeights();
drawAll();
setUpComparison();
for (const control of document.querySelectorAll("fieldset input, #axes select, #forgetting-reward, #surrogate-reward")) {
  control.addEventListener("change", drawAll);
}
for (const screen of [darkScreen, narrowScreen]) screen.addEventListener("change", drawAll);
