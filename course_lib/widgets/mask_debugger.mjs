// Mask debugger: what a chat template makes of a conversation, token by token.
// mask_debugger.py describes the state: text, template, selected.

import { clamp, h, label, live, save, subscribe, tokenNode, visible } from "./static/kit.mjs";

const TEMPLATES = { chatml: "ChatML", llama2: "Llama-2", alpaca: "Alpaca" };
const ROLES = ["system", "user", "assistant"];
const SHOWN = 600; // tokens that are drawn; all are counted
const HELP = "One turn starts with “user:”, “assistant:” or “system:”. A JSON list of messages works too.";

// --- reading the conversation ---------------------------------------------------------------

// "user: ..." lines, or JSON [{role, content}, ...], to [[role, content], ...].
function parse(text) {
  if (text.trim().startsWith("[")) {
    try {
      return JSON.parse(text).map(({ role, content }) => [String(role), String(content)]);
    } catch {
      throw new Error("This is no JSON list of messages with a role and a content.");
    }
  }
  const turns = [];
  for (const line of text.split("\n")) {
    const start = /^\s*(system|user|assistant)\s*:[ \t]?/i.exec(line);
    if (start) turns.push([start[1].toLowerCase(), line.slice(start[0].length)]);
    else if (turns.length) turns.at(-1)[1] += `\n${line}`;
    else if (line.trim()) throw new Error(`Nobody says “${line.slice(0, 40)}”. ${HELP}`);
  }
  return turns;
}

// As check_turns in chat.py.
function check(turns) {
  if (!turns.length) throw new Error(`The conversation is empty. ${HELP}`);
  turns.forEach(([role], i) => {
    const before = i ? turns[i - 1][0] : null;
    if (!ROLES.includes(role)) throw new Error(`Unknown role “${role}” in turn ${i + 1}.`);
    if (role === "system" && i) throw new Error("The system turn must come first.");
    if (role === before) throw new Error(`Turns ${i} and ${i + 1} are both by the ${role}: join them.`);
    if (role === "assistant" && before !== "user") {
      throw new Error("The assistant speaks first: a user turn must come before it.");
    }
  });
  return turns;
}

// --- the parts ------------------------------------------------------------------------------

function makeParts(model) {
  const options = Object.entries(TEMPLATES).map(([value, name]) => h("option", { value }, name));
  return {
    text: h("textarea", {
      ...{ rows: 5, dir: "auto", spellcheck: "false" },
      oninput: (event) => save(model, { text: event.target.value, selected: 0 }),
    }),
    template: h(
      "select",
      { onchange: (event) => save(model, { template: event.target.value, selected: 0 }) },
      ...options,
    ),
    status: h("p", { role: "status" }),
    tokens: h("div", { class: "cw-mask-tokens", role: "radiogroup", "aria-label": "Tokens" }),
    sentence: h("p", { class: "cw-mask-sentence", "aria-live": "polite" }),
    rows: h("tbody"),
  };
}

function layout(parts) {
  const names = ["no.", "token", "id", "whose turn", "written by", "mask", "target"];
  const heads = names.map((name) => h("th", { scope: "col" }, name));
  const caption = h("caption", {}, "Every token, its mask and the target at its place");
  const table = h("table", {}, caption, h("thead", {}, h("tr", {}, ...heads)), parts.rows);
  const region = { tabindex: 0, role: "region", "aria-label": "Table of the conversation’s tokens" };
  const key = [...ROLES.map((role) => [role, role]), ["learned", "learned: what the loss sees"]];
  const legend = key.map(([name, text]) =>
    h("span", {}, h("span", { class: `cw-mask-key cw-mask-${name}`, "aria-hidden": "true" }), text),
  );
  return h(
    "div",
    { class: "cw cw-mask" },
    h("label", {}, "The conversation", parts.text),
    h("p", { class: "cw-muted" }, HELP),
    h("div", { class: "cw-controls" }, h("label", {}, "Template", parts.template)),
    parts.status,
    h("p", { class: "cw-muted cw-mask-legend" }, ...legend),
    parts.tokens,
    parts.sentence,
    h(
      "details",
      {},
      h("summary", {}, "All tokens as a table"),
      h("div", { class: "cw-scroll cw-mask-table", ...region }, table),
    ),
  );
}

// --- drawing --------------------------------------------------------------------------------

