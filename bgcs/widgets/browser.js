// The view of MaskBrowser. Pictures and masks come as tiles of a pyramid, only those that are on the screen, as binary
// buffers; opacity, threshold and colours are applied here, so sliders ask nothing of the kernel. A page says which
// tiles it lacks, those that matter most first; each such list takes the place of the one before.
// No library, no WebGL: a screen has fewer than two million pixels, and to colour them is a matter of milliseconds.

const SIDE = 512; // pixels of a tile
const KEPT = 300e6; // bytes of tiles that a page keeps
const THUMBS = 4000; // thumbnails that a page keeps
const STEP = 76; // screen pixels from one thumbnail to the next
const AHEAD = [1, 2, -1, 10, -10]; // neighbours that are fetched before they are wanted
const PATIENCE = 1000; // milliseconds after which what didn't come is asked for again
const NOTHING = 256; // of codes: outside of the image, or not here yet; 0 is unseen, 1 to 255 are probabilities
const UNSEEN = [128, 128, 128, 120];
const MODES = [
  ["overlay", "Overlay", "The image, and the mask on it (1)"],
  ["mask", "Mask", "The mask at the threshold: white object, black background, grey unseen (2)"],
  ["probabilities", "Probabilities", "How likely each pixel is object, dark blue to yellow (3)"],
  ["image", "Image", "The image alone (4)"],
];
const COLOURS = { vermilion: [213, 94, 0], "sky blue": [86, 180, 233], yellow: [240, 228, 66], black: [0, 0, 0] };
// cividis
const SCALE = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const DECISIONS = ["undecided", "accepted", "rejected", "correct"];
const SIGNS = ["", "✓", "✕", "✎"];
const SORTS = [
  ["name", "name"],
  ["uncertainty", "uncertainty"],
  ["size", "size of the object"],
  ["presence", "presence"],
  ["decision", "decision"],
];

const counted = (n) => n.toLocaleString("en");
const cutOf = (threshold) => 1 + Math.round(threshold * 254); // the code at and above which a pixel is object

// ---- what is measured on a mask, from how often each code occurs in it --------------------------

function shareOf(hist, cut) {
  let [seen, marked] = [0, 0];
  for (let code = 1; code < 256; code++) {
    seen += hist[code];
    if (code >= cut) marked += hist[code];
  }
  return [marked, seen ? marked / seen : 0];
}

// As in Python: how far probabilities lie from the mask that the threshold makes of them.
function uncertaintyOf(hist, cut) {
  let [seen, apart, either] = [0, 0, 0];
  for (let code = 1; code < 256; code++) {
    const p = (code - 1) / 254;
    seen += hist[code];
    apart += hist[code] * (code >= cut ? 1 - p : p) ** 2;
    either += hist[code] * (code >= cut ? 1 : p * p);
  }
  return apart / Math.max(either, 0.001 * seen, 1e-9);
}

// ---- tiles --------------------------------------------------------------------------------------

// The least recently used go first; what is dropped is closed.
class Shelf {
  constructor(most, weigh) {
    Object.assign(this, { most, weigh, held: new Map(), weight: 0 });
  }

  get(key) {
    const found = this.held.get(key);
    if (!found) return null;
    this.held.delete(key);
    this.held.set(key, found);
    return found;
  }

  has(key) {
    return this.held.has(key);
  }

  drop(key) {
    const found = this.held.get(key);
    if (!found) return;
    this.weight -= this.weigh(found);
    this.held.delete(key);
    found.close?.();
  }

  put(key, value) {
    this.drop(key);
    this.held.set(key, value);
    this.weight += this.weigh(value);
    for (const old of this.held.keys()) {
      if (this.weight <= this.most || this.held.size === 1) return;
      this.drop(old);
    }
  }
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// ---- what all views of a model share ------------------------------------------------------------

class Store {
  constructor(model) {
    const weigh = ({ width, height, bytes }) => (bytes ? bytes.length : 4 * width * height);
    Object.assign(this, { model, page: `${Math.random()}`, infos: new Map(), masks: new Map(), thumbs: new Map() });
    Object.assign(this, { tiles: new Shelf(KEPT, weigh), listeners: new Set(), lacking: new Set() });
    Object.assign(this, { asked: 0, heard: 0 });
    this.lost = false;
    this.since = 0; // when the oldest message without an answer was sent
    this.ask = oncePerFrame(() => this.askNow());
    this.readOrder();
    model.on("msg:custom", (message, buffers) => this.hear(message, buffers));
    model.on("comm_live_update", () => this.reconnect());
    for (const name of ["current", "marks", "settings", "panel", "busy"]) {
      model.on(`change:${name}`, () => this.tell(name));
    }
    model.on("change:order", () => {
      this.readOrder();
      this.tell("order");
    });
    this.clock = setInterval(() => this.tick(), 250);
  }

