"use strict";
// Figures on a page: each with its conclusion, its numbers as a table, and what to take away. Text from the server is only ever
// set as text: names of layers and runs are anybody's.

const Words = (() => {
  // What stands between backticks is code.
  function rich(element, text) {
    const parts = text.split(/`([^`]*)`/);
    const nodes = parts.map((part, i) => (i % 2 ? make("code", {}, part) : document.createTextNode(part)));
    element.replaceChildren(...nodes);
    return element;
  }

  function make(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }

  return { rich, make };
})();

class Exhibits {
  #place;
  #templates;
  #prefix;
  #held = new Map(); // name -> { exhibit, parts }
  #patches = {};
  #resized;

  // prefix tells the elements of several collections on one page apart
  constructor(place, templates, prefix = "") {
    this.#place = place;
    this.#templates = templates;
    this.#prefix = prefix;
    this.#resized = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const name = target.dataset.figure;
        if (this.#held.has(name) && target.dataset.width && target.dataset.width !== Drawing.widthOf(target)) this.#draw(name);
      }
    });
  }

  // Show these and nothing else; what is there already is changed in place. Kept when all are drawn.
  show(exhibits) {
    const wanted = new Set(exhibits.map((e) => e.name));
    for (const [name, { parts }] of this.#held) {
      if (wanted.has(name)) continue;
      this.#resized.unobserve(parts.plot);
      Plotly.purge(parts.plot);
      parts.figure.remove();
      this.#held.delete(name);
    }
    this.#patches = {};
    for (const exhibit of exhibits) {
      const parts = this.#held.get(exhibit.name)?.parts ?? this.#build(exhibit);
      this.#held.set(exhibit.name, { exhibit, parts });
      this.#say(exhibit, parts);
    }
    return this.redraw();
  }

  // Show a moment: name of an exhibit -> index of a trace -> attributes.
  patch(patches) {
    const touched = new Set([...Object.keys(this.#patches), ...Object.keys(patches)]);
    this.#patches = patches;
    return Promise.all([...touched].map((name) => this.#draw(name)));
  }

  redraw() {
    return Promise.all([...this.#held.keys()].map((name) => this.#draw(name)));
  }

  #draw(name) {
    const { exhibit, parts } = this.#held.get(name);
    if (exhibit.empty) return Promise.resolve();
    const figure = { data: patched(exhibit.data, this.#patches[name]), layout: exhibit.layout };
    return Drawing.draw(parts.plot, figure, this.#templates[Theme.now()]).then(() => {
      parts.plot.dataset.drawn = Theme.now();
    });
  }

  #build(exhibit) {
    const { make } = Words;
    const id = `${this.#prefix}${exhibit.name}`;
    const parts = {
      title: make("h3", { id: `title-${id}` }),
      reading: make("p", { class: "reading" }),
      plot: make("div", { class: "plot", id: `plot-${id}`, tabindex: "0", role: "img" }),
      note: make("p", { class: "note" }),
      missing: make("p", { class: "muted" }),
      table: make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Data of: ${exhibit.kind}` }),
    };
    parts.plot.dataset.figure = exhibit.name;
    parts.details = make("details", { class: "data" }, make("summary", {}, "Data table"), parts.table);
    parts.details.addEventListener("toggle", () => this.#tabulate(exhibit.name));
    const save = make("span", { class: "save" }, make("span", { class: "muted" }, "Save as"));
    for (const format of ["svg", "png", "csv"]) {
      const button = make("button", { type: "button", "aria-label": `Save ${exhibit.kind} as ${format.toUpperCase()}` }, format.toUpperCase());
      button.addEventListener("click", () => this.#save(exhibit.name, format));
      save.append(button);
    }
    parts.tools = make("div", { class: "tools" }, parts.details, save);
    const caption = make("figcaption", {}, parts.note, parts.tools);
    const kicker = make("p", { class: "kicker" }, exhibit.kind);
    parts.figure = make("figure", { class: "panel", id: `figure-${id}`, "aria-labelledby": `title-${id}` });
    parts.figure.append(kicker, parts.title, parts.reading, parts.missing, parts.plot, caption);
    this.#place.append(parts.figure);
    this.#resized.observe(parts.plot);
    return parts;
  }

  #say(exhibit, parts) {
    parts.title.textContent = exhibit.title;
    parts.reading.textContent = exhibit.reading;
    parts.note.textContent = exhibit.note;
    parts.missing.textContent = exhibit.empty ? exhibit.alt : "";
    for (const part of [parts.plot, parts.tools]) part.hidden = exhibit.empty;
    parts.plot.style.height = `${exhibit.height}px`;
    parts.plot.setAttribute("aria-label", `${exhibit.alt} The numbers are in the data table below.`);
    parts.figure.classList.toggle("half", Boolean(exhibit.half));
    this.#tabulate(exhibit.name);
  }

  // A closed table is not made: it costs more than the drawing.
  #tabulate(name) {
    const { exhibit, parts } = this.#held.get(name) ?? {};
    if (!exhibit || !parts.details.open || !exhibit.table) return;
    const { make } = Words;
    const head = make("tr", {}, ...exhibit.table.columns.map((text) => make("th", { scope: "col" }, text)));
    const lines = exhibit.table.lines.map(([first, ...rest]) =>
      make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))),
    );
    const table = make("table", {}, make("caption", {}, exhibit.table.caption), make("thead", {}, head), make("tbody", {}, ...lines));
    parts.table.replaceChildren(table);
  }

  #save(name, format) {
    const { exhibit } = this.#held.get(name);
    if (format === "csv") return download(csv(exhibit.table), `gradiometer-${name}.csv`);
    const figure = { data: patched(exhibit.data, this.#patches[name]), layout: exhibit.layout };
    return Drawing.save(figure, this.#templates.light, exhibit.title, name, format);
  }
}

// Traces with some attributes changed; a key may be a path such as marker.color.
function patched(data, patch) {
  if (!patch) return data;
  return data.map((trace, i) => {
    if (!patch[i]) return trace;
    const copy = { ...trace };
    for (const [path, value] of Object.entries(patch[i])) {
      const keys = path.split(".");
      const last = keys.pop();
      let at = copy;
      for (const key of keys) at = at[key] = { ...at[key] };
      at[last] = value;
    }
    return copy;
  });
}

// RFC 4180. A cell that a spreadsheet would take for a formula is marked as text.
function csv(table) {
  const cell = (text) => {
    const safe = /^[=+@\t]|^-(?![\d.])/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [table.columns, ...table.lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function download(text, name) {
  const link = Words.make("a", { download: name, href: URL.createObjectURL(new Blob([text], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
