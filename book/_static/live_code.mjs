// Live code: the cells of a lesson run in the page, in a kernel on mybinder.org.
//
// Nothing here is loaded before a reader asks: the button in the launch menu imports this module
// and calls start(page). It then loads thebe-core (it talks to Binder and to the kernel, and draws
// the outputs as JupyterLab does) and the page's cells, _static/live/PAGE.json, which the
// book's extension live_code.py writes. What a reader types is code for the kernel, never HTML.

const THEBE = "https://cdn.jsdelivr.net/npm/thebe-core@0.5.0/dist/lib/thebe-core.min.js";
const INTEGRITY = "sha384-b+btB9AXDUyC9o6RCPuQjbO5517zuWfiGiYS0WKexbWkiLZkBVPX5niDLK+en+Zf";
const READY = "Ready. Live cells use the tiny smoke models: figures differ from the page's.";
const STYLE = `
  .live-bar { position: sticky; z-index: 5; display: flex; flex-wrap: wrap; align-items: center;
    gap: 0.3rem 0.6rem; margin: 0 0 1rem; padding: 0.5rem 0.8rem; border-radius: 0.45rem;
    border: 1px solid var(--pst-color-border); background: var(--pst-color-surface);
    font-size: 0.9rem; line-height: 1.4; }
  .live-bar p { flex: 1 1 16rem; margin: 0; }
  .live-bar button, .live-cell button { padding: 0.25rem 0.7rem; border-radius: 0.3rem;
    border: 1px solid var(--pst-color-primary); color: var(--pst-color-primary);
    background: var(--pst-color-background); font: inherit; font-size: 0.85rem; }
  :root:has(.live-bar) { scroll-padding-top: 11rem; }
  div.cell div.cell_input.live-cell { display: block; padding: 0.5rem;
    background: var(--pst-color-surface); }
  .live-cell textarea { display: block; width: 100%; margin-bottom: 0.4rem; padding: 0.4rem;
    border: 1px solid var(--pst-color-border); border-radius: 0.3rem; resize: vertical;
    color: var(--pst-color-text-base); background: var(--pst-color-background);
    font: 0.85rem/1.5 var(--pst-font-family-monospace); white-space: pre; overflow-x: auto; }
  .live-output pre { margin: 0; max-height: 32rem; overflow: auto; }
  .live-output .jp-OutputPrompt { display: none; }
  @media print { .live-bar, .live-cell button { display: none; } }`;

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(text, onclick) {
  return element("button", { type: "button", textContent: text, onclick });
}

// The line under the title that says what happens.
class Bar {
  constructor() {
    this.status = element("p", { role: "status" });
    this.host = element("section", { className: "live-bar", ariaLabel: "Live code" }, this.status);
    this.host.style.top = `${document.querySelector(".bd-header-article")?.offsetHeight ?? 0}px`;
    document.querySelector("article h1").after(element("style", { textContent: STYLE }), this.host);
  }
  say(text) {
    this.status.textContent = text;
  }
  buttons(...made) {
    this.host.replaceChildren(this.status, ...made);
  }
  // What went wrong, why, and what to do.
  fail(what, why, again) {
    const colab = document.querySelector('.dropdown-launch-buttons a[href*="colab."]');
    const link = element("a", { href: colab?.href ?? "", textContent: "open it in Colab" });
    this.status.replaceChildren(`${what} (${why}). Try again later, or `, link, ".");
    this.buttons(button("Try again", again));
  }
}

function loadThebe() {
  if (window.thebeCore) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const script = element("script", { src: THEBE, integrity: INTEGRITY, crossOrigin: "anonymous" });
    script.onload = resolve;
    script.onerror = () => {
      script.remove();
      reject(new Error(`${new URL(THEBE).host} cannot be reached`));
    };
    document.head.append(script);
  });
}

