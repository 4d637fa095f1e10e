
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
const LOST = 3; // prompts that are listed

// What the reader has chosen: a point, and where the sliders stand (-1: at no preference for which the point is best);
// and with whose completions those of the point are compared.
let { selected, step, choice } = data;
let beside;

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
    if (trace.meta?.includes("compared")) putAround(trace, traces, compared().filter((point) => point !== selected));
    if (trace.meta?.includes("selected")) putAround(trace, traces, [selected]);
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

const marked = ["front-figure", "pair-figure", "kl-figure", "ternary-figure"].filter((id) => id in data.figures);

function drawMarked() {
  marked.forEach(draw);
}

// ---- The selected point: the sliders follow it, what it does badly is told, its completions stand on the right

function select(id) {
  const before = selected;
  selected = id;
  const at = data.steps.findIndex(({ points }) => points.includes(id));
  if (at >= 0) step = at;
  if (data.choices[choice]?.point !== id) choice = data.choices.findIndex(({ point }) => point === id);
  if (completions && id in completions.spec_of) {
    if (beside !== String(id)) byId("left").value = beside;
    else if (before !== id && before in completions.spec_of) byId("left").value = before; // not beside itself
    byId("right").value = id;
    choose();
  }
  showSelected();
}

function showSelected() {
  showWeights();
  showPreference();
  showBadly();
  for (const row of document.querySelectorAll("tr[data-point]")) mark(row, row.dataset.point === String(selected));
  for (const body of linked) rove(body);
}

function mark(row, current) {
  if (current) row.setAttribute("aria-current", "true");
  else row.removeAttribute("aria-current");
}

// One link of a table of points is reached by Tab, the others by arrows.
const linked = [...document.querySelectorAll("tbody:has(tr[data-point], tr[data-preference])")];

function rove(body, to = body.querySelector("tr[aria-current] a") ?? body.querySelector("a")) {
  for (const link of body.querySelectorAll("a")) link.tabIndex = link === to ? 0 : -1;
}

function showBadly() {
  if (!byId("selected")) return;
  byId("selected-policy").replaceChildren(...copyOf(`policy-${selected}`).children);
  const [told, lines] = data.badly[selected];
  byId("told").textContent = told;
  const rows = [...byId("badly-table").querySelector("tbody").rows];
  for (const [i, [own, range, sft, verdict]] of lines.entries()) {
    const [, mine, theirs, said] = rows[i].cells;
    [mine.firstElementChild, mine.querySelector(".range"), theirs, said]
      .forEach((part, k) => { part.textContent = [own, range, sft, verdict][k]; });
    rows[i].classList.toggle("worse", verdict !== "");
  }
  if (data.picks) byId("pick-command").textContent = data.picks.choices[choice] ?? data.picks.point + selected;
  if (completions) showLost();
}

// The prompts for which the selected point lost most against the SFT model, as far as they are on the page.
function showLost() {
  const [own, sft] = [specOf(selected), specOf(data.sft)];
  byId("lost").hidden = own === undefined || sft === undefined || selected === data.sft;
  if (byId("lost").hidden) return;
  const losses = completions.prompts.map((_, number) => lossOf(own, number));
  const worst = [...losses.keys()].filter((number) => losses[number] > 0)
    .sort((a, b) => losses[b] - losses[a] || a - b).filter((_, place) => place < LOST);
  byId("lost").querySelector("ol").replaceChildren(...worst.map((number) => {
    const shown = copyOf("lost-prompt");
    const link = shown.querySelector("a");
    link.textContent = askedIn(number);
    link.href = addressOf(`p=${number + 1}&a=${data.sft}&b=${selected}`);
    const values = [...shown.querySelectorAll("dd")];
    for (let k = 0; 2 * k < values.length; k += 1) {
      const { texts, ranks } = completions.measures[k];
      [own, sft].forEach((spec, i) => {
        values[2 * k + i].textContent = ranks[spec][number].filter((rank) => rank !== null).map((rank) => texts[rank]).join(" / ");
      });
    }
    return shown;
  }));
  byId("lost").querySelector("p").hidden = worst.length > 0;
}

// The selected point comes into view.
function open(id) {
  if (!(id in data.groups)) return;
  select(Number(id));
  drawMarked();
  keepAddress();
  (byId("selected") ?? byId("compare")).scrollIntoView();
}

function setUpSelection() {
  for (const id of marked) byId(id).on("plotly_click", ({ points: [clicked] }) => open(clicked?.customdata));
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another window
    const link = event.target.closest("a[href^='#b=']");
    const row = event.target.closest("tr[data-point], tr[data-preference]");
    if (!link && (!row || String(getSelection()))) return; // who marks a text to copy it selects nothing else
    event.preventDefault();
    if (row?.dataset.preference) choice = Number(row.dataset.preference);
    open(link ? link.hash.slice(3) : row.dataset.point ?? data.choices[choice].point);
  });
  for (const body of linked) {
    body.addEventListener("keydown", (event) => {
      const { parentElement: row, cellIndex } = event.target.closest("td, th");
      const column = [...body.rows].map(({ cells }) => cells[cellIndex].querySelector("a")).filter(Boolean);
      const besides = [...row.querySelectorAll("a")];
      const [down, right] = [column, besides].map((links) => links.indexOf(event.target));
      const to = {
        ArrowDown: column[down + 1], ArrowUp: column[down - 1], Home: column[0], End: column.at(-1),
        ArrowRight: besides[right + 1], ArrowLeft: besides[right - 1],
      }[event.key];
      if (!to) return;
      event.preventDefault();
      rove(body, to);
      to.focus();
    });
  }
}

