// The view of ClusterExplorer: points on a canvas, a legend, thumbnails, buttons. What outlives a page is in the model's
// traits; pictures and edits are asked of the kernel by messages, and it says of each when it is done.
// No library, no WebGL: 50,000 points are 50,000 small stamps in an array of pixels, a matter of milliseconds.

const GREY = "#999999", FADE = 0.72, REACH = 12, KEPT = 4000;  // reach in pixels; pictures kept
const PATIENCE = 500, GIVE_UP = 10_000;  // milliseconds
const MARKS = "●■▲◆✚▼✖";
const SHAPES = [  // distance from the outline, negative inside; y points down
  (x, y, r) => Math.hypot(x, y) - r,
  (x, y, r) => Math.max(Math.abs(x), Math.abs(y)) - 0.87 * r,
  (x, y, r) => Math.max(y - 0.75 * r, 0.87 * Math.abs(x) - 0.5 * y - 0.6 * r),
  (x, y, r) => 0.71 * (Math.abs(x) + Math.abs(y) - 1.25 * r),
  (x, y, r) => plus(Math.abs(x), Math.abs(y), r),
  (x, y, r) => SHAPES[2](x, -y, r),
  (x, y, r) => plus(0.71 * Math.abs(x - y), 0.71 * Math.abs(x + y), r),
];
const plus = (a, b, r) => Math.min(Math.max(a - 1.1 * r, b - 0.4 * r), Math.max(b - 1.1 * r, a - 0.4 * r));
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
const copied = (view, Type) => new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function make(tag, { aria = {}, on = {}, style = {}, ...properties } = {}, ...children) {
  const el = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(aria)) el.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, f] of Object.entries(on)) el.addEventListener(name, f);
  Object.assign(el.style, style);
  el.append(...children);
  return el;
}

// ---- pixels ----------------------------------------------------------------------------------------------------------

function rgb(colour) {  // "#rrggbb" or "rgb(r, g, b)"
  if (colour[0] === "#") return [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}

const mixed = (a, b, share) => a.map((v, i) => Math.round(v + (b[i] - v) * share));
const packed = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;  // as canvases keep pixels

function blended(under, ink, cover) {  // cover of 256; red and blue at once, as they lie two bytes apart
  const rest = 256 - cover, redBlue = ((under & 0xff00ff) * rest + (ink & 0xff00ff) * cover) >>> 8 & 0xff00ff;
  return (0xff000000 | redBlue | ((under & 0xff00) * rest + (ink & 0xff00) * cover) >>> 8 & 0xff00) >>> 0;
}

function stamp(shape, radius, hollow) {  // the pixels that a mark covers, and how much of each
  const reach = Math.ceil(radius * 1.4) + 1, dx = [], dy = [], cover = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const d = SHAPES[shape](x, y, radius), c = Math.round(256 * clamp(0.5 - (hollow ? Math.abs(d) - Math.max(0.6, radius * 0.22) : d), 0, 1));
    if (c > 12) { dx.push(x); dy.push(y); cover.push(c); }
  }
  return { reach, dx: Int32Array.from(dx), dy: Int32Array.from(dy), cover: Int32Array.from(cover) };
}

function inside(path, x, y) {  // even-odd
  let within = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [a, b] = path[i], [c, d] = path[j];
    if ((b > y) !== (d > y) && x < (c - a) * (y - b) / (d - b) + a) within = !within;
  }
  return within;
}

// ---- what all views of a model share: points, pictures, questions to the kernel --------------------------------------

