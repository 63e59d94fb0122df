// Probability shift: what base, SFT and RLHF bet on at every token of one answer.
//
// The reader chooses a prompt and whose answer to follow, and walks along that answer. At each
// token the table shows the likely next tokens with the probability that each model gave them;
// the small bars in the answer show how much probability SFT moved (from base) and RLHF moved
// (from SFT). All numbers are measured; a prompt that the reader types is measured in the page.
// probability_shift.py describes the state:
//   prompts        what was measured
//   prompt_index, answer_by, position   where the reader is (shared with other views, kernel)

import {
  MODELS,
  NAMES,
  bar,
  bubble,
  clamp,
  dot,
  h,
  label,
  offer,
  percent,
  save,
  softmax,
  subscribe,
  tokenNode,
  top,
  visible,
} from "./static/kit.mjs";

const KINDS = {
  fact: "Facts",
  followup: "Follow-up questions",
  harmless: "Harmless requests",
  harmful: "Harmful requests",
  haiku: "Haiku",
  ambiguous: "Ambiguous words",
  typed: "Typed by you",
};
const HEADS = [
  ...["no.", "token", "Base", "SFT", "RLHF", "moved by SFT", "moved by RLHF"],
  ...["KL SFT‖base", "KL RLHF‖SFT"],
];
const CAPTION = "The tokens that were written: probability, share moved, KL in nats";
const TAIL = 40; // characters of the answer so far that the sentence quotes

const tally = (step) => step.moved[0] + step.moved[1];

// --- where the reader is ------------------------------------------------------------------

// Reads the model; a value out of range (set by a kernel, or left by a longer answer) is clamped.
function place(model) {
  const prompts = model.get("prompts");
  const index = clamp(model.get("prompt_index"), 0, prompts.length - 1);
  const follow = MODELS.includes(model.get("answer_by")) ? model.get("answer_by") : "rlhf";
  const path = prompts[index].answers[follow];
  const at = clamp(model.get("position"), 0, path.steps.length - 1);
  return { prompts, index, prompt: prompts[index], follow, path, steps: path.steps, at };
}

function largestShift(steps) {
  const most = Math.max(...steps.map(tally));
  return steps.findIndex((step) => tally(step) === most);
}

// --- the parts ----------------------------------------------------------------------------

function promptOptions(prompts) {
  const groups = new Map();
  prompts.forEach((prompt, i) => {
    const name = KINDS[prompt.kind] ?? prompt.kind;
    if (!groups.has(name)) groups.set(name, h("optgroup", { label: name }));
    groups.get(name).append(h("option", { value: i, dir: "auto" }, prompt.text));
  });
  return groups.values();
}

function promptSelect(model) {
  const onchange = (event) =>
    save(model, { position: 0, prompt_index: Number(event.target.value) });
  return h("select", { onchange }, ...promptOptions(model.get("prompts")));
}

function typedForm() {
  const input = h("input", { type: "text", dir: "auto", autocomplete: "off" });
  const button = h("button", { type: "submit", class: "cw-primary" }, "Measure");
  const field = h("label", { class: "cw-shift-select" }, "Or type a prompt", input);
  const form = h("form", { class: "cw-controls", hidden: true }, field, button);
  return { form, input, button };
}

function followChoice(model) {
  const group = `cw-shift-${Math.random().toString(36).slice(2)}`; // one group per view
  const onchange = (event) => save(model, { position: 0, answer_by: event.target.value });
  const choices = MODELS.map((name) => {
    const radio = h("input", { type: "radio", name: group, value: name, onchange });
    return h("label", {}, radio, dot(name), NAMES[name]);
  });
  const legend = h("legend", {}, "Follow the answer of");
  return h("fieldset", { class: "cw-shift-follow" }, legend, ...choices);
}

function legend() {
  const entries = { sft: "by SFT, from base", rlhf: "by RLHF, from SFT" };
  return h(
    "p",
    { class: "cw-muted cw-shift-legend" },
    "Probability moved to other tokens:",
    ...Object.entries(entries).map(([name, text]) => h("span", {}, dot(name), text)),
  );
}

function bubbles({ prompt }) {
  const turns = [...prompt.history, ["user", prompt.text]];
  return turns.map(([role, text]) => bubble(role, role === "user" ? "You" : "Assistant", text));
}

