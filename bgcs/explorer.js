// The view of ClusterExplorer: points on a canvas, a legend, thumbnails, buttons. What outlives a page is in the model's
// traits; pictures and edits are asked of the kernel by messages, and it says of each when it is done.
// No library, no WebGL: 50,000 points are 50,000 small stamps in an array of pixels, a matter of milliseconds.

const GREY = "#999999", FADE = 0.72, REACH = 12, PATIENCE = 500, GIVE_UP = 10_000, KEPT = 4000;
const MARKS = "●■▲◆✚▼✖", HOLLOW = "○□△◇✛▽✕";

// Distance from the outline of each shape, negative inside; y points down.
const SHAPES = [
  (x, y, r) => Math.hypot(x, y) - r,
  (x, y, r) => Math.max(Math.abs(x), Math.abs(y)) - 0.87 * r,
  (x, y, r) => Math.max(y - 0.75 * r, 0.87 * Math.abs(x) - 0.5 * y - 0.6 * r),
  (x, y, r) => 0.71 * (Math.abs(x) + Math.abs(y) - 1.25 * r),
  (x, y, r) => plus(x, y, r),
  (x, y, r) => SHAPES[2](x, -y, r),
  (x, y, r) => plus(0.71 * (x - y), 0.71 * (x + y), r),
];
function plus(x, y, r) {
  const [a, b] = [Math.abs(x), Math.abs(y)];
  return Math.min(Math.max(a - 1.1 * r, b - 0.4 * r), Math.max(b - 1.1 * r, a - 0.4 * r));
}

// ---- helpers -------------------------------------------------------------------------------------------------------

const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
const copied = (view, Type) => new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function make(tag, properties = {}, ...children) {
  const { aria = {}, on = {}, style, ...rest } = properties;
  const el = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) el.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, f] of Object.entries(on)) el.addEventListener(name, f);
  Object.assign(el.style, style);
  el.append(...children);
  return el;
}

function rgb(colour) {  // "#rrggbb" or "rgb(r, g, b)"
  if (colour[0] === "#") return [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}
const mix = (a, b, share) => a.map((v, i) => Math.round(v + (b[i] - v) * share));
const packed = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;  // as canvases keep pixels

function stamp(shape, radius, hollow) {  // pixels that a mark covers, and how much of each
  const reach = Math.ceil(radius * 1.4) + 1, dx = [], dy = [], cover = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    let d = SHAPES[shape](x, y, radius);
    if (hollow) d = Math.abs(d) - Math.max(0.6, radius * 0.22);
    const c = Math.round(256 * clamp(0.5 - d, 0, 1));
    if (c > 12) { dx.push(x); dy.push(y); cover.push(c); }
  }
  return { dx: Int32Array.from(dx), dy: Int32Array.from(dy), cover: Int32Array.from(cover), reach };
}

function blend(under, ink, cover) {  // of 256; red and blue at once, as they lie two bytes apart
  const rest = 256 - cover;
  const redBlue = ((under & 0xff00ff) * rest + (ink & 0xff00ff) * cover) >>> 8 & 0xff00ff;
  return (0xff000000 | redBlue | ((under & 0xff00) * rest + (ink & 0xff00) * cover) >>> 8 & 0xff00) >>> 0;
}

