// The view of ClusterExplorer: points on a canvas, a legend, thumbnails, buttons. What outlives a page is in the
// model's traits; pictures and edits are asked of the kernel by messages, and it says of each when it is done.
// No library, no WebGL: 50,000 points are 50,000 small stamps in an array of pixels, a matter of milliseconds.

const GREY = "#999999"; // of points that belong nowhere
const BLACK = "#000000"; // the last of the colours; on a dark page it is drawn light
const FADE = 0.72; // how far what is not selected goes towards the background
const REACH = 12; // pixels from the pointer to a point that is meant
const KEPT = 4000; // pictures
const PATIENCE = 500; // milliseconds without an answer until the view says that it waits
const GIVE_UP = 10_000; // milliseconds without an answer until the view says that none comes
const COLUMNS = 6; // of thumbnails
const HINT =
  "Draw around points to see their images. Shift adds, Alt takes away; a click picks one point. " +
  "The wheel zooms once the plane is clicked.";
const KEYS = "Arrows go from point to point, Enter selects, Shift and arrows move the plane, plus and minus zoom.";

// ---- marks --------------------------------------------------------------------------------------

const MARKS = "●■▲◆✚▼✖";
const SHAPES = [circle, square, triangle, diamond, plus, triangleDown, cross];

// Each gives the distance from a mark's outline, negative inside; y points down.
function circle(x, y, r) {
  return Math.hypot(x, y) - r;
}

function square(x, y, r) {
  return Math.max(Math.abs(x), Math.abs(y)) - 0.87 * r;
}

function triangle(x, y, r) {
  return Math.max(y - 0.75 * r, 0.87 * Math.abs(x) - 0.5 * y - 0.6 * r);
}

function triangleDown(x, y, r) {
  return triangle(x, -y, r);
}

function diamond(x, y, r) {
  return 0.71 * (Math.abs(x) + Math.abs(y) - 1.25 * r);
}

function plus(x, y, r) {
  const [a, b] = [Math.abs(x), Math.abs(y)];
  return Math.min(Math.max(a - 1.1 * r, b - 0.4 * r), Math.max(b - 1.1 * r, a - 0.4 * r));
}

function cross(x, y, r) {
  return plus(0.71 * (x - y), 0.71 * (x + y), r);
}

// The pixels that a mark covers, and how much of each, in parts of 256.
function makeStamp(shape, radius, hollow) {
  const reach = Math.ceil(radius * 1.4) + 1;
  const stroke = Math.max(0.6, radius * 0.22);
  const [dx, dy, cover] = [[], [], []];
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const distance = SHAPES[shape](x, y, radius);
      const outside = hollow ? Math.abs(distance) - stroke : distance;
      const covered = Math.round(256 * clamp(0.5 - outside, 0, 1));
      if (covered <= 12) continue;
      dx.push(x);
      dy.push(y);
      cover.push(covered);
    }
  }
  return { reach, dx: Int32Array.from(dx), dy: Int32Array.from(dy), cover: Int32Array.from(cover) };
}

// ---- pixels -------------------------------------------------------------------------------------

// "#rrggbb" or "rgb(r, g, b)" as three numbers.
function rgb(colour) {
  if (colour[0] === "#") return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const numbers = colour.match(/[\d.]+/g) || [0, 0, 0]; // a view that has left the page has no colours
  return numbers.slice(0, 3).map(Number);
}

const mixed = (a, b, share) => a.map((v, i) => Math.round(v + (b[i] - v) * share));
const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as canvases keep pixels

// Ink over a pixel, with a cover of 256; red and blue at once, as they lie two bytes apart.
function blended(under, ink, cover) {
  const rest = 256 - cover;
  const redBlue = (((under & 0xff00ff) * rest + (ink & 0xff00ff) * cover) >>> 8) & 0xff00ff;
  const green = (((under & 0xff00) * rest + (ink & 0xff00) * cover) >>> 8) & 0xff00;
  return (0xff000000 | redBlue | green) >>> 0;
}

// A stamp with its middle at (x, y), if all of it is within the picture.
function putStamp(pixels, width, height, { ink, dx, dy, cover, reach }, x, y) {
  if (!(x >= reach && y >= reach && x < width - reach && y < height - reach)) return;
  for (let j = 0; j < dx.length; j++) {
    const p = (y + dy[j]) * width + x + dx[j];
    pixels[p] = cover[j] === 256 ? ink : blended(pixels[p], ink, cover[j]);
  }
}

// Whether a point is within a closed path, by the even-odd rule.
function inside(path, x, y) {
  let within = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [a, b] = path[i];
    const [c, d] = path[j];
    if (b > y !== d > y && x < ((c - a) * (y - b)) / (d - b) + a) within = !within;
  }
  return within;
}

