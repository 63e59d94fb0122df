// Depth browser: gradients, streams and losses of stacks of blocks, from a recorded study.
// depth_browser.py describes the state; every number here is data.

import { h, save, subscribe, svg } from "./static/kit.mjs";

const QUANTITIES = {
  gradients: "Gradient of each block, at the start",
  gradients_end: "Gradient of each block, after training",
  stream: "Size of the stream, at the start",
  losses: "Training loss",
};
const AXES = { gradients: "block", gradients_end: "block", stream: "after block", losses: "step" };
const ABOUT = {
  gradients: "gradient norm of the block’s weights",
  gradients_end: "gradient norm of the block’s weights",
  stream: "root mean square of the stream",
  losses: "loss in nats a token",
};
const [WIDE, HIGH, LEFT, BOTTOM, TOP] = [420, 230, 52, 40, 10]; // of the chart, in its own units
const FLOOR = -12; // powers of ten below this one are drawn at the bottom edge

// --- where the reader is ------------------------------------------------------------------------

function place(model) {
  const names = ["curves", "depths", "variants", "bin", "depth", "quantity", "shown"];
  const at = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  if (!at.depths.includes(at.depth)) at.depth = at.depths[0];
  if (!(at.quantity in QUANTITIES)) at.quantity = "gradients";
  at.log = at.quantity !== "losses";
  at.lines = at.variants
    .filter((variant) => at.shown.includes(variant))
    .map((variant) => ({
      variant,
      number: at.variants.indexOf(variant),
      values: at.curves[`${variant}, ${at.depth}`]?.[at.quantity],
    }));
  at.missing = at.lines.some((line) => !line.values);
  return at;
}

// What stands at point i: block 1 is the first, the stream begins before it, losses are means.
const where = (i, { quantity, bin }) =>
  quantity === "losses" ? i * bin + (bin + 1) / 2 : quantity === "stream" ? i : i + 1;

function number(x) {
  if (x === null) return "beyond all numbers";
  if (x === 0) return "0";
  if (x >= 0.01 && x < 10_000) return String(Number(x.toPrecision(3)));
  const [digits, power] = x.toExponential(1).split("e");
  return `${digits} · ${tenTo(Number(power))}`;
}

const tenTo = (n) =>
  `10${[...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("")}`;

// --- the chart ----------------------------------------------------------------------------------

// Height of a value on the axis: its power of ten, or the value itself.
const height = (x, log) => (log ? (x > 0 ? Math.max(Math.log10(x), FLOOR) : FLOOR) : x);

function range({ lines, log }) {
  const all = lines.flatMap(({ values }) => values.filter((x) => x !== null));
  const heights = all.map((x) => height(x, log));
  if (!log) return [0, Math.min(8, Math.ceil(Math.max(1, ...heights)))]; // one that blew up is cut
  return [Math.floor(Math.min(0, ...heights)), Math.ceil(Math.max(0, ...heights) + 1e-9)];
}

const decade = (v) => (v === FLOOR ? `≤${tenTo(v)}` : tenTo(v));

function chart(at) {
  const [low, high] = range(at);
  const length = Math.max(...at.lines.map(({ values }) => values.length));
  const x = (i) => LEFT + (i / Math.max(1, length - 1)) * (WIDE - LEFT - 10);
  const y = (v) => TOP + ((high - v) / Math.max(1, high - low)) * (HIGH - TOP - BOTTOM);
  const step = Math.max(1, Math.ceil((high - low) / 6));
  const parts = [];
  for (let v = low; v <= high; v += step) {
    const text = at.log ? decade(v) : String(v);
    parts.push(svg("line", { x1: LEFT, x2: WIDE - 10, y1: y(v), y2: y(v), class: "cw-depth-grid" }));
    parts.push(svg("text", { x: LEFT - 5, y: y(v) + 4, "text-anchor": "end" }, text));
  }
  for (const share of [0, 0.5, 1]) {
    const i = Math.round(share * (length - 1));
    const text = String(Math.round(where(i, at)));
    parts.push(svg("text", { x: x(i), y: HIGH - 24, "text-anchor": "middle" }, text));
  }
  const middle = (LEFT + WIDE - 10) / 2;
  parts.push(
    svg("text", { x: middle, y: HIGH - 5, "text-anchor": "middle" }, AXES[at.quantity]),
  );
  for (const { number: n, values } of at.lines) {
    const points = values.flatMap((v, i) =>
      v === null ? [] : [`${x(i).toFixed(1)},${y(Math.min(height(v, at.log), high)).toFixed(1)}`],
    );
    parts.push(svg("polyline", { points: points.join(" "), class: `cw-depth-line cw-depth-${n}` }));
  }
  const label = `${QUANTITIES[at.quantity]}, ${at.depth} blocks. The table below has every number.`;
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label }, ...parts);
}

