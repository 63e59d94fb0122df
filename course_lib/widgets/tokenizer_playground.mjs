// Tokenizer playground: any text, cut by the course's tokenizer with 0 to all of its merges.
// tokenizer_playground.py describes the state: text, merges, selected.

import { clamp, h, live, save, subscribe, tokenNode, visible } from "./static/kit.mjs";

const SHOWN = 400; // tokens that are drawn; all are counted
const HUES = ["blue", "amber", "green", "pink", "sky", "orange"];
const number = (n) => n.toLocaleString("en");

// --- tokens ---------------------------------------------------------------------------------

const bytesOf = (node) => Uint8Array.from(node.bytes, (c) => c.charCodeAt(0));
const hex = (node) =>
  Array.from(bytesOf(node), (b) => b.toString(16).padStart(2, "0").toUpperCase()).join(" ");

// The text of a token, or its bytes where they are only a part of a character.
function textOf(node) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytesOf(node));
  } catch {
    return `⟨${hex(node)}⟩`;
  }
}

const made = (node) =>
  node.rank < 0 ? `byte ${node.bytes.charCodeAt(0)}` : `merge ${number(node.rank + 1)}`;

// --- the parts ------------------------------------------------------------------------------

function makeParts(model, most) {
  const set = (values) => save(model, values);
  const merges = (event) =>
    event.target.value !== "" &&
    set({ merges: clamp(Math.round(Number(event.target.value)), 0, most), selected: 0 });
  const limits = { min: 0, max: most, oninput: merges };
  return {
    text: h("textarea", {
      ...{ rows: 3, dir: "auto", spellcheck: "false" },
      oninput: (event) => set({ text: event.target.value, selected: 0 }),
    }),
    slider: h("input", { type: "range", ...limits }),
    count: h("input", { type: "number", "aria-label": "Merges learned, as a number", ...limits }),
    last: h("p", { class: "cw-muted" }),
    tokens: h("div", { class: "cw-tok-tokens", role: "radiogroup", "aria-label": "Tokens" }),
    sums: h("p", { class: "cw-tok-sums", "aria-live": "polite" }),
    detail: h("div", { class: "cw-tok-detail" }),
    rows: h("tbody"),
    more: h("p", { class: "cw-muted" }),
  };
}

function layout(parts, most, onkeydown) {
  const learned = h("label", { class: "cw-tok-slider" }, `Merges learned, 0 to ${number(most)}`);
  learned.append(parts.slider);
  const heads = ["no.", "token", "id", "bytes"].map((text) => h("th", { scope: "col" }, text));
  const table = h(
    "table",
    {},
    h("caption", {}, "The tokens in order"),
    h("thead", {}, h("tr", {}, ...heads)),
    parts.rows,
  );
  const region = { tabindex: 0, role: "region", "aria-label": "Table of the tokens" };
  parts.tokens.onkeydown = onkeydown;
  return h(
    "div",
    { class: "cw cw-tok" },
    h("label", {}, "Your text", parts.text),
    h("div", { class: "cw-controls" }, learned, parts.count),
    parts.last,
    parts.tokens,
    parts.sums,
    parts.detail,
    h(
      "details",
      {},
      h("summary", {}, "All tokens as a table"),
      h("div", { class: "cw-scroll cw-tok-table", ...region }, table),
    ),
    parts.more,
  );
}

function chip(node, place, selected) {
  const text = textOf(node);
  return h(
    "button",
    {
      ...{ type: "button", role: "radio", "data-place": place },
      class: `cw-tok-chip cw-tok-${HUES[place % HUES.length]}`,
      "aria-checked": String(place === selected),
      "aria-label": `Token ${place + 1}: ${visible(text)}`,
      tabindex: place === selected ? 0 : -1,
    },
    tokenNode(text),
  );
}

// The merges that made a token, as nested lists.
function tree(node) {
  const head = h("span", { class: "cw-tok-node" }, tokenNode(textOf(node)));
  const item = h("li", {}, head, h("span", { class: "cw-muted" }, ` ${made(node)}`));
  if (node.left) item.append(h("ul", {}, tree(node.left), tree(node.right)));
  return item;
}

