// KL browser: true and learned reward of measured PPO runs, and what those runs answer.
// kl_browser.py describes the state; every number and every word here is data.

import { bubble, h, save, subscribe, svg } from "./static/kit.mjs";

const PANELS = { proxy: "Score, by the reward model", judge: "Points, by the judge" };
const [WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM] = [340, 230, 38, 12, 12, 44]; // in the chart's units

// --- where the reader is ------------------------------------------------------------------------

// The price nearest to the one asked for, among those measured with this reward model.
function place(model) {
  const names = ["runs", "before", "usual", "reward", "kl_coef", "prompt"];
  const at = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  at.rewards = [...new Set(at.runs.map((run) => run.reward))];
  if (!at.rewards.includes(at.reward)) at.reward = at.rewards[0];
  at.choices = at.runs.filter((run) => run.reward === at.reward);
  const far = at.choices.map((run) => Math.abs(run.kl_coef - at.kl_coef));
  at.index = far.indexOf(Math.min(...far));
  at.run = at.choices[at.index];
  at.samples = at.before[at.reward];
  if (!at.samples[at.prompt]) at.prompt = 0;
  return at;
}

const number = (x, digits = 2) => x.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
const range = ([mean, low, high]) => `${number(mean)} (${number(low)} to ${number(high)})`;
const price = (x, usual) => (x === usual ? `${x} (the book’s)` : String(x));
const points = (n) => `${number(n, n % 1 ? 1 : 0)} ${Math.abs(n) === 1 ? "point" : "points"}`;

// --- the charts ---------------------------------------------------------------------------------

// Round numbers, a handful, that hold all values.
function ticks(low, high) {
  const step = high - low < 2.5 ? 0.5 : Math.ceil((high - low) / 5);
  const first = Math.floor(low / step) * step;
  const count = Math.max(1, Math.ceil((high - first) / step));
  return Array.from({ length: count + 1 }, (_, i) => first + i * step);
}

// Where KL and reward lie; KL in steps of its root, an estimate below zero at zero.
function scales(choices, name) {
  const all = choices.flatMap((run) => run.path);
  const most = Math.max(1, ...all.map((p) => p.kl));
  const marks = ticks(Math.min(...all.map((p) => p[name][1])), Math.max(...all.map((p) => p[name][2])));
  const [low, high] = [marks[0], marks.at(-1)];
  return {
    marks,
    most,
    x: (kl) => LEFT + Math.sqrt(Math.max(0, kl) / most) * (WIDE - LEFT - RIGHT),
    y: (v) => TOP + ((high - v) / (high - low)) * (HIGH - TOP - BOTTOM),
  };
}

function axes({ marks, most, x, y }) {
  const parts = marks.flatMap((v) => [
    svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(v), y2: y(v), class: "cw-kl-grid" }),
    svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, String(v).replace("-", "−")),
  ]);
  const steps = [0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200].filter((kl) => kl <= most);
  let last = -Infinity;
  for (const kl of steps) {
    if (x(kl) - last < 26) continue;
    last = x(kl);
    parts.push(svg("text", { x: last, y: HIGH - 26, "text-anchor": "middle" }, String(kl)));
  }
  const middle = (LEFT + WIDE - RIGHT) / 2;
  parts.push(svg("text", { x: middle, y: HIGH - 6, "text-anchor": "middle" }, "KL, nats a reply"));
  return parts;
}

function curve(run, name, { x, y }, chosen) {
  const spots = run.path.map((p) => [x(p.kl), y(p[name][0])].map((v) => v.toFixed(1)));
  const line = svg("polyline", {
    points: spots.map((spot) => spot.join(",")).join(" "),
    class: chosen ? `cw-kl-line cw-kl-${name}` : "cw-kl-line cw-kl-faint",
  });
  if (!chosen) return [line];
  const marks = run.path.flatMap((p, i) => {
    const [cx, cy] = spots[i];
    const bounds = { x1: cx, x2: cx, y1: y(p[name][1]).toFixed(1), y2: y(p[name][2]).toFixed(1) };
    return [
      svg("line", { ...bounds, class: `cw-kl-bar cw-kl-${name}` }),
      svg("circle", { cx, cy, r: 4, class: `cw-kl-dot cw-kl-${name}` }),
    ];
  });
  return [line, ...marks];
}

function chart(at, name) {
  const scale = scales(at.choices, name);
  const others = at.choices.filter((run) => run !== at.run);
  const label =
    `${PANELS[name]}, against KL. At kl_coef ${at.run.kl_coef} it goes from ` +
    `${number(at.run.path[0][name][0])} to ${number(at.run.path.at(-1)[name][0])}. ` +
    "The table below has every number.";
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label },
    ...axes(scale),
    ...others.flatMap((run) => curve(run, name, scale, false)),
    ...curve(at.run, name, scale, true),
  );
  return h("figure", {}, h("figcaption", {}, PANELS[name]), picture);
}

