// Head gallery: a small map of every head's attention; press one to switch the head off.
// head_gallery.py describes the state: text, off, first.

import {
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
} from "./static/kit.mjs";

const ROWS = 8;
const SHADES = 5; // of the maps
const MOST = 3; // places in the table of one head

const isOff = (model, layer, head) =>
  model.get("off").some(([x, y]) => x === layer && y === head);

// As head_gallery.switched, from two passes of the live model.
async function readLive(models, text, off) {
  const ids = models.documentIds(text);
  const T = ids.length;
  const before = softmax((await models.forward("base", ids)).logits);
  const { logits, attention } = await models.forward("base", ids, { attention: true, off });
  const after = softmax(logits);
  const either = before.map((p, id) => Math.max(p, after[id]));
  const row = (map, t) => map.subarray(t * T, t * T + t + 1);
  return {
    tokens: ids.map((id) => label(models.tokenizer, id)),
    attention: attention.map((heads) =>
      heads.map((map) => Array.from({ length: T }, (_, t) => row(map, t))),
    ),
    rows: top(either, ROWS).map(([id]) => [label(models.tokenizer, id), before[id], after[id]]),
    moved: before.reduce((sum, p, id) => sum + Math.abs(p - after[id]), 0) / 2,
  };
}

// --- the parts ------------------------------------------------------------------------------

function makeParts(model) {
  const { attention } = model.get("first");
  const button = (layer, head) =>
    h("button", {
      ...{ type: "button", class: "cw-gal-map", "data-layer": layer, "data-head": head },
      "aria-label": `Layer ${layer}, head ${head}`,
    });
  const heads = attention.map((row, layer) => row.map((_, head) => button(layer, head)));
  const names = attention.flatMap((row, x) => row.map((_, y) => [x, y]));
  const options = names.map(([x, y]) => h("option", { value: `${x} ${y}` }, `layer ${x}, head ${y}`));
  return {
    gate: h("div"),
    text: h("textarea", {
      ...{ rows: 2, dir: "auto", spellcheck: "false", disabled: true },
      oninput: (event) => save(model, { text: event.target.value }),
    }),
    heads,
    grid: h("div", { class: "cw-gal-grid", role: "group", "aria-label": "Heads that are on" }),
    all: h("button", { type: "button" }, "Switch all on"),
    status: h("p", { role: "status", class: "cw-muted cw-gal-status" }),
    sentence: h("p", { "aria-live": "polite", class: "cw-gal-sentence" }),
    look: h("p", { class: "cw-gal-look" }),
    rows: h("tbody"),
    pick: h("select", {}, ...options),
    places: h("tbody"),
  };
}

function layout(parts) {
  const head = (words) =>
    h("thead", {}, h("tr", {}, ...words.map((word) => h("th", { scope: "col" }, word))));
  const n = parts.heads[0].length;
  parts.grid.style.setProperty("--columns", n);
  parts.heads.forEach((row, layer) => {
    parts.grid.append(h("span", { class: "cw-gal-name" }, h("span", {}, "Layer "), String(layer)), ...row);
  });
  const bets = ["next token", "all heads", "as switched", "change in points"];
  const most = ["from token", "most", "second", "third"];
  return h(
    "div",
    { class: "cw cw-gal" },
    parts.gate,
    h("label", { class: "cw-gal-text" }, "Sentence", parts.text),
    h("p", { class: "cw-muted" }, `One map a head, ${n} heads a layer. A row of a map is a token that looks, a column a token that is looked at; the stronger the colour, the larger the weight. Press a map to switch its head off or on.`),
    parts.grid,
    parts.look,
    h("div", { class: "cw-controls" }, parts.all),
    parts.status,
    parts.sentence,
    h(
      "div",
      { class: "cw-scroll" },
      h(
        "table",
        { class: "cw-gal-chart" },
        ...[h("caption", {}, "The most likely next tokens"), head(bets), parts.rows],
      ),
    ),
    h(
      "details",
      {},
      h("summary", {}, "A map as a table"),
      h("div", { class: "cw-controls" }, h("label", {}, "Head", parts.pick)),
      h(
        "div",
        { class: "cw-gal-table", tabindex: 0, role: "region", "aria-label": "A map as a table" },
        h("table", {}, h("caption", {}, "Where the head looks, with its weights"), head(most), parts.places),
      ),
    ),
  );
}

// --- drawing --------------------------------------------------------------------------------

// One path for each shade: a long text stays light.
function mapOf(rows) {
  const paths = Array.from({ length: SHADES + 1 }, () => "");
  rows.forEach((row, t) =>
    row.forEach((w, s) => (paths[Math.round(SHADES * w)] += `M${s} ${t}h1v1h-1z`)),
  );
  const T = rows.length;
  const shade = (d, i) => svg("path", { d, "fill-opacity": i / SHADES });
  return svg(
    "svg",
    { viewBox: `0 0 ${T} ${T}`, "aria-hidden": "true" },
    svg("path", { d: `M0 0V${T}H${T}z`, class: "cw-gal-triangle" }),
    ...paths.map(shade).slice(1).filter((node) => node.getAttribute("d")),
  );
}

