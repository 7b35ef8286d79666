// The view of TrainingMonitor. All that it shows is in the model's traits, so it is the same in every cell, after a reload
// of the page, and on a page without a kernel. Buttons send messages, and the kernel answers each: silence is told.

const PATIENCE = 1500, BEAT = 350;  // milliseconds: to wait for an answer, and for a picture when playing
const LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const WIDTH = 200, HEIGHT = 72, PAD = 4;

function make(tag, { aria = {}, on = {}, ...properties } = {}, ...children) {
  const el = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(aria)) el.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, f] of Object.entries(on)) el.addEventListener(name, f);
  el.append(...children);
  return el;
}

const short = value => value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));

function chart(curve, colour, last, here) {  // `last` and `here` are steps
  const [low, high] = [Math.min(...curve.y), Math.max(...curve.y)], span = high - low || Math.abs(high) || 1;
  const x = step => PAD + (WIDTH - 2 * PAD) * step / Math.max(1, last), y = value => HEIGHT - 13 - (HEIGHT - 26) * (value - low) / span;
  const points = curve.x.map((step, i) => `${x(step).toFixed(1)},${y(curve.y[i]).toFixed(1)}`);
  const dots = curve.dots || points.length === 1 ? points.map(p => { const [cx, cy] = p.split(","); return `<circle cx="${cx}" cy="${cy}" r="2.2" fill="${colour}"/>`; }).join("") : "";
  const mark = here === null ? "" : `<line class="here" x1="${x(here)}" x2="${x(here)}" y1="0" y2="${HEIGHT}"/>`;
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="from ${short(curve.y[0])} to ${short(curve.y.at(-1))}, between ${short(low)} and ${short(high)}">`
    + `${mark}<polyline points="${points.join(" ")}" fill="none" stroke="${colour}" stroke-width="1.5" vector-effect="non-scaling-stroke"/>${dots}`
    + `<text x="${PAD}" y="9">${short(high)}</text><text x="${PAD}" y="${HEIGHT - 3}">${short(low)}</text></svg>`;
}

function render({ model, el }) {
  const addresses = new Map();  // of pictures, by model id
  let asked = 0, waiting = null, playing = null, mine = null, turns = 0, telling = null;
  const button = (label, title, what) => make("button", { type: "button", textContent: label, title, on: { click: () => ask(what) } });
  const pause = make("button", { type: "button", on: { click: () => ask(model.get("state").phase === "paused" ? "resume" : "pause") } });
  const stop = button("Stop", "End training after this step; the segmenter is usable as it is then", "stop");
  const snapshot = button("Snapshot", "Keep the masks of this step, and the model where there is a folder", "snapshot");
  const buttons = make("span", { className: "bar", aria: { role: "group", label: "Training" } }, pause, stop, snapshot);
  buttons.style.margin = 0;
  const spin = make("span", { className: "spin", aria: { hidden: "true" } }), bar = make("progress", { aria: { label: "steps done" } });
  const title = make("span", { className: "title" }), facts = make("span", { className: "facts" });
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } }), deaf = make("div", { className: "deaf", hidden: true, aria: { role: "alert" } });
  const picture = make("img", { className: "masks" }), rows = make("div", { className: "rows" }), empty = make("div", { className: "empty" });
  const play = make("button", { type: "button", on: { click: () => playing ? halt() : start() } });
  const slider = make("input", { type: "range", min: 0, step: 1, aria: { label: "epoch shown" }, on: { input: () => { halt(); turn(Number(slider.value)); } } });
  const at = make("span", { className: "at" }), curves = make("div", { className: "curves" });
  const turning = make("div", { className: "bar turn" }, play, slider, at);
  el.classList.add("bgcs-training-monitor");
  el.addEventListener("keydown", event => { if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); });  // or JupyterLab takes the arrows
  el.setAttribute("role", "group"); el.setAttribute("aria-label", "Training monitor");
  el.replaceChildren(make("div", { className: "bar" }, spin, bar, title, facts), make("div", { className: "bar" }, buttons), deaf, said, empty, picture, rows, turning, curves);

  function ask(what) {
    const id = ++asked;
    model.send({ do: what, id });
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      deaf.textContent = `The kernel is busy and has not heard "${what}" yet. Where training holds the kernel, the notebook's ■ button stops it; started by monitor.fit(…), it leaves the kernel free to listen.`;
      deaf.hidden = false;
    }, PATIENCE);
  }
  const heard = message => {
    if (message.heard === asked) { clearTimeout(waiting); deaf.hidden = true; }
    if (message.heard === `turn ${turns}`) { mine = null; soon(); }
  };

  // ---- pictures: those of epochs and snapshots, then the one of now, where there is one ----
  const live = () => model.get("live")?.byteLength > 0;
  const count = () => model.get("marks").length + (live() ? 1 : 0);
  const position = () => { const shown = mine ?? model.get("shown"); return shown < 0 ? count() - 1 : Math.min(shown, count() - 1); };

  function turn(to) {
    mine = to >= count() - 1 ? -1 : to;  // at once, kernel or not; answers to earlier moves don't count
    const shown = mine, id = `turn ${++turns}`;
    clearTimeout(telling);
    telling = setTimeout(() => model.send({ do: "show", shown, id }), 100);
    draw();
  }
  function start() {
    if (position() >= model.get("marks").length - 1) turn(0);
    playing = setInterval(() => { turn(position() + 1); if (position() >= count() - 1) halt(); }, BEAT);
    draw();
  }
  function halt() { clearInterval(playing); playing = null; play.textContent = "▶ Play"; }

  async function address(name) {
    if (!addresses.has(name)) {
      const frame = await model.widget_manager.get_model(name.replace("IPY_MODEL_", ""));
      addresses.set(name, URL.createObjectURL(new Blob([frame.get("value")], { type: "image/png" })));
    }
    return addresses.get(name);
  }
  let now = null, shows = 0;
  function liveAddress() {
    const bytes = model.get("live");
    if (now?.bytes !== bytes) { if (now) URL.revokeObjectURL(now.url); now = { bytes, url: URL.createObjectURL(new Blob([bytes], { type: "image/png" })) }; }
    return now.url;
  }
  async function show(i) {
    const turn = ++shows, marks = model.get("marks");
    const url = i < marks.length ? await address(model.get("frames")[i]) : liveAddress();
    if (turn === shows && picture.src !== url) picture.src = url;  // or a later one has overtaken it
  }

  function draw() {
    const state = model.get("state"), marks = model.get("marks"), n = count(), i = position(), ended = !["preparing", "running", "paused"].includes(state.phase);
    el.dataset.phase = state.phase;
    spin.hidden = state.phase !== "preparing" && !state.waiting;
    bar.hidden = state.phase === "idle"; bar.max = Math.max(1, model.get("max")); bar.value = model.get("value");
    title.textContent = state.title; facts.textContent = state.facts ?? "";
    buttons.parentElement.hidden = ended;
    pause.textContent = state.phase === "paused" ? "Resume" : "Pause"; pause.disabled = !state.pausable;
    said.textContent = [state.said, state.note].filter(Boolean).join("\n"); said.classList.toggle("wrong", state.phase === "failed");
    const mark = i < marks.length ? marks[i] : { text: "now", step: model.get("value") };
    empty.textContent = state.empty ?? ""; empty.hidden = n > 0 || !state.empty;
    for (const part of [picture, rows]) part.hidden = n === 0;
    turning.hidden = n < 2;
    rows.textContent = state.rows ?? "";
    slider.max = Math.max(0, n - 1); slider.value = i; slider.setAttribute("aria-valuetext", mark?.text ?? "");
    play.textContent = playing ? "❚❚ Halt" : "▶ Play"; at.textContent = mark?.text ?? "";
    if (n) { show(i); picture.alt = `${state.rows ?? ""}; ${mark.text}`; }
    const here = n && i < n - 1 ? mark.step : null;
    const drawn = Object.entries(model.get("curves")), last = Math.max(...drawn.map(([, curve]) => curve.x.at(-1)));
    curves.replaceChildren(...drawn.map(([name, curve], k) => {
      const figure = make("figure", {}, make("figcaption", { textContent: `${name}  ${short(curve.y.at(-1))}`, title: name }));
      figure.insertAdjacentHTML("beforeend", chart(curve, LINES[k % LINES.length], last, here));
      return figure;
    }));
  }

  let due = false;
  const soon = () => { if (!due) { due = true; requestAnimationFrame(() => { due = false; draw(); }); } };
  const names = ["state", "curves", "marks", "frames", "live", "shown", "value", "max"].map(name => `change:${name}`);
  for (const name of names) model.on(name, soon);
  model.on("msg:custom", heard);
  draw();
  return () => {
    halt(); clearTimeout(waiting); clearTimeout(telling);
    for (const name of names) model.off(name, soon);
    model.off("msg:custom", heard);
    for (const url of addresses.values()) URL.revokeObjectURL(url);
    if (now) URL.revokeObjectURL(now.url);
  };
}

export default { render };
