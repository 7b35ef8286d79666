// The view of CompositeViewer. All that it shows is in the model's traits, so it is the same in every cell and after a
// reload of the page. Controls and buttons send messages, and the kernel answers each when it is done.

const MODES = [
  ["one", "One object", "An object, its mask, composites, real images"],
  ["grid", "Grid", "Objects down, clusters across"],
  ["test", "Which is real?", "A blind test"],
];

function makeSlider(label, range, digits, change) {
  const shown = make("span", { className: "value" });
  const write = () => (shown.textContent = Number(input.value).toFixed(digits));
  const on = { input: write, change: () => change(Number(input.value)) };
  const input = make("input", { type: "range", ...range, aria: { label }, on });
  const put = (value) => {
    input.value = value;
    write();
  };
  return { el: make("label", {}, label, input, shown), put };
}

function makeSelect(label, options, change) {
  const select = make("select", { aria: { label }, on: { change: () => change(Number(select.value)) } });
  select.append(...options.map(([value, textContent]) => make("option", { value, textContent })));
  return { el: make("label", {}, label, select), put: (value) => (select.value = value) };
}

function makeCheckbox(label, change) {
  const input = make("input", { type: "checkbox", on: { change: () => change(input.checked) } });
  return { el: make("label", {}, input, label), put: (value) => (input.checked = value) };
}

function makeNumber(label, [min, max], change) {
  const changed = () => change(clamp(Math.round(Number(input.value)), min, max));
  const input = make("input", { type: "number", min, max, step: 1, aria: { label }, on: { change: changed } });
  return { el: make("label", {}, label, input), put: (value) => (input.value = value) };
}

function makeModes(change) {
  const buttons = MODES.map(([mode, label, title]) => makeButton(label, title, () => change(mode)));
  const put = (shown) => MODES.forEach(([mode], i) => buttons[i].setAttribute("aria-pressed", mode === shown));
  const group = make("span", { className: "group", aria: { role: "group", label: "What is shown" } }, ...buttons);
  return { el: group, put };
}

// A picture has its size from the start, from the head of the PNG file, so that nothing jumps when it arrives.
function makePicture(png, alt) {
  const img = make("img", { alt, src: pictureAddress(png), width: png.getUint32(16), height: png.getUint32(20) });
  img.addEventListener("load", () => URL.revokeObjectURL(img.src));
  return img;
}

function makePanel({ label, png }, alt = label) {
  const figure = make("figure", {}, make("figcaption", { textContent: label, hidden: !label }));
  if (png.byteLength) figure.append(makePicture(png, alt));
  return figure;
}

function makeControls(model, ask) {
  const { objects, targets, threshold, draw } = model.get("controls");
  const set = (name) => (value) => ask("show", { settings: { [name]: value } });
  const controls = {
    mode: makeModes(set("mode")),
    object: makeSlider("object", { min: 0, max: objects - 1, step: 1 }, 0, set("object")),
    target: makeSelect("before", targets, set("target")),
    threshold: makeSlider("threshold", { min: threshold[0], max: threshold[1], step: 0.05 }, 2, set("threshold")),
    soft: makeCheckbox("soft mask", set("soft")),
    draw: makeNumber("draw", draw, set("draw")),
  };
  const next = makeButton("Next draw", "Other backgrounds and real images", () => ask("next_draw"));
  const save = makeButton("Save PNG", "Write what is shown to a file", () => ask("save"));
  const { mode, object, target, threshold: cut, soft, draw: drawn } = controls;
  const ofOne = makeBar("Object and cluster", object.el, target.el);
  const bars = [makeBar("Mode", mode.el), ofOne, makeBar("Masks and draws", cut.el, soft.el, drawn.el, next, save)];
  const put = (settings) => {
    for (const [name, control] of Object.entries(controls)) control.put(settings[name]);
    ofOne.hidden = settings.mode !== "one";
    for (const el of [drawn.el, next, save]) el.hidden = settings.mode === "test";
  };
  return { bars, put };
}

function makeQuestion(ask) {
  const next = makeButton("Next question", "Four other pictures", () => ask("ask"), { className: "primary" });
  let clicked = false;
  const choose = (choice) => {
    clicked = true;
    ask("answer", { choice });
  };
  const button = (i, question) => {
    const mark = i === question.right ? " right" : i === question.wrong ? " wrong" : "";
    const more = { disabled: !question.open, className: `choice${mark}` };
    return makeButton(`${i + 1} is real`, "", () => choose(i), more);
  };
  const panels = (row, question) =>
    row.map((panel, i) => {
      const figure = makePanel(panel, `picture ${i + 1}`);
      figure.append(button(i, question));
      return figure;
    });
  const drawn = (mode, question) => {
    next.hidden = mode !== "test";
    next.disabled = question.open;
    // where the focus was, nothing can be pressed now
    if (clicked && !question.open) next.focus({ preventScroll: true });
    clicked &&= question.open;
  };
  return { next, panels, drawn };
}

function render({ model, el }) {
  const me = Math.random(); // answers go to all views of a model, of which there may be several
  let asked = 0;
  let heard = 0;
  const ask = (what, more = {}) => {
    model.send({ do: what, id: [me, ++asked], ...more });
    spin.hidden = false;
  };
  const spin = make("span", { className: "spin", hidden: true, aria: { hidden: "true" } });
  const notes = make("div", { className: "alert", aria: { role: "note" } });
  const lead = make("b");
  const text = make("span");
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } }, lead, " ", text);
  const pictures = make("div", { className: "pictures" });
  const controls = makeControls(model, ask);
  const question = makeQuestion(ask);
  controls.bars[0].append(spin);
  el.classList.add("bgcs-view", "bgcs-composite-viewer");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "Composite viewer");
  el.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); // or JupyterLab takes the arrows
  });
  el.replaceChildren(...controls.bars, notes, said, pictures, question.next);

  function drawSaid() {
    const { notes: known = [], lead: first = "", text: rest = "" } = model.get("said");
    notes.textContent = known.join("\n");
    notes.hidden = !known.length;
    lead.textContent = first;
    text.textContent = rest;
  }
  function drawPictures() {
    const { mode } = model.get("settings");
    const asking = model.get("question");
    const panels = (row) => (mode === "test" ? question.panels(row, asking) : row.map((panel) => makePanel(panel)));
    pictures.replaceChildren(...model.get("panels").map((row) => make("div", { className: "row" }, ...panels(row))));
    question.drawn(mode, asking);
  }
  function drawControls() {
    if (asked === heard) controls.put(model.get("settings")); // else an older answer would take back a newer wish
  }
  const answer = (message) => {
    if (message.heard[0] !== me) return;
    heard = message.heard[1];
    spin.hidden = asked === heard;
    drawControls();
  };
  const draws = { settings: drawControls, said: drawSaid, panels: oncePerFrame(drawPictures) };
  draws.question = draws.panels;
  for (const [name, draw] of Object.entries(draws)) model.on(`change:${name}`, draw);
  model.on("msg:custom", answer);
  drawControls();
  drawSaid();
  drawPictures();
  return () => {
    draws.panels.cancel();
    for (const [name, draw] of Object.entries(draws)) model.off(`change:${name}`, draw);
    model.off("msg:custom", answer);
  };
}

export default { render };