  tell(what) {
    for (const listener of this.listeners) listener(what);
  }

  readOrder() {
    const { buffer, byteOffset, byteLength } = this.model.get("order");
    this.order = new Uint32Array(buffer.slice(byteOffset, byteOffset + byteLength));
    this.places = new Int32Array(this.model.get("total")).fill(-1);
    this.order.forEach((i, place) => (this.places[i] = place));
  }

  get current() {
    return this.model.get("current");
  }

  get place() {
    return this.places[this.current] ?? -1;
  }

  mark(i) {
    const marks = this.model.get("marks");
    return i < marks.byteLength ? marks.getUint8(i) : 0;
  }

  // Images that come next, in the order of the list.
  ahead() {
    return AHEAD.map((by) => this.order[this.place + by]).filter((i) => i !== undefined);
  }

  goTo(place) {
    if (!this.order.length) return;
    this.model.set("current", this.order[clamp(place, 0, this.order.length - 1)]);
    this.model.save_changes();
  }

  set(changes) {
    this.model.set("settings", { ...this.model.get("settings"), ...changes });
    this.model.save_changes(); // at once: what waits here would be taken back by Python's echo of what was before
  }

  // ---- messages

  send(content) {
    this.since ||= performance.now();
    try {
      this.model.send({ ...content, page: this.page, id: ++this.asked });
    } catch {
      this.lost = true; // the channel is closed
      this.tell("waiting");
    }
  }

  askNow() {
    const tiles = [];
    const thumbs = [];
    for (const lacks of this.lacking) lacks(tiles, thumbs);
    this.wanting = tiles.length + thumbs.length > 0;
    this.last = performance.now();
    this.send({ do: "wants", image: this.current, ahead: this.ahead(), tiles, thumbs });
  }

  tick() {
    if (this.wanting && performance.now() - this.last > PATIENCE) this.ask();
    this.tell("waiting");
  }

  waiting() {
    return this.since ? performance.now() - this.since : 0;
  }

  reconnect() {
    this.lost = true;
    this.infos.clear();
    this.masks.clear();
    this.ask();
    this.tell("waiting");
  }

  hear(message, buffers) {
    this.lost = false;
    if (message.heard) {
      if (message.heard[0] === this.page && message.heard[1] === this.asked) this.since = 0;
    } else if (message.info) {
      this.infos.set(message.info.image, message.info);
      this.change("tiles");
    } else if (message.masked) {
      this.putMask(message.masked, buffers);
      this.change("masked");
    } else if (message.unmasked !== undefined) {
      this.masks.delete(message.unmasked);
    } else if (message.tile) {
      this.putTile(message.tile, message.shape, buffers[0]);
    } else if (message.thumb !== undefined) {
      this.putThumb(message, buffers[0]);
    }
  }

  change(what) {
    this.tell(what);
    this.ask();
  }

  putMask(masked, [hist]) {
    if (hist) masked.hist = new Uint32Array(hist.buffer.slice(hist.byteOffset, hist.byteOffset + hist.byteLength));
    for (const key of [...this.tiles.held.keys()]) if (key.startsWith(`mask,${masked.image},`)) this.tiles.drop(key);
    this.masks.set(masked.image, masked);
  }

  async putTile(what, [height, width], bytes) {
    const key = what.join();
    if (what[0] === "mask") this.tiles.put(key, { width, height, bytes: await inflated(bytes) });
    else this.tiles.put(key, await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none" }));
    this.tell("tiles");
  }

  putThumb({ thumb: i, name, problem }, bytes) {
    const url = bytes?.byteLength ? URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })) : "";
    URL.revokeObjectURL(this.thumbs.get(i)?.url ?? "");
    this.thumbs.set(i, { url, name, problem });
    for (const [old, { url: address }] of this.thumbs) {
      if (this.thumbs.size <= THUMBS) break;
      URL.revokeObjectURL(address);
      this.thumbs.delete(old);
    }
    this.tell("thumbs");
  }
}

// ---- which part of an image is seen, and the tiles of it ----------------------------------------

// Middle in pixels of the image, and screen pixels a pixel of the image.
function wholeImage(info, width, height) {
  const k = Math.min(width / info.width, height / info.height, 16);
  return { x: info.width / 2, y: info.height / 2, k };
}

// The level of the pyramid whose pixels are nearest to those of the screen.
const levelFor = (info, k) => clamp(Math.round(-Math.log2(k)), 0, info.levels - 1);

// Rows and columns of the tiles of a level that are on a screen.
function* tilesOn(info, camera, width, height, level) {
  const [halfWidth, halfHeight] = [width / 2 / camera.k, height / 2 / camera.k];
  const size = SIDE * 2 ** level;
  const range = (middle, half, n) => [
    clamp(Math.floor((middle - half) / size), 0, Math.ceil(n / size) - 1),
    clamp(Math.floor((middle + half) / size), 0, Math.ceil(n / size) - 1),
  ];
  const [top, bottom] = range(camera.y, halfHeight, info.height);
  const [left, right] = range(camera.x, halfWidth, info.width);
  for (let row = top; row <= bottom; row++) for (let column = left; column <= right; column++) yield [row, column];
}