function shared(model) {
  const s = { pictures: new Map(), asked: new Map(), listeners: new Set(), questions: 0 };
  const tell = what => s.listeners.forEach(f => f(what));

  s.readPoints = () => {
    Object.assign(s, { xy: copied(model.get("xy"), Float32Array), codes: copied(model.get("codes"), Uint16Array), hollow: copied(model.get("hollow"), Uint8Array) });
    s.n = s.codes.length;
    s.low = [Infinity, Infinity]; s.high = [-Infinity, -Infinity];
    s.xy.forEach((v, i) => { const k = i & 1; if (v < s.low[k]) s.low[k] = v; if (v > s.high[k]) s.high[k] = v; });
  };
  s.readSelected = () => {
    s.selected = copied(model.get("selected"), Uint32Array);
    s.chosen = new Uint8Array(s.n);
    for (const i of s.selected) s.chosen[i] = 1;
  };
  s.readHidden = () => { s.off = []; for (const code of model.get("hidden")) s.off[code] = true; };
  s.visible = i => !s.off[s.codes[i]];
  s.best = cost => {  // the visible point that costs least; to look at all takes a fraction of a millisecond
    let found = -1, least = Infinity;
    for (let i = 0; i < s.n; i++) if (s.visible(i)) { const c = cost(s.xy[2 * i], s.xy[2 * i + 1], i); if (c < least) { least = c; found = i; } }
    return found;
  };
  s.where = accept => { const found = []; for (let i = 0; i < s.n; i++) if (accept(i)) found.push(i); return found; };
  s.choose = (points, mode) => {  // 'replace', 'add' or 'remove'
    const now = mode === "replace" ? new Uint8Array(s.n) : s.chosen.slice();
    for (const i of points) now[i] = mode === "remove" ? 0 : 1;
    model.set("page", 0);
    model.set("selected", new DataView(Uint32Array.from(s.where(i => now[i])).buffer));
    model.save_changes();
  };

  s.ask = (action, content = {}) => {
    const id = ++s.questions;
    s.asked.set(id, performance.now());
    try { model.send({ id, do: action, ...content }); } catch { s.asked.set(id, -GIVE_UP); }  // the channel is closed
    s.clock ??= setInterval(() => { tell("waiting"); if (!s.asked.size) s.clock = clearInterval(s.clock); }, 250);
  };
  s.waiting = () => performance.now() - Math.min(...s.asked.values());
  s.want = points => {
    const missing = points.filter(i => !s.pictures.has(i));
    for (const i of missing) s.pictures.set(i, {});
    if (missing.length) s.ask("images", { points: missing });
  };
  s.heard = (message, buffers) => {
    s.asked.delete(message.done);
    s.lost = false;
    message.points?.forEach((i, j) => s.pictures.set(i, { text: message.texts[j], url: URL.createObjectURL(new Blob([buffers[j]], { type: "image/png" })) }));
    for (const [i, { url }] of s.pictures) if (s.pictures.size > KEPT) { URL.revokeObjectURL(url); s.pictures.delete(i); } else break;
    tell(message.points ? "pictures" : "waiting");
  };

  s.readHidden(); s.readPoints(); s.readSelected();
  let queued = false;  // coordinates and codes may come together
  const points = () => { queued = false; s.readPoints(); s.readSelected(); tell("points"); };
  for (const name of ["xy", "codes", "hollow"]) model.on(`change:${name}`, () => { if (!queued) queueMicrotask(points); queued = true; });
  model.on("change:selected", () => { s.readSelected(); tell("selected"); });
  model.on("change:hidden", () => { s.readHidden(); tell("hidden"); });
  for (const name of ["legend", "panel", "busy", "page", "camera"]) model.on(`change:${name}`, () => tell(name));
  model.on("msg:custom", s.heard);
  model.on("comm_live_update", () => { s.asked.clear(); s.lost = true; s.ask("ping"); tell("waiting"); });  // the kernel went away, or came back and will answer
  return s;
}

// ---- the plane ---------------------------------------------------------------------------------------------------------

