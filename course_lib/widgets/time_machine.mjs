// Training time machine: the base model at each snapshot of its training.
// time_machine.py describes the state; every number and text here is data.

import { bar, clamp, h, percent, save, subscribe, svg, tokenNode } from "./static/kit.mjs";

const [WIDE, HIGH, LEFT, BOTTOM, TOP] = [360, 200, 32, 38, 10]; // of a chart, in its own units
const [MAP, EDGE] = [360, 16]; // width of the map, its margin
const SECONDS = 0.9; // that a snapshot is shown while playing
const SHAPES = ["●", "■", "▲", "◆", "✚", "▼", "✱"]; // of the map's groups, in their order

const still = () => globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;
const count = (n) => n.toLocaleString("en");

// --- where the reader is ------------------------------------------------------------------------

function place(model) {
  const names = ["steps", "heldout", "facts", "curve", "prompts", "words", "places", "kept"];
  const at = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  at.groups = [...new Set(at.words.map(([, group]) => group))];
  at.i = clamp(model.get("at"), 0, at.steps.length - 1);
  at.p = clamp(model.get("prompt"), 0, at.prompts.length - 1);
  at.group = at.groups.includes(model.get("group")) ? model.get("group") : at.groups[0];
  at.step = at.steps[at.i];
  at.moment = at.prompts[at.p].moments[at.i];
  return at;
}

// The mean training loss of the last steps before a snapshot; there is none before the first.
const trainLoss = ({ curve, step }) => curve.findLast(([s]) => s <= step)?.[1];

// --- charts -------------------------------------------------------------------------------------

// Lines over the steps, values from 0 to `most`, with a cursor at the snapshot.
function chart(at, { lines, most, ticks, format, label }) {
  const last = at.steps.at(-1);
  const x = (step) => LEFT + (step / last) * (WIDE - LEFT - 12);
  const y = (v) => TOP + (1 - Math.min(v, most) / most) * (HIGH - TOP - BOTTOM);
  const parts = ticks.flatMap((v) => [
    svg("line", { x1: LEFT, x2: WIDE - 12, y1: y(v), y2: y(v), class: "cw-time-grid" }),
    svg("text", { x: LEFT - 5, y: y(v) + 4, "text-anchor": "end" }, format(v)),
  ]);
  for (const share of [0, 0.5, 1]) {
    const step = Math.round(share * last);
    const spot = { x: x(step), y: HIGH - 22, "text-anchor": share === 1 ? "end" : "middle" };
    parts.push(svg("text", spot, count(step)));
  }
  parts.push(svg("text", { x: WIDE / 2, y: HIGH - 4, "text-anchor": "middle" }, "training steps"));
  const cursor = { x1: x(at.step), x2: x(at.step), y1: TOP, y2: HIGH - BOTTOM };
  parts.push(svg("line", { ...cursor, class: "cw-time-cursor" }));
  for (const { points, name, dots } of lines) {
    const places = points.map(([s, v]) => [x(s).toFixed(1), y(v).toFixed(1)]);
    const drawn = places.map((pair) => pair.join(",")).join(" ");
    parts.push(svg("polyline", { points: drawn, class: `cw-time-line cw-time-${name}` }));
    if (!dots) continue;
    places.forEach(([cx, cy], i) => {
      const now = i === at.i;
      const look = `cw-time-dot cw-time-${name}${now ? " cw-time-now" : ""}`;
      parts.push(svg("circle", { cx, cy, r: now ? 5.5 : 3, class: look }));
    });
  }
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label }, ...parts);
}

function lossChart(at) {
  const most = Math.ceil(Math.max(...at.heldout, ...at.curve.map(([, v]) => v)));
  const ticks = Array.from({ length: Math.floor(most / 2) + 1 }, (_, k) => 2 * k);
  const lines = [
    { name: "train", points: at.curve },
    { name: "heldout", points: at.steps.map((s, i) => [s, at.heldout[i]]), dots: true },
  ];
  const label = `Loss by training step; the cursor stands at ${count(at.step)}.`;
  return chart(at, { lines, most, ticks, format: String, label });
}

