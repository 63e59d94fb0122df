// Mounts the course's widgets in the static book, with no kernel and no server.
//
// The page holds <div class="course-widget" data-widget="NAME" data-model="ID"> with the state
// as JSON and a fallback. Classic scripts (they also load from disk, where module imports are
// blocked) have stored each ES module's source in window.COURSE_WIDGETS[NAME]. The loader
// imports that source from a Blob URL and calls its render({model, el}), as anywidget would.
(() => {
  "use strict";

  // The part of anywidget's model that a module may use. No kernel: nothing to save to.
  class Model {
    constructor(state) {
      this.state = state;
      this.listeners = new Map(); // event name -> Set of callbacks
    }
    get(name) {
      return this.state[name];
    }
    set(name, value) {
      const values = typeof name === "object" ? name : { [name]: value };
      const changed = Object.keys(values).filter((k) => !Object.is(this.state[k], values[k]));
      Object.assign(this.state, values);
      for (const key of changed) this.emit(`change:${key}`, this.state[key]);
      if (changed.length) this.emit("change");
    }
    on(names, callback) {
      for (const name of names.split(/\s+/)) {
        if (!this.listeners.has(name)) this.listeners.set(name, new Set());
        this.listeners.get(name).add(callback);
      }
    }
    off(names, callback) {
      if (names == null) this.listeners.clear();
      else
        for (const name of names.split(/\s+/)) {
          if (callback) this.listeners.get(name)?.delete(callback);
          else this.listeners.delete(name);
        }
    }
    emit(name, value) {
      for (const callback of [...(this.listeners.get(name) ?? [])]) callback(this, value);
    }
    save_changes() {}
    send() {}
  }

  const modules = new Map(); // widget name -> promise of its definition
  const models = new Map(); // model id -> promise of {model, definition}

  function loadModule(name) {
    if (!modules.has(name)) {
      const source = (window.COURSE_WIDGETS ?? {})[name];
      if (source === undefined) return Promise.reject(new Error(`no code for widget ${name}`));
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const load = import(url)
        .then((m) => (typeof m.default === "function" ? m.default() : m.default))
        .finally(() => URL.revokeObjectURL(url));
      modules.set(name, load);
    }
    return modules.get(name);
  }

  // One object shown twice has one id, hence one model; the state shown last holds, as it
  // would with a kernel.
  function getModel(name, id, state) {
    if (models.has(id)) {
      return models.get(id).then((entry) => {
        entry.model.set(state);
        return entry;
      });
    }
    const created = (async () => {
      const definition = await loadModule(name);
      const model = new Model(state);
      await definition.initialize?.({ model });
      return { model, definition };
    })();
    models.set(id, created);
    return created;
  }

  async function mount(host, index) {
    const fallback = host.querySelector(".course-widget-fallback");
    const el = document.createElement("div");
    el.className = "course-widget-live";
    el.hidden = true; // the fallback stays until the widget has drawn itself
    host.append(el);
    try {
      const name = host.dataset.widget;
      const state = JSON.parse(host.querySelector('script[type="application/json"]').textContent);
      const id = host.dataset.model || `unshared-${index}`;
      const { model, definition } = await getModel(name, id, state);
      await definition.render({ model, el });
      el.hidden = false;
      fallback?.remove();
      host.dataset.state = "live";
    } catch (error) {
      el.remove();
      const message = document.createElement("p");
      message.className = "course-widget-error";
      message.setAttribute("role", "status");
      message.textContent = `This interactive figure could not start (${error.message}). Its default state is shown.`;
      host.append(message);
      host.dataset.state = "failed";
    }
  }

  const start = () => document.querySelectorAll(".course-widget").forEach(mount);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
