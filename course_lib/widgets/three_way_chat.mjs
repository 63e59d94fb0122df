// Three-way chat: one message, answered by base, SFT and RLHF side by side, live in the page.
// three_way_chat.py describes the state: talk, suggestions, temperature, reply_tokens.

import { MODELS, NAMES, bubble, dot, h, offer, save, subscribe } from "./static/kit.mjs";

const HOW = {
  base: "continues it as a document",
  sft: "imitates conversations",
  rlhf: "trained on preferences",
};

// --- what is read and written ---------------------------------------------------------------

// Ids that a model reads: the talk so far, without the oldest turns that do not fit.
function contextOf(models, name, talk, text, room) {
  if (name === "base") return models.documentIds(text);
  const turns = talk.flatMap(({ text: said, replies }) => [
    ["user", said],
    ["assistant", replies[name].text],
  ]);
  turns.push(["user", text]);
  for (;;) {
    const ids = models.chatIds(turns);
    if (ids.length <= room || turns.length === 1) return ids;
    turns.splice(0, 2);
  }
}

// One model's reply, shown while it grows.
async function answer(models, name, ids, knobs, show) {
  const { tokenizer } = models;
  const seen = [];
  const onToken = ({ id }) => {
    seen.push(id);
    show(tokenizer.decode(seen));
  };
  const stop = ["<|endoftext|>", "<|im_end|>"].map((token) => tokenizer.special[token]);
  const { ids: out, ended } = await models.generate(name, ids, { ...knobs, stop, onToken });
  const text = tokenizer.decode(ended ? out.slice(0, -1) : out);
  show(text);
  return { text, ended, ids: out };
}

// --- the parts ------------------------------------------------------------------------------

function column(name) {
  const focusable = { tabindex: 0, role: "log", "aria-live": "off" };
  const log = h("div", { class: "cw-chat-log", "aria-label": `Talk with ${NAMES[name]}`, ...focusable });
  const head = h("h3", { class: "cw-chat-name" }, dot(name), NAMES[name]);
  const how = h("p", { class: "cw-muted" }, HOW[name]);
  const node = h("section", { class: "cw-chat-column", "aria-label": NAMES[name] }, head, how, log);
  return { node, log };
}

function makeParts(model) {
  const columns = Object.fromEntries(MODELS.map((name) => [name, column(name)]));
  const input = h("textarea", { rows: 2, dir: "auto", spellcheck: "false" });
  const slider = h("input", { type: "range", min: 0, max: 2, step: 0.1 });
  const shown = h("output", {});
  slider.oninput = () => save(model, { temperature: Number(slider.value) });
  const button = (text, type = "button") => h("button", { type }, text);
  const parts = { columns, input, slider, shown, scoring: h("input", { type: "checkbox" }) };
  parts.send = h("button", { type: "submit", class: "cw-primary" }, "Send");
  parts.stop = button("Stop");
  parts.again = button("Ask again");
  parts.fresh = button("New talk");
  parts.status = h("p", { role: "status", class: "cw-chat-status cw-muted" });
  parts.spoken = h("p", { class: "cw-spoken", "aria-live": "polite" });
  parts.gate = h("div");
  parts.picks = h(
    "div",
    { class: "cw-chat-picks", role: "group", "aria-label": "Messages to try" },
    ...model.get("suggestions").map((text) => {
      const pick = h("button", { type: "button", class: "cw-chat-pick" }, text);
      pick.onclick = () => {
        input.value = text;
        input.focus();
      };
      return pick;
    }),
  );
  parts.form = h(
    "form",
    { class: "cw-chat-form", hidden: true },
    parts.picks,
    h("label", {}, "Your message", input),
    h(
      "div",
      { class: "cw-controls" },
      h("label", {}, h("span", {}, "Temperature ", shown), slider),
      h("label", { class: "cw-chat-check" }, parts.scoring, "score with the reward model"),
      h("div", { class: "cw-chat-buttons" }, parts.send, parts.stop, parts.again, parts.fresh),
    ),
  );
  return parts;
}

function layout({ columns, gate, form, status, spoken }) {
  const three = h("div", { class: "cw-chat-columns" }, ...MODELS.map((name) => columns[name].node));
  const note =
    "These are small models of a small world: they know countries, elements, animals, sums and " +
    "haiku, and make things up about all else. A reward score says what the reward model thinks " +
    "of the reply, not whether it is right.";
  return h("div", { class: "cw cw-chat" }, three, gate, form, status, spoken, h("p", { class: "cw-muted" }, note));
}

