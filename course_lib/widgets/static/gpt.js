// The models of the course in JavaScript: tokenizer, chat templates, GPT with a KV cache,
// sampling, and the worker in which they run.
//
// One self-contained module. A widget's page imports it (from a Blob, so that it also works from
// disk) and calls `open`; `open` starts a worker from the same source. What each part computes is
// defined by the Python file of the same name: tokenizer.py, chat.py, gpt.py, sampling.py,
// reward.py. tests/browser/test_live_models.py holds both sides equal.

// --- tokenizer (tokenizer.py) ---------------------------------------------------------------

// Symbols are strings with one character a byte (Latin-1). Every symbol is a node of the tree
// of merges that made it: {bytes, rank, left, right}; a single byte has rank -1.
export class Tokenizer {
  constructor({ merges, special_tokens, pattern }) {
    this.merges = merges;
    this.vocab = Array.from({ length: 256 }, (_, i) => String.fromCharCode(i));
    this.ranks = new Map();
    merges.forEach(([left, right], rank) => {
      this.vocab.push(left + right);
      this.ranks.set(pairKey(left, right), rank);
    });
    this.ids = new Map(this.vocab.map((bytes, id) => [bytes, id]));
    this.special = {};
    for (const token of special_tokens) {
      this.special[token] = this.vocab.length;
      this.vocab.push(latin1(new TextEncoder().encode(token)));
    }
    // Python's \s is Unicode's White_Space; JavaScript's differs in a few characters.
    const unicode = pattern
      .replaceAll("\\s", "\\p{White_Space}")
      .replaceAll("\\S", "\\P{White_Space}");
    this.pattern = new RegExp(unicode, "gu");
    this.known = new Map();
  }

  get vocabSize() {
    return this.vocab.length;
  }

  // Ids of a text. Control tokens are recognised only where the caller (a template) allows it:
  // what a reader types never becomes one.
  encode(text, allowSpecial = false) {
    const ids = [];
    for (const piece of allowSpecial ? this.cut(text) : [text]) {
      if (allowSpecial && Object.hasOwn(this.special, piece)) ids.push(this.special[piece]);
      else for (const [word] of piece.matchAll(this.pattern)) ids.push(...this.encodeWord(word));
    }
    return ids;
  }

  cut(text) {
    const longest = Object.keys(this.special).sort((a, b) => b.length - a.length);
    const escaped = longest.map((token) => token.replace(/[|\\{}()[\]^$+*?.<>]/g, "\\$&"));
    return text.split(new RegExp(`(${escaped.join("|")})`));
  }

  encodeWord(word) {
    if (!this.known.has(word)) {
      if (this.known.size >= 1 << 14) this.known.clear(); // bounded: readers type a lot
      this.known.set(word, this.mergeWord(word).map((node) => this.ids.get(node.bytes)));
    }
    return this.known.get(word);
  }

  // The pre-tokens of a text, each as its nodes after the first `nMerges` merges.
  words(text, nMerges = this.merges.length) {
    return Array.from(text.matchAll(this.pattern), ([word]) => this.mergeWord(word, nMerges));
  }

  // Merge the bytes of one pre-token, lowest rank first; all places of a pair at once.
  mergeWord(word, nMerges = this.merges.length) {
    const bytes = new TextEncoder().encode(word.replace(/\p{Surrogate}/gu, "?"));
    let nodes = Array.from(bytes, (b) => ({ bytes: String.fromCharCode(b), rank: -1 }));
    const rankOf = (i) => {
      if (i + 1 >= nodes.length) return Infinity;
      const rank = this.ranks.get(pairKey(nodes[i].bytes, nodes[i + 1].bytes)) ?? Infinity;
      return rank < nMerges ? rank : Infinity;
    };
    let ranks = nodes.map((_, i) => rankOf(i));
    for (;;) {
      let best = Infinity;
      for (const rank of ranks) if (rank < best) best = rank;
      if (best === Infinity) return nodes;
      const merged = [];
      const origin = []; // where the rank of (this, next) may be taken over from
      for (let i = 0; i < nodes.length; i++) {
        if (ranks[i] === best) {
          const [left, right] = [nodes[i], nodes[i + 1]];
          merged.push({ bytes: left.bytes + right.bytes, rank: best, left, right });
          origin.push(-1);
          i++;
        } else {
          merged.push(nodes[i]);
          origin.push(i);
        }
      }
      nodes = merged;
      const old = ranks;
      ranks = origin.map((i, j) => (i < 0 || (origin[j + 1] ?? -1) < 0 ? rankOf(j) : old[i]));
    }
  }

