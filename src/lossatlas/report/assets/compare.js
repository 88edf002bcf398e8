// The page of two runs: the map of each, the maps of what B has more than A, and the story of a cell in both.

const SIDES = ["a", "b"];
const story = document.getElementById("story");

function chip(phase) {
  return phase ? el("span", { class: "chip", style: `background:${page.colours.phases[phase]}` }, phase) : "no phase";
}

function phaseOf(side, k) {
  return page.phases[arrays[`${side}.phase`][k]];
}

function differs(k) {
  return arrays["a.phase"][k] !== arrays["b.phase"][k];
}

function gap(name, k) {
  return [arrays[`b.${name}`][k] - arrays[`a.${name}`][k], Math.hypot(arrays[`a.${name}_se`][k], arrays[`b.${name}_se`][k])];
}

function describe(k) {
  const lines = page.panels.map(({ name, title, bar }) => [title, withError(...gap(name, k), bar)]);
  return [
    el("p", {}, el("strong", {}, placeText(k))),
    el("p", { class: "phase-line" }, "A ", chip(phaseOf("a", k)), " B ", chip(phaseOf("b", k))),
    el("p", { class: "phase-line" }, "B less A:"),
    el("table", {}, ...lines.map(([name, value]) => el("tr", {}, el("th", {}, name), el("td", {}, value)))),
  ];
}

function phaseFigure(side, title) {
  const host = el("div", { class: "plot" });
  let picture;
  const look = (k) => {
    const phase = phaseOf(side, k), sure = arrays[`${side}.probability`][k];
    return phase ? { fill: page.colours.phases[phase], opacity: Number.isNaN(sure) ? 1 : Math.max(0.12, sure) } : null;
  };
  const outline = (g) => [...Array(ROWS * COLUMNS).keys()].map((inside) => shown().offset + inside).filter(differs).map((k) => {
    const b = box(g, (k - shown().offset) % COLUMNS, Math.floor((k - shown().offset) / COLUMNS));
    return svg("rect", { x: b.x + 2.5, y: b.y + 2.5, width: Math.max(1, b.width - 5), height: Math.max(1, b.height - 5), fill: "none", stroke: INK, "stroke-width": 1.4, "pointer-events": "none", "data-differs": k });
  });
  const draw = () => {
    picture = drawMap(host, { width: host.clientWidth, title, fill: look, say: (k) => `${placeText(k)}: ${phaseOf(side, k) || "no phase"}`, over: outline });
    for (const cell of picture.querySelectorAll("[data-cell]")) cell.dataset.phase = phaseOf(side, cell.dataset.cell);
  };
  const numbers = () => [
    [...page.axes.map((axis) => axis.name), "phase", "margin", "probability"],
    Array.from(arrays[`${side}.phase`], (code, k) => [...placeOf(k).map(([axis, i]) => axis.values[i]), page.phases[code], arrays[`${side}.margin`][k], arrays[`${side}.probability`][k]]),
  ];
  const figure = framed(el("div", {}, el("h3", {}, title), host), { name: `phases-${side}`, numbers, image: () => picture, caption: "" });
  whenResized(host, draw);
  on("slice", draw);
  return figure;
}

function gapFigure(panel) {
  const head = el("div", { class: "panel-head" }, el("h3", {}, panel.title));
  if (panel.low === undefined) return el("figure", { class: "panel" }, head, el("p", { class: "nothing" }, "no value in both"));
  const host = el("div", { class: "plot" }), value = el("span", { class: "value" });
  const colours = page.colours.maps[panel.colours];
  const strip = el("span", { class: "strip", style: `background:linear-gradient(to right,${colours.filter((_, k) => k % 15 === 0).join(",")})` });
  head.append(value, el("div", { class: "bar" }, el("span", {}, written(panel.low, 3)), strip, el("span", {}, `+${written(panel.high, 3)}`), el("span", { class: "unit" }, panel.bar)));
  let picture;
  const look = (k) => {
    const [more, error] = gap(panel.name, k);
    if (!Number.isFinite(more)) return null;
    const share = (more - panel.low) / (panel.high - panel.low);
    return { fill: colours[Math.min(colours.length - 1, Math.max(0, Math.floor(share * colours.length)))], opacity: Math.abs(more) > page.z * error ? 1 : 0.35 }; // no error: not sure
  };
  const draw = () => {
    picture = drawMap(host, { width: host.clientWidth, compact: true, title: panel.title, fill: look, say: (k) => `${placeText(k)}: ${panel.title} ${withError(...gap(panel.name, k), panel.bar)}` });
  };
  on("mark", () => (value.textContent = state.marked === null ? "" : written(gap(panel.name, state.marked)[0])));
  const numbers = () => [
    [...page.axes.map((axis) => axis.name), "a", "a_se", "b", "b_se", "b_less_a", "b_less_a_se"],
    Array.from(arrays["a.phase"], (_, k) => [...placeOf(k).map(([axis, i]) => axis.values[i]), ...SIDES.flatMap((side) => [arrays[`${side}.${panel.name}`][k], arrays[`${side}.${panel.name}_se`][k]]), ...gap(panel.name, k)]),
  ];
  const figure = framed(el("div", {}, head, host), { name: panel.name, numbers, image: () => withHead(picture, panel) });
  figure.classList.add("panel");
  whenResized(host, draw);
  on("slice", draw);
  return figure;
}

function tellStory() {
  const k = state.cell;
  story.hidden = k === null;
  if (k === null) return;
  const rows = page.metrics.map(({ name, long_name, units }) => [
    units === "1" ? long_name : `${long_name} (${units})`, ...SIDES.map((side) => withError(arrays[`${side}.${name}`][k], arrays[`${side}.${name}_se`][k])), withError(...gap(name, k)),
  ]).filter((each) => each[1] !== "–" || each[2] !== "–");
  story.replaceChildren(
    el("div", { class: "story-head" },
      el("div", {}, el("h2", {}, placeText(k)), el("p", { class: "phase-line" }, "A ", chip(phaseOf("a", k)), " B ", chip(phaseOf("b", k)))),
      el("button", { type: "button", class: "close", "aria-label": "Close the story", onclick: () => choose(null) }, "×")),
    el("div", { class: "wide", tabindex: 0 }, table(["", "A", "B", "B less A"], rows))
  );
  if (state.byKeys) story.focus();
}

on("cell", tellStory);
addEventListener("keydown", (event) => event.key === "Escape" && state.cell !== null && choose(null));

async function start() {
  await loadArrays();
  document.body.append(card);
  const chooser = sliceChooser();
  const phases = document.getElementById("phases");
  if (chooser) phases.append(chooser);
  const key = el("p", { class: "because" }, ...Object.keys(page.colours.phases).flatMap((phase) => [chip(phase), " "]), " Outlined: the phase differs. Paler: less sure.");
  phases.append(key, el("div", { class: "slices" }, ...SIDES.map((side, k) => phaseFigure(side, `${side.toUpperCase()}: ${page.names[k]}`))));
  document.getElementById("metrics").append(
    el("p", { class: "because" }, `Blue: more in B, red: less. Paler: within ${page.z} standard errors, or without one. Hatched: not measured in both.`),
    el("div", { class: "panels" }, ...page.panels.map(gapFigure)));
}

begin(start);
