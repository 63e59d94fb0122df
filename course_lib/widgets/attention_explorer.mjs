// Attention explorer: where one head looks from a token, and what it takes from there.
// attention_explorer.py describes the state: text, layer, head, at, first.

import {
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

const TAKEN = 4;

// --- what is shown: `tokens`, `row(layer, head, t)` and a promise `takes(layer, head, t)` ------

const measured = ({ tokens, attention, takes }) => ({
  tokens,
  row: (layer, head, t) => attention[layer][head][t],
  takes: async (layer, head, t) => takes[layer][head][t],
});

// The same from the live model, with the arithmetic of attention_explorer.heads_of.
async function readLive(models, text, gain) {
  const { n_layers, n_heads, d_model: C, norm_eps } = models.config("base");
  const ids = models.documentIds(text);
  const writes = [];
  for (let i = 0; i < n_layers * n_heads; i++) writes.push([Math.floor(i / n_heads), i % n_heads]);
  const out = await models.forward("base", ids, { attention: true, residual: true, writes });
  const T = ids.length;
  return {
    tokens: ids.map((id) => label(models.tokenizer, id)),
    row: (layer, head, t) => out.attention[layer][head].slice(t * T, t * T + t + 1),
    async takes(layer, head, t) {
      const stream = out.residual[n_layers].subarray(t * C, (t + 1) * C);
      const size = Math.sqrt(stream.reduce((sum, x) => sum + x * x, 0) / C + norm_eps);
      const write = out.writes[layer * n_heads + head].slice(t * C, (t + 1) * C);
      const rise = await models.unembed("base", write.map((x, i) => (x * gain[i]) / size));
      const mean = rise.reduce((sum, x) => sum + x, 0) / rise.length;
      return top(rise, TAKEN).map(([id, x]) => [label(models.tokenizer, id), x - mean]);
    },
  };
}

// --- the parts ------------------------------------------------------------------------------

function chooser(model, name, n) {
  const options = Array.from({ length: n }, (_, i) => h("option", { value: i }, String(i)));
  return h("select", { onchange: (e) => save(model, { [name]: Number(e.target.value) }) }, ...options);
}

function makeParts(model) {
  const { attention } = model.get("first");
  return {
    gate: h("div"),
    text: h("textarea", {
      ...{ rows: 2, dir: "auto", spellcheck: "false", disabled: true },
      oninput: (event) => save(model, { text: event.target.value }),
    }),
    layer: chooser(model, "layer", attention.length),
    head: chooser(model, "head", attention[0].length),
    status: h("p", { role: "status", class: "cw-muted cw-att-status" }),
    tokens: h("div", { class: "cw-att-tokens", role: "radiogroup", "aria-label": "Token in view" }),
    sentence: h("p", { "aria-live": "polite", class: "cw-att-sentence" }),
    looks: h("tbody"),
    takes: h("tbody"),
  };
}

function chart(caption, heads, body) {
  const row = h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)));
  return h(
    "table",
    { class: "cw-att-chart" },
    ...[h("caption", {}, caption), h("thead", {}, row), body],
  );
}

function layout(parts) {
  return h(
    "div",
    { class: "cw cw-att" },
    parts.gate,
    h(
      "div",
      { class: "cw-controls" },
      h("label", { class: "cw-att-text" }, "Sentence", parts.text),
      h("label", {}, "Layer", parts.layer),
      h("label", {}, "Head", parts.head),
    ),
    parts.status,
    h("p", { class: "cw-muted" }, "Point at a token, or walk with the arrow keys. The stronger the colour of another token, the more the chosen one takes from it."),
    parts.tokens,
    parts.sentence,
    h(
      "div",
      { class: "cw-att-columns" },
      chart("Where it looks", ["token", "attention weight"], parts.looks),
      chart("What it takes: the logits that rise most", ["next token", "rise"], parts.takes),
    ),
  );
}

// --- drawing --------------------------------------------------------------------------------

function barRow(node, share, value) {
  const fill = h("span");
  fill.style.width = `${100 * clamp(share, 0, 1)}%`;
  const bar = h("span", { class: "cw-bar", "aria-hidden": "true" }, fill);
  const cell = h("span", { class: "cw-att-cell" }, bar, h("span", { class: "cw-value" }, value));
  return h("tr", {}, h("th", { scope: "row" }, node), h("td", {}, cell));
}

const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;
const quoted = (text) => ["“", tokenNode(text), "”"];

function drawTokens(parts, tokens) {
  parts.tokens.replaceChildren(
    ...tokens.map((token, place) =>
      h(
        "button",
        {
          ...{ type: "button", role: "radio", class: "cw-att-chip", "data-place": place },
          "aria-label": `Token ${place + 1}: ${visible(token)}`,
        },
        tokenNode(token),
      ),
    ),
  );
}

