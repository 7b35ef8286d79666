// What the views have in common. `asset` puts this text above a view's own, so its names need no import there.

const STALE =
  "No kernel stands behind this view: it was restarted or closed, and nothing here changes anything. " +
  "Run the cell again.";

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// An element: its properties, ARIA attributes, event handlers and style, then what stands in it.
function make(tag, { aria = {}, on = {}, style = {}, ...properties } = {}, ...children) {
  const el = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(aria)) el.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, f] of Object.entries(on)) el.addEventListener(name, f);
  Object.assign(el.style, style);
  el.append(...children);
  return el;
}

function makeButton(textContent, title, click, more = {}) {
  return make("button", { type: "button", textContent, title, on: { click }, ...more });
}

function makeBar(label, ...children) {
  return make("div", { className: "bar", aria: { role: "toolbar", label } }, ...children);
}

// The address of a picture that came as bytes; whoever asks for it must revoke it.
const pictureAddress = (bytes) => URL.createObjectURL(new Blob([bytes], { type: "image/png" }));

// A function that calls `f` once before the next frame, however often it is called itself.
function oncePerFrame(f) {
  let frame = 0;
  const call = () => {
    frame = 0;
    f();
  };
  const later = () => {
    frame ||= requestAnimationFrame(call);
  };
  later.cancel = () => cancelAnimationFrame(frame);
  return later;
}

// Give the root its keys before JupyterLab takes them for itself; returns what ends it.
function listenToKeys(root, reaction) {
  root.addEventListener("keydown", (event) => {
    const react = reaction(event);
    if (!react) return;
    event.preventDefault();
    event.stopPropagation();
    react();
  });
  const claim = (event) => {
    const plain = !(event.ctrlKey || event.metaKey);
    const ours = root.contains(event.target) && (plain || Boolean(reaction(event)));
    root.toggleAttribute("data-lm-suppress-shortcuts", ours);
  };
  window.addEventListener("keydown", claim, true);
  return () => window.removeEventListener("keydown", claim, true);
}