// ---- questions to the kernel, and the pictures that it sent -------------------------------------

class Kernel {
  constructor(model, tell) {
    Object.assign(this, { model, tell, pictures: new Map(), asked: new Map(), questions: 0, lost: false, clock: 0 });
    model.on("msg:custom", (message, buffers) => this.hear(message, buffers));
    model.on("comm_live_update", () => this.reconnect());
  }

  ask(action, content = {}) {
    const id = ++this.questions;
    this.asked.set(id, performance.now());
    try {
      this.model.send({ id, do: action, ...content });
    } catch {
      this.asked.set(id, -GIVE_UP); // the channel is closed
    }
    this.clock ||= setInterval(() => this.tick(), 250);
  }

  tick() {
    this.tell("waiting");
    if (this.asked.size) return;
    clearInterval(this.clock);
    this.clock = 0;
  }

  // Milliseconds since the oldest question without an answer.
  waiting() {
    return performance.now() - Math.min(...this.asked.values());
  }

  // Ask for the pictures of points that are not here yet.
  want(points) {
    const missing = points.filter((i) => !this.pictures.has(i));
    for (const i of missing) this.pictures.set(i, {});
    if (missing.length) this.ask("images", { points: missing });
  }

  hear(message, buffers) {
    this.asked.delete(message.done);
    this.lost = false;
    message.points?.forEach((i, j) => {
      this.pictures.set(i, { text: message.texts[j], url: pictureAddress(buffers[j]) });
    });
    this.forgetOldPictures();
    this.tell(message.points ? "pictures" : "waiting");
  }

  forgetOldPictures() {
    for (const [i, { url }] of this.pictures) {
      if (this.pictures.size <= KEPT) return;
      URL.revokeObjectURL(url);
      this.pictures.delete(i);
    }
  }

  // The kernel went away, or came back and will answer.
  reconnect() {
    this.asked.clear();
    this.lost = true;
    this.ask("ping");
    this.tell("waiting");
  }
}

// ---- what all views of a model share: points and selection --------------------------------------

const copied = (view, Type) => new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

class Store {
  constructor(model) {
    this.model = model;
    this.listeners = new Set();
    this.kernel = new Kernel(model, (what) => this.tell(what));
    this.readHidden();
    this.readPoints();
    this.readSelected();
    this.listen();
  }

  tell(what) {
    for (const listener of this.listeners) listener(what);
  }

  listen() {
    const { model } = this;
    let queued = false; // coordinates and codes may come together
    const points = () => {
      queued = false;
      this.readPoints();
      this.readSelected();
      this.tell("points");
    };
    const soon = () => {
      if (!queued) queueMicrotask(points);
      queued = true;
    };
    for (const name of ["xy", "codes", "hollow"]) model.on(`change:${name}`, soon);
    model.on("change:selected", () => {
      this.readSelected();
      this.tell("selected");
    });
    model.on("change:hidden", () => {
      this.readHidden();
      this.tell("hidden");
    });
    for (const name of ["legend", "panel", "busy", "page", "camera"]) model.on(`change:${name}`, () => this.tell(name));
  }

  readPoints() {
    this.xy = copied(this.model.get("xy"), Float32Array);
    this.codes = copied(this.model.get("codes"), Uint16Array);
    this.hollow = copied(this.model.get("hollow"), Uint8Array);
    this.n = this.codes.length;
    this.low = [Infinity, Infinity];
    this.high = [-Infinity, -Infinity];
    this.xy.forEach((value, i) => {
      const axis = i & 1;
      if (value < this.low[axis]) this.low[axis] = value;
      if (value > this.high[axis]) this.high[axis] = value;
    });
  }

  readSelected() {
    this.selected = copied(this.model.get("selected"), Uint32Array);
    this.chosen = new Uint8Array(this.n);
    for (const i of this.selected) this.chosen[i] = 1;
  }

  readHidden() {
    this.off = [];
    for (const code of this.model.get("hidden")) this.off[code] = true;
  }

  visible(i) {
    return !this.off[this.codes[i]];
  }

  // The visible point that costs least, or -1; to look at all takes a fraction of a millisecond.
  best(cost) {
    let found = -1;
    let least = Infinity;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible(i)) continue;
      const c = cost(this.xy[2 * i], this.xy[2 * i + 1]);
      if (c >= least) continue;
      least = c;
      found = i;
    }
    return found;
  }

  where(accept) {
    const found = [];
    for (let i = 0; i < this.n; i++) if (accept(i)) found.push(i);
    return found;
  }

  // Select points; `mode` is 'replace', 'add' or 'remove'.
  choose(points, mode) {
    const now = mode === "replace" ? new Uint8Array(this.n) : this.chosen.slice();
    for (const i of points) now[i] = mode === "remove" ? 0 : 1;
    const selected = Uint32Array.from(this.where((i) => now[i]));
    this.model.set("page", 0);
    this.model.set("selected", new DataView(selected.buffer));
    this.model.save_changes();
  }
}