// --- the parts ----------------------------------------------------------------------------------

function key(n) {
  const line = svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: `cw-depth-line cw-depth-${n}` });
  return svg("svg", { viewBox: "0 0 26 10", class: "cw-depth-key", "aria-hidden": "true" }, line);
}

function makeParts(model) {
  const { depths, variants } = place(model);
  const group = `cw-depth-${Math.random().toString(36).slice(2)}`; // one group per view
  const radios = depths.map((value) => {
    const onchange = () => save(model, { depth: value });
    return h("label", {}, h("input", { type: "radio", name: group, value, onchange }), value);
  });
  const toggle = (variant, on) => {
    const shown = place(model).variants.filter((v) =>
      v === variant ? on : model.get("shown").includes(v),
    );
    save(model, { shown });
  };
  const checks = variants.map((value, n) => {
    const onchange = (event) => toggle(value, event.target.checked);
    return h("label", {}, h("input", { type: "checkbox", value, onchange }), key(n), value);
  });
  const options = Object.entries(QUANTITIES).map(([value, text]) => h("option", { value }, text));
  const onchange = (event) => save(model, { quantity: event.target.value });
  return {
    depths: h("fieldset", { class: "cw-depth-set" }, h("legend", {}, "Blocks"), ...radios),
    variants: h("fieldset", { class: "cw-depth-set" }, h("legend", {}, "Variants"), ...checks),
    quantity: h("select", { onchange }, ...options),
    chart: h("div", { class: "cw-depth-chart" }),
    says: h("ul", { "aria-live": "polite" }),
    data: h("table"),
  };
}

function layout(parts) {
  const region = { class: "cw-scroll cw-depth-table", tabindex: 0, role: "region" };
  return h(
    "div",
    { class: "cw cw-depth" },
    h("div", { class: "cw-controls" }, h("label", {}, "Show", parts.quantity), parts.depths),
    parts.variants,
    parts.chart,
    parts.says,
    h(
      "details",
      {},
      h("summary", {}, "The chart as a table"),
      h("div", { ...region, "aria-label": "Values of the chart" }, parts.data),
    ),
  );
}

// --- drawing ------------------------------------------------------------------------------------

function sentences(at) {
  const [from, to] =
    at.quantity === "losses"
      ? ["first steps", "last steps"]
      : at.quantity === "stream"
        ? ["before the first block", "after the last"]
        : ["first block", "last block"];
  return at.lines.map(({ variant, values }) => {
    const [first, last] = [values[0], values.at(-1)].map(number);
    return h("li", {}, h("strong", {}, variant), `: ${from} ${first}, ${to} ${last}`);
  });
}

function table(at) {
  const length = Math.max(...at.lines.map(({ values }) => values.length));
  const cell = (text) => h("td", { class: "cw-number" }, text);
  const rows = Array.from({ length }, (_, i) => {
    const head = h("th", { scope: "row", class: "cw-number" }, String(where(i, at)));
    return h("tr", {}, head, ...at.lines.map(({ values }) => cell(number(values[i]))));
  });
  const heads = [AXES[at.quantity], ...at.lines.map(({ variant }) => variant)];
  return [
    h("caption", {}, `${at.depth} blocks: ${ABOUT[at.quantity]}`),
    h("thead", {}, h("tr", {}, ...heads.map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, ...rows),
  ];
}

function draw(parts, at) {
  for (const radio of parts.depths.querySelectorAll("input")) {
    radio.checked = Number(radio.value) === at.depth;
  }
  for (const box of parts.variants.querySelectorAll("input")) {
    box.checked = at.shown.includes(box.value);
  }
  parts.quantity.value = at.quantity;
  if (at.missing || !at.lines.length) {
    const trained = at.depths.filter((d) => at.curves[`${at.variants[0]}, ${d}`].losses);
    const why = at.lines.length
      ? `Stacks of ${at.depth} blocks were not trained; those of ${trained.join(", ")} were.`
      : "Choose at least one variant.";
    parts.chart.replaceChildren(h("p", { class: "cw-muted" }, why));
    parts.says.replaceChildren();
    parts.data.replaceChildren();
    return;
  }
  parts.chart.replaceChildren(chart(at));
  parts.says.replaceChildren(...sentences(at));
  parts.data.replaceChildren(...table(at));
}

function render({ model, el }) {
  const parts = makeParts(model);
  const redraw = () => draw(parts, place(model));
  const { on, off } = subscribe(model);
  for (const name of ["curves", "depth", "quantity", "shown"]) on(`change:${name}`, redraw);
  el.append(layout(parts));
  redraw();
  return off;
}

export default { render };