async function loadCells(page) {
  const answer = await fetch(new URL(`live/${page}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`the page's cells are missing: error ${answer.status}`);
  return answer.json();
}

// A kernel of its own for this page, on the reader's server at mybinder.org.
async function connect(page, { repository: repo, branch: ref }, bar) {
  const { api } = window.thebeCore;
  const config = api.makeConfiguration({ binderOptions: { repo, ref } });
  const rendermime = api.makeRenderMimeRegistry({ mathjaxUrl: "", mathjaxConfig: "" });
  const starting = "Starting a server at mybinder.org; the first start can take minutes…";
  bar.say(starting);
  config.events.on("status", (_, { message }) => {
    const phase = message.match(/^Binder is: (\w+)/);
    if (phase) bar.say(`${starting} (${phase[1]})`);
  });
  const server = await api.connectToBinder(config).ready.catch((why) => {
    throw new Error(`mybinder.org started no server: ${`${why}`.replace(/\s+/g, " ")}`);
  });
  const path = `notebooks/${page}-${Date.now()}.ipynb`; // a kernel is shared by its path
  const session = await server.startNewSession(rendermime, { path, kernelName: "python3" });
  addEventListener("pagehide", (event) => event.persisted || session.shutdown());
  return { config, rendermime, session };
}

// All cells of the page in order. They run one after the other, each after those before it.
class Lesson {
  constructor(page, cells, { config, rendermime }, bar) {
    Object.assign(this, { bar, starts: 0 });
    const places = [...document.querySelectorAll("div.cell div.cell_input")];
    const Cell = window.thebeCore.module.ThebeCodeCell;
    this.cells = [];
    for (const { source, shown, runs } of cells) {
      const place = shown ? places.shift() : null;
      if (!runs) continue;
      const cell = new Cell(`${this.cells.length}`, page, source, config, {}, rendermime);
      this.cells.push({ cell, source, done: false });
      if (place) this.open(this.cells.at(-1), place);
    }
  }

  // Run in this kernel from now on. If its server goes, `again` finds another.
  use(session, again) {
    this.starts += 1; // what waits for an earlier kernel is not run
    Object.assign(this, { session, again, work: Promise.resolve() });
    for (const entry of this.cells) entry.cell.attachSession(session);
    this.forget();
    const all = button("Run all", () => this.run(this.cells, true));
    this.bar.buttons(all, button("Restart", () => this.restart()));
    session.kernel.connectionStatusChanged.connect((_, status) => {
      if (status !== "disconnected" || session !== this.session) return;
      this.bar.fail("The server has gone", "mybinder.org ends one that is idle", again);
    });
    this.bar.say(READY);
  }

  // A kernel that has just started has run nothing.
  forget() {
    for (const entry of this.cells) entry.done = false;
  }

  // Turn a shown cell into an editor with a button.
  open(entry, place) {
    entry.number = this.cells.filter((other) => other.number).length + 1;
    const name = `cell ${entry.number}`;
    const run = () => this.run(this.cells.slice(0, this.cells.indexOf(entry) + 1));
    const editor = element("textarea", { value: entry.source, spellcheck: false, onkeydown });
    editor.ariaLabel = `Code of ${name}; Shift and Enter run it`;
    editor.oninput = () => (editor.rows = editor.value.split("\n").length + 1);
    editor.oninput();
    function onkeydown(event) {
      if (event.key !== "Enter" || !event.shiftKey) return;
      event.preventDefault();
      run();
    }
    place.classList.add("live-cell");
    place.replaceChildren(editor, button(`Run ${name}`, run));
    const host = place.closest("div.cell");
    const old = host.querySelector("div.cell_output");
    Object.assign(entry, { editor, host, old });
  }

  // Run the cells that have not run yet, and the last one in any case; or, from the top, all.
  run(cells, fromTop = false) {
    const start = this.starts;
    this.work = this.work.then(async () => {
      for (const entry of cells) {
        if (entry.done && !fromTop && entry !== cells.at(-1)) continue;
        if (start !== this.starts || !(await this.execute(entry))) return;
      }
      this.bar.say(READY);
    });
    return this.work;
  }

  // True if the cell ran without an error. The first output replaces the one of the book.
  async execute(entry) {
    const { cell, number } = entry;
    const start = this.starts;
    const name = number ? `Cell ${number}` : "A cell that the page does not show";
    this.bar.say(number ? `Cell ${number} is running…` : "The page's set-up is running…");
    if (number && !cell.isAttachedToDOM) this.showOutput(entry);
    const reply = await cell.execute(entry.editor?.value ?? entry.source);
    if (start !== this.starts) return false; // restarted meanwhile
    if (!reply) this.forget();
    entry.done = Boolean(reply) && !reply.error;
    if (number) this.nameOutput(entry);
    const error = reply?.error?.[0];
    const why = error ? `${error.ename}: ${error.evalue}` : "its kernel ended: too little memory?";
    if (!entry.done) this.bar.say(`${name} stopped (${why}). The cells after it did not run.`);
    return entry.done;
  }

  showOutput({ cell, host, old }) {
    const output = element("div", { className: "live-output cell_output docutils container" });
    if (old) old.replaceWith(output);
    else host.append(output);
    cell.attachToDOM(output);
    output.firstChild.classList.add("output");
  }

  // A picture needs a text, and what scrolls must be in reach of the keyboard.
  nameOutput({ cell, number, host }) {
    for (const image of host.querySelectorAll(".live-output img")) {
      image.alt ||= `Picture drawn by cell ${number}`;
    }
    for (const text of host.querySelectorAll(".live-output pre")) text.tabIndex = 0;
  }

  async restart() {
    this.starts += 1;
    this.bar.say("The kernel restarts…");
    try {
      await this.session.restart();
    } catch (error) {
      return this.bar.fail("The kernel did not restart", error.message, this.again);
    }
    await this.work;
    this.forget();
    for (const entry of this.cells) entry.cell.clear();
    this.bar.say("Restarted: no cell has run yet.");
  }
}

export function start(page) {
  if (document.querySelector(".live-bar")) return;
  const bar = new Bar();
  let lesson;
  async function begin() {
    bar.buttons();
    bar.say("Loading…");
    try {
      const [data] = await Promise.all([loadCells(page), loadThebe()]);
      const connection = await connect(page, data, bar);
      lesson ??= new Lesson(page, data.cells, connection, bar);
      lesson.use(connection.session, begin);
    } catch (error) {
      bar.fail("Live code could not start", error.message ?? error, begin);
    }
  }
  begin();
}
