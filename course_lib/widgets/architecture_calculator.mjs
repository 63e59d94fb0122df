// Architecture calculator: the formulas of course_lib/sizing.py on a configuration that the reader
// changes. architecture_calculator.py describes the state.

import { clamp, h, save, subscribe, svg } from "./static/kit.mjs";

const PARTS = {
  embedding: "token embedding",
  positions: "positions",
  attention: "attention",
  mlp: "feed-forward",
  norms: "norms",
  lm_head: "separate output matrix",
};
const KNOBS = {
  vocab_size: "Vocabulary",
  context_length: "Context",
  d_model: "Width",
  n_layers: "Layers",
  n_heads: "Heads",
  n_kv_heads: "Key heads",
  d_ff: "Feed-forward width",
};
const SETTINGS = {
  tokens: "Tokens to train on",
  batch: "Sequences at once",
  length: "Length of each",
};
const MOST = 1e7; // of a size; beyond it the sums leave exact whole numbers
const [WIDE, HIGH, LEFT, BOTTOM, TOP] = [360, 150, 52, 24, 10]; // of the chart, in its own units

// --- the formulas of sizing.py ------------------------------------------------------------------

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);
const gated = (c) => c.activation === "swiglu";
const headWidth = (c) => c.d_model / c.n_heads;

function parameters(c) {
  const heads = (c.n_heads + 2 * c.n_kv_heads) * headWidth(c);
  const wide = c.d_ff * (gated(c) ? 2 : 1);
  const norm = c.d_model * (c.norm === "layernorm" && c.bias ? 2 : 1);
  let attention = c.d_model * heads + c.d_model * c.d_model;
  let mlp = c.d_model * wide + c.d_ff * c.d_model;
  if (c.bias) {
    attention += heads + c.d_model;
    mlp += wide + c.d_model;
  }
  return {
    embedding: c.vocab_size * c.d_model,
    positions: c.positions === "learned" ? c.context_length * c.d_model : 0,
    attention: c.n_layers * attention,
    mlp: c.n_layers * mlp,
    norms: norm * (2 * c.n_layers + (c.norm_position === "pre" ? 1 : 0)),
    lm_head: c.tie_embeddings ? 0 : c.vocab_size * c.d_model,
  };
}

// One sequence, forward.
function forwardFlops(c, T) {
  const heads = (2 * c.n_heads + 2 * c.n_kv_heads) * headWidth(c);
  return {
    projections: 2 * T * c.n_layers * c.d_model * heads,
    scores: 4 * T * T * c.n_layers * c.n_heads * headWidth(c),
    mlp: 2 * T * c.n_layers * c.d_model * c.d_ff * (gated(c) ? 3 : 2),
    logits: 2 * T * c.d_model * c.vocab_size,
  };
}

const trainingFlops = (c, tokens, T) => (3 * sum(forwardFlops(c, T)) * tokens) / T;

function memory(c, batch, T, bytes) {
  const n = sum(parameters(c));
  const norm = (c.norm === "rmsnorm" ? 3 : 2) * c.d_model;
  const turned = c.positions === "rotary" ? (c.n_heads + c.n_kv_heads) * headWidth(c) : 0;
  const heads = (c.n_heads + 2 * c.n_kv_heads) * headWidth(c);
  const mlp = ({ swiglu: 4, relu: 1 }[c.activation] ?? 2) * c.d_ff;
  const values =
    c.n_layers * (2 * norm + heads + turned + 2 * c.d_model + mlp) + norm + c.vocab_size;
  return {
    weights: bytes * n,
    gradients: bytes * n,
    optimizer: 8 * n,
    activations_estimate: bytes * batch * T * values,
  };
}

const cacheBytes = (c, T, bytes) => 2 * c.n_layers * c.n_kv_heads * headWidth(c) * T * bytes;