// One token of the answer: a radio button with two small bars, the probability moved.
function chip(step, t, steps, go) {
  const meters = ["sft", "rlhf"].map((name, i) => {
    const fill = h("span", { class: `cw-${name}` });
    fill.style.height = `${100 * step.moved[i]}%`;
    return fill;
  });
  const moved = `SFT moved ${percent(step.moved[0])}, RLHF ${percent(step.moved[1])}`;
  const label = `Token ${t + 1} of ${steps.length}: ${visible(step.token)}; ${moved}`;
  const attributes = { type: "button", role: "radio", "aria-label": label, title: moved };
  return h(
    "button",
    { ...attributes, class: "cw-shift-chip", onclick: () => go(t) },
    tokenNode(step.token),
    h("span", { class: "cw-shift-meters", "aria-hidden": "true" }, ...meters),
  );
}

function barRows({ steps, at }) {
  const { bars, chosen } = steps[at];
  return bars.map(([token, ...probs], i) => {
    const head = h("th", { scope: "row" }, tokenNode(token));
    if (i === chosen) head.append(h("span", { class: "cw-shift-written" }, "written"));
    const cells = probs.map((p, m) => {
      const value = h("span", { class: "cw-value" }, percent(p));
      return h("td", {}, h("span", { class: "cw-shift-cell" }, bar(p, MODELS[m]), value));
    });
    return h("tr", { class: i === chosen && "cw-shift-chosen" }, head, ...cells);
  });
}

// What is seen at this token, in words.
function sentence({ steps, at }) {
  const { bars, chosen, moved, token } = steps[at];
  const [base, sft, rlhf] = bars[chosen].slice(1).map(percent);
  const so = steps.slice(0, at).map((step) => step.token).join("");
  const tail = so.length > TAIL ? `…${so.slice(-TAIL)}` : so;
  const where = at
    ? ["After “", h("bdi", {}, tail.replaceAll("\n", "⏎")), "”"]
    : ["At the start of the answer"];
  return [
    `Token ${at + 1} of ${steps.length}. `,
    ...where,
    ", the base model gives ",
    h("strong", {}, tokenNode(token)),
    ` ${base}, SFT ${sft}, RLHF ${rlhf}. `,
    `SFT has moved ${percent(moved[0])} of the base model’s probability to other tokens; `,
    `RLHF has moved ${percent(moved[1])} of SFT’s.`,
  ];
}

function dataTable({ steps }) {
  const cell = (text) => h("td", { class: "cw-number" }, text);
  const rows = steps.map((step, t) => {
    const shares = [...step.bars[step.chosen].slice(1), ...step.moved].map(percent);
    const numbers = [...shares, ...step.kl.map((x) => x.toFixed(3))];
    const token = h("th", { scope: "row" }, tokenNode(step.token));
    return h("tr", {}, cell(String(t + 1)), token, ...numbers.map(cell));
  });
  const heads = HEADS.map((text, i) =>
    h("th", { scope: "col", class: i !== 1 && "cw-number" }, text),
  );
  return [
    h("caption", {}, CAPTION),
    h("thead", {}, h("tr", {}, ...heads)),
    h("tbody", {}, ...rows),
  ];
}

// --- typed prompts: the record of probability_shift.py, measured in the page ----------------

const BARS = 6;
const TOKENS = 14;

const totalVariation = (p, q) => p.reduce((sum, x, i) => sum + Math.abs(x - q[i]), 0) / 2;
const divergence = (p, q) =>
  p.reduce((sum, x, i) => sum + (x > 0 ? x * Math.log(x / Math.max(q[i], 1e-30)) : 0), 0);

// One token of an answer: the bars, the shares moved, the KL.
function measuredStep(tokenizer, id, probs) {
  const [base, sft, rlhf] = MODELS.map((name) => probs[name]);
  const ids = top(base.map((p, i) => p + sft[i] + rlhf[i]), BARS).map(([i]) => i);
  if (!ids.includes(id)) ids[ids.length - 1] = id;
  return {
    token: label(tokenizer, id),
    bars: ids.map((i) => [label(tokenizer, i), base[i], sft[i], rlhf[i]]),
    chosen: ids.indexOf(id),
    moved: [totalVariation(sft, base), totalVariation(rlhf, sft)],
    kl: [divergence(sft, base), divergence(rlhf, sft)],
  };
}