function row(node, place, id) {
  const cell = (text) => h("td", { class: "cw-number" }, text);
  const token = h("th", { scope: "row" }, tokenNode(textOf(node)));
  return h("tr", {}, cell(String(place + 1)), token, cell(String(id)), h("td", {}, hex(node)));
}

// --- drawing --------------------------------------------------------------------------------

function drawLast(parts, tokenizer, merges) {
  if (!merges) {
    parts.last.replaceChildren("No merge yet: every byte is a token of its own.");
    return;
  }
  const [left, right] = tokenizer.merges[merges - 1];
  const quoted = (bytes) => tokenNode(textOf({ bytes }));
  parts.last.replaceChildren(
    ...[`Merge ${number(merges)}, the last one learned: `, quoted(left), " + ", quoted(right)],
    ...[" → ", quoted(left + right)],
  );
}

function drawDetail(parts, tokenizer, node) {
  if (!node) {
    parts.detail.replaceChildren(h("p", { class: "cw-muted" }, "No text, no tokens."));
    return;
  }
  const facts = `id ${tokenizer.ids.get(node.bytes)} · bytes ${hex(node)} · ${made(node)}`;
  parts.detail.replaceChildren(
    h("p", {}, h("strong", {}, tokenNode(textOf(node))), ` ${facts}`),
    h("ul", { class: "cw-tok-tree", "aria-label": "The merges that made this token" }, tree(node)),
  );
}

function draw(model, parts, tokenizer) {
  const [text, merges] = [model.get("text"), model.get("merges")];
  const nodes = tokenizer.words(text, merges).flat();
  const selected = clamp(model.get("selected"), 0, Math.max(0, Math.min(nodes.length, SHOWN) - 1));
  if (parts.text.value !== text) parts.text.value = text;
  parts.slider.value = merges;
  if (document.activeElement !== parts.count) parts.count.value = merges;
  const shown = nodes.slice(0, SHOWN);
  parts.tokens.replaceChildren(...shown.map((node, place) => chip(node, place, selected)));
  parts.rows.replaceChildren(
    ...shown.map((node, place) => row(node, place, tokenizer.ids.get(node.bytes))),
  );
  const bytes = nodes.reduce((sum, node) => sum + node.bytes.length, 0);
  const rate = nodes.length ? `, ${(bytes / nodes.length).toFixed(2)} bytes a token` : "";
  const counted = [Array.from(text).length, bytes, nodes.length].map(number);
  parts.sums.textContent = `${counted[0]} characters, ${counted[1]} bytes, ${counted[2]} tokens${rate}.`;
  const hidden = nodes.length - shown.length;
  parts.more.textContent = hidden > 0 ? `${number(hidden)} more tokens are counted, not drawn.` : "";
  drawLast(parts, tokenizer, merges);
  drawDetail(parts, tokenizer, nodes[selected]);
}

// Arrow keys walk through the tokens; Home and End jump.
function walk(event, model, parts) {
  const count = parts.tokens.childElementCount;
  const at = Number(event.target.dataset.place);
  const targets = { ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: count - 1 };
  Object.assign(targets, { ArrowRight: at + 1, ArrowDown: at + 1 });
  if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  save(model, { selected: clamp(targets[event.key], 0, count - 1) });
}

async function render({ model, el }) {
  const { tokenizer } = await live(model);
  const most = tokenizer.merges.length;
  const parts = makeParts(model, most);
  let planned = false; // many changes in one frame are drawn once
  const redraw = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      const onChip = parts.tokens.contains(document.activeElement);
      draw(model, parts, tokenizer);
      if (onChip) parts.tokens.querySelector('[aria-checked="true"]')?.focus();
    });
  };
  parts.tokens.onclick = (event) => {
    const place = event.target.closest(".cw-tok-chip")?.dataset.place;
    if (place !== undefined) save(model, { selected: Number(place) });
  };
  const { on, off } = subscribe(model);
  for (const name of ["text", "merges", "selected"]) on(`change:${name}`, redraw);
  draw(model, parts, tokenizer);
  el.append(layout(parts, most, (event) => walk(event, model, parts)));
  return off;
}

export default { render };