// ---- the camera: which part of the plane is seen ------------------------------------------------

class Camera {
  constructor(model, store) {
    Object.assign(this, { model, store, width: 0, height: 0, saving: 0 });
  }

  // Middle of the picture, and half of its height, in the plane; here so that all points are seen.
  whole() {
    const { n, low, high } = this.store;
    if (!n) return [0, 0, 1];
    const [halfWidth, halfHeight] = [0, 1].map((axis) => (high[axis] - low[axis]) / 2);
    const half = 1.08 * Math.max(halfHeight, (halfWidth * this.height) / this.width);
    return [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, half || 1];
  }

  now() {
    const set = this.model.get("camera");
    return set.length ? set : this.whole();
  }

  scale() {
    return this.height / 2 / this.now()[2];
  }

  toPlane([x, y]) {
    const [cx, cy] = this.now();
    const k = this.scale();
    return [cx + (x - this.width / 2) / k, cy - (y - this.height / 2) / k];
  }

  toScreen([x, y]) {
    const [cx, cy] = this.now();
    const k = this.scale();
    return [(x - cx) * k + this.width / 2, this.height / 2 - (y - cy) * k];
  }

  placeOf(i) {
    return this.toScreen([this.store.xy[2 * i], this.store.xy[2 * i + 1]]);
  }

  // Every view moves at once; the kernel hears of it when the movement rests.
  look(...camera) {
    this.model.set("camera", camera);
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.model.save_changes(), 200);
  }

  pan(dx, dy) {
    const [cx, cy, half] = this.now();
    const k = this.scale();
    this.look(cx - dx / k, cy + dy / k, half);
  }

  zoom(factor, at = [this.width / 2, this.height / 2]) {
    const [x, y] = this.toPlane(at);
    const [cx, cy, half] = this.now();
    const full = this.whole()[2];
    const f = clamp(factor, (full * 1e-4) / half, (full * 4) / half);
    this.look(x + (cx - x) * f, y + (cy - y) * f, half * f);
  }

  fit() {
    this.model.set("camera", []);
    this.model.save_changes();
  }
}

// ---- the painter: points, names, lasso and ring on the canvas -----------------------------------

class Painter {
  constructor(canvas, model, store, camera) {
    Object.assign(this, { canvas, model, store, camera, ratio: 1, bitmap: null });
    this.context = canvas.getContext("2d", { alpha: false });
  }

  resize() {
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.canvas.width = Math.round(this.camera.width * this.ratio);
    this.canvas.height = Math.round(this.camera.height * this.ratio);
  }

  draw(path, cursor) {
    if (!this.camera.width) return;
    const theme = getComputedStyle(this.canvas.parentElement);
    const [back, front] = [rgb(theme.backgroundColor), rgb(theme.color)];
    const radius = this.radius();
    this.drawPoints(back, front, radius);
    const colours = { front: `rgb(${front})`, back: `rgb(${back})` };
    this.drawNames(colours);
    this.drawPath(path, colours);
    if (cursor >= 0 && cursor < this.store.n) this.drawRing(cursor, radius / this.ratio, colours);
  }

  // Few points are large, many are small; all grow a little when one comes nearer.
  radius() {
    const nearness = this.camera.whole()[2] / this.camera.now()[2];
    return this.ratio * clamp(60 / Math.sqrt(this.store.n), 1.7, 5) * clamp(nearness ** 0.3, 0.8, 2.2);
  }

  // Colour and shape by code: entries of the legend, or steps of a scale with grey for no value.
  looks(front) {
    const { entries, colours } = this.model.get("legend");
    const ink = (colour) => (colour === BLACK ? front : rgb(colour));
    if (colours) return [...colours, GREY].map((colour) => [ink(colour), 0]);
    return entries.map(({ colour, shape }) => [ink(colour), shape]);
  }

