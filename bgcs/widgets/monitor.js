// The view of TrainingMonitor. All that it shows is in the model's traits, so it is the same in every cell, after a
// reload of the page, and on a page without a kernel. Buttons send messages, and the kernel answers each; where it
// does not, the view says so.

const PATIENCE = 1500; // milliseconds to wait for an answer
const BEAT = 350; // milliseconds for a picture when playing
const LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const WIDTH = 200;
const HEIGHT = 72;
const PAD = 4;
const UNDER_WAY = ["preparing", "running", "paused"];

// ---- curves --------------------------------------------------------------------------------------------------------

function short(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

// The numbers of an SVG come from the kernel, and no text does: so it may be written as text.
function chart(curve, colour, last, here) {
  const [low, high] = [Math.min(...curve.y), Math.max(...curve.y)];
  const span = high - low || Math.abs(high) || 1;
  const x = (step) => PAD + ((WIDTH - 2 * PAD) * step) / Math.max(1, last);
  const y = (value) => HEIGHT - 13 - ((HEIGHT - 26) * (value - low)) / span;
  const points = curve.x.map((step, i) => [x(step).toFixed(1), y(curve.y[i]).toFixed(1)]);
  const dots = curve.dots || points.length === 1 ? points : [];
  const told = `from ${short(curve.y[0])} to ${short(curve.y.at(-1))}, between ${short(low)} and ${short(high)}`;
  const mark = `<line class="here" x1="${x(here)}" x2="${x(here)}" y1="0" y2="${HEIGHT}"/>`;
  const line = `points="${points.join(" ")}" fill="none" stroke="${colour}" stroke-width="1.5"`;
  return [
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="${told}">`,
    here === null ? "" : mark,
    `<polyline ${line} vector-effect="non-scaling-stroke"/>`,
    ...dots.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="2.2" fill="${colour}"/>`),
    `<text x="${PAD}" y="9">${short(high)}</text><text x="${PAD}" y="${HEIGHT - 3}">${short(low)}</text></svg>`,
  ].join("");
}

function makeCurves(curves, here) {
  const drawn = Object.entries(curves);
  const last = Math.max(...drawn.map(([, curve]) => curve.x.at(-1))); // step
  return drawn.map(([name, curve], k) => {
    const caption = make("figcaption", { textContent: `${name}  ${short(curve.y.at(-1))}`, title: name });
    const figure = make("figure", {}, caption);
    figure.insertAdjacentHTML("beforeend", chart(curve, LINES[k % LINES.length], last, here));
    return figure;
  });
}

// ---- pictures: those of rounds and snapshots, then the one of now, where there is one ------------------------------

function makePicture(model) {
  const img = make("img", { className: "masks" });
  const addresses = new Map(); // of pictures, by model id
  let now = null;
  let shows = 0;

  async function ofFrame(name) {
    if (!addresses.has(name)) {
      const frame = await model.widget_manager.get_model(name.replace("IPY_MODEL_", ""));
      addresses.set(name, pictureAddress(frame.get("value")));
    }
    return addresses.get(name);
  }
  function ofNow() {
    const bytes = model.get("live");
    if (now?.bytes === bytes) return now.url;
    if (now) URL.revokeObjectURL(now.url);
    now = { bytes, url: pictureAddress(bytes) };
    return now.url;
  }
  async function show(i) {
    const turn = ++shows;
    const frames = model.get("frames");
    const url = i < frames.length ? await ofFrame(frames[i]) : ofNow();
    if (turn === shows && img.src !== url) img.src = url; // or a later one has overtaken it
  }
  function forget() {
    for (const url of addresses.values()) URL.revokeObjectURL(url);
    if (now) URL.revokeObjectURL(now.url);
  }
  return { img, show, forget };
}

// The slider and the play button. They move at once, kernel or not; answers to earlier moves don't count.
function makeTurner(model, draw) {
  let playing = null;
  let mine = null; // frame asked for and not yet confirmed
  let turns = 0;
  let telling = null;
  const count = () => model.get("marks").length + (model.get("live")?.byteLength > 0 ? 1 : 0);
  const position = () => {
    const shown = mine ?? model.get("shown");
    return shown < 0 ? count() - 1 : Math.min(shown, count() - 1);
  };
  const play = makeButton("", "", () => (playing ? halt() : start()));
  const moved = () => {
    halt();
    turn(Number(slider.value));
  };
  const slider = make("input", {
    type: "range",
    min: 0,
    step: 1,
    aria: { label: "round shown" },
    on: { input: moved },
  });
  const at = make("span", { className: "at" });

  function turn(to) {
    const shown = to >= count() - 1 ? -1 : to;
    const id = `turn ${++turns}`;
    mine = shown;
    clearTimeout(telling);
    telling = setTimeout(() => model.send({ do: "show", shown, id }), 100);
    draw();
  }
  function step() {
    turn(position() + 1);
    if (position() >= count() - 1) halt();
  }
  function start() {
    if (position() >= model.get("marks").length - 1) turn(0);
    playing = setInterval(step, BEAT);
    draw();
  }
  function halt() {
    clearInterval(playing);
    playing = null;
    play.textContent = "▶ Play";
  }
  function put(text) {
    slider.max = Math.max(0, count() - 1);
    slider.value = position();
    slider.setAttribute("aria-valuetext", text);
    play.textContent = playing ? "❚❚ Halt" : "▶ Play";
    at.textContent = text;
    el.hidden = count() < 2;
  }
  function heard(id) {
    if (id === `turn ${turns}`) mine = null;
  }
  function end() {
    halt();
    clearTimeout(telling);
  }
  const el = make("div", { className: "bar turn" }, play, slider, at);
  return { el, count, position, put, heard, end };
}

