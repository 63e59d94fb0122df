// Mask stepper: step through a sentence and choose what the model may see.
// mask_stepper.py describes the state: text, step, rule, window, flips, first.

import {
  clamp,
  h,
  label,
  latest,
  offer,
  percent,
  save,
  softmax,
  subscribe,
  svg,
  tokenNode,
  top,
  visible,
} from "./static/kit.mjs";

const BETS = 8;
const RULES = [
  ["all", "everything so far (causal, as trained)"],
  ["window", "only the last tokens"],
  ["future", "the future as well (no mask)"],
];

// --- the mask and the bets (mask_stepper.py: make_mask, steps) --------------------------------

function makeMask(rule, window, flips, T) {
  const mask = new Uint8Array(T * T);
  for (let q = 0; q < T; q++) {
    const [from, to] = [rule === "window" ? Math.max(0, q - window + 1) : 0, rule === "future" ? T : q + 1];
    mask.fill(1, q * T + from, q * T + to);
  }
  for (const [q, k] of flips) if (q < T && k < T) mask[q * T + k] ^= 1;
  return mask;
}

function betsAt(models, ids, full, now, t) {
  const { tokenizer } = models;
  const row = (id) => [label(tokenizer, id), full[t][id], now[t][id]];
  const either = full[t].map((p, id) => Math.max(p, now[t][id]));
  const next = t + 1 < ids.length ? row(ids[t + 1]) : null;
  return { rows: top(either, BETS).map(([id]) => row(id)), next };
}

// --- the parts ------------------------------------------------------------------------------

function makeParts(model) {
  const name = `cw-step-${Math.random().toString(36).slice(2)}`; // one group of radios a view
  const button = (text, by) => h("button", { type: "button", onclick: () => move(model, by) }, text);
  return {
    gate: h("div"),
    text: h("textarea", {
      ...{ rows: 2, dir: "auto", spellcheck: "false", disabled: true },
      oninput: (event) => save(model, { text: event.target.value, flips: [] }),
    }),
    rules: RULES.map(([rule]) =>
      h("input", { type: "radio", name, value: rule, onchange: () => save(model, { rule }) }),
    ),
    window: h("input", {
      ...{ type: "number", min: 1, max: 128, step: 1 },
      onchange: (event) => {
        const window = clamp(Math.round(event.target.value) || 1, 1, 128);
        save(model, { window, rule: "window" });
        event.target.value = window;
      },
    }),
    step: h("input", {
      ...{ type: "range", min: 0, step: 1 },
      oninput: (event) => save(model, { step: Number(event.target.value) }),
    }),
    stepShown: h("output"),
    back: button("Back", -1),
    next: button("Next", 1),
    every: h("input", { type: "checkbox" }),
    reset: h("button", { type: "button", onclick: () => save(model, { flips: [] }) }, "Undo all switches"),
    tokens: h("div", { class: "cw-step-tokens", role: "group", "aria-label": "What the token in view may see" }),
    picture: h("div", { class: "cw-step-picture" }),
    status: h("p", { role: "status", class: "cw-muted cw-step-status" }),
    sentence: h("p", { "aria-live": "polite", class: "cw-step-sentence" }),
    caption: h("caption"),
    rows: h("tbody"),
    maskRows: h("tbody"),
  };
}

const move = (model, by) => save(model, { step: Math.max(0, model.get("step") + by) });

function layout(parts) {
  const column = (text) => h("th", { scope: "col" }, text);
  const rules = RULES.map(([, words], i) => h("label", {}, parts.rules[i], words));
  rules.splice(2, 0, h("label", { class: "cw-step-window" }, "how many", parts.window));
  const bets = ["next token", "everything so far", "your mask"].map(column);
  const mask = ["token", "may see"].map(column);
  return h(
    "div",
    { class: "cw cw-step" },
    parts.gate,
    h("label", { class: "cw-step-text" }, "Sentence", parts.text),
    h("fieldset", { class: "cw-step-rules" }, h("legend", {}, "Every token may see"), ...rules),
    h(
      "div",
      { class: "cw-controls" },
      h("label", { class: "cw-step-slider" }, h("span", {}, "Step: ", parts.stepShown), parts.step),
      ...[parts.back, parts.next],
    ),
    h("p", { class: "cw-muted" }, "Press a token to switch one entry of the mask: may the token in view see it?"),
    parts.tokens,
    h(
      "div",
      { class: "cw-controls" },
      h("label", { class: "cw-step-check" }, parts.every, "switch it for all later tokens too"),
      parts.reset,
    ),
    parts.status,
    h(
      "div",
      { class: "cw-step-columns" },
      h("div", {}, parts.picture),
      h(
        "div",
        {},
        parts.sentence,
        h(
          "table",
          { class: "cw-step-chart" },
          ...[parts.caption, h("thead", {}, h("tr", {}, ...bets)), parts.rows],
        ),
      ),
    ),
    h(
      "details",
      {},
      h("summary", {}, "The mask as a table"),
      h(
        "div",
        { class: "cw-step-table", tabindex: 0, role: "region", "aria-label": "The mask as a table" },
        h("table", {}, h("thead", {}, h("tr", {}, ...mask)), parts.maskRows),
      ),
    ),
  );
}

