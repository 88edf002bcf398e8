// What every part uses: elements, the page's content, its state and who is told when it changes.

const page = JSON.parse(document.getElementById("content").textContent);
const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined)); // text becomes text nodes
  return node;
}

function el(name, attributes = {}, ...children) {
  return put(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return put(document.createElementNS(SVG, name), attributes, children);
}

const state = { slice: 0, cell: null, marked: null, limits: {}, forced: {} };
const listeners = {};

function on(event, listener) {
  (listeners[event] ??= []).push(listener);
}

function tell(event) {
  for (const listener of listeners[event] ?? []) listener();
}

// Draw the page; what prevents it is said on the page too.
function begin(start) {
  start().then(
    () => (document.body.dataset.ready = ""),
    (error) => {
      const why = typeof DecompressionStream === "undefined" ? "this browser is older than 2023" : String(error);
      document.querySelector("header").append(el("p", { class: "trouble" }, `The figures cannot be drawn: ${why}.`));
      throw error;
    }
  );
}

// One call of `draw` a frame, however often it is asked for.
function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}

// One call of `draw` when nothing has asked for it for a while.
function whenQuiet(draw) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(draw, 150);
  };
}

// Draw again whenever the width of an element changes.
function whenResized(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.round(element.clientWidth);
    if (now && now !== width) {
      width = now;
      draw();
    }
  }).observe(element);
}
