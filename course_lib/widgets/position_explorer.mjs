// Position explorer: one pair of dimensions along a text, and similarity against distance.
// position_explorer.py describes the state. The curves come from the formulas of positions.py;
// only that of learned positions is data.

import { clamp, h, save, subscribe, svg } from "./static/kit.mjs";

const SCHEMES = {
  sinusoidal: "Sinusoidal",
  rotary: "Rotary",
  learned: "Learned (measured)",
  none: "None",
};
const THETAS = [100, 10_000, 500_000];
const [WIDE, HIGH, LEFT, BOTTOM, TOP] = [360, 130, 30, 20, 8]; // of a chart, in its own units

// --- the formulas -----------------------------------------------------------------------------

// Radians a position for pair i: theta to the power of -2i / width.
const frequency = (pair, { width, theta }) => theta ** ((-2 * pair) / width);

// Cosine and sine of a pair at a position. A sinusoidal table holds both; rotary turns by them.
const turn = (position, pair, at) => {
  const angle = position * frequency(pair, at);
  return [Math.cos(angle), Math.sin(angle)];
};

// The dot product of two positions as a share of the largest: the mean cosine over all pairs.
function similarity(distance, at) {
  if (at.scheme === "none") return 1;
  if (at.scheme === "learned") return at.learned[distance];
  let sum = 0;
  for (let pair = 0; pair < at.width / 2; pair++) sum += turn(distance, pair, at)[0];
  return (2 * sum) / at.width;
}

// --- where the reader is ------------------------------------------------------------------------

function place(model) {
  const names = ["scheme", "pair", "distance", "theta", "width", "length", "learned"];
  const at = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  at.last = (at.scheme === "learned" ? at.learned.length : at.length) - 1;
  at.pair = clamp(at.pair, 0, at.width / 2 - 1);
  at.distance = clamp(at.distance, 0, at.last);
  at.waves = at.scheme === "sinusoidal" || at.scheme === "rotary";
  return at;
}

// The two dimensions of a pair: neighbours in the table, half a head apart in rotary.
const dimensions = ({ scheme, pair, width }) =>
  scheme === "rotary" ? [pair, pair + width / 2] : [2 * pair, 2 * pair + 1];

const positions = (x) => (x < 1000 ? x.toFixed(1) : Math.round(x).toLocaleString("en"));

// --- charts -------------------------------------------------------------------------------------

// Lines over 0..last; values from -1 to 1. `mark` is the position that a dot stands at.
function chart(lines, last, mark, label) {
  const x = (i) => LEFT + (i / Math.max(1, last)) * (WIDE - LEFT - 8);
  const y = (v) => TOP + ((1 - v) / 2) * (HIGH - TOP - BOTTOM);
  const parts = [-1, 0, 1].flatMap((v) => [
    svg("line", { x1: LEFT, x2: WIDE - 8, y1: y(v), y2: y(v), class: "cw-pos-grid" }),
    svg("text", { x: LEFT - 4, y: y(v) + 3, "text-anchor": "end" }, String(v).replace("-", "−")),
  ]);
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const i = Math.round(share * last);
    parts.push(svg("text", { x: x(i), y: HIGH - 5, "text-anchor": "middle" }, String(i)));
  }
  lines.forEach((values, n) => {
    const points = values.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
    parts.push(svg("polyline", { points, class: `cw-pos-line cw-pos-line${n}` }));
    if (mark !== null) parts.push(svg("circle", { cx: x(mark), cy: y(values[mark]), r: 4 }));
  });
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label }, ...parts);
}

// --- the parts ----------------------------------------------------------------------------------

function makeParts(model) {
  const set = (values) => save(model, values);
  const group = `cw-pos-${Math.random().toString(36).slice(2)}`; // one group per view
  const radios = Object.entries(SCHEMES).map(([value, text]) => {
    const onchange = () => set({ scheme: value });
    return h("label", {}, h("input", { type: "radio", name: group, value, onchange }), text);
  });
  const slider = (name) =>
    h("input", { type: "range", min: 0, oninput: (e) => set({ [name]: Number(e.target.value) }) });
  const options = THETAS.map((t) => h("option", { value: t }, t.toLocaleString("en")));
  return {
    schemes: h("fieldset", { class: "cw-pos-schemes" }, h("legend", {}, "Scheme"), ...radios),
    pair: slider("pair"),
    theta: h("select", { onchange: (e) => set({ theta: Number(e.target.value) }) }, ...options),
    waves: h("div"),
    wave: h("div", { class: "cw-pos-chart" }),
    waveText: h("p", { "aria-live": "polite" }),
    distance: slider("distance"),
    curve: h("div", { class: "cw-pos-chart" }),
    curveText: h("p", { "aria-live": "polite" }),
    rows: h("tbody"),
  };
}