function chip(seen, place, selected) {
  const { text, role, learned } = seen;
  const button = h(
    "button",
    {
      ...{ type: "button", role: "radio", "data-place": place },
      class: `cw-mask-chip cw-mask-${role}${learned ? " cw-mask-learned" : ""}`,
      "aria-checked": String(place === selected),
      "aria-label": `Token ${place + 1}: ${visible(text)}, ${role}${learned ? ", learned" : ""}`,
      tabindex: place === selected ? 0 : -1,
    },
    tokenNode(text),
  );
  const newLine = !seen.typed && text.includes("\n");
  return newLine ? [button, h("span", { class: "cw-mask-break" })] : [button];
}

function row({ text, id, role, typed, learned, target }, place) {
  const cell = (content, name) => h("td", { class: name }, content);
  return h(
    "tr",
    { class: learned && "cw-mask-row" },
    ...[cell(String(place + 1), "cw-number"), h("th", { scope: "row" }, tokenNode(text))],
    ...[cell(String(id), "cw-number"), cell(role), cell(typed ? "the speaker" : "the template")],
    ...[cell(learned ? "1" : "0", "cw-number"), cell(target == null ? "ignored" : tokenNode(target))],
  );
}

// The tokens with all that is shown about them.
function look(tokenizer, text, template, renderChat) {
  const turns = check(parse(text));
  const out = renderChat(turns, tokenizer, template);
  const words = out.ids.map((id) => label(tokenizer, id));
  return out.ids.map((id, t) => ({
    ...{ id, text: words[t], role: out.roles[t], typed: !out.control[t], learned: out.mask[t] },
    target: out.mask[t + 1] ? words[t + 1] : null,
  }));
}

function drawSentence(parts, tokens, at) {
  const { text, id, role, typed, learned, target } = tokens[at];
  const who = typed ? `typed by the ${role}` : `written by the template in the ${role}’s turn`;
  parts.sentence.replaceChildren(
    ...[`Token ${at + 1} of ${tokens.length}: `, h("strong", {}, tokenNode(text)), ` (id ${id}), ${who}. `],
    learned
      ? "Mask 1: the model is trained to write it. "
      : "Mask 0: it is read, not learned. ",
    ...(target == null
      ? ["At its place nothing is asked: the target is −100, which the loss ignores."]
      : ["At its place the target is the next token: ", h("strong", {}, tokenNode(target)), "."]),
  );
}

function draw(model, parts, tokenizer, renderChat) {
  const text = model.get("text");
  if (parts.text.value !== text) parts.text.value = text;
  parts.template.value = model.get("template");
  let tokens;
  try {
    tokens = look(tokenizer, text, model.get("template"), renderChat);
  } catch (error) {
    parts.status.classList.add("cw-warn");
    parts.status.textContent = error.message;
    for (const part of [parts.tokens, parts.sentence, parts.rows]) part.replaceChildren();
    return;
  }
  const shown = tokens.slice(0, SHOWN);
  const at = clamp(model.get("selected"), 0, shown.length - 1);
  const learned = tokens.filter((token) => token.learned).length;
  const hidden = tokens.length - shown.length;
  parts.status.classList.remove("cw-warn");
  parts.status.textContent =
    `${tokens.length} tokens, of which ${learned} are learned.` +
    (hidden ? ` The last ${hidden} are counted, not drawn.` : "");
  parts.tokens.replaceChildren(...shown.flatMap((token, t) => chip(token, t, at)));
  parts.rows.replaceChildren(...shown.map(row));
  drawSentence(parts, tokens, at);
}

// Arrow keys walk through the tokens; Home and End jump.
function walk(event, model, parts) {
  const last = parts.tokens.querySelectorAll("button").length - 1;
  const at = Number(event.target.dataset.place);
  const targets = { ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last };
  Object.assign(targets, { ArrowRight: at + 1, ArrowDown: at + 1 });
  if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  save(model, { selected: clamp(targets[event.key], 0, last) });
}

async function render({ model, el }) {
  const { tokenizer, renderChat } = await live(model);
  const parts = makeParts(model);
  const redraw = () => {
    const onChip = parts.tokens.contains(document.activeElement);
    draw(model, parts, tokenizer, renderChat);
    if (onChip) parts.tokens.querySelector('[aria-checked="true"]')?.focus();
  };
  parts.tokens.onkeydown = (event) => walk(event, model, parts);
  parts.tokens.onclick = (event) => {
    const place = event.target.closest("button")?.dataset.place;
    if (place !== undefined) save(model, { selected: Number(place) });
  };
  const { on, off } = subscribe(model);
  for (const name of ["text", "template", "selected"]) on(`change:${name}`, redraw);
  redraw();
  el.append(layout(parts));
  return off;
}

export default { render };