// --- drawing --------------------------------------------------------------------------------

// Places that a query may see, as runs [from, to].
function runs(mask, T, query) {
  const out = [];
  for (let k = 0; k < T; k++) {
    if (!mask[query * T + k]) continue;
    if (out.at(-1)?.[1] === k - 1) out.at(-1)[1] = k;
    else out.push([k, k]);
  }
  return out;
}

function drawMask(parts, mask, tokens, at) {
  const T = tokens.length;
  let path = "";
  for (let q = 0; q < T; q++) {
    for (const [a, b] of runs(mask, T, q)) {
      for (let k = a; k <= b; k++) path += `M${k + 0.06} ${q + 0.06}h.88v.88h-.88z`;
    }
  }
  const name = `The mask: ${T} tokens looking (rows) at ${T} tokens (columns); filled where looking is allowed`;
  parts.picture.replaceChildren(
    svg(
      "svg",
      { viewBox: `-0.1 -0.1 ${T + 0.2} ${T + 0.2}`, role: "img", "aria-label": name },
      svg("rect", { x: 0, y: 0, width: T, height: T, class: "cw-step-none" }),
      svg("path", { d: path, class: "cw-step-seen" }),
      svg("rect", { x: 0, y: at, width: T, height: 1, class: "cw-step-row" }),
    ),
    h("p", { class: "cw-muted" }, "The mask: a row for each token that looks, filled where it may. The frame marks the token in view."),
  );
  const words = (q) => runs(mask, T, q).map(([a, b]) => (a === b ? `${a + 1}` : `${a + 1} to ${b + 1}`));
  parts.maskRows.replaceChildren(
    ...tokens.map((token, q) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, `${q + 1}: `, tokenNode(token)),
        h("td", {}, words(q).join(", ") || "nothing"),
      ),
    ),
  );
}

function drawTokens(parts, mask, tokens, at) {
  const T = tokens.length;
  if (parts.tokens.children.length !== T) {
    parts.tokens.replaceChildren(...tokens.map(() => h("button", { type: "button", class: "cw-step-chip" })));
  }
  tokens.forEach((token, k) => {
    const chip = parts.tokens.children[k];
    chip.dataset.place = k;
    chip.setAttribute("aria-pressed", String(Boolean(mask[at * T + k])));
    chip.setAttribute("aria-label", `Token ${k + 1}: ${visible(token)}`);
    chip.classList.toggle("cw-step-here", k === at);
    chip.replaceChildren(tokenNode(token));
  });
}

function cell(share, longest) {
  const fill = h("span");
  fill.style.width = `${(100 * share) / longest}%`;
  const bar = h("span", { class: "cw-bar", "aria-hidden": "true" }, fill);
  const value = h("span", { class: "cw-value" }, percent(share));
  return h("td", {}, h("span", { class: "cw-step-cell" }, bar, value));
}

function drawBets(parts, { rows, next }, tokens, at, seen) {
  const longest = Math.max(...rows.flatMap(([, full, now]) => [full, now]));
  parts.caption.textContent = `Bets on the next token; a full bar is ${percent(longest)}`;
  parts.rows.replaceChildren(
    ...rows.map(([token, full, now]) =>
      h("tr", {}, h("th", { scope: "row" }, tokenNode(token)), cell(full, longest), cell(now, longest)),
    ),
  );
  const quoted = (token) => ["“", tokenNode(token), "”"];
  const end = next
    ? [" What follows in the text is ", ...quoted(next[0]), `: it gets ${percent(next[2])}, and ${percent(next[1])} with everything so far.`]
    : [" Here the text ends."];
  parts.sentence.replaceChildren(
    `At token ${at + 1} of ${tokens.length}, `,
    ...quoted(tokens[at]),
    `, the model may see ${seen} token${seen === 1 ? "" : "s"}.`,
    ...end,
  );
}

