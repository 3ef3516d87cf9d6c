"use strict";

const POINTS = 120;
const PERIOD_MS = 250;
const STALE_S = 2;
const byId = (id) => document.getElementById(id);
const history = { age: [], drops: [] };
let before = null;
let place = null;
let moving = false;

const FIGURES = [
  ["captured", "captured"], ["classified", "classified"], ["dropped", "dropped"],
  ["fps", "answers per second"], ["age_p50_ms", "age, median, ms"], ["age_p99_ms", "age, 99%, ms"],
  ["busy_p50_ms", "inference with preprocessing, ms"], ["losses", "connections lost"], ["stalls", "stalls"],
];

function number(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function draw(id, values) {
  const most = Math.max(...values, 1e-9) * 1.1;
  const points = values.map((v, i) => `${(300 * i) / (POINTS - 1)},${80 - (76 * v) / most}`).join(" ");
  const svg = byId(id);
  if (!svg.firstChild) svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
  svg.firstChild.setAttribute("points", points);
}

function keep(name, value) {
  history[name].push(value);
  if (history[name].length > POINTS) history[name].shift();
  draw(name, history[name]);
}

function rows(counts) {
  const body = byId("figures");
  FIGURES.forEach(([key, text], i) => {
    if (!body.rows[i]) {
      const row = body.insertRow();
      row.insertCell().textContent = text;
      row.insertCell();
    }
    const value = counts[key];
    body.rows[i].cells[1].textContent = Number.isInteger(value) ? value : number(value, 1);
  });
}

function show(state, now) {
  byId("title").textContent = state.title;
  document.title = state.title;
  byId("attack").hidden = state.eps === null;
  byId("eps").textContent = state.eps ?? "";
  byId("status").textContent = state.status;
  if (!state.number) return;
  const stale = state.picture_age_s > STALE_S;
  byId("picture").classList.toggle("stale", stale);
  byId("label").classList.toggle("stale", stale);
  if (stale) {
    byId("status").textContent = `${state.status}; the last picture is ${state.picture_age_s.toFixed(0)} s old`;
    return;
  }
  byId("label").textContent = state.label;
  byId("label").classList.toggle("unknown", state.unknown);
  byId("labels").replaceChildren(...state.labels.map(({ name, probability }) => {
    const item = document.createElement("li");
    item.textContent = `${name} ${(100 * probability).toFixed(1)}%`;
    return item;
  }));
  // another viewer, or this page before it was loaded again, may have moved it
  if (document.activeElement !== byId("strength")) byId("strength").value = state.strength;
  byId("levels").textContent = state.levels === 1 ? "1 grey level" : `${state.levels} grey levels`;
  chosen(state);
  rows(state.counts);
  keep("age", state.age_ms);
  byId("age-now").textContent = `${number(state.age_ms, 1)} ms`;
  if (before) {
    const rate = Math.max(0, (1000 * (state.counts.dropped - before.dropped)) / (now - before.now));
    keep("drops", rate);
    byId("drops-now").textContent = number(rate, 1);
  }
  before = { dropped: state.counts.dropped, now };
}

function chosen(state) {
  byId("patch").hidden = state.patch === null;
  byId("area").textContent = state.patch ?? "";
  place = state.chosen.patch;
  byId("patch-on").checked = place !== null;
  byId("picture").classList.toggle("patched", place !== null);
  byId("corrupt").hidden = !state.corruptions.length;
  const list = byId("corruption");
  for (const name of state.corruptions.slice(list.options.length - 1)) list.append(new Option(name, name));
  if (document.activeElement !== list) list.value = state.chosen.corruption ?? "";
  if (document.activeElement !== byId("severity")) byId("severity").value = state.chosen.severity;
  byId("severity-now").textContent = state.chosen.severity;
}

function ask(path, value) {
  return fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Edgeadv": "1" },
    body: JSON.stringify(value),
  });
}

// row and column of the mouse as shares of the picture, which stands in the middle of its square
function under(event) {
  const image = byId("picture"), box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const share = (at, begin, whole, size) =>
    Math.min(1, Math.max(0, (at - begin - (whole - size * scale) / 2) / (size * scale)));
  return [
    share(event.clientY, box.top, box.height, image.naturalHeight),
    share(event.clientX, box.left, box.width, image.naturalWidth),
  ];
}

async function poll() {
  try {
    const answer = await fetch("state");
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json(), performance.now());
  } catch (error) {
    byId("status").textContent = `no connection to the camera program: ${error.message}`;
  }
  setTimeout(poll, PERIOD_MS);
}

byId("strength").addEventListener("input", (event) => ask("strength", { strength: Number(event.target.value) }));
byId("patch-on").addEventListener("change", (event) => {
  place = event.target.checked ? [0.5, 0.5] : null;
  ask("chosen", { patch: place });
});
byId("corruption").addEventListener("change", (event) => ask("chosen", { corruption: event.target.value || null }));
byId("severity").addEventListener("input", (event) => ask("chosen", { severity: Number(event.target.value) }));
byId("picture").addEventListener("pointerdown", (event) => {
  if (place === null) return;
  event.preventDefault();
  byId("picture").setPointerCapture(event.pointerId);
  ask("chosen", { patch: under(event) });
});
byId("picture").addEventListener("pointermove", (event) => {
  // one request at a time: a mouse moves faster than they are answered
  if (!byId("picture").hasPointerCapture(event.pointerId) || moving) return;
  moving = true;
  ask("chosen", { patch: under(event) }).finally(() => { moving = false; });
});
// a picture that stood still for too long was cut off
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) byId("picture").src = `stream.mjpg?${Date.now()}`;
});
byId("picture").addEventListener("error", () => {
  setTimeout(() => { byId("picture").src = `stream.mjpg?${Date.now()}`; }, 1000);
});
poll();