// ---- The slider over preferences, from the last objective to the first as the one over weights

function setUpPreference() {
  const slider = byId("preference");
  slider?.addEventListener("input", () => {
    choice = data.choices.length - 1 - Number(slider.value);
    select(data.choices[choice].point);
    moveLeft();
    drawMarked();
  });
  slider?.addEventListener("change", keepAddress);
}

function showPreference() {
  for (const row of document.querySelectorAll("tr[data-preference]")) mark(row, row.dataset.preference === String(choice));
  const [slider, utility] = [byId("preference"), byId("kl-utility")];
  if (utility) {
    utility.value = choice + 1;
    utility.textContent = data.utilities[choice + 1];
  }
  if (!slider) return;
  byId("preference-off").hidden = choice >= 0;
  byId("preference-text").textContent = data.choices[choice]?.text ?? "";
  if (choice >= 0) slider.value = data.choices.length - 1 - choice;
  slider.setAttribute("aria-valuetext", (choice >= 0 ? byId("preference-text") : byId("preference-off")).textContent);
}

// ---- The sliders over weights: one over all, or one a policy

const sliders = [...document.querySelectorAll("#weight, .part")];
const [weightBody] = byId("weight-table")?.querySelector("table").tBodies ?? [];
const weightRows = [...weightBody?.rows ?? []];

function showWeights() {
  if (!sliders.length) return;
  const { text, parts, points } = data.steps[step];
  byId("weight-text").textContent = text;
  for (const [k, slider] of sliders.entries()) {
    slider.value = byId("weight") ? step : data.values[k].indexOf(parts[k]);
    slider.setAttribute("aria-valuetext", text);
  }
  weightBody.replaceChildren(...weightRows.filter((row) => (row.dataset.step ?? String(step)) === String(step)));
  byId("weight-off").hidden = points.includes(selected);
}

function setUpWeights() {
  // Of the weights with this value for one policy, those nearest to where the sliders were.
  const nearest = (k, value) => {
    const { parts } = data.steps[step];
    const far = (other) => other.parts.reduce((sum, part, j) => sum + (part - parts[j]) ** 2, 0);
    return data.steps.filter((other) => other.parts[k] === value).reduce((a, b) => (far(b) < far(a) ? b : a));
  };
  for (const [k, slider] of sliders.entries()) {
    slider.addEventListener("input", () => {
      step = byId("weight") ? Number(slider.value) : data.steps.indexOf(nearest(k, data.values[k][slider.value]));
      const { points } = data.steps[step];
      select(points.find((id) => data.groups[id] === data.groups[selected]) ?? points[0]);
      moveLeft();
      drawMarked();
    });
    slider.addEventListener("change", keepAddress);
  }
}

// A merge that the reader chose to compare with moves along to the weights of the selected point.
function moveLeft() {
  if (!completions) return;
  const group = data.groups[byId("left").value];
  const found = data.steps[step]?.points.find((id) => data.groups[id] === group && id in completions.spec_of);
  if (found === undefined || found === selected) return;
  beside = String(found);
  byId("left").value = beside;
  choose();
}

// ---- Completions

let prompt = 0;
let order = [];
let compared = () => [];