  bytes(id) {
    return fromLatin1(this.vocab[id]);
  }

  decode(ids) {
    return utf8(fromLatin1(Array.from(ids, (id) => this.vocab[id]).join("")));
  }

  text(id) {
    return this.decode([id]);
  }
}

const pairKey = (left, right) => `${left}\u0100${right}`; // \u0100 is no byte
const latin1 = (bytes) => Array.from(bytes, (b) => String.fromCharCode(b)).join("");
const fromLatin1 = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));
const utf8 = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);

// --- chat templates (chat.py) ---------------------------------------------------------------

const control = (text, supervised = false) => ({ text, control: true, supervised });
const plain = (text, supervised = false) => ({ text, control: false, supervised });
const END_OF_TEXT = "<|endoftext|>";

// Each turns a conversation [[role, content], ...] into segments {text, control, supervised}.
const TEMPLATES = {
  chatml(turns, reply) {
    const out = turns.flatMap(([role, content]) => {
      const learned = role === "assistant";
      return [
        control(`<|im_start|>${role}\n`),
        plain(content, learned),
        control("<|im_end|>", learned),
        control("\n"),
      ].map((segment) => ({ ...segment, role }));
    });
    if (reply) out.push({ ...control("<|im_start|>assistant\n"), role: "assistant" });
    return out;
  },
  llama2(turns) {
    let system = "";
    return turns.flatMap(([role, content]) => {
      if (role === "system") {
        system = content;
        return [];
      }
      const out =
        role === "assistant"
          ? [plain(content, true), control(" </s>", true)]
          : [
              control("<s>[INST] "),
              ...(system
                ? [control("<<SYS>>\n"), plain(system), control("\n<</SYS>>\n\n")].map(
                    (segment) => ({ ...segment, role: "system" }),
                  )
                : []),
              plain(content),
              control(" [/INST] "),
            ];
      if (role === "user") system = "";
      return out.map((segment) => ({ role, ...segment }));
    });
  },
  alpaca(turns) {
    const parts = {
      assistant: (text) => [plain(text, true), control(END_OF_TEXT, true), control("\n\n")],
      system: (text) => [plain(text), control("\n\n")],
      user: (text) => [
        control("### Instruction:\n"),
        plain(text),
        control("\n\n### Response:\n"),
      ],
    };
    return turns.flatMap(([role, text]) => parts[role](text).map((s) => ({ ...s, role })));
  },
};

// Ids of a conversation, and for each: is it a training target, whose turn, who wrote it.
export function renderChat(turns, tokenizer, template = "chatml", reply = false) {
  const out = { ids: [], mask: [], roles: [], control: [] };
  for (const segment of TEMPLATES[template](turns, reply)) {
    for (const id of tokenizer.encode(segment.text, segment.control)) {
      out.ids.push(id);
      out.mask.push(segment.supervised);
      out.roles.push(segment.role);
      out.control.push(segment.control);
    }
  }
  return out;
}

// --- weights (widgets/weights.py) -----------------------------------------------------------

const MAGIC = 0x54504743; // "CGPT"
const ITEM = { int8: 1, fp16: 2, fp32: 4 };

// Bytes of weights.pack to {config, head, tensors: {name: Float32Array}}.
export function unpack(buffer, what) {
  const short = () => new Error(`The weights of ${what} are damaged or cut short. Reload the page.`);
  if (buffer.byteLength < 12) throw short();
  const view = new DataView(buffer);
  const length = view.getUint32(4, true);
  if (view.getUint32(0, true) !== MAGIC || 12 + length > buffer.byteLength) throw short();
  if (view.getUint32(8, true) !== buffer.byteLength) throw short();
  const header = JSON.parse(utf8(new Uint8Array(buffer, 12, length)));
  const tensors = {};
  for (const tensor of header.tensors) {
    tensors[tensor.name] = readTensor(buffer, tensor, header.group);
  }
  return { config: header.config, head: header.head, tensors };
}