// The greedy answer of one model, with the bets of all three at each of its tokens.
async function measuredPath(models, contexts, follow) {
  const { tokenizer } = models;
  const stop = ["<|endoftext|>", "<|im_end|>"].map((token) => tokenizer.special[token]);
  const rooms = MODELS.map((m) => models.config(m).context_length - contexts[m].length + 1);
  const limit = Math.max(1, Math.min(TOKENS, ...rooms));
  const ask = { temperature: 0, max_new_tokens: limit, stop };
  const { ids, ended } = await models.generate(follow, contexts[follow], ask);
  const steps = ids.map(() => ({}));
  for (const name of MODELS) {
    const all = [...contexts[name], ...ids.slice(0, -1)];
    const { logits } = await models.forward(name, all, { logits: "all" });
    const size = logits.length / all.length;
    steps.forEach((probs, t) => {
      const at = (contexts[name].length - 1 + t) * size;
      probs[name] = softmax(logits.subarray(at, at + size));
    });
  }
  return { ended, steps: steps.map((probs, t) => measuredStep(tokenizer, ids[t], probs)) };
}

async function measuredPrompt(models, text) {
  const chat = models.chatIds([["user", text]]);
  const contexts = { base: models.documentIds(text), sft: chat, rlhf: chat };
  const answers = {};
  for (const name of MODELS) answers[name] = await measuredPath(models, contexts, name);
  return { kind: "typed", text, history: [], answers };
}

function acceptPrompts(models, model, { typed, status }) {
  typed.form.hidden = false;
  typed.form.onsubmit = async (event) => {
    event.preventDefault();
    const text = typed.input.value;
    if (typed.button.disabled) return;
    if (!text.trim()) {
      status.textContent = "Type a prompt first.";
      return;
    }
    typed.button.disabled = true;
    status.textContent = "The models are answering …";
    try {
      const record = await measuredPrompt(models, text);
      const prompts = [...model.get("prompts"), record];
      const position = largestShift(record.answers[place(model).follow].steps);
      save(model, { prompts, prompt_index: prompts.length - 1, position });
      status.textContent = "";
    } catch (error) {
      status.textContent = error.message;
    }
    typed.button.disabled = false;
  };
}

// --- the widget ---------------------------------------------------------------------------

function makeParts(model, go) {
  const button = (text, target) =>
    h("button", { type: "button", onclick: () => go(target(place(model))) }, text);
  const oninput = (event) => go(Number(event.target.value));
  return {
    select: promptSelect(model),
    follow: followChoice(model),
    gate: h("div"),
    typed: typedForm(),
    status: h("p", { role: "status", class: "cw-muted" }),
    prompt: h("div"),
    who: h("span", { class: "cw-who" }),
    chips: h("div", { class: "cw-shift-chips", role: "radiogroup" }),
    previous: button("← Previous", ({ at }) => at - 1),
    slider: h("input", { type: "range", min: 0, "aria-label": "Position in the answer", oninput }),
    next: button("Next →", ({ at }) => at + 1),
    jump: button("Largest shift", ({ steps }) => largestShift(steps)),
    sentence: h("p", { class: "cw-shift-sentence", "aria-live": "polite" }),
    rows: h("tbody"),
    data: h("table"),
    note: h("p", { class: "cw-muted" }),
  };
}

function chart(rows) {
  const heads = MODELS.map((name) => h("th", { scope: "col" }, dot(name), NAMES[name]));
  return h(
    "table",
    { class: "cw-shift-chart" },
    h("caption", {}, "Probability of the next token"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "next token"), ...heads)),
    rows,
  );
}

