// Sampling playground: the next-token distribution before and after every knob, on a live model.
// sampling_playground.py describes the state: text, model_name, knobs, seed, first.

import {
  MODELS,
  NAMES,
  clamp,
  h,
  label,
  latest,
  offer,
  percent,
  save,
  subscribe,
  tokenNode,
  top,
  visible,
} from "./static/kit.mjs";

const ROWS = 12;
const LENGTH = 40; // tokens that one press writes
const KNOBS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.05 }, (x) => (x ? x.toFixed(2) : "0, greedy")],
  ["top_k", "Top-k", { min: 0, max: 100, step: 1 }, (x) => (x ? String(x) : "off")],
  ["top_p", "Top-p", { min: 0.05, max: 1, step: 0.01 }, (x) => (x < 1 ? x.toFixed(2) : "off")],
  ["min_p", "Min-p", { min: 0, max: 0.5, step: 0.01 }, (x) => (x ? x.toFixed(2) : "off")],
  [
    ...["repetition_penalty", "Repetition penalty", { min: 1, max: 2, step: 0.05 }],
    (x) => (x > 1 ? x.toFixed(2) : "off"),
  ],
];

// --- the parts ------------------------------------------------------------------------------

function knob(model, [name, title, range, say]) {
  const shown = h("output", {});
  const slider = h("input", { type: "range", ...range });
  slider.oninput = () =>
    save(model, { knobs: { ...model.get("knobs"), [name]: Number(slider.value) } });
  const draw = () => {
    const value = model.get("knobs")[name];
    slider.value = value;
    shown.textContent = say(value);
    slider.setAttribute("aria-valuetext", say(value));
  };
  return { node: h("label", {}, h("span", {}, `${title}: `, shown), slider), draw };
}

function makeParts(model) {
  const options = MODELS.map((name) => h("option", { value: name }, NAMES[name]));
  const button = (text) => h("button", { type: "button" }, text);
  return {
    knobs: KNOBS.map((row) => knob(model, row)),
    model: h("select", { onchange: (e) => save(model, { model_name: e.target.value }) }, ...options),
    text: h("textarea", {
      ...{ rows: 2, dir: "auto", spellcheck: "false" },
      oninput: (event) => save(model, { text: event.target.value }),
    }),
    seed: h("input", {
      ...{ type: "number", min: 0, max: 999999, step: 1 },
      onchange: (event) => save(model, { seed: clamp(Number(event.target.value) | 0, 0, 999999) }),
    }),
    write: h("button", { type: "button", class: "cw-primary" }, `Write ${LENGTH} tokens`),
    other: button("Another seed"),
    stop: button("Stop"),
    gate: h("div"),
    live: h("div", { hidden: true }),
    caption: h("caption"),
    rows: h("tbody"),
    sentence: h("p", { "aria-live": "polite" }),
    tokens: h("div", { class: "cw-sam-tokens", role: "radiogroup", "aria-label": "Written tokens" }),
    status: h("p", { role: "status", class: "cw-muted cw-sam-status" }),
  };
}

function layout(parts) {
  const heads = ["next token", "before", "after the knobs"].map((x) => h("th", { scope: "col" }, x));
  const table = h(
    "table",
    { class: "cw-sam-chart" },
    parts.caption,
    h("thead", {}, h("tr", {}, ...heads)),
    parts.rows,
  );
  parts.live.append(
    h(
      "div",
      { class: "cw-controls" },
      h("label", {}, "Model", parts.model),
      h("label", { class: "cw-sam-text" }, "Text to continue", parts.text),
    ),
    h("div", { class: "cw-sam-knobs" }, ...parts.knobs.map(({ node }) => node)),
    h(
      "div",
      { class: "cw-controls" },
      ...[h("label", {}, "Seed", parts.seed), parts.write, parts.other, parts.stop],
    ),
  );
  return h(
    "div",
    { class: "cw cw-sam" },
    ...[parts.gate, parts.live, parts.status, parts.tokens, parts.sentence, table],
  );
}

// --- drawing --------------------------------------------------------------------------------

function cell(share, longest, kept = true) {
  const fill = h("span");
  fill.style.width = `${(100 * share) / longest}%`;
  const bar = h("span", { class: "cw-bar", "aria-hidden": "true" }, fill);
  const value = h("span", { class: "cw-value" }, kept ? percent(share) : "cut");
  return h("td", { class: !kept && "cw-sam-cut" }, h("span", { class: "cw-sam-cell" }, bar, value));
}

// rows [[token, before, after]] (after is null where cut), kept, mass, size: as in `first`
function drawTable(parts, { rows, kept, mass, size }, after) {
  const longest = Math.max(...rows.flatMap(([, was, is]) => [was, is]));
  parts.caption.textContent = `The most likely next tokens; a full bar is ${percent(longest)}`;
  parts.rows.replaceChildren(
    ...rows.map(([token, was, is]) =>
      h("tr", {}, h("th", { scope: "row" }, tokenNode(token)), cell(was, longest), cell(is, longest, is !== null)),
    ),
  );
  const tail = after.length > 60 ? `…${after.slice(-60)}` : after;
  parts.sentence.replaceChildren(
    "After “",
    h("bdi", {}, tail.replaceAll("\n", "⏎")),
    `”, ${kept.toLocaleString("en")} of ${size.toLocaleString("en")} tokens can be drawn. `,
    `They had ${percent(mass)} of the probability.`,
  );
}

