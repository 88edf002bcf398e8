// The seven metrics of Yang et al. (2021), figures 2 and 3, on the axes of the phase map.

function panelColour(panel, value) {
  if (!Number.isFinite(value)) return null;
  const scale = panel.is_log ? Math.log : (x) => x;
  const share = (scale(value) - scale(panel.low)) / (scale(panel.high) - scale(panel.low));
  const colours = page.colours.maps[panel.colours];
  return { fill: colours[Math.min(Math.max(Math.floor(share * colours.length), 0), colours.length - 1)] };
}

function metricOf(name) {
  return page.cells.metrics.find((metric) => metric.name === name) ?? { units: "1", long_name: name };
}

function panelFigure(panel) {
  const host = el("div", { class: "plot" });
  const values = arrays[`cell.${panel.name}`], errors = arrays[`cell.${panel.name}_se`];
  const value = el("span", { class: "value" });
  const bar = colourBar(panel);
  const head = el("div", { class: "panel-head" }, el("h3", {}, panel.title), value, bar);
  if (panel.low === undefined || panel.low === null) {
    return el("figure", { class: "panel", "data-figure": panel.name }, head, el("p", { class: "nothing" }, panel.measured ? "no value" : "not measured"));
  }
  let picture;
  const units = metricOf(panel.name).units;
  const draw = () => {
    picture = drawMap(host, {
      width: host.clientWidth, compact: true, title: panel.title,
      fill: (k) => panelColour(panel, values[k]),
      say: (k) => `${placeText(k)}: ${panel.title} ${withError(values[k], errors[k], units)}`,
    });
  };
  const numbers = () => [
    [...page.axes.map((axis) => axis.name), panel.name, `${panel.name}_se`],
    Array.from(values, (x, k) => [...placeOf(k).map(([axis, i]) => axis.values[i]), x, errors[k]]),
  ];
  on("mark", () => {
    const k = state.marked;
    value.textContent = k === null ? "" : written(values[k]);
    bar.point(k === null ? NaN : values[k]);
  });
  const figure = framed(el("div", {}, head, host), { name: panel.name, numbers, image: () => withHead(picture, panel) });
  figure.classList.add("panel");
  whenResized(host, draw);
  on("slice", draw);
  return figure;
}

function colourBar(panel) {
  const mark = el("span", { class: "mark", hidden: "" });
  const colours = (page.colours.maps[panel.colours] ?? []).filter((_, k) => k % 15 === 0);
  const strip = el("span", { class: "strip", style: `background:linear-gradient(to right,${colours.join(",")})` }, mark);
  const known = panel.low !== undefined && panel.low !== null;
  const bar = el("div", { class: "bar" }, el("span", {}, known ? written(panel.low, 3) : ""), known ? strip : "", el("span", {}, known ? written(panel.high, 3) : ""), el("span", { class: "unit" }, [panel.bar, panel.is_log ? "log" : ""].filter(Boolean).join(", ")));
  bar.point = (value) => {
    mark.hidden = !Number.isFinite(value);
    const scale = panel.is_log ? Math.log : (x) => x;
    mark.style.left = `${(100 * (scale(value) - scale(panel.low))) / (scale(panel.high) - scale(panel.low))}%`;
  };
  return bar;
}

function buildPanels(section) {
  section.append(
    el("p", { class: "because" }, "Pointing at a cell marks it in every map, here and above; a click opens its story. Hatched: no value."),
    el("div", { class: "panels" }, ...page.panels.map(panelFigure))
  );
}