function copyOf(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

// What was asked in a prompt, in short.
const askedIn = (number) => completions.asked[number] ?? completions.prompts[number];
const specOf = (id) => completions.spec_of[id];
const sides = () => ["left", "right"].map((id) => byId(id).value);
if (completions) compared = () => sides().map(Number);

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

// By how much a spec is below the SFT model, over all objectives.
function lossOf(spec, number) {
  return differences(spec, specOf(data.sft), number).reduce((sum, value) => sum + value, 0);
}

// The prompts in the order that the reader asks for.
function arrange() {
  const [left, right] = sides().map(specOf);
  const how = byId("order").value;
  const count = completions.prompts.length;
  const weigh = {
    difference: (number) => differences(left, right, number).reduce((sum, value) => sum + Math.abs(value), 0),
    loss: (number) => (specOf(data.sft) === undefined ? 0 : lossOf(right, number)),
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

// A long text shows its beginning, one that is given in short that; its button the rest.
function fold(box, short = null) {
  const [text, button] = [box.querySelector("p"), box.querySelector(".unfold")];
  const whole = text.textContent;
  const isLong = (shown) => shown.length > LONG || shown.split("\n").length > LINES;
  const long = isLong(whole) || (short ?? whole) !== whole;
  const set = (folded) => {
    if (short !== null) text.textContent = folded ? short : whole;
    box.classList.toggle("folded", folded && isLong(short ?? whole));
    button.setAttribute("aria-expanded", String(!folded));
    [button.children[0].hidden, button.children[1].hidden] = [!folded, folded];
  };
  button.hidden = !long;
  set(long);
  button.onclick = () => set(button.getAttribute("aria-expanded") === "true");
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
  const shown = copyOf(`policy-${id}`);
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
  fold(byId("comparison").querySelector(".prompt-fold"), askedIn(prompt));
  const written = [left, right].map((id) => completions.written[specOf(id)][prompt]);
  const pairs = written[0].map((index, i) => {
    const both = [index, written[1][i] ?? null];
    return byId("words").checked && !both.includes(null) ? unlike(both.map((one) => completions.texts[one])) : null;
  });
  const marked = [0, 1].map((k) => written[k].map((_, i) => pairs[i]?.[k] ?? null));
  byId("comparison").querySelector(".sides").replaceChildren(side(left, right, marked[0]), side(right, left, marked[1]));
  const shownKl = [left, right].flatMap((id) => completions.measures.at(-1).ranks[specOf(id)][prompt]);
  byId("negative-kl").hidden = !shownKl.some((rank) => rank !== null && completions.measures.at(-1).texts[rank].startsWith("\u2212"));
  byId("address").href = addressOf(`p=${prompt + 1}&a=${left}&b=${right}`);
}

function goTo(number) {
  if (!Number.isInteger(number)) return;
  prompt = Math.min(Math.max(number, 0), completions.prompts.length - 1);
  compare();
  keepAddress();
}

// The address of a view, with the preference by which its policy is best.
function addressOf(view) {
  return `#${view}${choice >= 0 ? `&w=${data.choices[choice].address}` : ""}`;
}

// The address of the window is that of the view once the reader has chosen one.
function keepAddress() {
  const shown = completions && compared().includes(selected);
  history.replaceState(null, "", shown ? byId("address").getAttribute("href") : addressOf(`b=${selected}`));
}

// Another pair, or another order: begin where it begins.
function choose({ at = null } = {}) {
  arrange();
  prompt = at ?? order[0];
  compare();
}

// What an address such as #p=12&a=3&b=7&w=70-30 or #b=7 asks for; one without b is of no view.
function openAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!(asked.get("b") in data.groups)) return;
  const isRead = completions && asked.get("b") in completions.spec_of;
  if (isRead && asked.get("a") in completions.spec_of) beside = asked.get("a");
  const preferred = data.choices.findIndex(({ address }) => address === asked.get("w"));
  if (preferred >= 0) choice = preferred;
  select(Number(asked.get("b")));
  const number = Number(asked.get("p")) - 1;
  if (isRead) choose({ at: number in completions.prompts ? number : null });
  drawMarked();
  (isRead && asked.has("p") ? byId("compare") : byId("selected") ?? byId("compare")).scrollIntoView();
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
  beside = data.sft in completions.spec_of ? String(data.sft) : byId("left").value;
  const chosen = () => { choose(); keepAddress(); drawMarked(); };
  byId("left").addEventListener("change", () => {
    beside = byId("left").value;
    chosen();
  });
  byId("right").addEventListener("change", () => {
    select(Number(byId("right").value));
    keepAddress();
    drawMarked();
  });
  byId("order").addEventListener("change", chosen);
  byId("words").addEventListener("change", compare);
  byId("previous").addEventListener("click", () => goTo(order[order.indexOf(prompt) - 1]));
  byId("next").addEventListener("click", () => goTo(order[order.indexOf(prompt) + 1]));
  byId("prompt-number").addEventListener("change", (event) => goTo(event.target.valueAsNumber - 1));
  byId("find").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.value) find(event.target.value); });
  choose();
}

// ---- Tables that are wider or longer than their place say so

function setUpScrolling() {
  for (const box of document.querySelectorAll(".scroll")) {
    const button = box.nextElementSibling;
    const show = () => {
      const wide = box.scrollWidth > box.clientWidth + 1;
      box.previousElementSibling.hidden = !wide;
      box.classList.toggle("further", wide && box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
      button.hidden = !box.classList.contains("whole") && box.scrollHeight <= box.clientHeight + 1;
    };
    button.addEventListener("click", () => {
      const whole = box.classList.toggle("whole");
      button.setAttribute("aria-expanded", String(whole));
      [button.children[0].hidden, button.children[1].hidden] = [whole, !whole];
    });
    box.addEventListener("scroll", show, { passive: true });
    const watch = new ResizeObserver(show);
    watch.observe(box);
    watch.observe(box.firstElementChild);
  }
}

setUpComparison();
select(selected);
setUpPreference();
setUpWeights();
drawAll();
setUpSelection();
setUpScrolling();
addEventListener("hashchange", openAddress);
openAddress();
for (const control of document.querySelectorAll("fieldset input, #axes select, #kl-reward, #ternary-measure, #forgetting-reward, #benchmarks-metric, #surrogate-reward")) {
  control.addEventListener("change", drawAll);
}
for (const screen of [darkScreen, narrowScreen]) screen.addEventListener("change", drawAll);