function layout(parts, onkeydown) {
  const { chips, previous, slider, next, jump } = parts;
  const region = { tabindex: 0, role: "region", "aria-label": "Data of the whole answer" };
  const select = h("label", { class: "cw-shift-select" }, "Prompt", parts.select);
  const answer = { class: "cw-bubble cw-assistant" };
  return h(
    "div",
    { class: "cw cw-shift" },
    h("div", { class: "cw-controls" }, select, parts.follow),
    parts.typed.form,
    parts.gate,
    parts.status,
    parts.prompt,
    h(
      "div",
      { onkeydown },
      h("div", answer, parts.who, chips, legend()),
      h("div", { class: "cw-shift-nav" }, previous, slider, next, jump),
    ),
    parts.sentence,
    chart(parts.rows),
    h(
      "details",
      {},
      h("summary", {}, "Data of the whole answer"),
      h("div", { class: "cw-scroll cw-shift-data", ...region }, parts.data),
    ),
    parts.note,
  );
}

// Left and right step, Home and End jump; the slider has its own keys.
function walkByKey(event, { steps, at }, go, chips) {
  const back = { ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0 };
  const targets = { ...back, ArrowRight: at + 1, ArrowDown: at + 1, End: steps.length - 1 };
  const modified = event.ctrlKey || event.altKey || event.metaKey || event.shiftKey;
  if (modified || !(event.key in targets) || event.target.type === "range") return;
  event.preventDefault();
  go(targets[event.key]);
  const onChip = event.target.getAttribute("role") === "radio";
  if (onChip) chips.querySelector('[aria-checked="true"]').focus();
}

function drawAnswer(parts, now, go) {
  const { prompt, follow, path, steps } = now;
  parts.prompt.replaceChildren(...bubbles(now));
  parts.who.textContent = `${NAMES[follow]} writes`;
  parts.chips.setAttribute("aria-label", `Tokens of the answer of ${NAMES[follow]}`);
  parts.chips.replaceChildren(...steps.map((step, t) => chip(step, t, steps, go)));
  if (!path.ended) parts.chips.append(h("span", { class: "cw-muted" }, "… cut here"));
  parts.slider.max = steps.length - 1;
  parts.slider.disabled = steps.length < 2;
  parts.data.replaceChildren(...dataTable(now));
  const earlier = prompt.history.length ? ", without the earlier turns" : "";
  parts.note.textContent =
    `The base model reads your message as the start of a document${earlier}; ` +
    "SFT and RLHF read the conversation in the chat template. Answers are greedy.";
}

function drawPosition(parts, now) {
  const { steps, at } = now;
  parts.chips.querySelectorAll("button").forEach((node, t) => {
    node.setAttribute("aria-checked", String(t === at));
    node.tabIndex = t === at ? 0 : -1; // one tab stop; arrow keys do the rest
  });
  parts.previous.setAttribute("aria-disabled", String(at === 0));
  parts.next.setAttribute("aria-disabled", String(at === steps.length - 1));
  parts.slider.value = at;
  const spoken = `token ${at + 1} of ${steps.length}: ${visible(steps[at].token)}`;
  parts.slider.setAttribute("aria-valuetext", spoken);
  parts.sentence.replaceChildren(...sentence(now));
  parts.rows.replaceChildren(...barRows(now));
}

function render({ model, el }) {
  const go = (target) => {
    save(model, { position: clamp(target, 0, place(model).steps.length - 1) });
  };
  const parts = makeParts(model, go);
  let shown = null; // the path on screen: its chips are rebuilt only when it changes
  let listed = parts.select.length;
  const draw = () => {
    const now = place(model);
    if (now.prompts.length !== listed) {
      listed = now.prompts.length;
      parts.select.replaceChildren(...promptOptions(now.prompts));
      parts.select.value = now.index;
    }
    if (now.path !== shown) {
      shown = now.path;
      parts.select.value = now.index;
      for (const radio of parts.follow.querySelectorAll("input")) {
        radio.checked = radio.value === now.follow;
      }
      drawAnswer(parts, now, go);
    }
    drawPosition(parts, now);
  };
  const { on, off } = subscribe(model);
  for (const name of ["prompts", "prompt_index", "answer_by", "position"]) on(`change:${name}`, draw);
  draw();
  el.append(layout(parts, (event) => walkByKey(event, place(model), go, parts.chips)));
  if (model.get("live")) {
    const ready = (models) => acceptPrompts(models, model, parts);
    offer(model, parts.gate, MODELS, ready, "models to type your own prompt");
  }
  return off;
}

export default { render };