function replyNode(name, { text, ended, score }) {
  const node = bubble("assistant", NAMES[name], text || "⟨nothing⟩");
  const notes = [];
  if (!ended) notes.push("cut here: it did not end by itself");
  if (score != null) notes.push(`reward ${score.toFixed(2).replace("-", "−")}`);
  if (notes.length) node.append(h("span", { class: "cw-chat-note" }, notes.join(" · ")));
  return node;
}

function drawTalk(parts, talk) {
  for (const name of MODELS) {
    const turns = talk.flatMap(({ text, replies }) => [
      bubble("user", "You", text),
      replyNode(name, replies[name]),
    ]);
    const { log } = parts.columns[name];
    log.replaceChildren(...(talk.length ? turns : [h("p", { class: "cw-muted" }, "No talk yet.")]));
    log.scrollTop = log.scrollHeight;
  }
}

// --- the talk -------------------------------------------------------------------------------

// Asks all three at once; returns the exchange, or throws what the reader should know.
async function exchange(models, model, parts, talk, text, seed, signal) {
  const limit = model.get("reply_tokens");
  const contexts = {};
  for (const name of MODELS) {
    const room = models.config(name).context_length - limit;
    contexts[name] = contextOf(models, name, talk, text, room);
    const n = contexts[name].length;
    if (n > room) {
      throw new Error(
        `That is ${n} tokens; at most ${room} fit, so that there is room for a reply. Shorten it.`,
      );
    }
  }
  const knobs = { temperature: model.get("temperature"), max_new_tokens: limit, seed, signal };
  const asked = MODELS.map(async (name) => {
    const grow = bubble("assistant", NAMES[name], "…");
    const { log } = parts.columns[name];
    if (!talk.length) log.replaceChildren();
    log.append(bubble("user", "You", text), grow);
    const show = (words) => {
      grow.lastChild.textContent = words;
      log.scrollTop = log.scrollHeight;
    };
    const { ids, ...reply } = await answer(models, name, contexts[name], knobs, show);
    const read = models.chatIds([["user", text]]);
    const fits = read.length + ids.length <= models.config("reward").context_length;
    const wanted = parts.scoring.checked && ids.length && fits;
    return [name, { ...reply, score: wanted ? await models.reward([...read, ...ids]) : null }];
  });
  return { text, replies: Object.fromEntries(await Promise.all(asked)) };
}

function wire(models, model, parts) {
  let stopper = null;
  let seed = 1;
  const busy = (on) => {
    parts.send.disabled = parts.again.disabled = parts.fresh.disabled = on;
    parts.stop.disabled = !on;
    for (const name of MODELS) parts.columns[name].log.setAttribute("aria-busy", String(on));
  };
  const ask = async (text, talk) => {
    if (stopper) return;
    if (!text.trim()) {
      parts.status.textContent = "Type a message first.";
      return;
    }
    stopper = new AbortController();
    busy(true);
    parts.status.textContent = "The models are writing …";
    try {
      const done = await exchange(models, model, parts, talk, text, seed++, stopper.signal);
      save(model, { talk: [...talk, done] });
      parts.input.value = "";
      parts.status.textContent = "";
      parts.spoken.textContent = MODELS.map(
        (name) => `${NAMES[name]} says: ${done.replies[name].text}`,
      ).join(" ");
    } catch (error) {
      parts.status.textContent = error.message;
      drawTalk(parts, model.get("talk"));
    }
    stopper = null;
    busy(false);
  };
  parts.form.onsubmit = (event) => {
    event.preventDefault();
    ask(parts.input.value, model.get("talk"));
  };
  parts.input.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask(parts.input.value, model.get("talk"));
  };
  parts.stop.onclick = () => stopper?.abort();
  parts.again.onclick = () => {
    const talk = model.get("talk");
    if (talk.length) {
      drawTalk(parts, talk.slice(0, -1));
      ask(talk.at(-1).text, talk.slice(0, -1));
    }
  };
  parts.fresh.onclick = () => {
    save(model, { talk: [] });
    parts.status.textContent = "A new talk: the models remember nothing.";
    parts.input.focus();
  };
  busy(false);
  parts.form.hidden = false;
}

function render({ model, el }) {
  const parts = makeParts(model);
  const draw = () => drawTalk(parts, model.get("talk"));
  const knob = () => {
    const value = model.get("temperature");
    parts.slider.value = value;
    parts.shown.textContent = value ? value.toFixed(1) : "0 (greedy)";
  };
  const { on, off } = subscribe(model);
  on("change:talk", draw);
  on("change:temperature", knob);
  draw();
  knob();
  el.append(layout(parts));
  offer(model, parts.gate, MODELS, (models) => wire(models, model, parts));
  return off;
}

export default { render };