function factChart(at) {
  const lines = Object.values(at.facts).map((shares, k) => ({
    name: `fact${k}`,
    points: at.steps.map((s, i) => [s, shares[i]]),
    dots: true,
  }));
  const label = `Facts completed by training step; the cursor stands at ${count(at.step)}.`;
  const format = (v) => `${100 * v}`;
  return chart(at, { lines, most: 1, ticks: [0, 0.25, 0.5, 0.75, 1], format, label });
}

// From a place to the picture. All snapshots share one scale, so that distances can be compared.
function scaled({ places }) {
  const all = places.flat();
  const ends = [0, 1].map((k) => all.map((place) => place[k]));
  const [left, bottom] = ends.map((values) => Math.min(...values));
  const [right, top] = ends.map((values) => Math.max(...values));
  const unit = (MAP - 2 * EDGE) / (right - left);
  const high = Math.round((top - bottom) * unit) + 2 * EDGE;
  return { high, to: ([x, y]) => [EDGE + (x - left) * unit, EDGE + (top - y) * unit] };
}

// Names beside their marks, pushed down where they would cover one another.
function nameTags(tags) {
  const set = [];
  for (const tag of tags.sort((a, b) => a.y - b.y)) {
    const near = set.filter((other) => Math.abs(other.x - tag.x) < 75);
    set.push({ ...tag, down: Math.max(tag.y, ...near.map((other) => other.down + 12)) });
  }
  return set.flatMap(({ word, x, y, down }) => {
    const right = x > 0.75 * MAP; // its name would leave the picture
    const side = { x: x + (right ? -9 : 9), y: down, "text-anchor": right ? "end" : "start" };
    const lead = { x1: x, y1: y - 4, x2: x + (right ? -8 : 8), y2: down - 4 };
    const name = svg("text", { ...side, class: "cw-time-word" }, word);
    return down > y ? [svg("line", { ...lead, class: "cw-time-grid" }), name] : [name];
  });
}

function mapChart(at) {
  const { high, to } = scaled(at);
  const tags = [];
  const marks = at.places[at.i].map((place, n) => {
    const [word, group] = at.words[n];
    const [x, y] = to(place).map((v, k) => Number((v + 4 * k).toFixed(1)));
    const chosen = group === at.group;
    if (chosen) tags.push({ word, x, y });
    const k = at.groups.indexOf(group);
    const look = `cw-time-mark cw-time-mark${k}${chosen ? " cw-time-chosen" : ""}`;
    const spot = { x, y, "text-anchor": "middle", class: look };
    return svg("text", spot, SHAPES[k], svg("title", {}, word));
  });
  const label = `Map of ${at.words.length} token embeddings after ${count(at.step)} steps.`;
  const view = { viewBox: `0 0 ${MAP} ${high}`, role: "img", "aria-label": label };
  return svg("svg", view, ...marks, ...nameTags(tags));
}

// --- the parts ----------------------------------------------------------------------------------

function makeParts(model, go, play) {
  const { steps, prompts, groups, facts } = place(model);
  const options = prompts.map(({ text }, i) => h("option", { value: i }, text));
  const pick = (event) => save(model, { prompt: Number(event.target.value) });
  const named = groups.map((group) => h("option", { value: group }, group));
  const name = (event) => save(model, { group: event.target.value });
  const oninput = (event) => go(Number(event.target.value));
  const button = (text, onclick) => h("button", { type: "button", onclick }, text);
  return {
    play: button("▶ Play", play),
    slider: h("input", { type: "range", min: 0, max: steps.length - 1, step: 1, oninput }),
    says: h("p", { "aria-live": "polite" }),
    loss: h("div", { class: "cw-time-chart" }),
    facts: h("div", { class: "cw-time-chart" }),
    families: Object.keys(facts),
    prompt: h("select", { onchange: pick }, ...options),
    greedy: h("p", { class: "cw-words", dir: "auto" }),
    sampled: h("p", { class: "cw-words", dir: "auto" }),
    bars: h("tbody"),
    chance: h("p", { class: "cw-muted" }),
    group: h("select", { onchange: name }, ...named),
    map: h("div", { class: "cw-time-chart cw-time-map" }),
    key: h("p", { class: "cw-muted cw-time-key" }),
    history: h("table"),
    places: h("table"),
  };
}

