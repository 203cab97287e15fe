"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 520; // pixels of a drawing below which labels shrink and ticks thin out
  let chosen = null; // the reader's choice of theme; kept in memory only

  const theme = () => chosen ?? (prefersDark.matches ? "dark" : "light");

  // ---- drawings --------------------------------------------------------------------------------------------------

  const source = document.getElementById("report-data");
  const data = source ? JSON.parse(source.textContent) : { figures: {}, templates: {} };
  const config = { responsive: true, displaylogo: false, displayModeBar: false, showTips: false };

  function thinned(axis) {
    if (!axis || !Array.isArray(axis.tickvals) || axis.tickvals.length < 7) return axis;
    const keep = (_, i) => i % 2 === 0;
    return { ...axis, tickvals: axis.tickvals.filter(keep), ticktext: axis.ticktext.filter(keep) };
  }

  function shrunk(layout) {
    const margin = { ...layout.margin, l: Math.round(layout.margin.l * 0.84), r: Math.min(layout.margin.r, 56) };
    const yaxis = { ...layout.yaxis, tickfont: { size: 9 } };
    const xaxis = { ...thinned(layout.xaxis), nticks: 5 };
    const depth = (note) => (note.name === "depth" ? { ...note, xshift: 10 - margin.l } : note);
    return { ...layout, margin, xaxis, yaxis, annotations: (layout.annotations ?? []).map(depth) };
  }

  function layoutFor(name, width, shade) {
    const layout = structuredClone(data.figures[name].layout);
    layout.template = data.templates[shade];
    return width < NARROW ? shrunk(layout) : layout;
  }

  function draw(plot, shade = theme()) {
    const name = plot.dataset.figure;
    plot.dataset.width = plot.clientWidth < NARROW ? "narrow" : "wide";
    return Plotly.react(plot, data.figures[name].data, layoutFor(name, plot.clientWidth, shade), config).then(() => {
      plot.dataset.drawn = shade;
    });
  }

  const plots = source ? [...document.querySelectorAll(".plot")] : [];
  const drawAll = (shade) => plots.forEach((plot) => draw(plot, shade));

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const width = target.clientWidth < NARROW ? "narrow" : "wide";
      if (target.dataset.width && target.dataset.width !== width) draw(target);
    }
  });

  // A saved picture is for a paper or a message: light, on white, with its conclusion as title.
  function save(button) {
    const name = button.dataset.of;
    const layout = layoutFor(name, 1000, "light");
    const title = document.getElementById(`title-${name}`).textContent.trim();
    const words = title.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
    layout.paper_bgcolor = "#ffffff";
    layout.width = 1000;
    layout.height += 40;
    layout.margin = { ...layout.margin, t: layout.margin.t + 40 };
    layout.title = { text: words, font: { size: 15 }, y: 1 - 12 / layout.height, yanchor: "top" };
    const format = button.dataset.save;
    const options = { format, filename: `gradiometer-${name}`, width: 1000, height: layout.height, scale: format === "png" ? 2 : 1 };
    Plotly.downloadImage({ data: data.figures[name].data, layout }, options);
  }

  // ---- theme -----------------------------------------------------------------------------------------------------

  const toggle = document.getElementById("theme");

  function show() {
    const now = theme();
    root.dataset.theme = now;
    toggle.textContent = now === "dark" ? "Light theme" : "Dark theme";
    drawAll(now);
  }

  toggle.hidden = false;
  toggle.removeAttribute("aria-pressed");
  toggle.addEventListener("click", () => {
    chosen = theme() === "dark" ? "light" : "dark";
    show();
  });
  prefersDark.addEventListener("change", show);

  addEventListener("beforeprint", () => {
    drawAll("light");
    plots.forEach((plot) => Plotly.Plots.resize(plot));
  });
  addEventListener("afterprint", () => drawAll());

  // ---- links -----------------------------------------------------------------------------------------------------

  // A jump also moves the focus, so that the keyboard goes on from there.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const goal = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!goal) return;
    event.preventDefault(); // a link's own navigation ends later and would take the focus back
    location.hash = goal.id;
    goal.scrollIntoView();
    if (!goal.hasAttribute("tabindex")) goal.tabIndex = -1;
    goal.focus({ preventScroll: true });
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-save]");
    if (button) save(button);
  });

  show();
  plots.forEach((plot) => resized.observe(plot));
})();
