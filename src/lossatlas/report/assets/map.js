// A grid of cells as a drawing: load to the right, temperature upwards. Every cell can be pointed at and reached by keys.

let drawn = 0; // maps so far: the ids of their patterns differ

const axisOf = (name) => page.axes.find((axis) => axis.name === name);
const NO_AXIS = { name: "", label: "", values: [null], texts: [""], u: [0], edges: [-0.5, 0.5], is_log: false };
const loadAxis = axisOf(page.load) ?? NO_AXIS, temperatureAxis = axisOf(page.temperature) ?? NO_AXIS;
const COLUMNS = loadAxis.values.length, ROWS = temperatureAxis.values.length;

// The cells of the slice of further axes that is shown.
function shown() {
  return { columns: COLUMNS, rows: ROWS, offset: state.slice * ROWS * COLUMNS };
}

// The values of all axes at a cell, as [axis, index].
function placeOf(k) {
  const places = [];
  let left = k;
  for (const axis of [...page.axes].reverse()) {
    places.unshift([axis, left % axis.values.length]);
    left = Math.floor(left / axis.values.length);
  }
  return places;
}

// The same in words, loads before temperatures.
function placeText(k, join = ", ") {
  const places = placeOf(k).sort(([a], [b]) => (a.role > b.role) - (a.role < b.role));
  return places.map(([axis, i]) => `${lower(axis.label)} ${axis.texts[i]}`).join(join);
}

function lower(text) {
  return text.slice(0, 1).toLowerCase() + text.slice(1);
}

function geometry(width, { compact }) {
  const left = compact ? 34 : 58, right = 8, top = 6, bottom = compact ? 22 : 46;
  const inner = width - left - right;
  const height = Math.round(top + 0.74 * inner + bottom);
  const along = (axis, from, to) => (u) =>
    from + ((u - axis.edges[0]) / (axis.edges.at(-1) - axis.edges[0])) * (to - from);
  const x = along(loadAxis, ...(loadAxis.is_inverted ? [width - right, left] : [left, width - right]));
  const y = along(temperatureAxis, ...(temperatureAxis.is_inverted ? [top, height - bottom] : [height - bottom, top]));
  return { width, height, left, right: width - right, top, bottom: height - bottom, x, y };
}

function box(g, column, line) {
  const [x0, x1] = [g.x(loadAxis.edges[column]), g.x(loadAxis.edges[column + 1])];
  const [y0, y1] = [g.y(temperatureAxis.edges[line]), g.y(temperatureAxis.edges[line + 1])];
  return { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
}

// `fill(k)` gives { fill, opacity } or null where the cell has no value; `say(k)` its words for a screen reader.
function drawMap(host, { width, compact = false, fill, say, title, over }) {
  const g = geometry(width, { compact });
  const id = `hatch-${(drawn += 1)}`;
  const lines = svg("path", { d: "M0 5L5 0", stroke: "#a39d92", "stroke-width": 0.8 });
  const hatch = svg("pattern", { id, width: 5, height: 5, patternUnits: "userSpaceOnUse" },
    svg("rect", { width: 5, height: 5, fill: NO_VALUE }), lines);
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${g.width} ${g.height}`, class: "map", role: "grid", "aria-label": title, "font-family": SANS, "font-size": compact ? 10.5 : 12 },
    svg("defs", {}, hatch),
    svg("rect", { x: g.left, y: g.top, width: g.right - g.left, height: g.bottom - g.top, fill: "#ffffff" })
  );
  const { offset } = shown();
  for (let line = 0; line < ROWS; line++) {
    const group = svg("g", { role: "row" });
    for (let column = 0; column < COLUMNS; column++) {
      const k = offset + line * COLUMNS + column, look = fill(k);
      group.append(svg("rect", {
        ...box(g, column, line), "data-cell": k, role: "gridcell", class: "cell", tabindex: -1, "aria-label": say(k),
        fill: look ? look.fill : `url(#${id})`, "fill-opacity": look?.opacity, stroke: "#ffffff", "stroke-width": 0.5,
      }));
    }
    picture.append(group);
  }
  picture.append(...(over ? over(g) : []), ...ticks(g, compact), ...marks());
  host.replaceChildren(picture);
  listen(picture, g);
  return picture;
}