function plane(model, s) {
  const canvas = make("canvas", { tabIndex: 0, aria: { role: "application" } }), ctx = canvas.getContext("2d", { alpha: false });
  const card = make("div", { className: "card", hidden: true, aria: { live: "polite" } }), el = make("div", { className: "plot" }, canvas, card);
  const view = { el, canvas, mode: "lasso", cursor: -1 };
  let width = 0, height = 0, ratio = 1, bitmap = null, drag = null, path = [], frame = 0, save = 0;

  const whole = () => s.n ? [(s.low[0] + s.high[0]) / 2, (s.low[1] + s.high[1]) / 2, 1.08 * Math.max((s.high[1] - s.low[1]) / 2, (s.high[0] - s.low[0]) / 2 * height / width) || 1] : [0, 0, 1];
  const camera = () => model.get("camera").length ? model.get("camera") : whole();  // middle, and half of the height
  const scale = () => height / 2 / camera()[2];
  const toPlane = ([x, y]) => { const [cx, cy] = camera(), k = scale(); return [cx + (x - width / 2) / k, cy - (y - height / 2) / k]; };
  const toScreen = ([x, y]) => { const [cx, cy] = camera(), k = scale(); return [(x - cx) * k + width / 2, height / 2 - (y - cy) * k]; };
  const place = i => toScreen([s.xy[2 * i], s.xy[2 * i + 1]]);
  const look = (...camera) => {  // every view moves at once, the kernel hears of it when the movement rests
    model.set("camera", camera);
    clearTimeout(save);
    save = setTimeout(() => model.save_changes(), 200);
  };
  view.pan = (dx, dy) => { const [cx, cy, half] = camera(), k = scale(); look(cx - dx / k, cy + dy / k, half); };
  view.zoom = (factor, at = [width / 2, height / 2]) => {
    const [x, y] = toPlane(at), [cx, cy, half] = camera(), full = whole()[2], f = clamp(factor, full * 1e-4 / half, full * 4 / half);
    look(x + (cx - x) * f, y + (cy - y) * f, half * f);
  };
  view.fit = () => { model.set("camera", []); model.save_changes(); };

  function draw() {
    const { entries, colours, labelled } = model.get("legend"), [W, H] = [canvas.width, canvas.height];
    frame = 0;
    if (!width) return;
    if (bitmap?.width !== W || bitmap?.height !== H) bitmap = ctx.createImageData(W, H);
    const theme = getComputedStyle(el), back = rgb(theme.backgroundColor), front = rgb(theme.color), ink = colour => colour === "#000000" ? front : rgb(colour);
    const looks = colours ? [...colours, GREY].map(c => [ink(c), 0]) : entries.map(e => [ink(e.colour), e.shape]);
    const pixels = new Uint32Array(bitmap.data.buffer).fill(packed(back)), [cx, cy, half] = camera(), k = H / 2 / half, some = s.selected.length > 0;
    const radius = ratio * clamp(60 / Math.sqrt(s.n), 1.7, 5) * clamp((whole()[2] / half) ** 0.3, 0.8, 2.2);
    for (const pass of some ? [0, 1] : [1]) {  // what is selected comes on top, the rest fades
      const stamps = looks.map(([colour, shape]) => [0, 1].map(hollow => ({ ink: packed(pass ? colour : mixed(colour, back, FADE)), ...stamp(shape, radius * (hollow ? 1.4 : 1) * (some && pass ? 1.25 : 1), hollow) })));
      for (let i = 0; i < s.n; i++) {
        if (some && s.chosen[i] !== pass || !s.visible(i)) continue;
        const { ink, dx, dy, cover, reach } = stamps[s.codes[i]][s.hollow[i]], x = Math.round((s.xy[2 * i] - cx) * k + W / 2), y = Math.round(H / 2 - (s.xy[2 * i + 1] - cy) * k);
        if (!(x >= reach && y >= reach && x < W - reach && y < H - reach)) continue;
        for (let j = 0; j < dx.length; j++) {
          const p = (y + dy[j]) * W + x + dx[j];
          pixels[p] = cover[j] === 256 ? ink : blended(pixels[p], ink, cover[j]);
        }
      }
    }
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.putImageData(bitmap, 0, 0);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawOver(`rgb(${front})`, `rgb(${back})`, labelled ? entries.filter((e, code) => e.at && !s.off[code]) : [], radius / ratio);
  }

  function drawOver(front, back, labels, radius) {  // names of clusters, the lasso, the ring
    Object.assign(ctx, { font: "600 12px system-ui, sans-serif", textAlign: "center", textBaseline: "middle", lineWidth: 4, strokeStyle: back, fillStyle: front, lineJoin: "round" });
    for (const { name, at } of labels) { ctx.strokeText(name, ...toScreen(at)); ctx.fillText(name, ...toScreen(at)); }
    const outline = (width, colour, dash = []) => { Object.assign(ctx, { lineWidth: width, strokeStyle: colour }); ctx.setLineDash(dash); ctx.stroke(); };
    ctx.beginPath(); path.forEach(p => ctx.lineTo(...p)); ctx.closePath(); outline(1.5, front, [4, 3]);
    if (view.cursor < 0 || view.cursor >= s.n) return;
    ctx.beginPath(); ctx.arc(...place(view.cursor), radius + 5, 0, 7); outline(4, back); outline(2, front);
  }

  view.redraw = () => { frame ||= requestAnimationFrame(draw); };
  view.ring = (i, quiet) => { view.cursor = i; view.redraw(); if (!quiet) view.showCard(); };
  view.showCard = () => {
    const i = view.cursor;
    if (card.hidden = i < 0 || i >= s.n) return;
    s.want([i]);
    const { url, text } = s.pictures.get(i), words = [text, model.get("legend").entries?.[s.codes[i]]?.label, s.hollow[i] && "object image"].filter(Boolean).join(" · "), [x, y] = place(i);
    card.replaceChildren(url ? make("img", { src: url, alt: text }) : make("div", { className: "spin" }), words);
    card.dataset.point = i;
    Object.assign(card.style, { left: `${clamp(x + 14, 0, width - 130)}px`, top: `${y > height - 150 ? Math.max(0, y - 160) : y + 12}px` });
  };
  view.nearest = (at, reach = REACH) => { const [a, b] = toPlane(at), most = (reach / scale()) ** 2; return s.best((x, y) => { const d = (x - a) ** 2 + (y - b) ** 2; return d < most ? d : Infinity; }); };
  view.step = (dx, dy) => {  // the ring goes to the point that way which is least far and least aside
    const from = view.cursor >= 0 && view.cursor < s.n && s.visible(view.cursor) ? view.cursor : -1, [a, b] = [s.xy[2 * from], s.xy[2 * from + 1]];
    const found = from < 0 ? view.nearest([width / 2, height / 2], Infinity) : s.best((x, y) => {
      const along = (x - a) * dx + (y - b) * dy, aside = Math.abs((x - a) * dy - (y - b) * dx);
      return along > 0.8 * aside && along > 0 ? along + 2 * aside : Infinity;
    });
    if (found < 0) return;
    const [x, y] = place(found);
    if (x < 0 || y < 0 || x > width || y > height) view.pan(width / 2 - x, height / 2 - y);
    view.ring(found);
  };
  view.cancel = () => { const was = path.length > 0; drag = null; path = []; view.redraw(); return was; };

  const position = e => { const box = canvas.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
  const mode = e => e.shiftKey ? "add" : e.altKey || e.ctrlKey || e.metaKey ? "remove" : "replace";
  const enclosed = corners => s.where(i => s.visible(i) && inside(corners, s.xy[2 * i], s.xy[2 * i + 1]));
  const handlers = {
    pointerdown(e) {
      e.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(e.pointerId);
      card.hidden = true;
      drag = { from: position(e), at: position(e), pans: view.mode === "pan" || e.button > 0 };
    },
    pointermove(e) {
      const at = position(e);
      if (!drag) { const i = view.nearest(at); if (i !== view.cursor) view.ring(i); return; }
      if (drag.pans) view.pan(at[0] - drag.at[0], at[1] - drag.at[1]); else { path.push(at); view.redraw(); }
      drag = { ...drag, at, moved: drag.moved || Math.hypot(at[0] - drag.from[0], at[1] - drag.from[1]) > 4 };
    },
    pointerup(e) {
      const { from, pans, moved } = drag ?? {}, corners = [from, ...path];
      view.cancel();
      if (!from || e.button > 0) return;
      const picked = moved ? -1 : view.nearest(from);
      if (picked >= 0) { view.ring(picked); s.choose([picked], mode(e)); }
      if (moved && !pans) s.choose(enclosed(corners.map(toPlane)), mode(e));
    },
    pointercancel: view.cancel,
    pointerleave() { if (!drag) view.ring(-1); },
    contextmenu(e) { e.preventDefault(); },
    wheel(e) {  // without focus, the wheel scrolls the notebook
      if (document.activeElement !== canvas && !e.ctrlKey) return;
      e.preventDefault();
      view.zoom(Math.exp(clamp(e.deltaY, -300, 300) * (e.deltaMode ? 0.05 : 0.0015)), position(e));
    },
  };
  for (const [name, f] of Object.entries(handlers)) canvas.addEventListener(name, f, { passive: false });

  const sized = new ResizeObserver(() => {
    ({ width, height } = el.getBoundingClientRect());
    ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    view.redraw();
  });
  sized.observe(el);
  const theme = new MutationObserver(view.redraw);
  for (const node of [document.body, document.documentElement]) theme.observe(node, { attributes: true });
  view.end = () => { sized.disconnect(); theme.disconnect(); cancelAnimationFrame(frame); clearTimeout(save); };
  return view;
}

// ---- buttons, legend, thumbnails, keys ---------------------------------------------------------------------------------

function render({ model, el }, s) {
  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const button = (textContent, title, click, more = {}) => make("button", { type: "button", textContent, title, on: { click }, ...more });
  const act = (textContent, title, action, content) => button(textContent, title, () => s.ask(action, content?.()));
  const field = (type, value, title, more = {}) => make("input", { type, value, title, ...more });
  const group = (...children) => make("span", { className: "group" }, ...children);
  const bar = (label, ...children) => make("div", { className: "bar", aria: { role: "toolbar", label } }, ...children);
  const view = plane(model, s);

  const by = make("select", { on: { change: () => s.ask("color_by", { column: by.value }) } });
  const objects = make("input", { type: "checkbox", on: { change: () => s.ask("show_objects", { on: objects.checked }) } });
  const modes = { lasso: button("Lasso", "Dragging selects; Shift adds, Alt takes away", () => drags("lasso")), pan: button("Pan", "Dragging moves the plane", () => drags("pan")) };
  const drags = mode => { view.mode = mode; view.canvas.classList.toggle("pan", mode === "pan"); for (const name in modes) modes[name].setAttribute("aria-pressed", name === mode); };
  const undo = act("Undo", "", "undo"), redo = act("Redo", "", "redo");
  const home = field("text", "clusterer", "A folder for the clusterer, or a .json file for the edits alone"), save = act("Save", "Save the clusterer with its edits", "save", () => ({ to: home.value }));
  const merge = act("Merge", "All clusters of the selected images become one", "merge");
  const parts = field("number", 2, "Number of parts", { min: 2, max: 20 }), split = act("Split into", "Split the cluster of the selected images into parts that are alike", "split", () => ({ n: +parts.value }));
  const splitOff = act("Split off", "Make the selected images of a cluster, and what is like them, a cluster of their own", "split_off");
  const name = field("text", "", "New name", { placeholder: "name", on: { keydown: e => { if (e.key === "Enter") rename.click(); } } }), rename = act("Rename", "Rename the cluster of the selected images", "rename", () => ({ name: name.value }));
  const drop = act("Drop", "Take the clusters of the selected images out of training", "drop");
  const target = make("select", { title: "Where to" }), move = act("Move to", "Move the selected images, and only them", "move", () => ({ to: +target.value }));
  const out = field("text", "selection", "A folder for the selected images, or a .csv file for a table of them"), send = act("Export", "Write the selected images, or a table of them", "export", () => ({ to: out.value }));

  const stale = make("div", { className: "stale", aria: { role: "alert" }, textContent: "No kernel stands behind this view: it was restarted or closed, and nothing here changes anything. Run the cell again." });
  const legend = make("div", { className: "legend", aria: { role: "group", label: "Legend" } });
  const title = make("strong"), pager = make("span");
  const earlier = button("‹", "Earlier images (Page Up)", () => turn(-1)), later = button("›", "Later images (Page Down)", () => turn(1)), none = button("Clear", "Select nothing (Escape)", () => s.choose([], "replace"));
  const thumbs = make("div", { className: "thumbs", tabIndex: 0, aria: { role: "listbox", label: "Selected images" } });
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } });
  const busy = make("div", { className: "busy", hidden: true, aria: { role: "status" } }), stop = act("Stop", "Keep what is shown", "stop");
  view.el.append(busy);
  const root = make("div", { className: "bgcs-explorer", aria: { role: "group", label: "Clusters of backgrounds" } }, stale,
    bar("View", make("label", {}, "Colour by ", by), make("label", {}, objects, " Object images"), group(modes.lasso, modes.pan),
      group(button("−", "Zoom out (-)", () => view.zoom(1.5)), button("+", "Zoom in (+)", () => view.zoom(1 / 1.5)), button("Fit", "Show all (0)", view.fit)), group(undo, redo), group(save, home)),
    bar("Mend", merge, group(split, parts), splitOff, group(rename, name), drop, group(move, target), group(send, out)),
    make("div", { className: "body" }, view.el, make("div", { className: "side" }, legend, make("div", { className: "bar" }, title, make("span", { className: "group push" }, earlier, pager, later, none)), thumbs)), said);
  el.append(root);

  const per = () => model.get("per_page"), pages = () => Math.max(1, Math.ceil(s.selected.length / per())), turn = by => set("page", clamp(model.get("page") + by, 0, pages() - 1));
  const ink = colour => colour === "#000000" ? "var(--front)" : colour;
  const options = (select, pairs, value) => { select.replaceChildren(...pairs.map(([value, textContent]) => make("option", { value, textContent }))); if (pairs.some(([v]) => `${v}` === value)) select.value = value; };

  function showLegend() {
    const { title, entries, colours, low, high } = model.get("legend"), hidden = model.get("hidden"), focused = [...legend.querySelectorAll("button")].indexOf(document.activeElement);
    if (colours) return legend.replaceChildren(title, make("div", { className: "bar" }, low, make("div", { className: "scale", style: { background: `linear-gradient(90deg, ${colours.join()})` } }), high));
    legend.replaceChildren(...entries.map(({ label, colour, shape, count }, code) => {
      const off = hidden.includes(code), toggle = () => set("hidden", off ? hidden.filter(k => k !== code) : [...hidden, code]);
      const pick = e => s.choose(s.where(i => s.codes[i] === code), e.shiftKey ? "add" : e.altKey ? "remove" : "replace");
      return make("div", { className: "bar" },
        make("button", { type: "button", className: "entry", title: off ? "Show" : "Hide", aria: { pressed: !off }, on: { click: toggle } }, make("span", { className: "mark", textContent: MARKS[shape], style: { color: ink(colour) } }), `${label} `, make("span", { className: "count", textContent: count.toLocaleString() })),
        button("select", "Select these images; Shift adds, Alt takes away", pick, { className: "only", ariaLabel: `Select ${label}` }));
    }));
    legend.querySelectorAll("button")[focused]?.focus();
  }

  function showPanel() {
    const { columns = [], by: column, clusters = [], names, touched = [], undo: undone, redo: redone, said: text, wrong, objects: some, showing } = model.get("panel"), one = touched.length === 1, any = s.selected.length > 0;
    options(by, columns.map(c => [c, c]), column);
    options(target, [...clusters, [-1, "no cluster"]], target.value);
    merge.textContent = touched.length > 1 ? `Merge ${touched.map(k => names[k]).join(" + ")}` : "Merge";
    drop.textContent = touched.length ? `Drop ${touched.map(k => names[k]).join(", ")}` : "Drop";
    for (const [b, on] of [[merge, touched.length > 1], [split, one], [splitOff, one], [rename, one], [drop, touched.length], [move, any], [send, any], [undo, undone], [redo, redone], [objects, some]]) b.disabled = !on;
    undo.title = undone ? `Undo: ${undone} (Ctrl+Z)` : "Nothing to undo"; redo.title = redone ? `Redo: ${redone} (Ctrl+Shift+Z)` : "Nothing to redo";
    objects.checked = showing;
    said.textContent = text; said.classList.toggle("wrong", wrong);
    view.canvas.setAttribute("aria-label", `Plane of ${s.n} images. Arrows go from point to point, Enter selects, Shift and arrows move the plane, plus and minus zoom.`);
  }

  function showThumbs() {
    const n = s.selected.length, page = clamp(model.get("page"), 0, pages() - 1), shown = [...s.selected.subarray(page * per(), (page + 1) * per())], { entries, colours } = model.get("legend");
    title.textContent = n ? `${n.toLocaleString()} selected` : "Nothing selected";
    pager.textContent = n ? `${page + 1} / ${pages()}` : "";
    earlier.disabled = page === 0; later.disabled = page >= pages() - 1; none.disabled = !n;
    s.want(shown);
    thumbs.replaceChildren(...shown.map(i => {
      const { url, text = "" } = s.pictures.get(i) ?? {}, current = i === view.cursor, borderColor = ink((colours ?? entries.map(e => e.colour))[s.codes[i]] ?? GREY);
      return make("div", { className: `thumb${s.hollow[i] ? " object" : ""}${current ? " current" : ""}`, title: text, style: { borderColor }, aria: { role: "option", selected: current }, on: { click: () => { view.ring(i, true); showThumbs(); } } }, url ? make("img", { src: url, alt: text }) : "");
    }));
    if (!n) thumbs.append(make("div", { className: "empty", textContent: "Draw around points to see their images. Shift adds, Alt takes away; a click picks one point. The wheel zooms once the plane is clicked." }));
  }

  function showBusy() {
    const waits = s.waiting(), work = model.get("busy"), text = work || (waits > GIVE_UP ? "The kernel does not answer: it is busy with another cell, or was restarted" : waits > PATIENCE ? "Waiting for the kernel …" : "");
    busy.hidden = !text || s.lost;
    stale.hidden = !s.lost;
    busy.replaceChildren(make("span", { className: "spin" }), text, ...work ? [stop] : []);
  }

  const redraw = view.redraw, updates = { points: [showPanel, showThumbs, redraw], selected: [showPanel, showThumbs, redraw], hidden: [showLegend, redraw], legend: [showLegend, showThumbs, redraw], panel: [showPanel], page: [showThumbs],
    camera: [redraw], pictures: [showThumbs, view.showCard, showBusy], busy: [showBusy], waiting: [showBusy] };
  const update = what => updates[what].forEach(f => f());
  s.listeners.add(update);

  const along = by => {  // the ring goes through the selection, and pages turn with it
    const at = s.selected.indexOf(view.cursor), next = clamp(at < 0 ? model.get("page") * per() : at + by, 0, s.selected.length - 1);
    if (!s.selected.length) return;
    view.ring(s.selected[next], true);
    set("page", Math.floor(next / per()));
    showThumbs();
  };
  const toggle = () => { if (view.cursor >= 0) s.choose([view.cursor], s.chosen[view.cursor] ? "remove" : "add"); };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  function reaction(e) {  // to a key, or nothing if it is not ours
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key, typing = e.target.matches("input:not([type=checkbox]), select"), arrow = arrows[key];
    if (e.ctrlKey || e.metaKey) return typing ? null : { z: () => (e.shiftKey ? redo : undo).click(), y: () => redo.click() }[key];
    if (key === "Escape") return () => { if (!view.cancel()) s.choose([], "replace"); };
    if (typing) return null;
    if (key === "PageUp" || key === "PageDown") return () => turn(key === "PageUp" ? -1 : 1);
    if (e.target === thumbs) return arrow ? () => along(arrow[0] || -6 * arrow[1]) : { Enter: toggle, Delete: toggle }[key];
    if (e.target !== view.canvas) return null;
    if (arrow) return () => e.shiftKey ? view.pan(-60 * arrow[0], 60 * arrow[1]) : view.step(...arrow);
    return { Enter: toggle, "+": () => view.zoom(1 / 1.5), "=": () => view.zoom(1 / 1.5), "-": () => view.zoom(1.5), 0: view.fit }[key];
  }
  root.addEventListener("keydown", e => { const f = reaction(e); if (f) { e.preventDefault(); e.stopPropagation(); f(); } });
  const claim = e => root.toggleAttribute("data-lm-suppress-shortcuts", root.contains(e.target) && (!(e.ctrlKey || e.metaKey) || !!reaction(e)));  // JupyterLab's shortcuts come first otherwise
  window.addEventListener("keydown", claim, true);

  drags("lasso"); showLegend(); showPanel(); showThumbs(); showBusy();
  return () => { s.listeners.delete(update); window.removeEventListener("keydown", claim, true); view.end(); };
}

export default () => {
  let s;
  return { initialize({ model }) { s = shared(model); }, render(context) { return render(context, s); } };
};