// What is wrong with a configuration, as GPTConfig would say it; "" if nothing is.
function complaint(c) {
  for (const [name, label] of Object.entries(KNOBS)) {
    if (!Number.isInteger(c[name]) || c[name] < 1 || c[name] > MOST) {
      return `${label}: give a whole number from 1 to ${MOST.toLocaleString("en")}.`;
    }
  }
  if (c.d_model % c.n_heads) {
    return `${c.n_heads} heads do not divide the width ${c.d_model}: every head needs the same whole width.`;
  }
  if (c.n_heads % c.n_kv_heads) {
    return `${c.n_kv_heads} key heads do not divide ${c.n_heads} heads: each must serve as many.`;
  }
  if (c.positions === "rotary" && headWidth(c) % 2) {
    return `A head of width ${headWidth(c)} cannot be turned in pairs: rotary positions need an even one.`;
  }
  return "";
}

// --- numbers as text ----------------------------------------------------------------------------

const three = (x) => Number(x.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 10 });
const scaled = (x, units) => {
  const step = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(x, 1)) / 3)));
  return `${three(x / 1000 ** step)}${units[step]}`;
};
const bytesText = (x) => scaled(x, ["B", "kB", "MB", "GB", "TB", "PB"].map((unit) => `\u00a0${unit}`));
const countText = (x) => scaled(x, ["", " thousand", " million", " billion", " trillion"]);
const share = (x) => `${(100 * x).toFixed(1)}\u00a0%`;

function powerText(x) {
  const power = Math.floor(Math.log10(x));
  return h("span", {}, `${three(x / 10 ** power)}\u00a0×\u00a010`, h("sup", {}, String(power)));
}

function timeText(seconds) {
  if (seconds < 120) return `${three(seconds)} seconds`;
  if (seconds < 7200) return `${three(seconds / 60)} minutes`;
  if (seconds < 48 * 3600) return `${three(seconds / 3600)} hours`;
  if (seconds < 2 * 365 * 86400) return `${three(seconds / 86400)} days`;
  return `${three(seconds / (365 * 86400))} years`;
}

// --- the parts ----------------------------------------------------------------------------------

function numberInput(label, value, onnumber, attributes = {}) {
  const oninput = (event) => onnumber(Number(event.target.value));
  const field = h("input", { type: "number", min: 1, value, oninput, ...attributes });
  return { field, node: h("label", { class: "cw-arch-number" }, label, field) };
}

function makeParts(model) {
  const change = (values) => save(model, { config: { ...model.get("config"), ...values } });
  const select = (names, onchoose) => {
    const options = names.map((name, i) => h("option", { value: i }, name));
    return h("select", { onchange: (e) => onchoose(Number(e.target.value)) }, ...options);
  };
  const usePreset = (i) => {
    const { name, ...config } = model.get("presets")[i];
    save(model, { preset: i, config });
  };
  const knobs = {};
  for (const [name, label] of Object.entries(KNOBS)) {
    knobs[name] = numberInput(label, model.get("config")[name], (x) => change({ [name]: x }));
  }
  const settings = {};
  for (const [name, label] of Object.entries(SETTINGS)) {
    settings[name] = numberInput(label, model.get(name), (x) => save(model, { [name]: x }));
  }
  const tie = h("input", {
    type: "checkbox",
    onchange: (e) => change({ tie_embeddings: e.target.checked }),
  });
  const use = h("input", {
    ...{ type: "range", min: 5, max: 100, step: 5 },
    oninput: (e) => save(model, { utilization: Number(e.target.value) / 100 }),
  });
  const formats = h(
    "select",
    { onchange: (e) => save(model, { bytes_per_value: Number(e.target.value) }) },
    ...[2, 4].map((bytes) => h("option", { value: bytes }, `${8 * bytes}-bit`)),
  );
  const presets = model.get("presets").map(({ name }) => name);
  const machines = model.get("machines").map(({ name }) => name);
  return {
    ...{ knobs, settings, tie, use, formats },
    preset: select(presets, usePreset),
    machine: select(machines, (i) => save(model, { machine: i })),
    warning: h("p", { role: "alert", class: "cw-warn" }),
    results: h("div"),
    headline: h("p", { "aria-live": "polite" }),
    counts: h("tbody"),
    costs: h("tbody"),
    chart: h("div", { class: "cw-arch-chart" }),
    chartText: h("p"),
    cacheRows: h("tbody"),
  };
}

