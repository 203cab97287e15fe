"use strict";
// A page of the lab: controls make a state, the state is an address, the server (or a file) has the scene for it.

(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const main = document.getElementById("main");
  const status = document.getElementById("status");
  const exhibits = new Exhibits(document.getElementById("exhibits"), page.templates);
  const controls = page.controls.map((c) => ({ ...c, input: document.getElementById(`c-${c.name}`), output: document.getElementById(`o-${c.name}`) }));
  const opened = Object.fromEntries(controls.map((c) => [c.name, c.default]));
  let state = { ...opened };
  let shown = false;

  // ---- state, address, controls -----------------------------------------------------------------------------------

  const linkOf = (s) => controls.filter((c) => s[c.name] !== c.default).map((c) => `${c.name}=${encodeURIComponent(s[c.name])}`).join("&");

  // What an address says; what this page does not have is told and left out.
  function stateOf(hash) {
    const found = { ...opened };
    const unknown = [];
    for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
      const control = controls.find((c) => c.name === name);
      const known = control && control.values.find((v) => v === value || (control.kind === "slider" && Number(v) === Number(value)));
      if (known === undefined) unknown.push(`${name}=${value}`);
      else found[name] = known;
    }
    return { found, unknown };
  }

  function put() {
    for (const { name, kind, values, shown: words, input, output } of controls) {
      const index = values.indexOf(state[name]);
      if (kind === "slider") {
        input.value = String(index);
        input.setAttribute("aria-valuetext", words[index]);
        output.textContent = words[index];
      } else if (kind === "toggle") input.checked = state[name] === "on";
      else input.value = state[name];
    }
    for (const button of document.querySelectorAll("[data-preset]")) {
      const preset = page.presets.find((p) => p.name === button.dataset.preset);
      button.setAttribute("aria-pressed", String(linkOf(preset.state) === linkOf(state)));
    }
  }

  function go(next, lesson = "") {
    state = next;
    put();
    document.getElementById("lesson").textContent = lesson;
    const link = linkOf(state);
    history.replaceState(null, "", link ? `#${link}` : location.pathname + location.search);
    draw();
  }

  for (const { name, kind, values, input } of controls) {
    const read = () => (kind === "slider" ? values[Number(input.value)] : kind === "toggle" ? (input.checked ? "on" : "off") : input.value);
    input.addEventListener(kind === "slider" ? "input" : "change", () => go({ ...state, [name]: read() }));
  }
  for (const button of document.querySelectorAll("[data-preset]")) {
    const preset = page.presets.find((p) => p.name === button.dataset.preset);
    button.addEventListener("click", () => go({ ...preset.state }, preset.lesson));
  }
  document.getElementById("defaults").addEventListener("click", () => go({ ...opened }));

  // ---- scenes ----------------------------------------------------------------------------------------------------

  const arriving = new Map();
  globalThis.gradiometerScene = (file, scene) => {
    arriving.get(file)?.(scene);
    arriving.delete(file);
  };

  function fromFile(link) {
    const file = page.where.files[link];
    if (file === undefined) return Promise.reject(new Error("This state is not among those that were written to disk."));
    return new Promise((resolve, reject) => {
      arriving.set(file, resolve);
      const script = Words.make("script", { src: `${page.where.base}${file}` });
      script.onerror = () => reject(new Error(`The file ${file} is missing.`));
      script.onload = () => script.remove();
      document.head.append(script);
    });
  }

  async function fromServer(link) {
    let answer;
    try {
      answer = await fetch(`${page.where.base}?${link}`);
    } catch {
      throw new Error("The server does not answer. Start it again with: gradiometer lab");
    }
    const body = answer.headers.get("content-type")?.startsWith("application/json") ? await answer.json() : { error: await answer.text() };
    if (!answer.ok) throw new Error(body.error);
    return body;
  }

  const fetchScene = page.where.kind === "files" ? fromFile : fromServer;
  const kept = new Map(); // the last few scenes, so that going back is instant
  const KEPT = 24;
  let busy = false;
  let again = false;

  async function sceneOf(link) {
    if (!kept.has(link)) {
      kept.set(link, await fetchScene(link));
      if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    }
    return kept.get(link);
  }

  // One request at a time; of the states passed through meanwhile only the last counts.
  async function draw() {
    if (!shown) return;
    again = busy;
    if (busy) return;
    busy = true;
    const begun = performance.now();
    const link = linkOf(state);
    const slow = setTimeout(() => {
      main.dataset.busy = "true";
      say(page.slow > 1 ? `Training networks; this takes up to ${Math.ceil(page.slow)} s.` : "Computing.");
    }, 250);
    try {
      await show(await sceneOf(link));
      say("");
      main.dataset.milliseconds = String(Math.round(performance.now() - begun));
      main.dataset.link = link;
    } catch (error) {
      say(error.message, true);
    }
    clearTimeout(slow);
    main.dataset.busy = "false";
    main.dataset.drawn = String(Number(main.dataset.drawn ?? 0) + 1);
    busy = false;
    if (again) draw();
  }

  function say(text, wrong = false) {
    status.textContent = text;
    status.classList.toggle("wrong", wrong);
  }

  function show(scene) {
    stop();
    const items = scene.readings.map((text) => Words.rich(document.createElement("li"), text));
    document.getElementById("readings").replaceChildren(...items);
    const drawn = exhibits.show(scene.exhibits);
    setFrames(scene.frames);
    return drawn;
  }

  // ---- moments ---------------------------------------------------------------------------------------------------

  const player = document.getElementById("player");
  const moment = document.getElementById("moment");
  const label = document.getElementById("moment-label");
  const toggle = player.querySelector('[data-play="toggle"]');
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let frames = [];
  let timer = null;

  function setFrames(given) {
    frames = given;
    player.hidden = frames.length === 0;
    moment.max = String(Math.max(frames.length - 1, 0));
    moment.value = moment.max;
    tell(frames.length - 1);
  }

  function tell(index) {
    label.textContent = frames[index]?.label ?? "";
    moment.setAttribute("aria-valuetext", label.textContent);
  }

  function to(index) {
    const at = Math.min(Math.max(index, 0), frames.length - 1);
    moment.value = String(at);
    tell(at);
    return exhibits.patch(frames[at].patches);
  }

  function stop() {
    clearTimeout(timer);
    timer = null;
    toggle.textContent = "Play";
  }

  function play() {
    let at = Number(moment.value) >= frames.length - 1 ? -1 : Number(moment.value);
    toggle.textContent = "Pause";
    const next = async () => {
      at += 1;
      await to(at);
      if (timer === null) return;
      if (at >= frames.length - 1) stop();
      else timer = setTimeout(next, calm.matches ? 600 : 60);
    };
    timer = setTimeout(next, 0);
  }

  moment.addEventListener("input", () => {
    stop();
    to(Number(moment.value));
  });
  player.addEventListener("click", (event) => {
    const what = event.target.closest("[data-play]")?.dataset.play;
    if (!what) return;
    const playing = timer !== null;
    stop();
    if (what === "toggle" && !playing) play();
    if (what === "first") to(0);
    if (what === "back") to(Number(moment.value) - 1);
    if (what === "forward") to(Number(moment.value) + 1);
  });

  // ---- predict first ---------------------------------------------------------------------------------------------

  const guess = document.getElementById("guess");
  const submit = guess.querySelector('[type="submit"]');

  function reveal() {
    shown = true;
    document.getElementById("bench").hidden = false;
    document.getElementById("skip").hidden = true;
    put();
    return draw();
  }

  guess.addEventListener("change", () => {
    submit.disabled = false;
  });
  guess.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = Number(new FormData(guess).get("answer"));
    const verdict = Words.make("b", {}, given === page.question.right ? "Right. " : "Not so. ");
    const said = document.getElementById("answered");
    said.replaceChildren(verdict, Words.rich(document.createElement("span"), page.question.because));
    reveal();
  });
  document.getElementById("skip").addEventListener("click", reveal);
  document.getElementById("skip").disabled = false; // not before it does something: plotly.js takes a while to load

  // ---- begin -----------------------------------------------------------------------------------------------------

  Theme.follow(document.getElementById("theme"), () => {
    if (shown && main.dataset.drawn) exhibits.redraw();
  });

  function fromAddress() {
    const { found, unknown } = stateOf(location.hash);
    state = found;
    put();
    if (location.hash.length > 1 && location.hash !== "#main") {
      reveal().then(() => {
        if (unknown.length) say(`This page has no state ${unknown.join(", ")}; the rest of the link is shown.`, true);
      });
    } else if (shown) draw();
  }

  addEventListener("hashchange", () => {
    if (location.hash !== "#main") fromAddress();
  });
  fromAddress();
})();
