// Anatomy of the base model, and its bets read from the stream at every depth.
// logit_lens.py describes the state: text, at, part, parts, first.

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

const BETS = 3;
const depthName = (depth) => (depth ? `after block ${depth - 1}` : "embedding");
const whole = (n) => n.toLocaleString("en");

// --- anatomy --------------------------------------------------------------------------------

function meter(share) {
  const fill = h("span");
  fill.style.width = `${100 * share}%`;
  return h("span", { class: "cw-bar", "aria-hidden": "true" }, fill);
}

function anatomyNode(model, on) {
  const parts = model.get("parts");
  const total = parts.reduce((sum, part) => sum + part.parameters, 0);
  const detail = h("div", { class: "cw-lens-detail", "aria-live": "polite" });
  const buttons = parts.map((part, place) =>
    h(
      "button",
      { type: "button", class: "cw-lens-part", onclick: () => save(model, { part: place }) },
      part.title,
    ),
  );
  const rows = parts.map((part, place) => {
    const share = part.parameters ? percent(part.share) : "tied";
    const cell = h("span", { class: "cw-lens-cell" }, meter(part.share), h("span", { class: "cw-value" }, share));
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, buttons[place]),
      h("td", { class: "cw-number" }, part.shape),
      h("td", { class: "cw-number" }, whole(part.parameters)),
      h("td", {}, cell),
    );
  });
  const draw = () => {
    const at = clamp(model.get("part"), 0, parts.length - 1);
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(place === at)));
    detail.replaceChildren(...describe(parts[at], total));
  };
  on("change:part", draw);
  draw();
  const heads = ["part", "shape", "parameters", "share"].map((x) => h("th", { scope: "col" }, x));
  return h(
    "section",
    {},
    h("h3", { class: "cw-lens-title" }, "The parts"),
    h("p", { class: "cw-muted" }, `${whole(total)} parameters in all. Choose a part.`),
    h("div", { class: "cw-scroll" }, h("table", { class: "cw-lens-parts" }, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows))),
    detail,
  );
}

function describe(part, total) {
  const { title, shape, copies, parameters } = part;
  const sum =
    copies > 1
      ? `${shape} = ${whole(parameters / copies)} in each of ${copies} blocks: ${whole(parameters)}`
      : `${shape} = ${whole(parameters)}`;
  const count = copies
    ? `${sum} of ${whole(total)} parameters, ${percent(parameters / total)}.`
    : `${shape}, no parameters of its own.`;
  return [
    h("p", {}, h("strong", {}, title), `: ${part.does}`),
    h("p", {}, `Shapes: ${part.flow}. Size: ${count}`),
  ];
}

// --- the lens -------------------------------------------------------------------------------

function makeParts(model) {
  return {
    gate: h("div"),
    text: h("textarea", {
      ...{ rows: 2, dir: "auto", spellcheck: "false", disabled: true },
      oninput: (event) => save(model, { text: event.target.value }),
    }),
    at: h("input", {
      ...{ type: "range", min: 0, step: 1 },
      oninput: (event) => save(model, { at: Number(event.target.value) }),
    }),
    atShown: h("output"),
    status: h("p", { role: "status", class: "cw-muted cw-lens-status" }),
    sentence: h("p", { "aria-live": "polite", class: "cw-lens-sentence" }),
    caption: h("caption"),
    rows: h("tbody"),
  };
}

function lensNode(parts) {
  const heads = ["read", "most likely next tokens", "share of the final answer"];
  const head = h("tr", {}, ...heads.map((x) => h("th", { scope: "col" }, x)));
  return h(
    "section",
    {},
    h("h3", { class: "cw-lens-title" }, "Logit lens"),
    parts.gate,
    h(
      "div",
      { class: "cw-controls" },
      h("label", { class: "cw-lens-text" }, "Prompt", parts.text),
      h("label", { class: "cw-lens-slider" }, h("span", {}, "After token ", parts.atShown), parts.at),
    ),
    ...[parts.status, parts.sentence],
    h("table", { class: "cw-lens-chart" }, parts.caption, h("thead", {}, head), parts.rows),
  );
}

