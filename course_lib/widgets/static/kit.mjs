// What several widgets share. `base.module_source` puts this file in front of a widget's own
// module, so that every widget stays one self-contained file.

export const MODELS = ["base", "sft", "rlhf"];
export const NAMES = { base: "Base", sft: "SFT", rlhf: "RLHF" };
const MARKS = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const LABELS = {
  "<|endoftext|>": "⟨end of text⟩",
  "<|im_start|>": "⟨start of turn⟩",
  "<|im_end|>": "⟨end of turn⟩",
};

// An element with attributes (event handlers are functions) and children; strings become text.
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node[name] = value;
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// The same for the elements of a picture.
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// As percent() in probability_shift.py: "<0.1 %", "3.2 %", "81 %".
export function percent(p) {
  if (p < 0.0005) return "<0.1\u00a0%";
  if (p < 0.0995) return `${(Math.floor(1000 * p + 0.5) / 10).toFixed(1)}\u00a0%`;
  return `${Math.floor(100 * p + 0.5)}\u00a0%`;
}

// Change the state, here and in a kernel.
export function save(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

// `on(event, callback)` listens to the model, `off()` ends all that `on` began.
export function subscribe(model) {
  const begun = [];
  const on = (event, callback) => {
    model.on(event, callback);
    begun.push([event, callback]);
  };
  return { on, off: () => begun.forEach((pair) => model.off(...pair)) };
}

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Blanks and line breaks made visible, as in the figures of the book.
export const visible = (text) => text.replace(/[ \n\t]/g, (c) => MARKS[c]);

// The text of one id; a control token becomes its label. Only an id can be one: the same
// characters typed by a reader are several ordinary tokens.
export function label(tokenizer, id) {
  const text = tokenizer.text(id);
  return Object.hasOwn(tokenizer.special, text) && tokenizer.special[text] === id
    ? (LABELS[text] ?? text)
    : text;
}

// A token in its own direction, its blanks and line breaks as pale marks, labels in italics.
export function tokenNode(text) {
  if (/^⟨.+⟩$/.test(text)) return h("bdi", { class: "cw-token cw-control" }, text);
  const pieces = text.trim() ? text.split(/([ \n\t])/).filter(Boolean) : [visible(text)];
  const mark = (c) => h("span", { class: "cw-mark" }, MARKS[c]);
  return h("bdi", { class: "cw-token" }, ...pieces.map((c) => (c in MARKS ? mark(c) : c)));
}

// The bar of a share and the dot of a legend, in the colour of a model.
export function bar(share, model) {
  const fill = h("span");
  fill.style.width = `${100 * share}%`;
  return h("span", { class: `cw-bar cw-${model}`, "aria-hidden": "true" }, fill);
}

export const dot = (model) => h("span", { class: `cw-dot cw-${model}`, "aria-hidden": "true" });

// One turn of a conversation.
export function bubble(role, who, text) {
  const words = h("span", { class: "cw-words", dir: "auto" }, text);
  return h("div", { class: `cw-bubble cw-${role}` }, h("span", { class: "cw-who" }, who), words);
}

export function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = logits.map((x) => Math.exp(x - most));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((x) => x / sum);
}

// The k most likely tokens: [[id, probability], ...].
export function top(probs, k) {
  const order = Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a]);
  return order.slice(0, k).map((id) => [id, probs[id]]);
}

// For rapid input: while one call runs, later ones collapse into one more with the newest
// arguments. Resolves to undefined for a call that was overtaken.
export function latest(task) {
  let running = null;
  let waiting = null;
  return async function run(...given) {
    waiting = given;
    if (running) return undefined;
    let result;
    while (waiting) {
      const now = waiting;
      waiting = null;
      running = task(...now);
      try {
        result = await running;
      } finally {
        running = null;
      }
    }
    return result;
  };
}

// --- the live models --------------------------------------------------------------------------

// The page's models (book) or the kernel's; one worker for all widgets of the same run.
export function live(model) {
  const page = globalThis.COURSE_LIVE;
  const given = page ?? model.get("live");
  if (!given?.source) return Promise.reject(new Error("the models are missing from this page"));
  globalThis.courseLive ??= new Map();
  const key = page ? "page" : given.key;
  if (!globalThis.courseLive.has(key)) {
    const url = URL.createObjectURL(new Blob([given.source], { type: "text/javascript" }));
    const opened = import(url)
      .then((runtime) => (page ? runtime.openPage(page) : runtime.openKernel(model)))
      .finally(() => URL.revokeObjectURL(url));
    globalThis.courseLive.set(key, opened);
  }
  return globalThis.courseLive.get(key);
}

// Fill `holder` with the button that makes a widget live; `ready(models)` does the rest.
export async function offer(model, holder, names, ready, noun) {
  try {
    const models = await live(model);
    holder.replaceChildren(gate(models, names, () => ready(models), noun));
  } catch (error) {
    const text = `The models cannot run here: ${error.message}.`;
    holder.replaceChildren(h("p", { role: "status", class: "cw-warn" }, text));
  }
}

// A button that loads models when a reader first asks, its progress, and what went wrong.
// `ready` is called when they are there: at once where another widget has loaded them.
export function gate(models, names, ready, noun = names.length > 1 ? "models" : "model") {
  const size = () => `${(models.bytes(names) / 1e6).toFixed(1)} MB`;
  const says = (n) => `Load the ${noun} (${n})`;
  const button = h("button", { type: "button", class: "cw-primary" }, says(size()));
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": `Loading the ${noun}` });
  const status = h("span", { role: "status", class: "cw-gate-status" });
  const node = h("div", { class: "cw-gate" }, button, bar, status);
  const go = async () => {
    button.disabled = bar.hidden = false;
    button.disabled = true;
    status.classList.remove("cw-warn");
    status.textContent = "Loading …";
    try {
      await models.load(names, (share) => (bar.value = share));
      node.hidden = true;
      await ready();
    } catch (error) {
      node.hidden = false;
      status.classList.add("cw-warn");
      status.textContent = error.message;
      button.textContent = says(size());
    }
    button.disabled = false;
    bar.hidden = true;
  };
  button.onclick = go;
  if (!models.bytes(names)) go();
  return node;
}