function drawLook(parts, { tokens, row }, layer, head, t) {
  const weights = row(layer, head, t);
  [...parts.tokens.children].forEach((chip, place) => {
    chip.setAttribute("aria-checked", String(place === t));
    chip.tabIndex = place === t ? 0 : -1;
    chip.classList.toggle("cw-att-later", place > t);
    chip.style.setProperty("--weight", place > t ? 0 : weights[place]);
  });
  parts.looks.replaceChildren(
    ...Array.from(weights, (w, place) => barRow(tokenNode(tokens[place]), w, percent(w))),
  );
}

function drawTakes(parts, { tokens, row }, layer, head, t, taken) {
  const most = Math.max(taken[0][1], 1e-6);
  parts.takes.replaceChildren(
    ...taken.map(([token, x]) => barRow(tokenNode(token), x / most, signed(x))),
  );
  const weights = row(layer, head, t);
  const far = weights.reduce((best, w, place) => (w > weights[best] ? place : best), 0);
  parts.sentence.replaceChildren(
    `From token ${t + 1}, `,
    ...quoted(tokens[t]),
    `, head ${head} of layer ${layer} looks most at `,
    ...(far === t ? ["the token itself"] : [`token ${far + 1}, `, ...quoted(tokens[far])]),
    ` (${percent(weights[far])}). What it takes raises the logit of `,
    ...quoted(taken[0][0]),
    ` most, by ${taken[0][1].toFixed(2)} more than that of an average token.`,
  );
}

// --- behaviour ------------------------------------------------------------------------------

function explorer(model, parts) {
  let reading = measured(model.get("first"));
  let pointed = null; // token under the mouse
  const place = () => clamp(pointed ?? model.get("at"), 0, reading.tokens.length - 1);
  const draw = latest(async () => {
    const now = [reading, model.get("layer"), model.get("head"), place()];
    drawLook(parts, ...now);
    drawTakes(parts, ...now, await reading.takes(...now.slice(1)));
  });
  const show = () => draw().catch((error) => (parts.status.textContent = error.message));
  return {
    show,
    last: () => reading.tokens.length - 1,
    place,
    point(t) {
      if (pointed === t) return;
      pointed = t;
      show();
    },
    use(next, at) {
      [reading, pointed] = [next, null];
      drawTokens(parts, reading.tokens);
      if (at !== undefined) save(model, { at });
      return show();
    },
  };
}

// Pointing shows a token for as long as it lasts; click, focus and arrow keys choose it.
function listen(model, parts, now) {
  const chip = (event) => event.target.closest(".cw-att-chip");
  const choose = (t) => save(model, { at: clamp(t, 0, now.last()) });
  // Movement, not entry: chips that change under a resting mouse choose nothing.
  parts.tokens.onpointermove = (event) => {
    if (event.pointerType === "mouse" && chip(event)) now.point(Number(chip(event).dataset.place));
  };
  parts.tokens.onpointerleave = () => now.point(null);
  parts.tokens.onclick = (event) => chip(event) && choose(Number(chip(event).dataset.place));
  parts.tokens.onkeydown = (event) => {
    const at = now.place();
    const targets = { ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: now.last() };
    Object.assign(targets, { ArrowRight: at + 1, ArrowDown: at + 1 });
    if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    now.point(null);
    choose(targets[event.key]);
    parts.tokens.children[model.get("at")].focus();
  };
}

async function wire(models, model, parts, now, on) {
  const { gain } = model.get("first");
  const read = latest(async (moved) => {
    try {
      const next = await readLive(models, model.get("text"), gain);
      parts.status.textContent = "";
      await now.use(next, moved ? next.tokens.length - 1 : undefined);
    } catch (error) {
      parts.status.textContent = error.message;
    }
  });
  on("change:text", () => read(true));
  parts.text.disabled = false;
  await read(false);
}

function render({ model, el }) {
  const parts = makeParts(model);
  const now = explorer(model, parts);
  const { on, off } = subscribe(model);
  const controls = () => {
    parts.layer.value = model.get("layer");
    parts.head.value = model.get("head");
    if (parts.text.value !== model.get("text")) parts.text.value = model.get("text");
  };
  for (const name of ["layer", "head", "at"]) on(`change:${name}`, now.show);
  for (const name of ["layer", "head", "text"]) on(`change:${name}`, controls);
  controls();
  listen(model, parts, now);
  now.use(measured(model.get("first")));
  el.append(layout(parts));
  offer(model, parts.gate, ["base"], (models) => wire(models, model, parts, now, on));
  return off;
}

export default { render };