  drawPoints(back, front, radius) {
    const { canvas, context, store } = this;
    const [width, height] = [canvas.width, canvas.height];
    if (this.bitmap?.width !== width || this.bitmap?.height !== height) {
      this.bitmap = context.createImageData(width, height);
    }
    const pixels = new Uint32Array(this.bitmap.data.buffer).fill(packed(back));
    const looks = this.looks(front);
    if (store.selected.length) {
      const faded = looks.map(([colour, shape]) => [mixed(colour, back, FADE), shape]);
      this.stampPoints(pixels, faded, radius, (i) => !store.chosen[i]);
      this.stampPoints(pixels, looks, radius * 1.25, (i) => store.chosen[i]); // what is selected comes on top
    } else {
      this.stampPoints(pixels, looks, radius, () => true);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.putImageData(this.bitmap, 0, 0);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
  }

  stampPoints(pixels, looks, radius, wanted) {
    const { store, canvas } = this;
    const [width, height] = [canvas.width, canvas.height];
    const [cx, cy, half] = this.camera.now();
    const k = height / 2 / half;
    const stamps = looks.map(([colour, shape]) => {
      const ink = packed(colour);
      const full = { ink, ...makeStamp(shape, radius, false) };
      return [full, { ink, ...makeStamp(shape, radius * 1.4, true) }];
    });
    for (let i = 0; i < store.n; i++) {
      if (!wanted(i) || !store.visible(i)) continue;
      const x = Math.round((store.xy[2 * i] - cx) * k + width / 2);
      const y = Math.round(height / 2 - (store.xy[2 * i + 1] - cy) * k);
      putStamp(pixels, width, height, stamps[store.codes[i]][store.hollow[i]], x, y);
    }
  }

  drawNames({ front, back }) {
    const { entries, labelled } = this.model.get("legend");
    if (!labelled) return;
    const { context } = this;
    const font = { font: "600 12px system-ui, sans-serif", textAlign: "center", textBaseline: "middle" };
    Object.assign(context, { ...font, lineWidth: 4, lineJoin: "round", strokeStyle: back, fillStyle: front });
    context.setLineDash([]);
    entries.forEach(({ name, at }, code) => {
      if (!at || this.store.off[code]) return;
      const [x, y] = this.camera.toScreen(at);
      context.strokeText(name, x, y);
      context.fillText(name, x, y);
    });
  }

  drawPath(path, { front }) {
    this.context.beginPath();
    for (const [x, y] of path) this.context.lineTo(x, y);
    this.context.closePath();
    this.stroke(1.5, front, [4, 3]);
  }

  drawRing(i, radius, { front, back }) {
    this.context.beginPath();
    this.context.arc(...this.camera.placeOf(i), radius + 5, 0, 7);
    this.stroke(4, back);
    this.stroke(2, front);
  }

  stroke(lineWidth, strokeStyle, dash = []) {
    Object.assign(this.context, { lineWidth, strokeStyle });
    this.context.setLineDash(dash);
    this.context.stroke();
  }
}

// ---- the plane: canvas, pointer, ring, and the card of the point that is pointed at -------------

class Plane {
  constructor(model, store) {
    Object.assign(this, { model, store, mode: "lasso", cursor: -1, drag: null, path: [] });
    this.canvas = make("canvas", { tabIndex: 0, aria: { role: "application" } });
    this.card = make("div", { className: "card", hidden: true, aria: { live: "polite" } });
    this.el = make("div", { className: "plot" }, this.canvas, this.card);
    this.camera = new Camera(model, store);
    this.painter = new Painter(this.canvas, model, store, this.camera);
    this.redraw = oncePerFrame(() => this.painter.draw(this.path, this.cursor));
    this.listen();
  }

  listen() {
    const names = ["down", "move", "up", "cancel", "leave"].map((name) => `pointer${name}`);
    for (const name of [...names, "contextmenu", "wheel"]) {
      this.canvas.addEventListener(name, (event) => this[name](event), { passive: false });
    }
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(this.el);
    this.themed = new MutationObserver(this.redraw);
    for (const node of [document.body, document.documentElement]) this.themed.observe(node, { attributes: true });
  }

  end() {
    this.sized.disconnect();
    this.themed.disconnect();
    this.redraw.cancel();
    clearTimeout(this.camera.saving);
  }

  resize() {
    const { width, height } = this.el.getBoundingClientRect();
    Object.assign(this.camera, { width, height });
    this.painter.resize();
    this.redraw();
  }

  // Put the ring around a point, and show its card.
  ring(i) {
    this.ringQuietly(i);
    this.showCard();
  }

  ringQuietly(i) {
    this.cursor = i;
    this.redraw();
  }

  showCard() {
    const { cursor: i, card, store } = this;
    card.hidden = i < 0 || i >= store.n;
    if (card.hidden) return;
    store.kernel.want([i]);
    const { url, text } = store.kernel.pictures.get(i);
    const label = this.model.get("legend").entries?.[store.codes[i]]?.label;
    const words = [text, label, store.hollow[i] && "object image"].filter(Boolean).join(" · ");
    const picture = url ? make("img", { src: url, alt: text }) : make("div", { className: "spin" });
    card.replaceChildren(picture, words);
    card.dataset.point = i;
    this.placeCard(this.camera.placeOf(i));
  }

