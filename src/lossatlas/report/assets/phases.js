// The phase map with its boundaries, marks, names and legend.

const DASHES = { sharp: null, mode_connectivity: "6 3", cka: "1.5 3" };
const DOUBT = { probability: 0.9, margin: 0.1 };
const TOLD = {
  I: "sharp, poorly connected",
  II: "sharp, well connected",
  III: "flat, poorly connected",
  "IV-A": "flat, well connected, models not alike",
  "IV-B": "flat, well connected, models alike",
};
// The landscape of each phase as a line: two models and the way between them, after Figure 1 of Yang et al. (2021).
const SKETCHES = {
  I: ["M1 3L7 25L13 3Q22 -1 31 3L37 25L43 3", [7, 37]],
  II: ["M1 3L7 25L11 19L15 25L19 19L23 25L27 19L31 25L34 19L37 25L43 3", [7, 37]],
  III: ["M1 3C2 31 14 31 16 14Q22 -4 28 14C30 31 42 31 43 3", [9, 35]],
  "IV-A": ["M1 3C3 25 5 25 10 25L34 25C39 25 41 25 43 3", [10, 34]],
  "IV-B": ["M1 3C8 33 36 33 43 3", [19, 25]],
};

function phaseFill(k) {
  const phase = page.phases[labels.phase[k]], sure = labels.probability[k];
  if (!phase) return null;
  return { fill: page.colours.phases[phase], opacity: Number.isNaN(sure) ? 1 : Math.max(0.12, sure) };
}

function phaseWords(k) {
  const phase = page.phases[labels.phase[k]], sure = labels.probability[k];
  return `${placeText(k)}: ${phase ? `Phase ${phase}` : "no phase"}${Number.isNaN(sure) ? "" : `, probability ${written(sure, 2)}`}`;
}

let legendLines = el("div");

function drawPhases(host) {
  const lines = boundaries(shown());
  const over = (g) => [...lines.flatMap((each) => drawnLine(each, g)), ...doubtful(g), ...names(g), ...star(g)];
  const picture = drawMap(host, { width: host.clientWidth, fill: phaseFill, say: phaseWords, title: "Phases over load and temperature", over });
  for (const cell of picture.querySelectorAll("[data-cell]")) cell.dataset.phase = page.phases[labels.phase[cell.dataset.cell]];
  legendLines.replaceChildren(...keyOf(lines));
  return picture;
}

// From steps of the fine mesh to the drawing.
function drawnLine(boundary, g) {
  const along = (axis, place) => {
    const nodes = [axis.edges[0], ...axis.u, axis.edges.at(-1)];
    return (step) => {
      const node = Math.min(Math.floor(step / STEPS), nodes.length - 2), share = step / STEPS - node;
      return place(nodes[node] + share * (nodes[node + 1] - nodes[node])).toFixed(1);
    };
  };
  const [x, y] = [along(loadAxis, g.x), along(temperatureAxis, g.y)];
  const d = boundary.lines.map((line) => `M${line.map(([a, b]) => `${x(a)} ${y(b)}`).join("L")}`).join("");
  const shared = { d, fill: "none", "pointer-events": "none", "stroke-linejoin": "round" };
  return [
    svg("path", { ...shared, stroke: "#ffffff", "stroke-width": 3.6, opacity: 0.6 }),
    svg("path", { ...shared, stroke: INK, "stroke-width": 2, "stroke-dasharray": DASHES[boundary.name], "data-boundary": boundary.name }),
  ];
}

// A ring where the label is in doubt, a cross where a seed or a pair is not ok.
function doubtful(g) {
  const found = [], { offset } = shown();
  for (let inside = 0; inside < ROWS * COLUMNS; inside++) {
    const k = offset + inside, b = box(g, inside % COLUMNS, Math.floor(inside / COLUMNS));
    const status = page.cells.texts.status[arrays["label.status"][k]];
    const size = Math.min(3, 0.14 * Math.min(b.width, b.height) + 0.8), y = b.y + 0.8 * b.height;
    if (isDoubtful(k))
      found.push(svg("circle", { cx: b.x + 0.82 * b.width, cy: y, r: size, fill: "none", stroke: INK, "stroke-width": 0.9, "pointer-events": "none" }));
    if (status !== "ok" && status !== "missing") {
      const x = b.x + 0.18 * b.width;
      found.push(svg("path", { d: `M${x - size} ${y - size}l${2 * size} ${2 * size}m0 ${-2 * size}l${-2 * size} ${2 * size}`, stroke: INK, "stroke-width": 1, "pointer-events": "none" }));
    }
  }
  return found;
}