function readTensor(buffer, { kind, offset, size }, group) {
  const values = new Float32Array(size);
  if (kind === "fp32") values.set(new Float32Array(buffer, offset, size));
  else if (kind === "fp16") values.set(fromHalf(new Uint16Array(buffer, offset, size)));
  else {
    // int8: one fp16 scale for every `group` weights, stored before them
    const n = size / group;
    const scales = fromHalf(new Uint16Array(buffer, offset, n));
    const whole = new Int8Array(buffer, offset + 2 * n, size);
    for (let i = 0; i < size; i++) values[i] = whole[i] * scales[Math.floor(i / group)];
  }
  return values;
}

// IEEE half precision to numbers (Float16Array is too new to rely on).
function fromHalf(bits) {
  return Float32Array.from(bits, (b) => {
    const sign = b & 0x8000 ? -1 : 1;
    const exponent = (b >> 10) & 31;
    const fraction = b & 1023;
    if (!exponent) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

// --- the model (gpt.py) ---------------------------------------------------------------------

// y (T, rows) = x (T, columns) times the transpose of w (rows, columns).
function linear(x, w, T, columns, rows) {
  const y = new Float32Array(T * rows);
  for (let r = 0; r < rows; r++) {
    const from = r * columns;
    for (let t = 0; t < T; t++) {
      const at = t * columns;
      let a = 0;
      let b = 0;
      let i = 0;
      for (; i + 1 < columns; i += 2) {
        a += x[at + i] * w[from + i];
        b += x[at + i + 1] * w[from + i + 1];
      }
      if (i < columns) a += x[at + i] * w[from + i];
      y[t * rows + r] = a + b;
    }
  }
  return y;
}

function rmsNorm(x, gain, T, eps) {
  const C = gain.length;
  const y = new Float32Array(T * C);
  for (let t = 0; t < T; t++) {
    let sum = 0;
    for (let i = 0; i < C; i++) sum += x[t * C + i] ** 2;
    const scale = 1 / Math.sqrt(sum / C + eps);
    for (let i = 0; i < C; i++) y[t * C + i] = x[t * C + i] * scale * gain[i];
  }
  return y;
}

// Rotate dimension i with dimension i + d/2 of every head of one position, in place.
function rotate(x, from, heads, d, position, theta) {
  for (let i = 0; i < d / 2; i++) {
    const angle = position * theta ** ((-2 * i) / d);
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    for (let at = from + i; at < from + heads * d; at += d) {
      const [a, b] = [x[at], x[at + d / 2]];
      x[at] = a * cos - b * sin;
      x[at + d / 2] = b * cos + a * sin;
    }
  }
}

export function softmax(logits) {
  let most = -Infinity;
  for (const x of logits) if (x > most) most = x;
  const out = new Float32Array(logits.length);
  let sum = 0;
  for (let i = 0; i < out.length; i++) sum += out[i] = Math.exp(logits[i] - most);
  for (let i = 0; i < out.length; i++) out[i] /= sum;
  return out;
}

export class GPT {
  constructor({ config, head, tensors }) {
    this.config = config;
    this.head = head; // of the reward model
    this.w = tensors;
    this.dHead = config.d_model / config.n_heads;
  }

  newCache() {
    const size = this.config.context_length * this.config.n_kv_heads * this.dHead;
    const layer = () => ({ k: new Float32Array(size), v: new Float32Array(size) });
    return { length: 0, layers: Array.from({ length: this.config.n_layers }, layer) };
  }

  // The stream after the last block (T, C), before the final norm. `cache` is extended.
  // What `ask` names (see LiveModels.forward) is collected in `seen`.
  stream(ids, cache, ask = {}, seen = {}) {
    const { d_model: C, context_length, n_layers } = this.config;
    const T = ids.length;
    if (cache.length + T > context_length) throw new Error(tooLong(cache.length + T, this.config));
    const x = new Float32Array(T * C);
    ids.forEach((id, t) => x.set(this.w["embedding.weight"].subarray(id * C, (id + 1) * C), t * C));
    if (ask.attention) seen.attention = [];
    if (ask.writes) seen.writes = ask.writes.map(() => null);
    const depths = [];
    for (let layer = 0; layer < n_layers; layer++) {
      if (ask.residual || ask.lens) depths.push(x.slice());
      this.block(layer, x, T, cache, ask, seen);
    }
    if (ask.residual || ask.lens) depths.push(x.slice());
    if (depths.length) seen.residual = depths;
    cache.length += T;
    return x;
  }

  block(layer, x, T, cache, ask, seen) {
    const { d_model: C, d_ff, norm_eps } = this.config;
    const w = (name) => this.w[`blocks.${layer}.${name}.weight`];
    const add = (y) => y.forEach((value, i) => (x[i] += value));
    const mixed = this.attend(layer, rmsNorm(x, w("norm1"), T, norm_eps), T, cache, ask, seen);
    add(linear(mixed, w("attention.out"), T, C, C));
    const wide = linear(rmsNorm(x, w("norm2"), T, norm_eps), w("mlp.up"), T, C, 2 * d_ff);
    const bent = new Float32Array(T * d_ff); // swiglu: SiLU of the first half times the second
    for (let t = 0; t < T; t++) {
      for (let i = 0; i < d_ff; i++) {
        const gate = wide[2 * t * d_ff + i];
        bent[t * d_ff + i] = (gate / (1 + Math.exp(-gate))) * wide[(2 * t + 1) * d_ff + i];
      }
    }
    add(linear(bent, w("mlp.down"), T, d_ff, C));
  }

  // What the heads mix together, side by side: (T, C), before the output matrix.
  attend(layer, x, T, cache, ask, seen) {
    const { d_model: C, n_heads, n_kv_heads, rope_theta } = this.config;
    const [d, kv, start] = [this.dHead, n_kv_heads * this.dHead, cache.length];
    const { k, v } = cache.layers[layer];
    const qkv = linear(x, this.w[`blocks.${layer}.attention.qkv.weight`], T, C, C + 2 * kv);
    for (let t = 0; t < T; t++) {
      const from = t * (C + 2 * kv);
      rotate(qkv, from, n_heads + n_kv_heads, d, start + t, rope_theta);
      k.set(qkv.subarray(from + C, from + C + kv), (start + t) * kv);
      v.set(qkv.subarray(from + C + kv, from + C + 2 * kv), (start + t) * kv);
    }
    const off = new Set((ask.off ?? []).filter(([l]) => l === layer).map(([, h]) => h));
    const out = new Float32Array(T * C);
    const maps = [];
    for (let head = 0; head < n_heads; head++) {
      const shared = Math.floor(head / (n_heads / n_kv_heads)) * d; // grouped queries
      const map = new Float32Array(T * (start + T));
      for (let t = 0; t < T; t++) {
        const query = qkv.subarray(t * (C + 2 * kv) + head * d, t * (C + 2 * kv) + (head + 1) * d);
        const row = map.subarray(t * (start + T), (t + 1) * (start + T));
        this.look(query, k, kv, shared, row, start + t, ask.mask);
        if (off.has(head)) continue;
        for (let s = 0; s < row.length; s++) {
          if (row[s]) {
            for (let i = 0; i < d; i++) out[t * C + head * d + i] += row[s] * v[s * kv + shared + i];
          }
        }
      }
      maps.push(map);
    }
    seen.attention?.push(maps);
    ask.writes?.forEach(([l, head], i) => {
      if (l === layer) seen.writes[i] = this.headWrite(layer, head, out, T);
    });
    return out;
  }

  // One row of attention weights: softmax of the scaled scores where looking is allowed. A row
  // with nothing allowed stays zero.
  look(query, k, kv, shared, row, position, mask) {
    const allowed = (s) => (mask ? mask[position * row.length + s] : s <= position);
    let most = -Infinity;
    for (let s = 0; s < row.length; s++) {
      if (!allowed(s)) continue;
      let score = 0;
      for (let i = 0; i < query.length; i++) score += query[i] * k[s * kv + shared + i];
      row[s] = score / Math.sqrt(query.length);
      most = Math.max(most, row[s]);
    }
    let sum = 0;
    for (let s = 0; s < row.length; s++) if (allowed(s)) sum += row[s] = Math.exp(row[s] - most);
    for (let s = 0; s < row.length; s++) if (allowed(s)) row[s] /= sum;
  }

  // What one head adds to the stream (T, C): its columns of the output matrix.
  headWrite(layer, head, mixed, T) {
    const { d_model: C } = this.config;
    const only = new Float32Array(T * C);
    for (let t = 0; t < T; t++) {
      const at = t * C + head * this.dHead;
      only.set(mixed.subarray(at, at + this.dHead), at);
    }
    return linear(only, this.w[`blocks.${layer}.attention.out.weight`], T, C, C);
  }

  // Scores over the vocabulary of streams (T, C): final norm, then the embedding matrix.
  logits(x, T) {
    const { d_model: C, norm_eps } = this.config;
    return this.unembed(rmsNorm(x, this.w["norm.weight"], T, norm_eps), T, C);
  }

  unembed(x, T) {
    const { d_model, vocab_size } = this.config;
    return linear(x, this.w["embedding.weight"], T, d_model, vocab_size);
  }

  // The reward model's number at the last position.
  score(ids) {
    const { d_model: C, norm_eps } = this.config;
    const x = this.stream(ids, this.newCache()).slice(-C);
    const state = rmsNorm(x, this.w["norm.weight"], 1, norm_eps);
    const [value] = linear(state, this.w["head.weight"], 1, C, 1);
    return (value + this.head.bias) * this.head.gain + this.head.shift;
  }
}

const tooLong = (n, config) =>
  `The text has ${n} tokens, but this model reads at most ${config.context_length}. Shorten it.`;

// --- sampling (sampling.py) -----------------------------------------------------------------

// A small seeded generator of numbers in [0, 1) (mulberry32).
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The distribution that a token is drawn from. Order: repetition penalty (over `previous` ids),
// temperature, top-k, top-p, min-p. Temperature 0 is greedy.
export function nextTokenProbs(logits, knobs = {}, previous = []) {
  const { temperature = 1, top_k = 0, top_p = 1, min_p = 0, repetition_penalty = 1 } = knobs;
  const scores = Float32Array.from(logits);
  for (const id of new Set(previous)) {
    scores[id] = scores[id] > 0 ? scores[id] / repetition_penalty : scores[id] * repetition_penalty;
  }
  if (temperature === 0) {
    const out = new Float32Array(scores.length);
    out[argmax(scores)] = 1;
    return out;
  }
  for (let i = 0; i < scores.length; i++) scores[i] /= temperature;
  if (top_k && top_k < scores.length) {
    const kth = Float32Array.from(scores).sort().at(-top_k);
    scores.forEach((score, i) => score < kth && (scores[i] = -Infinity));
  }
  let probs = softmax(scores);
  if (top_p < 1) probs = keepTop(probs, top_p);
  if (min_p > 0) {
    const least = min_p * probs[argmax(probs)];
    probs = normalised(probs.map((p) => (p < least ? 0 : p)));
  }
  return probs;
}

// The smallest set of most likely tokens whose probabilities reach `share`.
function keepTop(probs, share) {
  const order = Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a]);
  const kept = new Float32Array(probs.length);
  let mass = 0;
  for (const id of order) {
    if (mass >= share) break;
    kept[id] = probs[id];
    mass += probs[id];
  }
  return normalised(kept);
}

function normalised(probs) {
  const sum = probs.reduce((a, b) => a + b, 0);
  return probs.map((p) => p / sum);
}

const argmax = (values) => values.reduce((best, x, i) => (x > values[best] ? i : best), 0);

export function draw(probs, random) {
  let left = random();
  let last = 0;
  for (let id = 0; id < probs.length; id++) {
    if (!probs[id]) continue;
    last = id;
    left -= probs[id];
    if (left < 0) return id;
  }
  return last; // rounding left a crumb
}

// --- the worker -----------------------------------------------------------------------------

const loaded = new Map(); // model name -> GPT
const cancelled = new Set();

const OPERATIONS = {
  load({ name, buffer }) {
    loaded.set(name, new GPT(unpack(buffer, `the model “${name}”`)));
    return loaded.get(name).config;
  },

  forward({ name, ids, ask }) {
    const model = loaded.get(name);
    const { d_model: C } = model.config;
    const [T, seen] = [ids.length, {}];
    if (!T) throw new Error("There is no text to read: type something.");
    const x = model.stream(ids, model.newCache(), ask, seen);
    const logits = ask.logits === "all" ? model.logits(x, T) : model.logits(x.slice(-C), 1);
    const at = (T + (ask.position ?? -1)) % T;
    const depths = seen.residual?.map((depth) => depth.slice(at * C, (at + 1) * C));
    const lens = ask.lens && depths.map((depth) => softmax(model.logits(depth, 1)));
    return {
      logits,
      attention: seen.attention,
      writes: seen.writes,
      residual: ask.residual && seen.residual,
      lens,
    };
  },

  unembed: ({ name, vector }) => loaded.get(name).unembed(vector, 1),

  reward: ({ ids }) => loaded.get("reward").score(ids),

  async generate({ name, ids, ask }, tell, id) {
    const model = loaded.get(name);
    const { context_length, d_model: C } = model.config;
    if (!ids.length) throw new Error("There is no text to continue: type something.");
    if (ids.length >= context_length) throw new Error(tooLong(ids.length, model.config));
    const [cache, random, out] = [model.newCache(), randomNumbers(ask.seed ?? 0), []];
    const limit = Math.min(ask.max_new_tokens ?? 56, context_length - ids.length);
    const stop = new Set(ask.stop ?? []);
    let x = model.stream(ids, cache, ask);
    while (out.length < limit && !cancelled.has(id)) {
      const logits = model.logits(x.slice(-C), 1);
      const probs = nextTokenProbs(logits, ask, [...ids, ...out]);
      out.push(draw(probs, random));
      tell({ id: out.at(-1), probs, logits });
      if (stop.has(out.at(-1)) || out.length === limit) break;
      await nextTask(); // lets a cancel, or another widget's question, come in between
      x = model.stream(out.slice(-1), cache, ask);
    }
    cancelled.delete(id);
    return { ids: out, ended: stop.has(out.at(-1)) };
  },
};

function nextTask() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

function serve(port) {
  port.onmessage = async ({ data: { id, op, ...question } }) => {
    if (op === "cancel") return void cancelled.add(question.target);
    try {
      const tell = (event) => port.postMessage({ id, event });
      port.postMessage({ id, result: await OPERATIONS[op](question, tell, id) });
    } catch (error) {
      port.postMessage({ id, error: error.message });
    }
  };
  port.postMessage({ ready: true });
}

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) serve(self);