class Grid {  // finds the points near a place without looking at all
  constructor(xy) {
    const n = xy.length / 2, side = this.side = clamp(Math.round(Math.sqrt(n / 3)), 1, 400);
    this.xy = xy;
    this.low = [Infinity, Infinity]; this.high = [-Infinity, -Infinity];
    for (let i = 0; i < 2 * n; i++) { const v = xy[i], k = i & 1; if (v < this.low[k]) this.low[k] = v; if (v > this.high[k]) this.high[k] = v; }
    this.size = [0, 1].map(k => (this.high[k] - this.low[k]) / side || 1);
    const start = this.start = new Uint32Array(side * side + 1), cells = new Uint32Array(n);
    for (let i = 0; i < n; i++) start[(cells[i] = this.cell(xy[2 * i], 1, 0) + this.cell(xy[2 * i + 1], side, 1)) + 1]++;
    for (let c = 0; c < side * side; c++) start[c + 1] += start[c];
    const next = start.slice();
    this.order = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.order[next[cells[i]]++] = i;
  }
  cell(v, stride, k) { return stride * clamp(Math.floor((v - this.low[k]) / this.size[k]), 0, this.side - 1); }
  best(x, y, reach, cost) {  // the point within reach whose cost, of dx and dy, is least
    let found = -1, least = Infinity;
    for (let b = this.cell(y - reach, this.side, 1); b <= this.cell(y + reach, this.side, 1); b += this.side)
      for (let c = b + this.cell(x - reach, 1, 0); c <= b + this.cell(x + reach, 1, 0); c++)
        for (let j = this.start[c]; j < this.start[c + 1]; j++) {
          const i = this.order[j], d = cost(this.xy[2 * i] - x, this.xy[2 * i + 1] - y, i);
          if (d < least) { least = d; found = i; }
        }
    return found;
  }
}

function inside(path, x, y) {  // even-odd
  let within = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [a, b] = path[i], [c, d] = path[j];
    if ((b > y) !== (d > y) && x < (c - a) * (y - b) / (d - b) + a) within = !within;
  }
  return within;
}

// ---- what all views of a model share: points, pictures, questions to the kernel ----------------------------------------

function shared(model) {
  const s = { pictures: new Map(), asked: new Map(), listeners: new Set(), questions: 0 };
  const tell = what => s.listeners.forEach(f => f(what));
  s.read = () => {
    s.xy = copied(model.get("xy"), Float32Array);
    s.codes = copied(model.get("codes"), Uint16Array);
    s.hollow = copied(model.get("hollow"), Uint8Array);
    s.n = Math.min(s.codes.length, s.hollow.length, s.xy.length / 2);
    s.grid = new Grid(s.xy.subarray(0, 2 * s.n));
    s.readSelected();
  };
  s.readSelected = () => {
    s.selected = copied(model.get("selected"), Uint32Array);
    s.chosen = new Uint8Array(s.n);
    for (const i of s.selected) s.chosen[i] = 1;
  };
  s.readHidden = () => { s.off = []; for (const k of model.get("hidden")) s.off[k] = true; };
  s.visible = i => !s.off[s.codes[i]];
  s.ask = (action, content = {}) => {
    const id = ++s.questions;
    s.asked.set(id, performance.now());
    try { model.send({ id, do: action, ...content }); } catch { s.asked.set(id, -GIVE_UP); }  // the channel is closed
    s.clock ??= setInterval(() => { tell("waiting"); if (!s.asked.size) { clearInterval(s.clock); s.clock = null; } }, 250);
    return id;
  };
  s.waiting = () => { const since = Math.min(...s.asked.values()); return performance.now() - since; };
  s.want = indices => {
    const missing = indices.filter(i => !s.pictures.has(i));
    if (!missing.length) return;
    for (const i of missing) s.pictures.set(i, {});
    s.ask("images", { points: missing });
  };
  s.heard = (message, buffers) => {
    s.asked.delete(message.done);
    (message.points ?? []).forEach((i, j) => s.pictures.set(i, { url: URL.createObjectURL(new Blob([buffers[j]], { type: "image/png" })), text: message.texts[j] }));
    for (const [i, { url }] of s.pictures) { if (s.pictures.size <= KEPT) break; URL.revokeObjectURL(url); s.pictures.delete(i); }
    tell(message.points ? "pictures" : "waiting");
  };
  s.choose = (indices, mode) => {  // 'replace', 'add' or 'remove'
    const now = mode === "replace" ? new Uint8Array(s.n) : s.chosen.slice();
    for (const i of indices) now[i] = mode === "remove" ? 0 : 1;
    model.set("selected", new DataView(Uint32Array.from({ length: s.n }, (_, i) => i).filter(i => now[i]).buffer));
    model.set("page", 0);
    model.save_changes();
  };
  s.readHidden(); s.read();
  const points = () => { s.read(); tell("points"); };
  let queued = false;
  for (const name of ["xy", "codes", "hollow"]) model.on(`change:${name}`, () => { if (!queued) { queued = true; queueMicrotask(() => { queued = false; points(); }); } });
  model.on("change:selected", () => { s.readSelected(); tell("selected"); });
  model.on("change:hidden", () => { s.readHidden(); tell("hidden"); });
  for (const name of ["legend", "panel", "busy", "page", "camera"]) model.on(`change:${name}`, () => tell(name));
  model.on("msg:custom", s.heard);
  return s;
}