function isDoubtful(k) {
  return labels.phase[k] > 0 && (labels.probability[k] < DOUBT.probability || labels.margin[k] < DOUBT.margin);
}

function bestCell() {
  const values = arrays["cell.test_accuracy"], { offset } = shown();
  if (!values) return null;
  let best = null;
  for (let k = offset; k < offset + ROWS * COLUMNS; k++)
    if (Number.isFinite(values[k]) && (best === null || values[k] > values[best])) best = k;
  return best;
}

function star(g) {
  const k = bestCell();
  if (k === null) return [];
  const b = box(g, (k - shown().offset) % COLUMNS, Math.floor((k - shown().offset) / COLUMNS));
  return [starAt(b.x + b.width / 2, b.y + b.height / 2, Math.min(9, 0.42 * Math.min(b.width, b.height)))];
}

function starAt(x, y, size) {
  const points = [...Array(10).keys()].map((k) => {
    const radius = k % 2 ? 0.42 * size : size, angle = (Math.PI * k) / 5 - Math.PI / 2;
    return `${(x + radius * Math.cos(angle)).toFixed(1)},${(y + radius * Math.sin(angle)).toFixed(1)}`;
  });
  return svg("polygon", { points: points.join(" "), fill: "#ffffff", stroke: INK, "stroke-width": 1, "pointer-events": "none" });
}

// The name of every phase in its largest region: at the point that is farthest from the region's rim.
function names(g) {
  const found = [], { offset } = shown();
  for (let code = 1; code < page.phases.length; code++) {
    const spot = roomiest((inside) => labels.phase[offset + inside] === code, g);
    if (!spot || spot.depth < 9) continue;
    found.push(svg("text", {
      x: spot.x, y: spot.y, "text-anchor": "middle", "dominant-baseline": "central", "font-size": spot.depth > 26 ? 22 : 15, "font-weight": 700, "font-family": SERIF,
      fill: INK, stroke: "#ffffff", "stroke-width": 3, "stroke-opacity": 0.75, "paint-order": "stroke", "pointer-events": "none", class: "phase-name",
    }, page.phases[code]));
  }
  return found;
}

// On a raster; the rim are the points outside that have a neighbour inside.
function roomiest(isInside, g) {
  const step = 9, raster = [];
  const cellOf = (axis, place) => (at) => axis.values.findIndex((_, i) => (at - place(axis.edges[i])) * (at - place(axis.edges[i + 1])) <= 0);
  const columnOf = cellOf(loadAxis, g.x), lineOf = cellOf(temperatureAxis, g.y);
  const xs = [], ys = [];
  for (let x = g.left - step / 2; x < g.right + step; x += step) xs.push([x, columnOf(x)]);
  for (let y = g.top - step / 2; y < g.bottom + step; y += step) ys.push([y, lineOf(y)]);
  for (const [, line] of ys) raster.push(xs.map(([, column]) => line >= 0 && column >= 0 && isInside(line * COLUMNS + column)));
  const inside = [], rim = [];
  ys.forEach(([y], j) => xs.forEach(([x], i) => {
    if (raster[j][i]) inside.push([x, y]);
    else if (raster[j][i - 1] || raster[j][i + 1] || raster[j - 1]?.[i] || raster[j + 1]?.[i]) rim.push([x, y]);
  }));
  const centre = [0, 1].map((k) => inside.reduce((sum, point) => sum + point[k], 0) / inside.length);
  let best = null;
  for (const [x, y] of inside) {
    let depth = Infinity;
    for (const [a, b] of rim) depth = Math.min(depth, (a - x) ** 2 + (b - y) ** 2);
    const score = Math.sqrt(depth) - 0.05 * Math.hypot(x - centre[0], y - centre[1]); // in a strip the middle wins
    if (!best || score > best.score) best = { x, y, depth: Math.sqrt(depth), score };
  }
  return best;
}