// --- the page's side ------------------------------------------------------------------------

// A worker made from this module's source (as a classic script: module workers do not start from
// disk); where a page forbids workers, the page itself.
function connect(source) {
  const inPage = () => {
    const { port1, port2 } = new MessageChannel();
    serve(port2);
    return port1;
  };
  return new Promise((resolve) => {
    try {
      const script = source.replace(/^export /gm, "");
      const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
      const worker = new Worker(url);
      worker.onmessage = () => resolve(worker);
      worker.onerror = () => resolve(inPage());
    } catch {
      resolve(inPage());
    }
  });
}

// The models as a widget sees them. `site` says where things are:
//   source     this module's text
//   tokenizer  the tokenizer's JSON
//   models     {name: {bytes, config}}
//   fetch(name, onBytes, again)  promise of the weights as an ArrayBuffer
export class LiveModels {
  constructor(site) {
    this.site = site;
    this.tokenizer = new Tokenizer(site.tokenizer);
    this.renderChat = renderChat;
    this.loads = new Map(); // name -> {promise, done, bytes}
    this.failed = new Set(); // names whose last load failed: no cache is trusted then
    this.calls = new Map();
    this.lastId = 0;
  }

  config(name) {
    return this.site.models[name].config;
  }

  documentIds(text) {
    return [this.tokenizer.special[END_OF_TEXT], ...this.tokenizer.encode(text)];
  }