const quoted = (text) => ["“", tokenNode(text), "”"];

// Text alone does not tell tokens apart: every piece of a broken character reads "\ufffd".
const leads = ([[[token, p]], final], answer) => token === answer && p === final;

// depths: [[[token, share], ...], share of the final answer], from the embedding upwards
function drawLens(parts, tokens, at, depths) {
  const T = tokens.length;
  parts.at.max = T - 1;
  parts.at.value = at;
  parts.at.setAttribute("aria-valuetext", `token ${at + 1} of ${T}, ${visible(tokens[at])}`);
  parts.atShown.replaceChildren(`${at + 1} of ${T}: `, tokenNode(tokens[at]));
  const [[[answer, share]]] = depths.at(-1);
  parts.caption.replaceChildren("Bets read from the stream at each depth; the bar is the share of ", ...quoted(answer));
  parts.rows.replaceChildren(
    ...depths.map(([bets, final], depth) => {
      const said = bets.map(([token, p]) =>
        h("span", { class: "cw-lens-bet" }, tokenNode(token), ` ${percent(p)}`),
      );
      const cell = h("span", { class: "cw-lens-cell" }, meter(final), h("span", { class: "cw-value" }, percent(final)));
      const name = h("th", { scope: "row" }, depthName(depth));
      return h("tr", {}, name, h("td", {}, h("span", { class: "cw-lens-bets" }, ...said)), h("td", {}, cell));
    }),
  );
  let from = depths.length - 1;
  while (from > 0 && leads(depths[from - 1], answer)) from--;
  parts.sentence.replaceChildren(
    `After token ${at + 1}, `,
    ...quoted(tokens[at]),
    ", the model answers ",
    ...quoted(answer),
    ` with ${percent(share)}. It leads from ${from ? `block ${from - 1}` : "the embedding"} on.`,
  );
}

// What is measured, until a live model answers.
function drawMeasured(model, parts) {
  const { tokens, bets } = model.get("first");
  const at = clamp(model.get("at"), 0, tokens.length - 1);
  drawLens(parts, tokens, at, bets[at]);
}

function wire(models, model, parts, on) {
  const { tokenizer } = models;
  let text = model.get("text");
  const read = latest(async () => {
    const asked = model.get("text");
    const ids = models.documentIds(asked);
    const last = ids.length - 1;
    // A new text is read at its end.
    const at = asked === text ? clamp(model.get("at"), 0, last) : last;
    try {
      const { lens } = await models.forward("base", ids, { lens: true, position: at });
      const answer = top(lens.at(-1), 1)[0][0];
      const words = ([id, p]) => [label(tokenizer, id), p];
      const depths = lens.map((probs) => [top(probs, BETS).map(words), probs[answer]]);
      parts.status.textContent = "";
      drawLens(parts, ids.map((id) => label(tokenizer, id)), at, depths);
      text = asked;
      if (model.get("at") !== at) save(model, { at });
    } catch (error) {
      parts.status.textContent = error.message;
    }
  });
  on("change:text", read);
  on("change:at", read);
  parts.text.disabled = false;
  return read();
}

function render({ model, el }) {
  const parts = makeParts(model);
  const { on, off } = subscribe(model);
  const controls = () => {
    if (parts.text.value !== model.get("text")) parts.text.value = model.get("text");
  };
  on("change:text", controls);
  controls();
  let isLive = false;
  on("change:at", () => isLive || drawMeasured(model, parts));
  drawMeasured(model, parts);
  el.append(h("div", { class: "cw cw-lens" }, anatomyNode(model, on), lensNode(parts)));
  offer(model, parts.gate, ["base"], (models) => {
    isLive = true;
    return wire(models, model, parts, on);
  });
  return off;
}

export default { render };