// ---- buttons that training obeys -----------------------------------------------------------------------------------

function makeHands(model) {
  let asked = 0;
  let waiting = null;
  const deaf = make("div", { className: "alert", hidden: true, aria: { role: "alert" } });
  const ask = (what) => {
    model.send({ do: what, id: ++asked });
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const busy = `The kernel is busy and has not heard "${what}" yet.`;
      const help = "Where training holds the kernel, the notebook's ■ button stops it";
      deaf.textContent = `${busy} ${help}; started by monitor.fit(…), it leaves the kernel free to listen.`;
      deaf.hidden = false;
    }, PATIENCE);
  };
  const whether = () => ask(model.get("state").phase === "paused" ? "resume" : "pause");
  const pause = makeButton("", "Rest after this step, or go on", whether);
  const usable = "End training after this step; the segmenter is usable as it is then";
  const stop = makeButton("Stop", usable, () => ask("stop"));
  const kept = "Keep the masks of this step, and the model where there is a folder";
  const snapshot = makeButton("Snapshot", kept, () => ask("snapshot"));
  const el = makeBar("Training", pause, stop, snapshot);

  function put(state) {
    el.hidden = !UNDER_WAY.includes(state.phase);
    pause.textContent = state.phase === "paused" ? "Resume" : "Pause";
    pause.disabled = !state.pausable;
  }
  function heard(id) {
    if (id !== asked) return;
    clearTimeout(waiting);
    deaf.hidden = true;
  }
  return { el, deaf, put, heard, end: () => clearTimeout(waiting) };
}

// ---- the whole -----------------------------------------------------------------------------------------------------

function makeHead() {
  const spin = make("span", { className: "spin", aria: { hidden: "true" } });
  const bar = make("progress", { aria: { label: "steps done" } });
  const title = make("span", { className: "title" });
  const facts = make("span", { className: "facts faint" });
  const put = (state, done, steps) => {
    spin.hidden = state.phase !== "preparing" && !state.waiting;
    bar.hidden = state.phase === "idle";
    bar.max = Math.max(1, steps);
    bar.value = done;
    title.textContent = state.title;
    facts.textContent = state.facts ?? "";
  };
  return { el: make("div", { className: "bar" }, spin, bar, title, facts), put };
}

// Whether the masks can be used, when training is over.
function makeVerdict() {
  const chip = make("span", { className: "chip" });
  const reasons = make("ul");
  const line = make("div", {}, "Verdict ", chip);
  const aloud = { role: "status", live: "polite" };
  const el = make("div", { className: "verdict", hidden: true, aria: aloud }, line, reasons);
  let told = null;
  const put = (verdict) => {
    const text = JSON.stringify(verdict ?? null);
    if (text === told) return; // or it would be read aloud again
    told = text;
    el.hidden = !verdict;
    chip.textContent = chip.dataset.word = verdict?.word ?? "";
    reasons.replaceChildren(...(verdict?.reasons ?? []).map((textContent) => make("li", { textContent })));
  };
  return { el, put };
}

function render({ model, el }) {
  const soon = oncePerFrame(draw);
  const head = makeHead();
  const hands = makeHands(model);
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } });
  const verdict = makeVerdict();
  const empty = make("div", { className: "faint" });
  const picture = makePicture(model);
  const rows = make("div", { className: "faint" });
  const turner = makeTurner(model, soon);
  const curves = make("div", { className: "curves" });
  el.classList.add("bgcs-view", "bgcs-training-monitor");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "Training monitor");
  el.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); // or JupyterLab takes the arrows
  });
  const parts = [head.el, hands.el, hands.deaf, said, verdict.el, empty, picture.img, rows, turner.el, curves];
  el.replaceChildren(...parts);

  function draw() {
    const state = model.get("state");
    const marks = model.get("marks");
    const n = turner.count();
    const i = turner.position();
    const mark = i < marks.length ? marks[i] : { text: "now", step: model.get("value") };
    head.put(state, model.get("value"), model.get("max"));
    hands.put(state);
    said.textContent = [state.said, state.note].filter(Boolean).join("\n");
    said.classList.toggle("wrong", state.phase === "failed");
    verdict.put(state.verdict);
    empty.textContent = state.empty ?? "";
    empty.hidden = n > 0 || !state.empty;
    for (const part of [picture.img, rows]) part.hidden = n === 0;
    rows.textContent = state.rows ?? "";
    turner.put(mark?.text ?? "");
    if (n) {
      picture.show(i);
      picture.img.alt = `${state.rows ?? ""}; ${mark.text}`;
    }
    curves.replaceChildren(...makeCurves(model.get("curves"), n && i < n - 1 ? mark.step : null));
  }

  const heard = (message) => {
    hands.heard(message.heard);
    turner.heard(message.heard);
    soon();
  };
  const traits = ["state", "curves", "marks", "frames", "live", "shown", "value", "max"];
  const names = traits.map((name) => `change:${name}`);
  for (const name of names) model.on(name, soon);
  model.on("msg:custom", heard);
  draw();
  return () => {
    soon.cancel();
    hands.end();
    turner.end();
    picture.forget();
    for (const name of names) model.off(name, soon);
    model.off("msg:custom", heard);
  };
}

export default { render };