  chatIds(turns) {
    return renderChat(turns, this.tokenizer, "chatml", true).ids;
  }

  // The distribution that a token is drawn from, see nextTokenProbs.
  probs(logits, knobs, previous) {
    return nextTokenProbs(logits, knobs, previous);
  }

  // Bytes that these models still have to load.
  bytes(names) {
    const open = names.filter((name) => !this.loads.get(name)?.done);
    return open.reduce((sum, name) => sum + this.site.models[name].bytes, 0);
  }

  async load(names, onProgress = () => {}) {
    const total = names.reduce((sum, name) => sum + this.site.models[name].bytes, 0);
    const report = () => {
      const got = names.reduce((sum, name) => sum + (this.loads.get(name)?.bytes ?? 0), 0);
      onProgress(Math.min(1, got / total));
    };
    await Promise.all(names.map((name) => this.loadOne(name, report)));
    report();
  }

  loadOne(name, report) {
    if (!this.loads.has(name)) {
      const entry = { bytes: 0, done: false, reports: new Set() };
      entry.promise = (async () => {
        const onBytes = (n) => {
          entry.bytes = n;
          for (const tell of entry.reports) tell();
        };
        const buffer = await this.site.fetch(name, onBytes, this.failed.has(name));
        await this.call("load", { name, buffer }, [buffer]);
        entry.done = true;
        entry.bytes = this.site.models[name].bytes;
      })();
      entry.promise.catch(() => {
        this.failed.add(name);
        this.loads.delete(name); // a second try is allowed
      });
      this.loads.set(name, entry);
    }
    const entry = this.loads.get(name);
    entry.reports.add(report);
    return entry.promise;
  }