function layout(parts) {
  const labelled = (text, part) => h("label", { class: "cw-pos-slider" }, text, part);
  parts.waves.append(
    h(
      "div",
      { class: "cw-controls" },
      labelled("Pair of dimensions, fast to slow", parts.pair),
      h("label", {}, "Base θ", parts.theta),
    ),
    parts.wave,
  );
  const heads = ["distance", "dot product"].map((text) =>
    h("th", { scope: "col", class: "cw-number" }, text),
  );
  const table = h(
    "table",
    {},
    h("caption", {}, "Dot product of two positions, as a share of the largest"),
    h("thead", {}, h("tr", {}, ...heads)),
    parts.rows,
  );
  const region = { class: "cw-scroll cw-pos-table", tabindex: 0, role: "region" };
  return h(
    "div",
    { class: "cw cw-pos" },
    parts.schemes,
    parts.waves,
    parts.waveText,
    h("div", { class: "cw-controls" }, labelled("Distance of two positions", parts.distance)),
    parts.curve,
    parts.curveText,
    h(
      "details",
      {},
      h("summary", {}, "The lower chart as a table"),
      h("div", { ...region, "aria-label": "Dot product by distance" }, table),
    ),
  );
}

// --- drawing ------------------------------------------------------------------------------------

function drawWave(parts, at) {
  parts.waves.hidden = !at.waves;
  if (!at.waves) {
    const why = {
      learned:
        "A learned table has no formula and no wavelengths: training moves every row as it likes.",
      none: "Nothing is added and nothing is turned: every place looks like every other.",
    };
    parts.waveText.textContent = why[at.scheme];
    return;
  }
  const [a, b] = dimensions(at);
  const steps = Array.from({ length: at.length }, (_, i) => turn(i, at.pair, at));
  const lines = [1, 0].map((n) => steps.map((step) => step[n])); // sine, then cosine
  const label = `Sine and cosine of pair ${at.pair} over positions 0 to ${at.length - 1}`;
  parts.wave.replaceChildren(chart(lines, at.length - 1, null, label));
  parts.pair.max = at.width / 2 - 1;
  parts.pair.value = at.pair;
  const long = positions((2 * Math.PI) / frequency(at.pair, at));
  parts.pair.setAttribute("aria-valuetext", `pair ${at.pair}, one turn in ${long} positions`);
  const what =
    at.scheme === "rotary"
      ? `In queries and keys, dimensions ${a} and ${b} are turned together`
      : `Columns ${a} (sine, solid) and ${b} (cosine, dashed) are added to the token’s vector`;
  parts.waveText.replaceChildren(
    `Pair ${at.pair} of ${at.width / 2}: one turn takes `,
    h("strong", {}, `${long} positions`),
    `. ${what}.`,
  );
}

function drawCurve(parts, at) {
  const curve = Array.from({ length: at.last + 1 }, (_, d) => similarity(d, at));
  const label = `Dot product of two positions by distance, 0 to ${at.last}; ${SCHEMES[at.scheme]}`;
  parts.curve.replaceChildren(chart([curve], at.last, at.distance, label));
  parts.distance.max = at.last;
  parts.distance.value = at.distance;
  const value = curve[at.distance].toFixed(3).replace("-", "−");
  parts.distance.setAttribute("aria-valuetext", `${at.distance} apart: ${value}`);
  const about = {
    sinusoidal: "rows of the table",
    rotary: "equal vectors, turned",
    learned: `learned rows, mean over all pairs (only ${at.last + 1} positions were trained)`,
    none: "equal vectors",
  };
  parts.curveText.replaceChildren(
    `Two ${about[at.scheme]}, ${at.distance} apart: `,
    h("strong", {}, value),
    " of the largest dot product.",
  );
  const cell = (text) => h("td", { class: "cw-number" }, text);
  parts.rows.replaceChildren(
    ...curve.map((v, d) => {
      const head = h("th", { scope: "row", class: "cw-number" }, String(d));
      return h("tr", {}, head, cell(v.toFixed(3).replace("-", "−")));
    }),
  );
}

function render({ model, el }) {
  const parts = makeParts(model);
  const draw = () => {
    const at = place(model);
    for (const radio of parts.schemes.querySelectorAll("input")) {
      radio.checked = radio.value === at.scheme;
    }
    parts.theta.value = at.theta;
    drawWave(parts, at);
    drawCurve(parts, at);
  };
  const { on, off } = subscribe(model);
  for (const name of ["scheme", "pair", "distance", "theta"]) on(`change:${name}`, draw);
  el.append(layout(parts));
  draw();
  return off;
}

export default { render };