function line(name, text) {
  const stroke = svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: `cw-time-line cw-time-${name}` });
  const key = svg("svg", { viewBox: "0 0 26 10", class: "cw-time-stroke", "aria-hidden": "true" }, stroke);
  return h("span", {}, key, text);
}

const folded = (title, label, table) =>
  h(
    "details",
    {},
    h("summary", {}, title),
    h("div", { class: "cw-scroll cw-time-table", tabindex: 0, role: "region", "aria-label": label }, table),
  );

function figures(parts) {
  const keys = parts.families.map((family, k) => line(`fact${k}`, family));
  return h(
    "div",
    { class: "cw-time-two" },
    h(
      "div",
      {},
      h("p", { class: "cw-time-head" }, "Loss, nats a token"),
      parts.loss,
      h("p", { class: "cw-muted cw-time-key" }, line("train", "training"), line("heldout", "held-out text")),
    ),
    h(
      "div",
      {},
      h("p", { class: "cw-time-head" }, "Facts completed greedily, per cent"),
      parts.facts,
      h("p", { class: "cw-muted cw-time-key" }, ...keys),
    ),
  );
}

function writing(parts) {
  const column = { scope: "col" };
  const head = h("tr", {}, h("th", column, "next token"), h("th", column, "probability"));
  const caption = h("caption", {}, "The five likeliest next tokens");
  const said = (title, text) =>
    h("div", { class: "cw-bubble" }, h("span", { class: "cw-who" }, title), text);
  return h(
    "div",
    { class: "cw-time-two" },
    h("div", {}, said("It writes, greedily", parts.greedy), said("It writes, sampled", parts.sampled)),
    h("div", {}, h("table", { class: "cw-time-bars" }, caption, h("thead", {}, head), parts.bars), parts.chance),
  );
}

function layout(parts) {
  const labelled = (text, part, look) => h("label", { class: look }, text, part);
  return h(
    "div",
    { class: "cw cw-time" },
    h("div", { class: "cw-controls" }, labelled("Moment of training", parts.slider, "cw-time-slider"), parts.play),
    parts.says,
    figures(parts),
    h("div", { class: "cw-controls" }, labelled("Beginning of a document", parts.prompt)),
    writing(parts),
    h("p", { class: "cw-time-head" }, "Map of token embeddings"),
    h("div", { class: "cw-controls" }, labelled("Name the", parts.group)),
    parts.map,
    parts.key,
    folded("Loss and facts as a table", "Loss and facts at each snapshot", parts.history),
    folded("The map as a table", "Places on the map", parts.places),
  );
}

// --- drawing ------------------------------------------------------------------------------------

function sentence(at) {
  const train = trainLoss(at);
  const shares = Object.entries(at.facts).map(([name, values]) => `${name} ${percent(values[at.i])}`);
  const loss = train === undefined ? "" : `training ${train.toFixed(2)}, `;
  return [
    h("strong", {}, at.step ? `After ${count(at.step)} steps` : "Before training"),
    `: loss ${loss}held-out ${at.heldout[at.i].toFixed(2)} nats a token. `,
    `Facts completed: ${shares.join(", ")}.`,
  ];
}