function drawHeads(parts, model, { attention }) {
  parts.heads.forEach((row, layer) =>
    row.forEach((button, head) => {
      button.setAttribute("aria-pressed", String(!isOff(model, layer, head)));
      const off = isOff(model, layer, head) ? [h("span", { class: "cw-gal-off" }, "off")] : [];
      button.replaceChildren(mapOf(attention[layer][head]), ...off);
    }),
  );
}

const largest = (row, k) => top(Array.from(row), Math.min(k, row.length));
const quoted = (text) => ["“", tokenNode(text), "”"];

function drawLook(parts, { tokens, attention }, layer, head) {
  const [[place, w]] = largest(attention[layer][head].at(-1), 1);
  parts.look.replaceChildren(
    `Head ${head} of layer ${layer} looks from the last token, `,
    ...[...quoted(tokens.at(-1)), `, most at token ${place + 1}, `, ...quoted(tokens[place])],
    ` (${percent(w)}).`,
  );
}

function drawPlaces(parts, { tokens, attention }) {
  const [layer, head] = parts.pick.value.split(" ").map(Number);
  const cell = (row, i) => {
    const found = largest(row, MOST)[i];
    if (!found) return h("td", {}, "");
    return h("td", {}, `${found[0] + 1}: `, tokenNode(tokens[found[0]]), ` ${percent(found[1])}`);
  };
  parts.places.replaceChildren(
    ...attention[layer][head].map((row, t) => {
      const name = h("th", { scope: "row" }, `${t + 1}: `, tokenNode(tokens[t]));
      return h("tr", {}, name, ...[0, 1, 2].map((i) => cell(row, i)));
    }),
  );
}

const points = (x) => `${x < 0 ? "−" : "+"}${(100 * Math.abs(x)).toFixed(1)}`;

function drawBets(parts, model, { rows, moved }) {
  const number = (text) => h("td", { class: "cw-number" }, text);
  parts.rows.replaceChildren(
    ...rows.map(([token, before, after]) => {
      const name = h("th", { scope: "row" }, tokenNode(token));
      return h("tr", {}, name, ...[percent(before), percent(after), points(after - before)].map(number));
    }),
  );
  const off = model.get("off").map(([x, y]) => `head ${y} of layer ${x}`);
  if (!off.length) {
    parts.sentence.textContent = "All heads are on.";
    return;
  }
  const [token, before, after] = rows.reduce((a, b) =>
    Math.abs(b[2] - b[1]) > Math.abs(a[2] - a[1]) ? b : a,
  );
  parts.sentence.replaceChildren(
    `Without ${off.join(", ")}, ${percent(moved)} of the probability moves. The largest change: `,
    ...quoted(token),
    ` goes from ${percent(before)} to ${percent(after)}.`,
  );
}

// --- behaviour ------------------------------------------------------------------------------

function gallery(model, parts) {
  let reading = model.get("first");
  let inView = model.get("off")[0] ?? [0, 0];
  let isLive = false;
  const draw = () => {
    drawHeads(parts, model, reading);
    drawBets(parts, model, reading);
    drawLook(parts, reading, ...inView);
    drawPlaces(parts, reading);
  };
  const of = (event) => {
    const button = event.target.closest(".cw-gal-map");
    return button && [Number(button.dataset.layer), Number(button.dataset.head)];
  };
  const look = (event) => {
    if (!of(event)) return;
    inView = of(event);
    drawLook(parts, reading, ...inView);
  };
  const set = (off) => {
    if (isLive) save(model, { off });
    else parts.status.textContent = "Load the model to switch its heads.";
  };
  parts.grid.onpointerover = look;
  parts.grid.addEventListener("focusin", look);
  parts.grid.onclick = (event) => {
    if (!of(event)) return;
    const [layer, head] = of(event);
    const rest = model.get("off").filter(([x, y]) => x !== layer || y !== head);
    set(isOff(model, layer, head) ? rest : [...rest, [layer, head]]);
  };
  parts.all.onclick = () => set([]);
  parts.pick.onchange = () => drawPlaces(parts, reading);
  return {
    draw,
    use(next) {
      [reading, isLive] = [next, true];
      draw();
    },
  };
}

function wire(models, model, parts, now, on) {
  const read = latest(async () => {
    try {
      now.use(await readLive(models, model.get("text"), model.get("off")));
      parts.status.textContent = "";
    } catch (error) {
      parts.status.textContent = error.message;
    }
  });
  on("change:text", read);
  on("change:off", read);
  parts.text.disabled = false;
  return read();
}

function render({ model, el }) {
  const parts = makeParts(model);
  const now = gallery(model, parts);
  const { on, off } = subscribe(model);
  const controls = () => {
    if (parts.text.value !== model.get("text")) parts.text.value = model.get("text");
  };
  on("change:text", controls);
  controls();
  now.draw();
  el.append(layout(parts));
  offer(model, parts.gate, ["base"], (models) => wire(models, model, parts, now, on));
  return off;
}

export default { render };