// ---- the canvas ----------------------------------------------------------------------------------------------------

function plot(model, s, root) {
  const canvas = make("canvas", { tabIndex: 0, aria: { role: "application" } }), ctx = canvas.getContext("2d", { alpha: false });
  const card = make("div", { className: "card", hidden: true, aria: { live: "polite" } });
  const el = make("div", { className: "plot" }, canvas, card);
  const view = { el, canvas, mode: "lasso", cursor: -1, path: [] };
  let width = 0, height = 0, ratio = 1, bitmap = null, drag = null, frame = 0, save = 0;

  const fitted = () => {
    const { low, high } = s.grid, half = Math.max((high[1] - low[1]) / 2, (high[0] - low[0]) / 2 * height / width) * 1.08;
    return s.n ? [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, half || 1] : [0, 0, 1];
  };
  const camera = () => model.get("camera").length ? model.get("camera") : fitted();
  const scale = () => height / 2 / camera()[2];
  const toPlane = ([x, y]) => { const [cx, cy] = camera(), k = scale(); return [cx + (x - width / 2) / k, cy - (y - height / 2) / k]; };
  const toScreen = i => { const [cx, cy] = camera(), k = scale(); return [(s.xy[2 * i] - cx) * k + width / 2, height / 2 - (s.xy[2 * i + 1] - cy) * k]; };
  const look = (...camera) => {  // every view moves at once, the kernel hears of it when the movement rests
    model.set("camera", camera);
    clearTimeout(save);
    save = setTimeout(() => model.save_changes(), 200);
  };
  view.zoom = (factor, at = [width / 2, height / 2]) => {
    const [x, y] = toPlane(at), [cx, cy, half] = camera(), f = clamp(factor, fitted()[2] * 1e-4 / half, fitted()[2] * 4 / half);
    look(x + (cx - x) * f, y + (cy - y) * f, half * f);
  };
  view.pan = (dx, dy) => { const [cx, cy, half] = camera(), k = scale(); look(cx - dx / k, cy + dy / k, half); };
  view.fit = () => { model.set("camera", []); model.save_changes(); };

  const styles = () => {  // colours and shapes by code, for this theme
    const computed = getComputedStyle(el), back = rgb(computed.backgroundColor), front = rgb(computed.color);
    const colour = c => c === "#000000" ? front : rgb(c);
    const { entries, colours } = model.get("legend");
    const looks = colours ? [...colours, GREY].map(c => [colour(c), 0]) : entries.map(e => [colour(e.colour), e.shape]);
    return { back, front, looks };
  };

  function draw() {
    frame = 0;
    const started = performance.now();
    if (!width) return;
    if (bitmap?.width !== canvas.width || bitmap?.height !== canvas.height) bitmap = ctx.createImageData(canvas.width, canvas.height);
    const { back, front, looks } = styles(), [W, H] = [canvas.width, canvas.height];
    const pixels = new Uint32Array(bitmap.data.buffer).fill(packed(back));
    const [cx, cy, half] = camera(), k = H / 2 / half, some = s.selected.length > 0;
    const radius = ratio * clamp(60 / Math.sqrt(s.n || 1), 1.7, 5) * clamp((fitted()[2] / half) ** 0.3, 0.8, 2.2);
    for (const pass of some ? [0, 1] : [1]) {
      const stamps = looks.map(([colour, shape]) => [0, 1].map(hollow => {
        const seen = pass ? colour : mix(colour, back, FADE);
        return { ...stamp(shape, radius * (hollow ? 1.4 : 1) * (some && pass ? 1.25 : 1), hollow), ink: packed(seen) };
      }));
      for (let i = 0; i < s.n; i++) {
        if (some && s.chosen[i] !== pass || !s.visible(i)) continue;
        const { dx, dy, cover, reach, ink } = stamps[s.codes[i]][s.hollow[i]];
        const x = Math.round((s.xy[2 * i] - cx) * k + W / 2), y = Math.round(H / 2 - (s.xy[2 * i + 1] - cy) * k);
        if (!(x >= reach && y >= reach && x < W - reach && y < H - reach)) continue;
        for (let j = 0, at = y * W + x; j < dx.length; j++) {
          const p = at + dy[j] * W + dx[j];
          pixels[p] = cover[j] === 256 ? ink : blend(pixels[p], ink, cover[j]);
        }
      }
    }
    ctx.putImageData(bitmap, 0, 0);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    const paint = c => `rgb(${c})`;
    if (model.get("legend").labelled) drawLabels(paint(front), paint(back));
    if (view.path.length) {
      ctx.beginPath(); view.path.forEach(p => ctx.lineTo(...p)); ctx.closePath();
      ctx.strokeStyle = paint(front); ctx.setLineDash([4, 3]); ctx.lineWidth = 1.5; ctx.stroke(); ctx.setLineDash([]);
    }
    if (view.cursor >= 0 && view.cursor < s.n) {
      ctx.beginPath(); ctx.arc(...toScreen(view.cursor), radius / ratio + 5, 0, 7);
      for (const [w, c] of [[4, back], [2, front]]) { ctx.lineWidth = w; ctx.strokeStyle = paint(c); ctx.stroke(); }
    }
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    canvas.dataset.ms = (performance.now() - started).toFixed(1);
  }

  function drawLabels(front, back) {  // each cluster's name where its visible points have their middle
    const { entries } = model.get("legend"), sums = entries.map(() => [0, 0, 0]), [cx, cy] = camera(), k = scale();
    for (let i = 0; i < s.n; i++) if (s.visible(i) && !s.hollow[i]) { const t = sums[s.codes[i]]; t[0] += s.xy[2 * i]; t[1] += s.xy[2 * i + 1]; t[2]++; }
    Object.assign(ctx, { font: "600 12px system-ui, sans-serif", textAlign: "center", textBaseline: "middle", lineWidth: 4, strokeStyle: back, fillStyle: front, lineJoin: "round" });
    entries.forEach(({ name }, code) => {
      const [x, y, n] = sums[code];
      if (!n || !name) return;
      const at = [(x / n - cx) * k + width / 2, height / 2 - (y / n - cy) * k];
      ctx.strokeText(name, ...at); ctx.fillText(name, ...at);
    });
  }

  view.redraw = () => { frame ||= requestAnimationFrame(draw); };
  view.move = (i, quiet) => { view.cursor = i; view.redraw(); if (!quiet) view.showCard(); };
  view.showCard = () => {
    const i = view.cursor;
    card.hidden = i < 0 || i >= s.n;
    if (card.hidden) return;
    s.want([i]);
    const { url, text } = s.pictures.get(i), { entries } = model.get("legend"), label = entries?.[s.codes[i]]?.label;
    card.replaceChildren(url ? make("img", { src: url, alt: text }) : make("div", { className: "spin" }), make("div", { textContent: [text, label, s.hollow[i] ? "object image" : ""].filter(Boolean).join(" · ") }));
    card.dataset.point = i;
    const [x, y] = toScreen(i);
    Object.assign(card.style, { left: `${clamp(x + 14, 0, width - 130)}px`, top: `${y > height - 150 ? Math.max(0, y - 160) : y + 12}px` });
  };
  view.nearest = (at, reach = REACH) => s.grid.best(...toPlane(at), reach / scale(), (dx, dy, i) => s.visible(i) && Math.hypot(dx, dy) < reach / scale() ? Math.hypot(dx, dy) : Infinity);
  view.step = (dx, dy) => {  // to the nearest point that way: the cheapest of distance and detour
    const from = view.cursor >= 0 && view.cursor < s.n && s.visible(view.cursor) ? view.cursor : -1;
    if (from < 0) return view.move(view.nearest([width / 2, height / 2], width));
    const ahead = (x, y, i) => { const along = x * dx + y * dy, aside = Math.abs(x * dy - y * dx); return i !== from && s.visible(i) && along > aside * 0.8 && along > 0 ? along + 2 * aside : Infinity; };
    for (let reach = 20 / scale(); reach < 4 * fitted()[2] + 1e-9; reach *= 2) {
      const found = s.grid.best(s.xy[2 * from], s.xy[2 * from + 1], reach, ahead);
      if (found >= 0) { view.move(found); const [x, y] = toScreen(found); if (x < 0 || y < 0 || x > width || y > height) view.pan(width / 2 - x, height / 2 - y); return; }
    }
  };

  const position = e => { const box = canvas.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
  const modeOf = e => e.shiftKey ? "add" : e.altKey || e.ctrlKey || e.metaKey ? "remove" : "replace";
  canvas.addEventListener("pointerdown", e => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(e.pointerId);
    drag = { from: position(e), at: position(e), pans: view.mode === "pan" || e.button > 0 };
    card.hidden = true;
    e.preventDefault();
  });
  canvas.addEventListener("pointermove", e => {
    const at = position(e);
    if (!drag) { const i = view.nearest(at); if (i !== view.cursor) view.move(i); return; }
    if (drag.pans) view.pan(at[0] - drag.at[0], at[1] - drag.at[1]);
    else { if (!view.path.length) view.path.push(drag.from); view.path.push(at); view.redraw(); }
    drag.at = at;
  });
  canvas.addEventListener("pointerup", e => {
    const { from, pans } = drag ?? {}, path = view.path;
    drag = null; view.path = [];
    if (!from || pans && view.mode === "lasso") return;
    if (path.every(p => Math.hypot(p[0] - from[0], p[1] - from[1]) < 5)) {
      const i = view.nearest(from);
      if (i >= 0) { view.move(i); s.choose([i], modeOf(e)); } else view.redraw();
    } else if (!pans) s.choose(view.within(path), modeOf(e));
  });
  view.within = path => {
    const polygon = path.map(toPlane), low = [0, 1].map(k => Math.min(...polygon.map(p => p[k]))), high = [0, 1].map(k => Math.max(...polygon.map(p => p[k]))), found = [];
    for (let i = 0; i < s.n; i++) {
      const x = s.xy[2 * i], y = s.xy[2 * i + 1];
      if (x >= low[0] && x <= high[0] && y >= low[1] && y <= high[1] && s.visible(i) && inside(polygon, x, y)) found.push(i);
    }
    return found;
  };
  view.cancel = () => { const was = view.path.length > 0; drag = null; view.path = []; view.redraw(); return was; };
  canvas.addEventListener("pointercancel", view.cancel);
  canvas.addEventListener("pointerleave", () => { if (!drag) view.move(-1); });
  canvas.addEventListener("contextmenu", e => e.preventDefault());
  canvas.addEventListener("wheel", e => {  // without focus the wheel scrolls the notebook
    if (document.activeElement !== canvas && !e.ctrlKey) return;
    e.preventDefault();
    view.zoom(Math.exp(clamp(e.deltaY, -300, 300) * (e.deltaMode ? 0.05 : 0.0015)), position(e));
  }, { passive: false });

  const sized = new ResizeObserver(() => {
    ({ width, height } = el.getBoundingClientRect());
    ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    view.redraw();
  });
  sized.observe(el);
  const theme = new MutationObserver(view.redraw);
  theme.observe(document.body, { attributes: true });
  theme.observe(document.documentElement, { attributes: true });
  view.end = () => { sized.disconnect(); theme.disconnect(); cancelAnimationFrame(frame); clearTimeout(save); };
  return view;
}