function drawWriting(parts, at) {
  const { answer } = at.prompts[at.p];
  const { greedy, sampled, bars, chance } = at.moment;
  parts.prompt.value = at.p;
  parts.greedy.textContent = greedy || "(it ends the document)";
  parts.sampled.textContent = sampled || "(it ends the document)";
  parts.bars.replaceChildren(
    ...bars.map(([token, p]) => {
      const value = h("span", { class: "cw-value" }, percent(p));
      const cell = h("span", { class: "cw-time-cell" }, bar(p, "base"), value);
      return h("tr", {}, h("th", { scope: "row" }, tokenNode(token)), h("td", {}, cell));
    }),
  );
  parts.chance.replaceChildren(
    ...(answer ? ["The right words, “", answer.trim(), `”, get ${percent(chance)} in all.`] : []),
  );
}

function drawMap(parts, at) {
  parts.group.value = at.group;
  parts.map.replaceChildren(mapChart(at));
  const key = at.groups.map((group, k) =>
    h("span", {}, h("span", { class: `cw-time-mark${k}`, "aria-hidden": "true" }, `${SHAPES[k]} `), group),
  );
  const kept = `The plane is that of the last snapshot, where it keeps ${percent(at.kept)} of the spread.`;
  parts.key.replaceChildren(...key, kept);
}

function fill(table, caption, heads, rows) {
  const cells = ([first, ...rest]) => [
    h("th", { scope: "row" }, first),
    ...rest.map((text) => h("td", { class: "cw-number" }, text)),
  ];
  const look = (i) => ({ scope: "col", class: i > 0 && "cw-number" });
  table.replaceChildren(
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, ...heads.map((text, i) => h("th", look(i), text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...cells(row)))),
  );
}

function drawTables(parts, at) {
  const names = Object.keys(at.facts);
  const rows = at.steps.map((step, i) => [
    count(step),
    trainLoss({ ...at, step })?.toFixed(2) ?? "–",
    at.heldout[i].toFixed(2),
    ...names.map((name) => percent(at.facts[name][i])),
  ]);
  fill(parts.history, "Every snapshot", ["steps", "training loss", "held-out loss", ...names], rows);
  const signed = (v) => v.toFixed(2).replace("-", "−");
  const spots = at.places[at.i].map(([x, y], n) => [at.words[n][0], at.words[n][1], signed(x), signed(y)]);
  fill(parts.places, `After ${count(at.step)} steps`, ["token", "group", "right", "up"], spots);
}

function draw(parts, at, playing) {
  parts.slider.value = at.i;
  parts.slider.setAttribute("aria-valuetext", at.step ? `after ${count(at.step)} steps` : "before training");
  parts.says.setAttribute("aria-live", playing ? "off" : "polite");
  parts.says.replaceChildren(...sentence(at));
  parts.loss.replaceChildren(lossChart(at));
  parts.facts.replaceChildren(factChart(at));
  drawWriting(parts, at);
  drawMap(parts, at);
  drawTables(parts, at);
}

// Plays the snapshots one after another. Where the reader wants no motion, a press is one step.
function player(model, show) {
  let timer = null;
  const last = () => place(model).steps.length - 1;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    show();
  };
  const forward = () => {
    const { i } = place(model);
    save(model, { at: i < last() ? i + 1 : 0 });
  };
  const tick = () => {
    if (place(model).i < last()) forward();
    if (place(model).i >= last()) stop();
  };
  const press = () => {
    if (timer !== null) return stop();
    if (still()) return forward();
    if (place(model).i >= last()) save(model, { at: 0 });
    timer = setInterval(tick, 1000 * SECONDS);
    show();
  };
  return { press, stop, playing: () => timer !== null };
}

function render({ model, el }) {
  let parts = null;
  const redraw = () => {
    draw(parts, place(model), machine.playing());
    parts.play.textContent = machine.playing() ? "❚❚ Pause" : still() ? "Next moment" : "▶ Play";
  };
  const machine = player(model, redraw);
  const go = (i) => {
    if (machine.playing()) machine.stop();
    save(model, { at: i });
  };
  parts = makeParts(model, go, machine.press);
  const { on, off } = subscribe(model);
  for (const name of ["at", "prompt", "group"]) on(`change:${name}`, redraw);
  el.append(layout(parts));
  redraw();
  return () => {
    machine.stop();
    off();
  };
}

export default { render };