  async forward(name, ids, ask = {}) {
    await this.load([name]);
    return this.call("forward", { name, ids, ask });
  }

  async unembed(name, vector) {
    await this.load([name]);
    return this.call("unembed", { name, vector });
  }

  async reward(ids) {
    await this.load(["reward"]);
    return this.call("reward", { ids });
  }

  async generate(name, ids, { signal, onToken, ...ask } = {}) {
    await this.load([name]);
    return this.call("generate", { name, ids, ask }, [], onToken, signal);
  }

  async call(op, question, transfer = [], onEvent, signal) {
    this.port ??= connect(this.site.source).then((port) => {
      port.onmessage = ({ data }) => this.answer(data);
      return port;
    });
    const port = await this.port;
    const id = ++this.lastId;
    const cancel = () => port.postMessage({ id: 0, op: "cancel", target: id });
    if (signal?.aborted) throw new DOMException("stopped", "AbortError");
    signal?.addEventListener("abort", cancel, { once: true });
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject, onEvent });
      port.postMessage({ id, op, ...question }, transfer);
    }).finally(() => signal?.removeEventListener("abort", cancel));
  }

  answer({ id, result, error, event }) {
    const call = this.calls.get(id);
    if (event) return call?.onEvent?.(event);
    this.calls.delete(id);
    if (error) call?.reject(new Error(error));
    else call?.resolve(result);
  }
}