function table(caption, heads, body) {
  const cells = heads.map((text, i) =>
    h("th", { scope: "col", class: i > 0 && "cw-number" }, text),
  );
  return h(
    "table",
    {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, ...cells)),
    body,
  );
}

function layout(p) {
  const nodes = (group) => Object.values(group).map(({ node }) => node);
  const tied = h("label", { class: "cw-arch-check" }, p.tie, "Tied embeddings");
  p.useLabel = h("label", { class: "cw-arch-use" }, h("span", {}, "Utilisation"), p.use);
  p.results.append(
    p.headline,
    h(
      "div",
      { class: "cw-arch-tables" },
      table("Parameters", ["part", "number", "share"], p.counts),
      table("Training and memory", ["cost", "amount"], p.costs),
    ),
    p.chart,
    p.chartText,
    h(
      "details",
      {},
      h("summary", {}, "The chart as a table"),
      table("KV cache of one sequence", ["positions", "bytes"], p.cacheRows),
    ),
  );
  return h(
    "div",
    { class: "cw cw-arch" },
    h("div", { class: "cw-controls" }, h("label", {}, "Start from", p.preset)),
    h("div", { class: "cw-arch-knobs" }, ...nodes(p.knobs), tied),
    h(
      "div",
      { class: "cw-arch-knobs" },
      ...nodes(p.settings),
      h("label", { class: "cw-arch-number" }, "Number format", p.formats),
    ),
    h("div", { class: "cw-controls" }, h("label", {}, "Machine", p.machine), p.useLabel),
    p.warning,
    p.results,
  );
}

// --- drawing ------------------------------------------------------------------------------------

function row(name, ...values) {
  const cells = values.map((value) => h("td", { class: "cw-number" }, value));
  return h("tr", {}, h("th", { scope: "row" }, name), ...cells);
}

// KV cache by length: a line from zero to the full context.
function chart(c, bytes) {
  const most = cacheBytes(c, c.context_length, bytes);
  const x = (share) => LEFT + share * (WIDE - LEFT - 12);
  const y = (share) => TOP + (1 - share) * (HIGH - TOP - BOTTOM);
  const parts = [0, 0.5, 1].flatMap((s) => [
    svg("line", { x1: LEFT, x2: WIDE - 12, y1: y(s), y2: y(s), class: "cw-arch-grid" }),
    svg("text", { x: LEFT - 5, y: y(s) + 3, "text-anchor": "end" }, bytesText(s * most)),
    svg(
      "text",
      { x: x(s), y: HIGH - 6, "text-anchor": s === 1 ? "end" : "middle" },
      Math.round(s * c.context_length).toLocaleString("en"),
    ),
  ]);
  parts.push(svg("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "cw-arch-line" }));
  const label = `KV cache by length, 0 to ${c.context_length} positions: up to ${bytesText(most)}`;
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label }, ...parts);
}