// --- the parts ----------------------------------------------------------------------------------

function makeParts(model) {
  const { rewards, samples } = place(model);
  const choose = (name, turn) => (event) => save(model, { [name]: turn(event.target.value) });
  const option = (value, text) => h("option", { value }, text);
  const slide = (event) => save(model, { kl_coef: place(model).choices[event.target.value].kl_coef });
  const prompts = samples.map((sample, i) => option(i, sample.prompt));
  return {
    reward: h("select", { onchange: choose("reward", String) }, ...rewards.map((r) => option(r, r))),
    slider: h("input", { type: "range", min: 0, step: 1, oninput: slide }),
    price: h("output", { class: "cw-kl-price" }),
    scale: h("p", { class: "cw-muted" }),
    charts: h("div", { class: "cw-kl-charts" }),
    says: h("ul", { "aria-live": "polite" }),
    prompt: h("select", { onchange: choose("prompt", Number) }, ...prompts),
    talk: h("div", { "aria-live": "polite" }),
    data: h("table"),
  };
}

function layout(parts) {
  const region = { class: "cw-scroll cw-kl-table", tabindex: 0, role: "region" };
  const slider = h("label", {}, h("span", {}, "Price of KL: ", parts.price), parts.slider);
  return h(
    "div",
    { class: "cw cw-kl" },
    h("div", { class: "cw-controls" }, h("label", {}, "Reward model", parts.reward), slider),
    parts.scale,
    parts.charts,
    parts.says,
    h("div", { class: "cw-controls" }, h("label", {}, "A prompt to read", parts.prompt)),
    parts.talk,
    h(
      "details",
      {},
      h("summary", {}, "The charts as a table"),
      h("div", { ...region, "aria-label": "Values of the charts" }, parts.data),
    ),
  );
}

// --- drawing ------------------------------------------------------------------------------------

function sentences({ run }) {
  const [start, end] = [run.path[0], run.path.at(-1)];
  const item = (name, text) => h("li", {}, h("strong", {}, name), `: ${text}`);
  return [
    item("KL", `${number(end.kl)} nats a reply from the SFT model after ${end.step} iterations`),
    item("Score", `from ${number(start.proxy[0])} to ${range(end.proxy)}`),
    item("Judge’s points", `from ${number(start.judge[0])} to ${range(end.judge)}`),
  ];
}

function talk({ run, samples, prompt }) {
  const said = (who, sample) => {
    const about = `${who} · score ${number(sample.proxy)} · ${points(sample.judge)} · ${sample.does}`;
    return bubble("assistant", about, sample.reply || "(nothing)");
  };
  return [
    bubble("user", "You", samples[prompt].prompt),
    said("SFT model", samples[prompt]),
    said(`kl_coef ${run.kl_coef}`, run.samples[prompt]),
  ];
}

function table({ choices, reward }) {
  const cell = (text) => h("td", { class: "cw-number" }, text);
  const rows = choices.flatMap((run) =>
    run.path.map((p) => {
      const head = h("th", { scope: "row", class: "cw-number" }, String(run.kl_coef));
      const texts = [String(p.step), number(p.kl), range(p.proxy), range(p.judge)];
      return h("tr", {}, head, ...texts.map(cell));
    }),
  );
  const heads = ["kl_coef", "iteration", "KL", "score (95 %)", "points (95 %)"];
  return [
    h("caption", {}, `Reward model “${reward}”: means on held-out prompts, 95 % intervals`),
    h("thead", {}, h("tr", {}, ...heads.map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, ...rows),
  ];
}

function draw(parts, at) {
  const { choices, index, run, usual } = at;
  parts.reward.value = at.reward;
  parts.slider.max = choices.length - 1;
  parts.slider.value = index;
  parts.slider.setAttribute("aria-valuetext", `kl_coef ${price(run.kl_coef, usual)}`);
  parts.price.textContent = price(run.kl_coef, usual);
  const measured = choices.map((choice) => choice.kl_coef).join(", ");
  parts.scale.textContent =
    `Measured with this reward model: ${measured}. Faint lines: the other prices. ` +
    "The KL axis is spaced by its square root.";
  parts.charts.replaceChildren(...Object.keys(PANELS).map((name) => chart(at, name)));
  parts.says.replaceChildren(...sentences(at));
  parts.prompt.value = at.prompt;
  parts.talk.replaceChildren(...talk(at));
  parts.data.replaceChildren(...table(at));
}

function render({ model, el }) {
  const parts = makeParts(model);
  const redraw = () => draw(parts, place(model));
  const { on, off } = subscribe(model);
  for (const name of ["runs", "reward", "kl_coef", "prompt"]) on(`change:${name}`, redraw);
  el.append(layout(parts));
  redraw();
  return off;
}

export default { render };