// --- where the weights come from ------------------------------------------------------------

async function fetchFile(url, onBytes, size, again) {
  const response = await fetch(url, { cache: again ? "reload" : "default" });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  const out = new Uint8Array(size);
  let got = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return out.buffer.slice(0, got); // a short file stays short: unpack says so
    if (got + value.length > size) throw new Error("it is longer than it should be");
    out.set(value, got);
    got += value.length;
    onBytes(got);
  }
}

// From disk no file can be fetched: a classic script brings the same bytes as base64.
function runScript(url, page, name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = () => {
      script.remove();
      const text = page.parts?.[name];
      if (text === undefined) return reject(new Error("the file is damaged"));
      delete page.parts[name];
      resolve(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    };
    script.onerror = () => reject(new Error("the file is missing"));
    document.head.append(script);
  });
}

// `page` is what the book's live.js left in the page (window.COURSE_LIVE).
export function openPage(page) {
  const get = (name, onBytes, again) =>
    location.protocol === "file:"
      ? runScript(`${page.base}${name}.js`, page, name)
      : fetchFile(`${page.base}${name}.bin`, onBytes, page.models[name].bytes, again);
  const named = (name, ...rest) =>
    get(name, ...rest).catch((error) => {
      throw new Error(`The weights of the model “${name}” could not be loaded (${error.message}).`);
    });
  return new LiveModels({ ...page, fetch: named });
}

// `model` is an anywidget model: a kernel sends the weights over its comm.
export function openKernel(model) {
  const live = model.get("live");
  const get = (name) =>
    new Promise((resolve, reject) => {
      const onMessage = (message, buffers) => {
        if (message.weights !== name) return;
        model.off("msg:custom", onMessage);
        if (message.error) return reject(new Error(message.error));
        const view = buffers[0];
        resolve(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
      };
      model.on("msg:custom", onMessage);
      model.send({ want: name });
    });
  return new LiveModels({ ...live, fetch: get });
}