function marks() {
  const mark = (name, attributes) => svg("rect", { class: `${name} live`, fill: "none", "pointer-events": "none", visibility: "hidden", ...attributes });
  return [mark("chosen", { stroke: INK, "stroke-width": 2.5 }), mark("pointed", { stroke: INK, "stroke-width": 1.5 })];
}

// The labels of an axis, left out where one would touch another: the ends choose first, then powers of two.
function ticks(g, compact) {
  const found = [svg("rect", { x: g.left, y: g.top, width: g.right - g.left, height: g.bottom - g.top, fill: "none", stroke: SOFT, "stroke-width": 0.8, class: "frame" })];
  const size = compact ? 10.5 : 12;
  for (const [axis, place, need] of [
    [loadAxis, g.x, (text) => 0.62 * size * text.length + 5],
    [temperatureAxis, g.y, () => 1.15 * size],
  ]) {
    for (const i of roomy(axis, place, need)) {
      const at = place(axis.u[i]), isX = axis === loadAxis;
      found.push(svg("text", {
        class: "tick", fill: SOFT, x: isX ? at : g.left - 6, y: isX ? g.bottom + 1.25 * size : at + 0.35 * size, "text-anchor": isX ? "middle" : "end",
      }, axis.texts[i]));
    }
  }
  if (!compact) {
    const middle = [(g.left + g.right) / 2, (g.top + g.bottom) / 2];
    found.push(svg("text", { class: "axis", fill: INK, x: middle[0], y: g.height - 6, "text-anchor": "middle" }, `${loadAxis.label} (load →)`));
    found.push(svg("text", { class: "axis", fill: INK, "text-anchor": "middle", transform: `translate(13 ${middle[1]}) rotate(-90)` }, `${temperatureAxis.label} (hotter →)`));
  }
  return found;
}

function roomy(axis, place, need) {
  const last = axis.values.length - 1, chosen = [];
  const isPower = (value) => value > 0 && Number.isInteger(Math.log2(value));
  const rank = (i) => (i === 0 || i === last ? 0 : isPower(axis.values[i]) ? 1 : 2);
  for (const i of [...axis.values.keys()].sort((a, b) => rank(a) - rank(b) || a - b)) {
    const fits = (j) => Math.abs(place(axis.u[i]) - place(axis.u[j])) >= (need(axis.texts[i]) + need(axis.texts[j])) / 2;
    if (axis.texts[i] !== "" && chosen.every(fits)) chosen.push(i);
  }
  return chosen;
}

// Pointing marks a cell in every map; a click, Enter or Space opens its story; arrow keys walk.
function listen(picture, g) {
  const cellAt = (event) => {
    const found = event.target.closest?.("[data-cell]");
    return found ? Number(found.dataset.cell) : null;
  };
  picture.addEventListener("pointermove", (event) => point(cellAt(event), event));
  picture.addEventListener("pointerleave", () => point(null));
  picture.addEventListener("focusin", (event) => point(cellAt(event)));
  picture.addEventListener("focusout", () => point(null));
  picture.addEventListener("click", (event) => cellAt(event) !== null && choose(cellAt(event)));
  picture.addEventListener("keydown", (event) => walk(event, picture, cellAt(event)));
  const show = () => {
    for (const [name, k] of [["pointed", state.marked], ["chosen", state.cell]]) {
      const mark = picture.querySelector(`.${name}`), inside = k !== null ? k - shown().offset : -1;
      const visible = inside >= 0 && inside < ROWS * COLUMNS;
      put(mark, { visibility: visible ? "visible" : "hidden" }, []);
      if (visible) put(mark, box(g, inside % COLUMNS, Math.floor(inside / COLUMNS)), []);
    }
    const home = state.cell ?? shown().offset;
    for (const cell of picture.querySelectorAll("[data-cell]")) cell.setAttribute("tabindex", Number(cell.dataset.cell) === home ? 0 : -1);
  };
  picture.showMarks = show;
  show();
}