function drawResults(p, c, at) {
  const counts = parameters(c);
  const n = sum(counts);
  const flops = trainingFlops(c, at.tokens, at.length);
  const rate = at.machine.flops * (at.machine.measured ? 1 : at.utilization);
  const held = memory(c, at.batch, at.length, at.bytes);
  const inUse = at.bytes * n + at.batch * cacheBytes(c, at.length, at.bytes);
  const fits = (bytes) =>
    bytes <= at.machine.memory ? "" : `, more than the ${bytesText(at.machine.memory)} of the machine`;
  p.headline.replaceChildren(
    h("strong", {}, `${countText(n)} parameters`),
    `, heads of width ${headWidth(c)}. Training on ${countText(at.tokens)} tokens takes `,
    h("strong", {}, timeText(flops / rate)),
    at.machine.measured ? " on the machine that built this book." : ` on one ${at.machine.name}.`,
  );
  p.counts.replaceChildren(
    ...Object.entries(counts)
      .filter(([, count]) => count)
      .map(([part, count]) => row(PARTS[part], count.toLocaleString("en"), share(count / n))),
    row("all", n.toLocaleString("en"), share(1)),
  );
  p.costs.replaceChildren(
    row("operations to train", powerText(flops)),
    row("of them attention scores", share(forwardFlops(c, at.length).scores / sum(forwardFlops(c, at.length)))),
    row("tokens a parameter", three(at.tokens / n)),
    row("memory to train with AdamW", `${bytesText(sum(held))}${fits(sum(held))}`),
    ...Object.entries(held).map(([name, bytes]) => row(`· ${name.replace("_", ", ")}`, bytesText(bytes))),
    row("memory to run, weights and caches", `${bytesText(inUse)}${fits(inUse)}`),
  );
  p.chart.replaceChildren(chart(c, at.bytes));
  const one = cacheBytes(c, 1, at.bytes);
  p.chartText.textContent =
    `KV cache of one sequence: each position keeps ${bytesText(one)} of keys and values, the full ` +
    `context ${bytesText(c.context_length * one)}. The weights take ${bytesText(at.bytes * n)}.`;
  const lengths = [0.25, 0.5, 0.75, 1].map((s) => Math.max(1, Math.round(s * c.context_length)));
  p.cacheRows.replaceChildren(
    ...lengths.map((T) => row(T.toLocaleString("en"), cacheBytes(c, T, at.bytes).toLocaleString("en"))),
  );
}

function drawControls(p, c, at) {
  for (const [name, { field }] of Object.entries(p.knobs)) {
    if (Number(field.value) !== c[name]) field.value = c[name];
  }
  for (const [name, { field }] of Object.entries(p.settings)) {
    if (Number(field.value) !== at[name]) field.value = at[name];
  }
  p.preset.value = at.preset;
  p.machine.value = at.index;
  p.formats.value = at.bytes;
  p.tie.checked = c.tie_embeddings;
  p.use.value = Math.round(100 * at.utilization);
  p.use.setAttribute("aria-valuetext", share(at.utilization));
  p.useLabel.hidden = at.machine.measured;
  p.useLabel.firstChild.textContent = `Utilisation ${Math.round(100 * at.utilization)} %`;
}

function place(model) {
  const names = ["tokens", "batch", "length", "preset", "utilization"];
  const at = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  const machines = model.get("machines");
  at.bytes = model.get("bytes_per_value");
  at.index = clamp(model.get("machine"), 0, machines.length - 1);
  at.machine = machines[at.index];
  return at;
}

function wrong(c, at) {
  const bad = Object.keys(SETTINGS).find((name) => !(at[name] >= 1 && at[name] <= 1e18));
  if (bad) return `${SETTINGS[bad]}: give a number from 1 on.`;
  if (!complaint(c) && at.length > c.context_length) {
    return `Sequences of ${at.length} do not fit the context of ${c.context_length}.`;
  }
  return complaint(c);
}

function render({ model, el }) {
  const parts = makeParts(model);
  const draw = () => {
    const [c, at] = [model.get("config"), place(model)];
    drawControls(parts, c, at);
    const problem = wrong(c, at);
    parts.warning.textContent = problem;
    parts.warning.hidden = !problem;
    parts.results.hidden = Boolean(problem);
    if (!problem) drawResults(parts, c, at);
  };
  const own = ["config", "preset", "machine", "utilization", "bytes_per_value"];
  const names = [...own, ...Object.keys(SETTINGS)];
  const { on, off } = subscribe(model);
  for (const name of names) on(`change:${name}`, draw);
  el.append(layout(parts));
  draw();
  return off;
}

export default { render, parameters, forwardFlops, trainingFlops, memory, cacheBytes, complaint };