function keyOf(lines) {
  const entry = (drawing, text) => el("li", {}, svg("svg", { width: 30, height: 14, "aria-hidden": "true" }, drawing), text);
  const entries = lines.map(({ name, text }) =>
    entry(svg("path", { d: "M1 7H29", stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": DASHES[name] }), text));
  const { offset } = shown(), cells = [...Array(ROWS * COLUMNS).keys()].map((k) => offset + k);
  const doubts = cells.filter(isDoubtful).length;
  if (doubts)
    entries.push(entry(svg("circle", { cx: 15, cy: 7, r: 3, fill: "none", stroke: "currentColor" }), `in doubt, ${doubts} of ${cells.length}: probability < ${DOUBT.probability} or margin < ${DOUBT.margin}`));
  const statuses = cells.map((k) => page.cells.texts.status[arrays["label.status"][k]]);
  if (statuses.some((status) => status !== "ok" && status !== "missing"))
    entries.push(entry(svg("path", { d: "M12 4l6 6m0-6l-6 6", stroke: "currentColor" }), "a seed or pair not ok"));
  if (bestCell() !== null) entries.push(entry(starAt(15, 7, 6), "best test accuracy"));
  entries.push(el("li", {}, "Paler: less sure, by resampling the seeds."));
  return [el("ul", { class: "key" }, ...entries)];
}

// Five lines: colour, sketch, name, words, count.
function legend() {
  const counts = {};
  const lines = Object.entries(TOLD).map(([phase, words]) => {
    const [path, models] = SKETCHES[phase];
    const height = phase === "IV-B" ? 24.5 : 25;
    const sketch = svg("svg", { viewBox: "0 0 44 29", width: 44, height: 29, "aria-hidden": "true" },
      svg("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.4, "stroke-linejoin": "round" }),
      ...models.map((x) => svg("circle", { cx: x, cy: height, r: 2.6, fill: "currentColor" })));
    counts[phase] = el("td", { class: "number" });
    return el("tr", { "data-phase": phase },
      el("td", {}, chip(phase)),
      el("td", { class: "sketch" }, sketch), el("td", {}, words), counts[phase]);
  });
  const body = el("table", { class: "legend" }, el("caption", { class: "unseen" }, "Phases, what they mean, and how many cells each has"), el("tbody", {}, ...lines));
  body.refresh = () => {
    const { offset } = shown(), now = labels.phase.subarray(offset, offset + ROWS * COLUMNS);
    for (const phase of Object.keys(TOLD)) counts[phase].textContent = String(now.filter((code) => page.phases[code] === phase).length);
  };
  return body;
}

function buildPhases(section) {
  const host = el("div", { class: "plot" });
  let picture;
  const numbers = () => {
    const header = [...page.axes.map((axis) => axis.name), "phase", "margin", "probability", ...METRICS];
    const rows = Array.from(labels.phase, (code, k) => [
      ...placeOf(k).map(([axis, i]) => axis.values[i]), page.phases[code], labels.margin[k], labels.probability[k], ...METRICS.map((name) => arrays[`rule.${name}`][k]),
    ]);
    return [header, rows];
  };
  const figure = framed(host, { name: "phases", caption: "Lines: where the metrics, interpolated between cells, meet their thresholds.", numbers, image: () => picture });
  const counts = legend(), line = el("code", { class: "command", tabindex: 0 });
  const moved = el("p", { class: "moved", hidden: "" }, "Thresholds are moved: map, stories and slices follow; the sentences above do not. ");
  const back = el("button", { type: "button" }, "Back to the report’s");
  moved.append(back);
  const draw = oncePerFrame(() => {
    relabel();
    picture = drawPhases(host);
    for (const each of [counts, figure, ...sliders]) each.refresh();
    line.textContent = command();
    moved.hidden = JSON.stringify(state.limits) === JSON.stringify(page.rule.thresholds) && Object.keys(state.forced).length === Object.keys(page.rule.sides).length;
    tell("labels");
  });
  const sliders = METRICS.map((name) => slider(name, draw));
  back.addEventListener("click", () => {
    reset();
    draw();
  });
  section.append(
    el("div", { class: "phases" }, figure,
      el("div", { class: "side" }, counts, legendLines, el("h3", {}, "Thresholds"), el("div", { class: "sliders" }, ...sliders), moved,
        el("p", { class: "because" }, "The same labels: ", line)))
  );
  whenResized(host, draw);
  on("slice", draw);
}