// The screen: two canvases, the picture below and what the mask says above it.
class Screen {
  constructor(model, store) {
    Object.assign(this, { model, store, width: 0, height: 0, ratio: 1, camera: null, drag: null, hidden: false });
    this.below = make("canvas", { aria: { hidden: "true" } });
    this.canvas = make("canvas", { tabIndex: 0, aria: { role: "application" } });
    this.el = make("div", { className: "screen" }, this.below, this.canvas);
    this.picture = this.below.getContext("2d", { alpha: false });
    this.over = this.canvas.getContext("2d");
    this.redraw = oncePerFrame(() => this.draw());
    this.repaint = oncePerFrame(() => this.paint());
    this.listen();
  }

  listen() {
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "wheel", "dblclick"]) {
      this.canvas.addEventListener(name, (event) => this[name](event), { passive: false });
    }
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(this.el);
  }

  end() {
    this.sized.disconnect();
    this.redraw.cancel();
    this.repaint.cancel();
  }

  resize() {
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.width = Math.round(this.el.clientWidth * this.ratio);
    this.height = Math.round(this.el.clientHeight * this.ratio);
    if (!this.width || !this.height) return;
    for (const canvas of [this.below, this.canvas]) Object.assign(canvas, { width: this.width, height: this.height });
    this.pixels = this.over.createImageData(this.width, this.height);
    this.codes = new Uint16Array(this.width * this.height);
    this.moved();
  }

  get info() {
    const info = this.store.infos.get(this.store.current);
    return info && !info.problem ? info : null;
  }

  // Where the camera is, in pixels of the canvas.
  now(info = this.info) {
    return this.camera ?? wholeImage(info, this.width, this.height);
  }

  moved() {
    this.redraw();
    this.store.ask();
  }

  look(camera) {
    const info = this.info;
    if (!info) return;
    const least = Math.min(1, wholeImage(info, this.width, this.height).k / 2);
    const k = clamp(camera.k, least, 64 * this.ratio);
    this.camera = { x: clamp(camera.x, 0, info.width), y: clamp(camera.y, 0, info.height), k };
    this.moved();
  }

  fit() {
    this.camera = null;
    this.moved();
  }

  pan(dx, dy) {
    if (!this.info) return;
    const { x, y, k } = this.now();
    this.look({ x: x - (dx * this.ratio) / k, y: y - (dy * this.ratio) / k, k });
  }

  // Nearer to the point of the screen, which stays where it is; by default the middle.
  zoom(factor, [px, py] = [this.width / 2, this.height / 2]) {
    if (!this.info) return;
    const { x, y, k } = this.now();
    const [dx, dy] = [(px - this.width / 2) / k, (py - this.height / 2) / k];
    const nearer = clamp(k * factor, 1e-4, 64 * this.ratio);
    this.look({ x: x + dx - (dx * k) / nearer, y: y + dy - (dy * k) / nearer, k: nearer });
  }

  // Zoom so that a pixel of the image is one of the screen.
  real() {
    if (this.info) this.look({ ...this.now(), k: this.ratio });
  }

  // ---- tiles that are lacking, those that matter most first

  lacks(tiles) {
    const { store } = this;
    if (!this.width) return;
    const seen = [store.current, ...store.ahead()];
    seen.forEach((i, place) => {
      const info = store.infos.get(i);
      if (!info) tiles.push(["info", i]);
      if (!info || info.problem) return;
      this.lacksOf(i, info, place ? wholeImage(info, this.width, this.height) : this.now(), tiles);
    });
  }

  lacksOf(i, info, camera, tiles) {
    const level = levelFor(info, camera.k);
    const mask = this.store.masks.get(i);
    for (const layer of mask && !mask.problem ? ["picture", "mask"] : ["picture"]) {
      const wanted = [[info.levels - 1, 0, 0]]; // something to see at once
      for (const at of tilesOn(info, camera, this.width, this.height, level)) wanted.push([level, ...at]);
      for (const at of wanted) {
        if (!this.store.tiles.has([layer, i, ...at].join())) tiles.push([layer, i, ...at]);
      }
    }
  }

  // A tile, or the part of a coarser one that lies there.
  find(layer, i, info, level, row, column) {
    for (let up = 0; level + up < info.levels; up++) {
      const tile = this.store.tiles.get([layer, i, level + up, row >> up, column >> up].join());
      if (tile) return { tile, up };
    }
    return null;
  }

  // ---- drawing

  draw() {
    if (!this.width) return;
    const { picture, width, height } = this;
    picture.fillStyle = "#202020";
    picture.fillRect(0, 0, width, height);
    this.codes.fill(NOTHING);
    if (this.info) this.drawImage(this.info);
    else this.tellShown([], []);
    this.paint();
  }

  drawImage(info) {
    const camera = this.now(info);
    const level = levelFor(info, camera.k);
    this.picture.imageSmoothingEnabled = camera.k < 2;
    const tiles = [...tilesOn(info, camera, this.width, this.height, level)];
    const pictures = tiles.map((at) => this.drawTile(info, camera, level, ...at));
    const masks = tiles.map((at) => this.readCodes(info, camera, level, ...at));
    this.tellShown(pictures, masks);
  }

  // What is on the screen: 'none', 'coarse' while tiles are on their way, 'sharp'.
  tellShown(pictures, masks) {
    const state = (ups) => (ups.some((up) => up >= 0) ? (ups.every((up) => up === 0) ? "sharp" : "coarse") : "none");
    Object.assign(this.el.dataset, { image: this.store.current, picture: state(pictures), mask: state(masks) });
  }

  // Edges of a tile on the screen, whole pixels so that no gap shows between tiles.
  edges({ x, y, k }, info, level, row, column) {
    const size = SIDE * 2 ** level;
    const across = (u) => Math.round((Math.min(u, info.width) - x) * k + this.width / 2);
    const down = (v) => Math.round((Math.min(v, info.height) - y) * k + this.height / 2);
    return [across(column * size), down(row * size), across((column + 1) * size), down((row + 1) * size)];
  }

  // How many levels coarser than wanted it was drawn; -1: not at all.
  drawTile(info, camera, level, row, column) {
    const found = this.find("picture", this.store.current, info, level, row, column);
    if (!found) return -1;
    const { tile, up } = found;
    const [left, top, right, bottom] = this.edges(camera, info, level, row, column);
    const part = (at) => (at % (1 << up)) * (SIDE >> up);
    const [sx, sy] = [part(column), part(row)];
    const sw = up ? Math.min(SIDE / 2 ** up, tile.width - sx) : tile.width;
    const sh = up ? Math.min(SIDE / 2 ** up, tile.height - sy) : tile.height;
    if (sw > 0 && sh > 0) this.picture.drawImage(tile, sx, sy, sw, sh, left, top, right - left, bottom - top);
    return up;
  }

  // The codes of a tile of the mask, by pixel of the screen; tells likewise.
  readCodes(info, camera, level, row, column) {
    const found = this.find("mask", this.store.current, info, level, row, column);
    if (!found) return -1;
    const { tile, up } = found;
    const [left, top, right, bottom] = this.edges(camera, info, level, row, column);
    const [x0, x1] = [Math.max(0, left), Math.min(this.width, right)];
    const [y0, y1] = [Math.max(0, top), Math.min(this.height, bottom)];
    const size = 2 ** (level + up);
    const texel = (at, middle, half, tileAt, n) =>
      clamp(Math.floor(((at + 0.5 - half) / camera.k + middle) / size) - (tileAt >> up) * SIDE, 0, n - 1);
    const columns = new Int32Array(Math.max(0, x1 - x0));
    for (let x = x0; x < x1; x++) columns[x - x0] = texel(x, camera.x, this.width / 2, column, tile.width);
    for (let y = y0; y < y1; y++) {
      const from = texel(y, camera.y, this.height / 2, row, tile.height) * tile.width;
      const to = y * this.width;
      for (let x = x0; x < x1; x++) this.codes[to + x] = tile.bytes[from + columns[x - x0]];
    }
    return up;
  }

  // A colour for each code.
  looks({ mode, threshold, opacity, colour }) {
    const cut = cutOf(threshold);
    const looks = new Uint32Array(257);
    const pack = ([r, g, b, a]) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const ink = COLOURS[colour] ?? COLOURS.vermilion;
    const alpha = Math.round(255 * opacity);
    for (let code = 1; code < 256; code++) {
      if (mode === "mask") looks[code] = pack(code >= cut ? [255, 255, 255, 255] : [0, 0, 0, 255]);
      else if (mode === "probabilities") looks[code] = pack([...onScale((code - 1) / 254), alpha]);
      else if (mode === "overlay" && code >= cut) looks[code] = pack([...ink, alpha]);
    }
    if (mode !== "image") looks[0] = pack(mode === "mask" ? [127, 127, 127, 255] : UNSEEN);
    return { looks, outline: mode === "overlay" ? pack([...ink, 255]) : 0, cut };
  }

  // Sliders need no more than this.
  paint() {
    if (!this.width) return;
    const { width, height, codes } = this;
    const settings = { ...this.model.get("settings") };
    if (this.hidden) settings.mode = "image";
    const { looks, outline, cut } = this.looks(settings);
    const pixels = new Uint32Array(this.pixels.data.buffer);
    for (let p = 0; p < codes.length; p++) pixels[p] = looks[codes[p]];
    if (outline) this.outline(pixels, outline, cut, width, height, codes);
    this.over.putImageData(this.pixels, 0, 0);
  }

  // Pixels of the mask that have others beside them.
  outline(pixels, ink, cut, width, height, codes) {
    const line = Math.max(1, Math.round(1.5 * this.ratio));
    const object = (p) => codes[p] >= cut && codes[p] !== NOTHING;
    for (let y = line; y < height - line; y++) {
      for (let x = line; x < width - line; x++) {
        const p = y * width + x;
        if (!object(p)) continue;
        const inside = object(p - line) && object(p + line) && object(p - line * width) && object(p + line * width);
        if (!inside) pixels[p] = ink;
      }
    }
  }

  // ---- mouse

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
  }

  pointerdown(event) {
    if (event.button > 1) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = this.position(event);
  }

  pointermove(event) {
    if (!this.drag) return;
    const [x, y] = this.position(event);
    this.pan((x - this.drag[0]) / this.ratio, (y - this.drag[1]) / this.ratio);
    this.drag = [x, y];
  }

  pointerup() {
    this.drag = null;
  }

  pointercancel() {
    this.drag = null;
  }

  dblclick(event) {
    this.zoom(2, this.position(event));
  }

  // Without focus, the wheel scrolls the notebook.
  wheel(event) {
    if (document.activeElement !== this.canvas && !event.ctrlKey) return;
    event.preventDefault();
    const speed = event.deltaMode ? 0.05 : 0.0015; // lines or pixels
    this.zoom(Math.exp(-clamp(event.deltaY, -300, 300) * speed), this.position(event));
  }
}