  placeCard([x, y]) {
    const { width, height } = this.camera;
    const top = y > height - 150 ? Math.max(0, y - 160) : y + 12;
    Object.assign(this.card.style, { left: `${clamp(x + 14, 0, width - 130)}px`, top: `${top}px` });
  }

  nearest(at, reach = REACH) {
    const [a, b] = this.camera.toPlane(at);
    const most = (reach / this.camera.scale()) ** 2;
    return this.store.best((x, y) => {
      const distance = (x - a) ** 2 + (y - b) ** 2;
      return distance < most ? distance : Infinity;
    });
  }

  // The point from here in a direction that is least far and least aside; from nowhere, the one in the middle.
  pointTowards(dx, dy) {
    const { store, cursor } = this;
    const { width, height } = this.camera;
    if (!(cursor >= 0 && cursor < store.n && store.visible(cursor)))
      return this.nearest([width / 2, height / 2], Infinity);
    const [a, b] = [store.xy[2 * cursor], store.xy[2 * cursor + 1]];
    return store.best((x, y) => {
      const along = (x - a) * dx + (y - b) * dy;
      const aside = Math.abs((x - a) * dy - (y - b) * dx);
      return along > 0.8 * aside && along > 0 ? along + 2 * aside : Infinity;
    });
  }

  step(dx, dy) {
    const found = this.pointTowards(dx, dy);
    if (found < 0) return;
    const { width, height } = this.camera;
    const [x, y] = this.camera.placeOf(found);
    if (x < 0 || y < 0 || x > width || y > height) this.camera.pan(width / 2 - x, height / 2 - y);
    this.ring(found);
  }

  // Leave the lasso that is being drawn; tells whether there was one.
  cancel() {
    const was = this.path.length > 0;
    this.drag = null;
    this.path = [];
    this.redraw();
    return was;
  }

  enclosed(corners) {
    const { store } = this;
    return store.where((i) => store.visible(i) && inside(corners, store.xy[2 * i], store.xy[2 * i + 1]));
  }

  // Handlers of the canvas, by the names of their events.

  pointerdown(event) {
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.card.hidden = true;
    const from = this.position(event);
    this.drag = { from, at: from, pans: this.mode === "pan" || event.button > 0 };
  }

  pointermove(event) {
    const at = this.position(event);
    if (this.drag) this.dragTo(at);
    else this.hover(at);
  }

  hover(at) {
    const found = this.nearest(at);
    if (found !== this.cursor) this.ring(found);
  }

  dragTo(at) {
    const { drag } = this;
    if (drag.pans) {
      this.camera.pan(at[0] - drag.at[0], at[1] - drag.at[1]);
    } else {
      this.path.push(at);
      this.redraw();
    }
    const far = Math.hypot(at[0] - drag.from[0], at[1] - drag.from[1]) > 4;
    this.drag = { ...drag, at, moved: drag.moved || far };
  }

  pointerup(event) {
    const { from, pans, moved } = this.drag ?? {};
    const corners = [from, ...this.path];
    this.cancel();
    if (!from || event.button > 0) return;
    if (!moved) this.pick(this.nearest(from), event);
    else if (!pans) this.store.choose(this.enclosed(corners.map((at) => this.camera.toPlane(at))), modeOf(event));
  }

  pick(i, event) {
    if (i < 0) return;
    this.ring(i);
    this.store.choose([i], modeOf(event));
  }

  pointercancel() {
    this.cancel();
  }

  pointerleave() {
    if (!this.drag) this.ring(-1);
  }

  contextmenu(event) {
    event.preventDefault();
  }