on("mark", () => document.querySelectorAll("svg.map").forEach((picture) => picture.showMarks()));
on("cell", () => document.querySelectorAll("svg.map").forEach((picture) => picture.showMarks()));

function point(k, event) {
  if (state.marked !== k) {
    state.marked = k;
    tell("mark");
  }
  hover(k, event);
}

function choose(k, byKeys = false) {
  state.cell = k;
  state.byKeys = byKeys;
  card.hidden = true;
  tell("cell");
}

function walk(event, picture, k) {
  if (k === null) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose(k, true);
    return;
  }
  const up = temperatureAxis.is_inverted ? -1 : 1, right = loadAxis.is_inverted ? -1 : 1;
  const step = { ArrowUp: [0, up], ArrowDown: [0, -up], ArrowRight: [right, 0], ArrowLeft: [-right, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  const inside = k - shown().offset;
  const column = (inside % COLUMNS) + step[0], line = Math.floor(inside / COLUMNS) + step[1];
  if (column < 0 || column >= COLUMNS || line < 0 || line >= ROWS) return;
  picture.querySelector(`[data-cell="${shown().offset + line * COLUMNS + column}"]`).focus({ preventScroll: true });
}

// The card beside the pointer; `describe(k)` says what stands in it.
const card = el("div", { class: "card", hidden: "", role: "status" });

function hover(k, event) {
  card.hidden = k === null;
  if (k === null) return;
  card.replaceChildren(...describe(k));
  const target = event ?? cornerOf(), space = 16;
  const [width, height] = [card.offsetWidth, card.offsetHeight];
  const aside = document.getElementById("story"), free = innerWidth - (aside && !aside.hidden ? aside.offsetWidth : 0);
  const x = target.clientX + space + width > free ? target.clientX - width - space : target.clientX + space;
  card.style.left = `${Math.max(4, x)}px`;
  card.style.top = `${Math.max(4, Math.min(target.clientY + space, innerHeight - height - 4))}px`;
}

function cornerOf() {
  const focused = document.activeElement?.getBoundingClientRect();
  return focused ? { clientX: focused.right, clientY: focused.bottom } : { clientX: 0, clientY: 0 };
}

// Which plane of further axes the maps show; nothing where there are none.
function sliceChooser() {
  if (!page.further.length) return null;
  const axes = page.further.map(axisOf);
  const selects = axes.map((axis) => el("select", { "aria-label": axis.label }, ...axis.texts.map((text, i) => el("option", { value: i }, text))));
  const changed = () => {
    state.slice = axes.reduce((k, axis, n) => k * axis.values.length + Number(selects[n].value), 0);
    state.cell = null;
    tell("cell");
    tell("slice");
  };
  selects.forEach((select) => select.addEventListener("change", changed));
  return el("p", { class: "chooser" }, "Maps at ", ...axes.flatMap((axis, n) => [el("label", {}, `${lower(axis.label)} `, selects[n]), " "]));
}

// A map to take along: with its title and its colours above it.
function withHead(picture, panel) {
  const head = 44, copy = picture.cloneNode(true), { width, height } = picture.viewBox.baseVal, id = `strip-${(drawn += 1)}`;
  const colours = page.colours.maps[panel.colours].filter((_, k) => k % 15 === 0), strip = 90;
  const stops = colours.map((colour, k) => svg("stop", { offset: k / (colours.length - 1), "stop-color": colour }));
  const text = (x, y, words, more = {}) => svg("text", { x, y, "font-size": 11, fill: SOFT, ...more }, words);
  const low = written(panel.low, 3), start = 14 + 6.8 * low.length;
  put(copy, { y: head, width, height }, []);
  return svg("svg", { viewBox: `0 0 ${width} ${height + head}`, "font-family": SANS },
    svg("defs", {}, svg("linearGradient", { id }, ...stops)),
    text(8, 18, panel.title, { "font-size": 13, "font-weight": 600, fill: INK }),
    text(8, 37, low), svg("rect", { x: start, y: 30, width: strip, height: 7, fill: `url(#${id})` }),
    text(start + strip + 6, 37, [written(panel.high, 3), panel.bar].filter(Boolean).join(" ")),
    copy);
}
