"use strict";
(() => {
  const source = document.getElementById("report-data");
  const data = source ? JSON.parse(source.textContent) : { figures: {}, templates: {} };
  const plots = source ? [...document.querySelectorAll(".plot")] : [];

  // ---- drawings --------------------------------------------------------------------------------------------------

  function draw(plot, shade = Theme.now()) {
    return Drawing.draw(plot, data.figures[plot.dataset.figure], data.templates[shade]).then(() => {
      plot.dataset.drawn = shade;
    });
  }

  const drawAll = (shade) => plots.forEach((plot) => draw(plot, shade));

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.dataset.width && target.dataset.width !== Drawing.widthOf(target)) draw(target);
    }
  });

  function save(button) {
    const name = button.dataset.of;
    const title = document.getElementById(`title-${name}`).textContent.trim();
    Drawing.save(data.figures[name], data.templates.light, title, name, button.dataset.save);
  }

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

  Theme.follow(document.getElementById("theme"), drawAll);
  plots.forEach((plot) => resized.observe(plot));
})();