  // Without focus, the wheel scrolls the notebook.
  wheel(event) {
    if (document.activeElement !== this.canvas && !event.ctrlKey) return;
    event.preventDefault();
    const speed = event.deltaMode ? 0.05 : 0.0015; // lines or pixels
    this.camera.zoom(Math.exp(clamp(event.deltaY, -300, 300) * speed), this.position(event));
  }

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
}

// What a click or a lasso does with the selection.
function modeOf(event) {
  if (event.shiftKey) return "add";
  return event.altKey || event.ctrlKey || event.metaKey ? "remove" : "replace";
}

// ---- buttons and fields -------------------------------------------------------------------------

const makeField = (type, value, title, more = {}) => make("input", { type, value, title, ...more });
const makeGroup = (...children) => make("span", { className: "group" }, ...children);

// Fill a menu, and choose `value` if it is among the pairs of value and text.
function fillMenu(select, pairs, value) {
  select.replaceChildren(...pairs.map(([value, textContent]) => make("option", { value, textContent })));
  if (pairs.some(([known]) => `${known}` === value)) select.value = value;
}

// What is seen and how, taking back, saving.
function makeViewBar(plane, kernel) {
  const act = (text, title, action, content) => makeButton(text, title, () => kernel.ask(action, content?.()));
  const by = make("select", { on: { change: () => kernel.ask("color_by", { column: by.value }) } });
  const objects = makeField("checkbox", "", "", {
    on: { change: () => kernel.ask("show_objects", { on: objects.checked }) },
  });
  const modes = {
    lasso: makeButton("Lasso", "Dragging selects; Shift adds, Alt takes away", () => dragging("lasso")),
    pan: makeButton("Pan", "Dragging moves the plane", () => dragging("pan")),
  };
  function dragging(mode) {
    plane.mode = mode;
    plane.canvas.classList.toggle("pan", mode === "pan");
    for (const name in modes) modes[name].setAttribute("aria-pressed", name === mode);
  }
  const zooms = [
    makeButton("−", "Zoom out (-)", () => plane.camera.zoom(1.5)),
    makeButton("+", "Zoom in (+)", () => plane.camera.zoom(1 / 1.5)),
    makeButton("Fit", "Show all (0)", () => plane.camera.fit()),
  ];
  const undo = act("Undo", "", "undo");
  const redo = act("Redo", "", "redo");
  const home = makeField("text", "clusterer", "A folder for the clusterer, or a .json file for the edits alone");
  const save = act("Save", "Save the clusterer with its edits", "save", () => ({ to: home.value }));
  const el = makeBar(
    "View",
    make("label", {}, "Colour by ", by),
    make("label", {}, objects, " Object images"),
    makeGroup(modes.lasso, modes.pan),
    makeGroup(...zooms),
    makeGroup(undo, redo),
    makeGroup(save, home),
  );

  function show(panel) {
    fillMenu(
      by,
      (panel.columns ?? []).map((column) => [column, column]),
      panel.by,
    );
    objects.disabled = !panel.objects;
    objects.checked = panel.showing;
    undo.disabled = !panel.undo;
    redo.disabled = !panel.redo;
    undo.title = panel.undo ? `Undo: ${panel.undo} (Ctrl+Z)` : "Nothing to undo";
    redo.title = panel.redo ? `Redo: ${panel.redo} (Ctrl+Shift+Z)` : "Nothing to redo";
  }
  dragging("lasso");
  return { el, show, undo: () => undo.click(), redo: () => redo.click() };
}

// What is done with the selection.
function makeMendBar(store) {
  const act = (text, title, action, content) => makeButton(text, title, () => store.kernel.ask(action, content?.()));
  const merge = act("Merge", "All clusters of the selected images become one", "merge");
  const parts = makeField("number", 2, "Number of parts", { min: 2, max: 20 });
  const splitTitle = "Split the cluster of the selected images into parts that are alike";
  const split = act("Split into", splitTitle, "split", () => ({ n: +parts.value }));
  const offTitle = "Make the selected images of a cluster, and what is like them, a cluster of their own";
  const splitOff = act("Split off", offTitle, "split_off");
  const pressRename = (event) => {
    if (event.key === "Enter") rename.click();
  };
  const name = makeField("text", "", "New name", { placeholder: "name", on: { keydown: pressRename } });
  const rename = act("Rename", "Rename the cluster of the selected images", "rename", () => ({ name: name.value }));
  const drop = act("Drop", "Take the clusters of the selected images out of training", "drop");
  const target = make("select", { title: "Where to" });
  const move = act("Move to", "Move the selected images, and only them", "move", () => ({ to: +target.value }));
  const out = makeField("text", "selection", "A folder for the selected images, or a .csv file for a table of them");
  const send = act("Export", "Write the selected images, or a table of them", "export", () => ({ to: out.value }));
  const el = makeBar(
    "Mend",
    merge,
    makeGroup(split, parts),
    splitOff,
    makeGroup(rename, name),
    drop,
    makeGroup(move, target),
    makeGroup(send, out),
  );

  function show({ clusters = [], names, touched = [] }) {
    const called = touched.map((k) => names[k]);
    fillMenu(target, [...clusters, [-1, "no cluster"]], target.value);
    merge.textContent = touched.length > 1 ? `Merge ${called.join(" + ")}` : "Merge";
    drop.textContent = touched.length ? `Drop ${called.join(", ")}` : "Drop";
    merge.disabled = touched.length < 2;
    drop.disabled = !touched.length;
    for (const button of [split, splitOff, rename]) button.disabled = touched.length !== 1;
    for (const button of [move, send]) button.disabled = !store.selected.length;
  }
  return { el, show };
}

// ---- legend -------------------------------------------------------------------------------------

const inkOf = (colour) => (colour === BLACK ? "var(--front)" : colour);

function makeLegend(model, store) {
  const el = make("div", { className: "legend", aria: { role: "group", label: "Legend" } });

  function toggle(code) {
    const hidden = model.get("hidden");
    model.set("hidden", hidden.includes(code) ? hidden.filter((k) => k !== code) : [...hidden, code]);
    model.save_changes();
  }

  function makeEntry({ label, colour, shape, count }, code) {
    const off = model.get("hidden").includes(code);
    const pick = (event) =>
      store.choose(
        store.where((i) => store.codes[i] === code),
        modeOf(event),
      );
    const entry = makeButton("", off ? "Show" : "Hide", () => toggle(code), {
      className: "entry",
      aria: { pressed: !off },
    });
    entry.append(
      make("span", { className: "mark", textContent: MARKS[shape], style: { color: inkOf(colour) } }),
      `${label} `,
      make("span", { className: "count", textContent: count.toLocaleString() }),
    );
    const only = makeButton("select", "Select these images; Shift adds, Alt takes away", pick, {
      className: "only",
      ariaLabel: `Select ${label}`,
    });
    return make("div", { className: "bar" }, entry, only);
  }

  function makeScale({ colours, low, high }) {
    const background = `linear-gradient(90deg, ${colours.join()})`;
    return make("div", { className: "bar" }, low, make("div", { className: "scale", style: { background } }), high);
  }

  function show() {
    const legend = model.get("legend");
    const focused = [...el.querySelectorAll("button")].indexOf(document.activeElement);
    if (legend.colours) el.replaceChildren(legend.title, makeScale(legend));
    else el.replaceChildren(...legend.entries.map(makeEntry));
    el.querySelectorAll("button")[focused]?.focus();
  }
  return { el, show };
}

// ---- thumbnails of the selection ----------------------------------------------------------------

function makeThumbs(model, store, plane) {
  const title = make("strong");
  const pager = make("span");
  const earlier = makeButton("‹", "Earlier images (Page Up)", () => turn(-1));
  const later = makeButton("›", "Later images (Page Down)", () => turn(1));
  const none = makeButton("Clear", "Select nothing (Escape)", () => store.choose([], "replace"));
  const turning = make("span", { className: "group push" }, earlier, pager, later, none);
  const head = make("div", { className: "bar" }, title, turning);
  const el = make("div", { className: "thumbs", tabIndex: 0, aria: { role: "listbox", label: "Selected images" } });

  const per = () => model.get("per_page");
  const pages = () => Math.max(1, Math.ceil(store.selected.length / per()));
  const within = (page) => clamp(page, 0, pages() - 1);
  function goTo(page) {
    model.set("page", page);
    model.save_changes();
  }
  const turn = (by) => goTo(within(model.get("page") + by));

  // The ring goes through the selection, and pages turn with it.
  function along(by) {
    if (!store.selected.length) return;
    const at = store.selected.indexOf(plane.cursor);
    const next = clamp(at < 0 ? model.get("page") * per() : at + by, 0, store.selected.length - 1);
    plane.ringQuietly(store.selected[next]);
    goTo(Math.floor(next / per()));
    show();
  }

  function makeThumb(i, colours) {
    const { url, text = "" } = store.kernel.pictures.get(i) ?? {};
    const current = i === plane.cursor;
    const ring = () => {
      plane.ringQuietly(i);
      show();
    };
    const properties = {
      className: "thumb",
      title: text,
      style: { borderColor: inkOf(colours[store.codes[i]] ?? GREY) },
    };
    const thumb = make("div", { ...properties, aria: { role: "option", selected: current }, on: { click: ring } });
    thumb.classList.toggle("object", store.hollow[i] === 1);
    thumb.classList.toggle("current", current);
    if (url) thumb.append(make("img", { src: url, alt: text }));
    return thumb;
  }

  function show() {
    const n = store.selected.length;
    const page = within(model.get("page"));
    const shown = [...store.selected.subarray(page * per(), (page + 1) * per())];
    const { entries, colours = entries.map((entry) => entry.colour) } = model.get("legend");
    title.textContent = n ? `${n.toLocaleString()} selected` : "Nothing selected";
    pager.textContent = n ? `${page + 1} / ${pages()}` : "";
    earlier.disabled = page === 0;
    later.disabled = page >= pages() - 1;
    none.disabled = !n;
    store.kernel.want(shown);
    if (n) el.replaceChildren(...shown.map((i) => makeThumb(i, colours)));
    else el.replaceChildren(make("div", { className: "empty", textContent: HINT }));
  }
  return { head, el, show, turn, along };
}

// ---- what the view waits for --------------------------------------------------------------------

function makeSigns(model, kernel) {
  const stale = make("div", { className: "alert wrong", aria: { role: "alert" }, textContent: STALE });
  const busy = make("div", { className: "busy", hidden: true, aria: { role: "status" } });
  const stop = makeButton("Stop", "Keep what is shown", () => kernel.ask("stop"));

  function delay() {
    const waits = kernel.waiting();
    if (waits > GIVE_UP) return "The kernel does not answer: it is busy with another cell, or was restarted";
    return waits > PATIENCE ? "Waiting for the kernel …" : "";
  }

  function show() {
    const work = model.get("busy");
    const text = work || delay();
    busy.hidden = !text || kernel.lost;
    stale.hidden = !kernel.lost;
    busy.replaceChildren(make("span", { className: "spin" }), text);
    if (work) busy.append(stop);
  }
  return { stale, busy, show };
}

// ---- keys ---------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

// What a key does in the plane.
function planeKey(plane, toggle, key, shift) {
  const { camera } = plane;
  const arrow = ARROWS[key];
  if (arrow && shift) return () => camera.pan(-60 * arrow[0], 60 * arrow[1]);
  if (arrow) return () => plane.step(...arrow);
  const nearer = () => camera.zoom(1 / 1.5);
  const keys = { Enter: toggle, "+": nearer, "=": nearer, "-": () => camera.zoom(1.5), 0: () => camera.fit() };
  return keys[key];
}

// What a key does among the thumbnails.
function thumbsKey(thumbs, toggle, key) {
  const arrow = ARROWS[key];
  if (arrow) return () => thumbs.along(arrow[0] || -COLUMNS * arrow[1]);
  return { Enter: toggle, Delete: toggle }[key];
}

// A function that gives what a key does, or nothing if the key is not for this view.
function makeKeys(store, plane, thumbs, bar) {
  const toggle = () => {
    if (plane.cursor >= 0) store.choose([plane.cursor], store.chosen[plane.cursor] ? "remove" : "add");
  };
  const leave = () => {
    if (!plane.cancel()) store.choose([], "replace");
  };
  return (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const typing = event.target.matches("input:not([type=checkbox]), select");
    if (event.ctrlKey || event.metaKey) {
      if (typing) return null;
      return { z: event.shiftKey ? bar.redo : bar.undo, y: bar.redo }[key];
    }
    if (key === "Escape") return leave;
    if (typing) return null;
    if (key === "PageUp") return () => thumbs.turn(-1);
    if (key === "PageDown") return () => thumbs.turn(1);
    if (event.target === thumbs.el) return thumbsKey(thumbs, toggle, key);
    if (event.target === plane.canvas) return planeKey(plane, toggle, key, event.shiftKey);
    return null;
  };
}

// ---- the whole ----------------------------------------------------------------------------------

function render({ model, el }, store) {
  const plane = new Plane(model, store);
  const viewBar = makeViewBar(plane, store.kernel);
  const mendBar = makeMendBar(store);
  const legend = makeLegend(model, store);
  const thumbs = makeThumbs(model, store, plane);
  const signs = makeSigns(model, store.kernel);
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } });
  const side = make("div", { className: "side" }, legend.el, thumbs.head, thumbs.el);
  const body = make("div", { className: "body" }, plane.el, side);
  const properties = {
    className: "bgcs-view bgcs-explorer",
    aria: { role: "group", label: "Clusters of backgrounds" },
  };
  const root = make("div", properties, signs.stale, viewBar.el, mendBar.el, body, said);
  plane.el.append(signs.busy);
  el.append(root);

  function showPanel() {
    const panel = model.get("panel");
    viewBar.show(panel);
    mendBar.show(panel);
    said.textContent = panel.said;
    said.classList.toggle("wrong", panel.wrong);
    plane.canvas.setAttribute("aria-label", `Plane of ${store.n} images. ${KEYS}`);
  }

  const updates = {
    points: [showPanel, thumbs.show, plane.redraw],
    selected: [showPanel, thumbs.show, plane.redraw],
    hidden: [legend.show, plane.redraw],
    legend: [legend.show, thumbs.show, plane.redraw],
    panel: [showPanel],
    page: [thumbs.show],
    camera: [plane.redraw],
    pictures: [thumbs.show, () => plane.showCard(), signs.show],
    busy: [signs.show],
    waiting: [signs.show],
  };
  const update = (what) => updates[what].forEach((show) => show());
  store.listeners.add(update);
  const forgetKeys = listenToKeys(root, makeKeys(store, plane, thumbs, viewBar));
  for (const what of ["legend", "panel", "page", "busy"]) update(what);
  return () => {
    store.listeners.delete(update);
    forgetKeys();
    plane.end();
  };
}

export default () => {
  let store;
  return {
    initialize({ model }) {
      store = new Store(model);
    },
    render(context) {
      return render(context, store);
    },
  };
};