function onScale(share) {
  const at = share * (SCALE.length - 1);
  const low = Math.min(Math.floor(at), SCALE.length - 2);
  return SCALE[low].map((value, i) => Math.round(value + (SCALE[low + 1][i] - value) * (at - low)));
}

// ---- the strip of thumbnails: only those that are seen exist ------------------------------------

class Strip {
  constructor(store) {
    Object.assign(this, { store, items: new Map(), needed: [] });
    this.long = make("div", { className: "long" });
    const aria = { role: "listbox", label: "Images", orientation: "horizontal" };
    this.el = make("div", { className: "strip", tabIndex: 0, aria }, this.long);
    this.show = oncePerFrame(() => this.showNow());
    this.el.addEventListener("scroll", this.show);
    this.sized = new ResizeObserver(this.show);
    this.sized.observe(this.el);
    this.el.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  end() {
    this.sized.disconnect();
    this.show.cancel();
  }

  wheel(event) {
    if (Math.abs(event.deltaY) <= Math.abs(event.deltaX)) return;
    if (!this.el.matches(":focus, :focus-within")) return; // the notebook scrolls
    event.preventDefault();
    this.el.scrollLeft += event.deltaY;
  }

  // Bring the present image into the middle, unless it is seen.
  reveal() {
    const left = this.store.place * STEP;
    const { scrollLeft, clientWidth } = this.el;
    if (left < scrollLeft || left + STEP > scrollLeft + clientWidth) {
      this.el.scrollLeft = left - (clientWidth - STEP) / 2;
    }
    this.show();
  }

  showNow() {
    const { store } = this;
    const { scrollLeft, clientWidth } = this.el;
    const n = store.order.length;
    this.long.style.width = `${n * STEP}px`;
    const first = clamp(Math.floor(scrollLeft / STEP) - 2, 0, Math.max(0, n - 1));
    const last = Math.min(n, Math.ceil((scrollLeft + clientWidth) / STEP) + 2);
    const shown = new Map();
    for (let place = first; place < last; place++) shown.set(place, this.item(place));
    for (const [place, item] of this.items) if (shown.get(place) !== item) item.remove();
    this.items = shown;
    this.el.setAttribute("aria-activedescendant", this.items.get(store.place)?.id ?? "");
    const before = this.needed.join();
    this.needed = [...shown.keys()].map((place) => store.order[place]).filter((i) => !store.thumbs.has(i));
    if (this.needed.length && this.needed.join() !== before) store.ask();
  }

  lacks(thumbs) {
    const missing = this.needed.filter((i) => !this.store.thumbs.has(i));
    const far = (i) => Math.abs(this.store.places[i] * STEP - this.el.scrollLeft - this.el.clientWidth / 2);
    thumbs.push(...missing.sort((i, j) => far(i) - far(j)));
  }

  // A thumbnail, made once and mended when something about it changes.
  item(place) {
    const { store } = this;
    const i = store.order[place];
    const { url, name = `image ${i + 1}`, problem = "" } = store.thumbs.get(i) ?? {};
    const mark = store.mark(i);
    const state = [i, url, mark, i === store.current, problem].join();
    const known = this.items.get(place);
    if (known?.dataset.state === state) return known;
    const label = mark ? `${name}, ${DECISIONS[mark]}` : name;
    const item = make("div", {
      className: `thumb ${DECISIONS[mark]}`,
      id: `bgcs-thumb-${store.page}-${place}`,
      title: problem || label,
      style: { left: `${place * STEP}px` },
      aria: { role: "option", label, selected: i === store.current, posinset: place + 1, setsize: store.order.length },
      on: { click: () => store.goTo(store.places[i]) },
    });
    item.dataset.state = state;
    if (url) item.append(make("img", { src: url, alt: "", draggable: false }));
    else if (problem) item.append(make("span", { className: "problem", textContent: "!" }));
    if (mark) item.append(make("span", { className: "sign", textContent: SIGNS[mark], aria: { hidden: "true" } }));
    this.long.append(item);
    return item;
  }
}

// ---- buttons, menus and sliders -----------------------------------------------------------------

function makeSlider(label, title, change) {
  const shown = make("span", { className: "value" });
  const put = (value) => {
    input.value = value;
    shown.textContent = Number(value).toFixed(2);
  };
  const input = make("input", {
    type: "range", min: 0, max: 1, step: 0.01, title, aria: { label },
    on: { input: () => change(Number(input.value)) },
  });
  return { el: make("label", {}, label, input, shown), input, put };
}

function makeMenu(label, pairs, change) {
  const options = pairs.map(([value, textContent]) => make("option", { value, textContent }));
  const select = make("select", { aria: { label }, on: { change: () => change(select.value) } }, ...options);
  return { el: make("label", {}, label, select), put: (value) => (select.value = value) };
}

const makeGroup = (label, ...children) =>
  make("span", { className: "group", aria: { role: "group", label } }, ...children);

// A button that can be pressed no more gives the focus to the picture, or keys would go nowhere.
function disable(button, disabled) {
  if (disabled && document.activeElement === button) {
    button.closest(".bgcs-browser").querySelector("canvas[tabindex]").focus({ preventScroll: true });
  }
  button.disabled = disabled;
}

// Which images, in which order, and where in it one is.
function makeListBar(model, store) {
  const panel = () => model.get("panel");
  const sort = (changes) => {
    const { by, reverse, show } = panel();
    store.send({ do: "sort", by, reverse, show, ...changes });
  };
  const by = makeMenu("Sort by", SORTS, (value) => sort({ by: value, reverse: false }));
  const reverse = makeButton("⇅", "The other way round", () => sort({ reverse: !panel().reverse }), {
    ariaLabel: "Reverse the order",
  });
  const shows = [["all", "all"], ...DECISIONS.map((name) => [name, name === "correct" ? "to correct" : name])];
  const show = makeMenu("Show", shows, (value) => sort({ show: value }));
  const number = make("input", {
    type: "number", min: 1, title: "Go to this place in the list", aria: { label: "Place in the list" },
    on: { change: () => store.goTo(Math.round(Number(number.value)) - 1) },
  });
  const of = make("span");
  const previous = makeButton("‹", "Previous image (left arrow)", () => store.goTo(store.place - 1), {
    ariaLabel: "Previous image",
  });
  const next = makeButton("›", "Next image (right arrow)", () => store.goTo(store.place + 1), {
    ariaLabel: "Next image",
  });
  const moving = makeGroup("Image", previous, number, of, next);
  moving.classList.add("push");
  const el = makeBar("List", by.el, reverse, show.el, moving);
  const update = () => {
    const n = store.order.length;
    by.put(panel().by);
    show.put(panel().show);
    reverse.setAttribute("aria-pressed", panel().reverse);
    if (document.activeElement !== number) number.value = store.place + 1;
    number.max = n;
    of.textContent = ` of ${counted(n)} `;
    disable(previous, store.place <= 0);
    disable(next, store.place >= n - 1);
  };
  return { el, update };
}

// What is seen of an image, and how.
function makeLookBar(model, store, screen) {
  const set = (name) => (value) => store.set({ [name]: value });
  const modes = MODES.map(([mode, label, title]) => makeButton(label, title, () => store.set({ mode })));
  const threshold = makeSlider("threshold", "At and above which a pixel counts as object ([ and ])", set("threshold"));
  const opacity = makeSlider("opacity", "Of what lies on the image", set("opacity"));
  const colour = makeMenu("colour", Object.keys(COLOURS).map((name) => [name, name]), set("colour"));
  const zooms = [
    makeButton("−", "Zoom out (-)", () => screen.zoom(1 / 1.5), { ariaLabel: "Zoom out" }),
    makeButton("+", "Zoom in (+)", () => screen.zoom(1.5), { ariaLabel: "Zoom in" }),
    makeButton("Fit", "The whole image (0)", () => screen.fit()),
    makeButton("1:1", "A pixel of the image is one of the screen (9)", () => screen.real()),
  ];
  const [shown, zoom] = [makeGroup("What is shown", ...modes), makeGroup("Zoom", ...zooms)];
  const el = makeBar("Look", shown, threshold.el, opacity.el, colour.el, zoom);
  const update = () => {
    const settings = model.get("settings");
    MODES.forEach(([mode], k) => modes[k].setAttribute("aria-pressed", mode === settings.mode));
    threshold.put(settings.threshold);
    opacity.put(settings.opacity);
    colour.put(settings.colour);
    opacity.el.classList.toggle("faint", ["mask", "image"].includes(settings.mode));
  };
  const step = (by) => {
    const percent = Math.round(100 * model.get("settings").threshold + by);
    store.set({ threshold: clamp(percent / 100, 0, 1) });
  };
  return { el, update, step };
}

// What is decided about an image.
function makeDecisionBar(model, store) {
  const decide = (decision) => {
    const { threshold, onward } = model.get("settings");
    store.send({ do: "decide", image: store.current, decision: decision || null, threshold });
    if (decision && onward) store.goTo(store.place + 1);
  };
  const button = (k, label, title) =>
    makeButton(`${SIGNS[k]} ${label}`, title, () => decide(DECISIONS[k]), { className: `decision ${DECISIONS[k]}` });
  const buttons = [
    button(1, "Accept", "The mask is good (A)"),
    button(2, "Reject", "The mask is of no use (R)"),
    button(3, "Correct", "The mask is to be corrected (C)"),
  ];
  const clear = makeButton("Clear", "Undecided again (U)", () => decide(""));
  const onward = make("input", { type: "checkbox", on: { change: () => store.set({ onward: onward.checked }) } });
  const counts = make("span", { className: "faint push" });
  const label = make("label", { title: "Go on to the next image once one is decided" }, onward, "then next");
  const el = makeBar("Decision", makeGroup("Decision", ...buttons, clear), label, counts);
  const update = () => {
    const mark = store.mark(store.current);
    buttons.forEach((one, k) => one.setAttribute("aria-pressed", mark === k + 1));
    disable(clear, !mark);
    onward.checked = model.get("settings").onward;
    const [, accepted, rejected, correct] = model.get("panel").counts.map(counted);
    counts.textContent = `${accepted} accepted, ${rejected} rejected, ${correct} to correct`;
  };
  return { el, update, decide };
}

// ---- words --------------------------------------------------------------------------------------

function describe(model, store) {
  const i = store.current;
  const info = store.infos.get(i);
  const mask = store.masks.get(i);
  if (!info || store.place < 0) return "";
  const words = [info.name];
  if (info.problem) return words[0];
  words.push(`${counted(info.width)} × ${counted(info.height)}`);
  if (mask?.problem) words.push(`no mask: ${mask.problem}`);
  else if (mask?.hist) words.push(...measured(mask, cutOf(model.get("settings").threshold)));
  if (store.mark(i)) words.push(DECISIONS[store.mark(i)]);
  return words.join(" · ");
}

function measured({ hist, presence }, cut) {
  const [marked, share] = shareOf(hist, cut);
  const percent = (100 * share).toFixed(share < 0.1 ? 2 : 1);
  const unsure = uncertaintyOf(hist, cut).toFixed(2);
  const size = `object ${percent} % (${counted(marked)} pixels)`;
  return [`presence ${presence.toFixed(2)}`, size, `uncertainty ${unsure}`];
}

function makeSigns(model, store) {
  const stale = make("div", { className: "alert wrong", hidden: true, aria: { role: "alert" }, textContent: STALE });
  const problem = make("div", { className: "broken", hidden: true, aria: { role: "alert" } });
  const text = make("span");
  const bar = make("progress", { max: 1, aria: { label: "Done" } });
  const stop = makeButton("Stop", "Predict only what is looked at", () => store.send({ do: "stop" }));
  const spin = make("span", { className: "spin" });
  const busy = make("div", { className: "busy", hidden: true, aria: { role: "status" } }, spin, text, bar, stop);

  function update() {
    const info = store.infos.get(store.current);
    const work = model.get("busy");
    const waits = store.waiting() > PATIENCE && "Waiting for the kernel …";
    const reads = !info && store.order.length && store.waiting() < PATIENCE && store.wanting && "Reading …";
    text.textContent = work.text || waits || reads || "";
    busy.hidden = !text.textContent || store.lost;
    bar.hidden = !work.text;
    bar.value = work.share ?? 0;
    stop.hidden = !work.all;
    stale.hidden = !store.lost;
    const empty = store.order.length ? "" : "No image is of this kind.";
    problem.textContent = info?.problem || empty;
    problem.hidden = !problem.textContent;
  }
  return { stale, problem, busy, update };
}

// ---- keys ---------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

// A function that gives what a key does, or nothing if the key is not for this view.
function makeKeys(store, screen, look, decisions) {
  const go = (by) => () => store.goTo(store.place + by);
  const mode = (k) => () => store.set({ mode: MODES[k][0] });
  const plain = {
    ArrowLeft: go(-1), ArrowRight: go(1), PageUp: go(-10), PageDown: go(10),
    Home: () => store.goTo(0), End: () => store.goTo(store.order.length - 1),
    a: () => decisions.decide("accepted"), r: () => decisions.decide("rejected"),
    c: () => decisions.decide("correct"), u: () => decisions.decide(""),
    1: mode(0), 2: mode(1), 3: mode(2), 4: mode(3), "[": () => look.step(-1), "]": () => look.step(1),
    "+": () => screen.zoom(1.5), "=": () => screen.zoom(1.5), "-": () => screen.zoom(1 / 1.5),
    0: () => screen.fit(), 9: () => screen.real(),
  };
  return (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return null;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const typing = event.target.matches("input:not([type=checkbox], [type=range]), select");
    const sliding = event.target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(key);
    if (typing || sliding) return null;
    const arrow = event.shiftKey && ARROWS[key];
    return arrow ? () => screen.pan(80 * arrow[0], 80 * arrow[1]) : plain[key];
  };
}

// While H is held down, nothing lies on the image.
function hideWhileHeld(root, screen) {
  const hide = (hidden) => (event) => {
    if (event.key.toLowerCase?.() !== "h" || event.target.matches("input[type=number]")) return;
    screen.hidden = hidden;
    screen.repaint();
  };
  root.addEventListener("keydown", hide(true));
  root.addEventListener("keyup", hide(false));
}

// ---- the whole ----------------------------------------------------------------------------------

const KEYS_IN_WORDS =
  "Arrows: next and previous image; A accepts, R rejects, C marks for correction; " +
  "plus and minus zoom, Shift and arrows move.";

function render({ model, el }, store) {
  const screen = new Screen(model, store);
  const strip = new Strip(store);
  const list = makeListBar(model, store);
  const look = makeLookBar(model, store, screen);
  const decisions = makeDecisionBar(model, store);
  const signs = makeSigns(model, store);
  const scrub = make("input", {
    type: "range", className: "scrub", min: 1, step: 1, title: "Through the list",
    aria: { label: "Place in the list, to drag" },
    on: { input: () => store.goTo(Number(scrub.value) - 1) },
  });
  const caption = make("div", { className: "caption", aria: { role: "status", live: "polite" } });
  const said = make("div", { className: "said", aria: { role: "status", live: "polite" } });
  const properties = { className: "bgcs-view bgcs-browser", aria: { role: "group", label: "Masks of images" } };
  const below = [caption, decisions.el, strip.el, scrub, said];
  const root = make("div", properties, signs.stale, list.el, look.el, screen.el, ...below);
  screen.el.append(signs.problem, signs.busy);
  screen.el.style.height = `${model.get("height")}px`;
  el.append(root);

  function showWords() {
    caption.textContent = describe(model, store);
    screen.canvas.setAttribute("aria-label", `${caption.textContent}. ${KEYS_IN_WORDS}`);
  }
  function showPlace() {
    scrub.max = Math.max(1, store.order.length);
    scrub.value = store.place + 1;
    list.update();
    decisions.update();
    strip.reveal();
  }
  function showPanel() {
    const { said: text, wrong } = model.get("panel");
    said.textContent = text;
    said.classList.toggle("wrong", Boolean(wrong));
    list.update();
    decisions.update();
  }
  function showImage() {
    screen.camera = null;
    screen.moved();
    showPlace();
    showWords();
    signs.update();
  }
  const updates = {
    current: [showImage],
    order: [showImage, strip.show],
    marks: [decisions.update, strip.show, showWords],
    settings: [look.update, decisions.update, screen.repaint, showWords],
    panel: [showPanel],
    busy: [signs.update],
    waiting: [signs.update],
    tiles: [screen.redraw, showWords, signs.update],
    masked: [screen.redraw, showWords],
    thumbs: [strip.show],
  };
  const update = (what) => updates[what].forEach((show) => show());
  const lacks = (tiles, thumbs) => {
    screen.lacks(tiles);
    strip.lacks(thumbs);
  };
  store.listeners.add(update);
  store.lacking.add(lacks);
  const forgetKeys = listenToKeys(root, makeKeys(store, screen, look, decisions));
  hideWhileHeld(root, screen);
  for (const what of ["settings", "panel", "current"]) update(what);
  return () => {
    store.listeners.delete(update);
    store.lacking.delete(lacks);
    forgetKeys();
    screen.end();
    strip.end();
  };
}

export default () => {
  let store;
  return {
    initialize({ model }) {
      store = new Store(model);
      return () => clearInterval(store.clock);
    },
    render(context) {
      return render(context, store);
    },
  };
};
