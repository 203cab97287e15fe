"use strict";
// What every page draws with: the theme, a figure that fits its place, and a picture to take away.

const Theme = (() => {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null; // the reader's choice; kept in memory only

  const now = () => chosen ?? (prefersDark.matches ? "dark" : "light");

  // Show the theme on the page and its button, now and whenever it changes.
  function follow(button, redraw) {
    const show = () => {
      root.dataset.theme = now();
      button.textContent = now() === "dark" ? "Light theme" : "Dark theme";
      redraw(now());
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      chosen = now() === "dark" ? "light" : "dark";
      show();
    });
    prefersDark.addEventListener("change", show);
    show();
  }

  return { now, follow };
})();

const Drawing = (() => {
  const NARROW = 520; // pixels of a drawing below which labels shrink and ticks thin out
  const config = { responsive: true, displaylogo: false, displayModeBar: false, showTips: false };

  const widthOf = (plot) => (plot.clientWidth < NARROW ? "narrow" : "wide");

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

  function layoutOf(figure, template, width) {
    const layout = structuredClone(figure.layout);
    layout.template = template;
    return width === "narrow" ? shrunk(layout) : layout;
  }

  // figure: { data, layout }; the promise is kept when it can be seen
  function draw(plot, figure, template) {
    plot.dataset.width = widthOf(plot);
    return Plotly.react(plot, figure.data, layoutOf(figure, template, plot.dataset.width), config);
  }

  // A saved picture is for a paper or a message: light, on white, with its conclusion as title.
  function save(figure, template, title, name, format) {
    const layout = layoutOf(figure, template, "wide");
    const words = title.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
    layout.paper_bgcolor = "#ffffff";
    layout.width = 1000;
    layout.height += 40;
    layout.margin = { ...layout.margin, t: layout.margin.t + 40 };
    layout.title = { text: words, font: { size: 15 }, y: 1 - 12 / layout.height, yanchor: "top" };
    const options = { format, filename: `gradiometer-${name}`, width: 1000, height: layout.height, scale: format === "png" ? 2 : 1 };
    return Plotly.downloadImage({ data: figure.data, layout }, options);
  }

  return { draw, save, widthOf };
})();