// ---- buttons, legend, thumbnails, keys ---------------------------------------------------------------------------------

function render({ model, el, s }) {
  const panel = () => model.get("panel"), set = (name, value) => { model.set(name, value); model.save_changes(); };
  const button = (text, title, click, more = {}) => make("button", { type: "button", textContent: text, title, on: { click }, ...more });
  const act = (action, content) => () => s.ask(action, content?.());
  const root = make("div", { className: "bgcs-explorer", aria: { role: "group", label: "Clusters of backgrounds" } });
  const view = plot(model, s, root);

  const by = make("select", { title: "Colour by", on: { change: () => s.ask("color_by", { column: by.value }) } });
  const objects = make("input", { type: "checkbox", on: { change: () => s.ask("show_objects", { on: objects.checked }) } });
  const modes = ["lasso", "pan"].map(mode => button(mode === "lasso" ? "Lasso" : "Pan", mode === "lasso" ? "Dragging selects; Shift adds, Alt takes away" : "Dragging moves the plane", () => { view.mode = mode; modesPressed(); }));
  const modesPressed = () => { modes.forEach((b, i) => b.setAttribute("aria-pressed", view.mode === ["lasso", "pan"][i])); view.canvas.classList.toggle("pan", view.mode === "pan"); };
  const undo = button("Undo", "Ctrl+Z", act("undo")), redo = button("Redo", "Ctrl+Shift+Z", act("redo"));
  const merge = button("Merge", "All clusters of the selected images become one", act("merge"));
  const parts = make("input", { type: "number", value: 2, min: 2, max: 20, title: "Number of parts" });
  const split = button("Split into", "Split the cluster of the selected images into parts that are alike", act("split", () => ({ n: +parts.value })));
  const splitOff = button("Split off", "Make the selected images of a cluster a cluster of their own", act("split_off"));
  const name = make("input", { type: "text", placeholder: "name", title: "New name", on: { keydown: e => { if (e.key === "Enter") rename.click(); } } });
  const rename = button("Rename", "Rename the cluster of the selected images", act("rename", () => ({ name: name.value })));
  const drop = button("Drop", "Take the clusters of the selected images out of training", act("drop"));
  const target = make("select", { title: "Where to" });
  const move = button("Move to", "Move the selected images, and only them", act("move", () => ({ to: +target.value })));
  const folder = make("input", { type: "text", value: "clusterer", title: "A folder for the clusterer, or a .json file for the edits alone" });
  const exported = make("input", { type: "text", value: "selection", title: "A folder for the selected images, or a .csv file for a table of them" });
  const group = (...children) => make("span", { className: "group" }, ...children);
  const view_bar = make("div", { className: "bar", aria: { role: "toolbar", label: "View" } }, make("label", {}, "Colour by ", by), make("label", {}, objects, " Object images"),
    group(...modes), group(button("−", "Zoom out (-)", () => view.zoom(1.5)), button("+", "Zoom in (+)", () => view.zoom(1 / 1.5)), button("Fit", "Show all (0)", view.fit)),
    group(undo, redo), group(button("Save", "Save the clusterer with its edits", act("save", () => ({ to: folder.value }))), folder));
  const edit_bar = make("div", { className: "bar", aria: { role: "toolbar", label: "Mend" } }, merge, group(split, parts), splitOff, group(rename, name), drop, group(move, target));
  const send = button("Export", "Write the selected images, or a table of them", act("export", () => ({ to: exported.value })));
  edit_bar.append(group(send, exported));

  const legend = make("div", { className: "legend", aria: { role: "group", label: "Legend" } });
  const pager = make("span"), title = make("strong");
  const turn = by => set("page", clamp(model.get("page") + by, 0, pages() - 1));
  const earlier = button("‹", "Earlier images (Page Up)", () => turn(-1)), later = button("›", "Later images (Page Down)", () => turn(1)), none = button("Clear", "Select nothing (Escape)", () => s.choose([], "replace"));
  const thumbs = make("div", { className: "thumbs", tabIndex: 0, aria: { role: "listbox", label: "Selected images" } });
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } });
  const busy = make("div", { className: "busy", hidden: true, aria: { role: "status" } }), stop = button("Stop", "Keep what is shown", act("stop"));
  const stale = make("div", { className: "stale", textContent: "No kernel stands behind this view: it was restarted or closed, and nothing here changes anything. Run the cell again." });
  view.el.append(busy);
  root.append(stale, view_bar, edit_bar, make("div", { className: "body" }, view.el, make("div", { className: "side" }, legend, make("div", { className: "bar" }, title, make("span", { className: "group push" }, earlier, pager, later, none)), thumbs)), said);
  el.append(root);

  const per = () => model.get("per_page"), pages = () => Math.max(1, Math.ceil(s.selected.length / per()));
  const look = i => { const { entries, colours } = model.get("legend"); return entries?.[s.codes[i]]?.colour.replace("#000000", "var(--front)") ?? colours?.[s.codes[i]] ?? GREY; };
  const options = (select, pairs, value) => { select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, textContent: text }))); if (value !== undefined) select.value = value; };

  function showLegend() {
    const { title, entries, colours, low, high } = model.get("legend"), hidden = new Set(model.get("hidden"));
    if (colours) return legend.replaceChildren(make("div", { textContent: title }), make("div", { className: "bar" }, low, make("div", { className: "scale", style: { background: `linear-gradient(90deg, ${colours.join()})` } }), high));
    const focused = [...legend.querySelectorAll("button")].indexOf(document.activeElement);
    legend.replaceChildren(...entries.map(({ label, colour, shape, count }, code) => make("div", { className: "bar" },
      make("button", { type: "button", className: "entry", title: "Show or hide", aria: { pressed: !hidden.has(code) }, on: { click: () => set("hidden", hidden.has(code) ? [...hidden].filter(k => k !== code) : [...hidden, code]) } },
        make("span", { className: "mark", textContent: MARKS[shape], style: { color: colour.replace("#000000", "var(--front)") } }), label + " ", make("span", { className: "count", textContent: count.toLocaleString() })),
      button("select", `Select ${label}`, e => s.choose(members(code), e.shiftKey ? "add" : e.altKey ? "remove" : "replace"), { className: "only" }))));
    if (focused >= 0) legend.querySelectorAll("button")[focused]?.focus();
  }
  const members = code => Uint32Array.from({ length: s.n }, (_, i) => i).filter(i => s.codes[i] === code);

  function showPanel() {
    const { columns, by: column, clusters, touched, undo: undone, redo: redone, said: text, wrong, objects: has, showing } = panel();
    options(by, columns.map(c => [c, c]), column);
    const kept = target.value;
    options(target, [...clusters, [-1, "no cluster"]]);
    if ([...target.options].some(o => o.value === kept)) target.value = kept;
    const called = new Map(clusters), names = touched.map(k => called.get(k)), one = touched.length === 1;
    merge.textContent = touched.length > 1 ? `Merge ${names.join(" + ")}` : "Merge"; drop.textContent = touched.length ? `Drop ${names.join(", ")}` : "Drop";
    for (const [b, on] of [[merge, touched.length > 1], [split, one], [splitOff, one], [rename, one], [drop, touched.length], [move, s.selected.length], [send, s.selected.length], [undo, undone], [redo, redone]]) b.disabled = !on;
    undo.title = undone ? `Undo: ${undone} (Ctrl+Z)` : "Nothing to undo"; redo.title = redone ? `Redo: ${redone} (Ctrl+Shift+Z)` : "Nothing to redo";
    objects.disabled = !has; objects.checked = showing;
    said.textContent = text; said.classList.toggle("wrong", wrong);
    view.canvas.setAttribute("aria-label", `Plane of ${s.n} images. Arrows go from point to point, Enter selects, Shift and arrows move the plane, plus and minus zoom.`);
  }

  function showThumbs() {
    const n = s.selected.length, page = clamp(model.get("page"), 0, pages() - 1), shown = [...s.selected.subarray(page * per(), (page + 1) * per())];
    title.textContent = n ? `${n.toLocaleString()} selected` : "Nothing selected";
    pager.textContent = n ? `${page + 1} / ${pages()}` : "";
    earlier.disabled = page === 0; later.disabled = page >= pages() - 1; none.disabled = !n;
    s.want(shown);
    thumbs.replaceChildren(...shown.map(i => {
      const { url, text = "" } = s.pictures.get(i) ?? {}, current = i === view.cursor;
      return make("div", { className: `thumb${s.hollow[i] ? " object" : ""}${current ? " current" : ""}`, title: text, style: { borderColor: look(i) }, aria: { role: "option", selected: current },
        on: { click: () => { view.move(i, true); showThumbs(); } } }, url ? make("img", { src: url, alt: text }) : "");
    }));
    if (!n) thumbs.append(make("div", { className: "empty", textContent: s.n ? "Draw around points to see their images. Shift adds, Alt takes away; a click picks one point. The wheel zooms once the plane is clicked." : "There are no images to show." }));
  }

  function showBusy() {
    const waits = s.waiting(), kernel = waits > GIVE_UP ? "The kernel does not answer: it is busy with another cell, or was restarted" : waits > PATIENCE ? "Waiting for the kernel …" : "";
    busy.hidden = !(model.get("busy") || kernel);
    busy.replaceChildren(make("span", { className: "spin" }), model.get("busy") || kernel, ...model.get("busy") ? [stop] : []);
  }

  const showers = { points: [showLegend, showPanel, showThumbs, view.redraw], selected: [showPanel, showThumbs, view.redraw], hidden: [showLegend, view.redraw], legend: [showLegend, showThumbs, view.redraw],
    panel: [showPanel], page: [showThumbs], camera: [view.redraw], pictures: [showThumbs, view.showCard, showBusy], busy: [showBusy], waiting: [showBusy] };
  const listener = what => showers[what].forEach(f => f());
  s.listeners.add(listener);

  const along = step => {  // through the selection, a page at a time where one ends
    const at = s.selected.indexOf(view.cursor), next = clamp(at < 0 ? model.get("page") * per() : at + step, 0, s.selected.length - 1);
    if (!s.selected.length) return;
    view.move(s.selected[next], true);
    if (Math.floor(next / per()) !== model.get("page")) set("page", Math.floor(next / per())); else showThumbs();
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const toggle = () => { if (view.cursor >= 0) s.choose([view.cursor], s.chosen[view.cursor] ? "remove" : "add"); };
  function reaction(e) {  // to a key, or nothing if it is not ours
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key, typing = e.target.matches("input[type=text], input[type=number], select"), arrow = arrows[key];
    if (e.ctrlKey || e.metaKey) return typing ? null : key === "z" ? (e.shiftKey ? redo : undo) : key === "y" ? redo : null;
    if (key === "Escape") return () => { if (!view.cancel()) s.choose([], "replace"); };
    if (typing) return null;
    if (key === "PageUp" || key === "PageDown") return () => turn(key === "PageUp" ? -1 : 1);
    if (e.target === thumbs) return arrow ? () => along(arrow[0] || -6 * arrow[1]) : key === "Enter" || key === "Delete" ? toggle : null;
    if (e.target !== view.canvas) return null;
    if (arrow) return () => e.shiftKey ? view.pan(-60 * arrow[0], 60 * arrow[1]) : view.step(...arrow);
    return { Enter: toggle, "+": () => view.zoom(1 / 1.5), "=": () => view.zoom(1 / 1.5), "-": () => view.zoom(1.5), 0: view.fit }[key];
  }
  root.addEventListener("keydown", e => {
    const f = reaction(e);
    if (!f) return;
    e.preventDefault(); e.stopPropagation();
    if (typeof f === "function") f(); else if (!f.disabled) f.click();
  });
  const claim = e => root.toggleAttribute("data-lm-suppress-shortcuts", root.contains(e.target) && (e.target.matches("input, select") || !!reaction(e)));  // JupyterLab's own shortcuts come first otherwise
  window.addEventListener("keydown", claim, true);

  modesPressed(); showLegend(); showPanel(); showThumbs(); showBusy();
  return () => { s.listeners.delete(listener); window.removeEventListener("keydown", claim, true); view.end(); };
}

export default () => {
  let s;
  return { initialize({ model }) { s = shared(model); }, render({ model, el }) { return render({ model, el, s }); } };
};