function summary(models, logits, knobs, previous) {
  const before = models.probs(logits);
  const after = models.probs(logits, knobs, previous);
  const rows = top(before, ROWS).map(([id, p]) => [label(models.tokenizer, id), p, after[id] > 0 ? after[id] : null]);
  let [kept, mass] = [0, 0];
  after.forEach((p, id) => {
    if (p > 0) [kept, mass] = [kept + 1, mass + before[id]];
  });
  return { rows, kept, mass, size: after.length };
}

// --- live -----------------------------------------------------------------------------------

// Holds what was written: ids of the text, then steps {id, logits}; `at` is the step in view.
function session(models, model, parts) {
  const { tokenizer } = models;
  let [context, steps, at, next] = [[], [], 0, null];
  let stopper = null;

  const draw = () => {
    const logits = at < steps.length ? steps[at].logits : next;
    if (!logits) return;
    const written = steps.slice(0, at).map(({ id }) => id);
    const after = model.get("text") + tokenizer.decode(written);
    drawTable(parts, summary(models, logits, model.get("knobs"), [...context, ...written]), after);
  };
  const drawTokens = () => {
    const chips = steps.map(({ id }, place) => {
      const text = label(tokenizer, id);
      const spoken = `Token ${place + 1}: ${visible(text)}`;
      const attributes = { type: "button", role: "radio", "data-place": place };
      return h(
        "button",
        { ...attributes, class: "cw-sam-chip", "aria-label": spoken },
        tokenNode(text),
      );
    });
    parts.tokens.replaceChildren(...chips);
    mark();
  };
  const mark = () =>
    [...parts.tokens.children].forEach((node, place) => {
      node.setAttribute("aria-checked", String(place === at));
      node.tabIndex = place === clamp(at, 0, steps.length - 1) ? 0 : -1;
    });
  const go = (place) => {
    at = clamp(place, 0, Math.max(0, steps.length - 1));
    mark();
    draw();
  };

  // The text or the model changed: what was written no longer fits.
  const read = latest(async () => {
    stopper?.abort();
    const [name, text] = [model.get("model_name"), model.get("text")];
    const ids = name === "base" ? models.documentIds(text) : models.chatIds([["user", text]]);
    try {
      if (models.bytes([name])) parts.status.textContent = `Loading ${NAMES[name]} …`;
      const { logits } = await models.forward(name, ids);
      [context, steps, at, next] = [ids, [], 0, logits];
      parts.status.textContent = "";
      drawTokens();
      draw();
    } catch (error) {
      parts.status.textContent = error.message;
    }
  });

  const write = async () => {
    stopper?.abort();
    const mine = (stopper = new AbortController());
    const stop = ["<|endoftext|>", "<|im_end|>"].map((token) => tokenizer.special[token]);
    [steps, at] = [[], 0];
    const onToken = ({ id, logits }) => {
      if (mine.signal.aborted) return;
      steps.push({ id, logits });
      drawTokens();
    };
    const knobs = { ...model.get("knobs"), seed: model.get("seed"), max_new_tokens: LENGTH, stop };
    parts.status.textContent = "Writing …";
    try {
      const name = model.get("model_name");
      const { ended } = await models.generate(name, context, { ...knobs, signal: mine.signal, onToken });
      if (stopper !== mine) return;
      const how = ended ? "It ended by itself" : "Cut here";
      parts.status.textContent = `${how} after ${steps.length} tokens. Choose a token to see its distribution.`;
      draw();
    } catch (error) {
      parts.status.textContent = error.message;
    }
  };
  return { read, write, draw, go, stop: () => stopper?.abort(), place: () => at, last: () => steps.length - 1 };
}

// Arrow keys walk through the written tokens; Home and End jump.
function walk(event, now, parts) {
  const at = now.place();
  const targets = { ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: now.last() };
  Object.assign(targets, { ArrowRight: at + 1, ArrowDown: at + 1 });
  if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  now.go(targets[event.key]);
  parts.tokens.querySelector('[aria-checked="true"]')?.focus();
}

async function wire(models, model, parts, on) {
  const now = session(models, model, parts);
  parts.write.onclick = now.write;
  parts.stop.onclick = now.stop;
  parts.other.onclick = () => {
    save(model, { seed: model.get("seed") + 1 });
    now.write();
  };
  parts.tokens.onkeydown = (event) => walk(event, now, parts);
  parts.tokens.onclick = (event) => {
    const place = event.target.closest(".cw-sam-chip")?.dataset.place;
    if (place !== undefined) now.go(Number(place));
  };
  on("change:text", now.read);
  on("change:model_name", now.read);
  on("change:knobs", now.draw);
  await now.read();
  parts.live.hidden = false;
}

function render({ model, el }) {
  const parts = makeParts(model);
  const { on, off } = subscribe(model);
  const controls = () => {
    for (const { draw } of parts.knobs) draw();
    parts.model.value = model.get("model_name");
    parts.seed.value = model.get("seed");
    if (parts.text.value !== model.get("text")) parts.text.value = model.get("text");
  };
  for (const name of ["knobs", "model_name", "seed", "text"]) on(`change:${name}`, controls);
  controls();
  drawTable(parts, model.get("first"), model.get("text"));
  el.append(layout(parts));
  offer(model, parts.gate, [model.get("model_name")], (models) => wire(models, model, parts, on));
  return off;
}

export default { render };