// --- behaviour ------------------------------------------------------------------------------

// Without weights the widget knows the measured steps of the first text; `live` replaces them.
function stepper(model, parts) {
  const first = model.get("first");
  let tokens = first.tokens;
  let bets = null; // from the live model: (t) => {rows, next}
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const known = () =>
    model.get("window") === first.window && same(model.get("flips"), first.flips);

  function draw() {
    const T = tokens.length;
    const at = clamp(model.get("step"), 0, T - 1);
    const mask = makeMask(model.get("rule"), model.get("window"), model.get("flips"), T);
    parts.step.max = T - 1;
    parts.step.value = at;
    parts.stepShown.textContent = `${at + 1} of ${T}`;
    parts.step.setAttribute("aria-valuetext", `token ${at + 1} of ${T}, ${visible(tokens[at])}`);
    parts.back.disabled = at === 0;
    parts.next.disabled = at === T - 1;
    parts.reset.disabled = !model.get("flips").length;
    drawTokens(parts, mask, tokens, at);
    drawMask(parts, mask, tokens, at);
    const seen = mask.subarray(at * T, (at + 1) * T).reduce((a, b) => a + b, 0);
    if (bets) drawBets(parts, bets(at), tokens, at, seen);
    else if (known()) drawBets(parts, first.steps[model.get("rule")][at], tokens, at, seen);
    if (!bets) parts.status.textContent = known() ? "" : "Load the model to see its bets under this mask.";
  }

  parts.tokens.onclick = (event) => {
    const chip = event.target.closest(".cw-step-chip");
    if (!chip) return;
    const T = tokens.length;
    const [k, at] = [Number(chip.dataset.place), clamp(model.get("step"), 0, T - 1)];
    const mask = makeMask(model.get("rule"), model.get("window"), model.get("flips"), T);
    const queries = parts.every.checked ? Array.from({ length: T - at }, (_, i) => at + i) : [at];
    const turned = queries.filter((q) => mask[q * T + k] === mask[at * T + k]).map((q) => [q, k]);
    const kept = model.get("flips").filter((flip) => !turned.some((x) => same(x, flip)));
    const added = turned.filter((flip) => !model.get("flips").some((x) => same(x, flip)));
    save(model, { flips: [...kept, ...added] });
  };
  return {
    draw,
    use(newTokens, newBets) {
      [tokens, bets] = [newTokens, newBets];
      const last = tokens.length - 1;
      if (model.get("step") > last) save(model, { step: last });
      draw();
    },
    live: () => bets !== null,
  };
}

function wire(models, model, parts, now, on) {
  const V = models.config("base").vocab_size;
  let cached = { text: null };
  const split = ({ logits }, T) =>
    Array.from({ length: T }, (_, t) => softmax(logits.subarray(t * V, (t + 1) * V)));
  const read = latest(async () => {
    const text = model.get("text");
    const ids = models.documentIds(text);
    const T = ids.length;
    const mask = makeMask(model.get("rule"), model.get("window"), model.get("flips"), T);
    try {
      if (cached.text !== text) {
        cached = { text, full: split(await models.forward("base", ids, { logits: "all" }), T) };
      }
      const seen = split(await models.forward("base", ids, { logits: "all", mask }), T);
      parts.status.textContent = "";
      const tokens = ids.map((id) => label(models.tokenizer, id));
      const { full } = cached;
      now.use(tokens, (t) => betsAt(models, ids, full, seen, t));
    } catch (error) {
      parts.status.textContent = error.message;
    }
  });
  for (const name of ["text", "rule", "window", "flips"]) on(`change:${name}`, read);
  parts.text.disabled = false;
  return read();
}

function render({ model, el }) {
  const parts = makeParts(model);
  const now = stepper(model, parts);
  const { on, off } = subscribe(model);
  const controls = () => {
    parts.rules.forEach((radio) => (radio.checked = radio.value === model.get("rule")));
    parts.window.value = model.get("window");
    if (parts.text.value !== model.get("text")) parts.text.value = model.get("text");
  };
  for (const name of ["rule", "window", "text"]) on(`change:${name}`, controls);
  on("change:step", now.draw);
  for (const name of ["rule", "window", "flips"]) on(`change:${name}`, () => now.live() || now.draw());
  controls();
  now.draw();
  el.append(layout(parts));
  offer(model, parts.gate, ["base"], (models) => wire(models, model, parts, now, on));
  return off;
}

export default { render };
