// A row and a column of the grid as lines with error bands, the phases above them, double descent marked.

const SLICED = [
  ["test_error", "Test error"], ["train_loss", "Training loss"], ["ln_hessian_trace", "ln tr(H)"], ["mode_connectivity", "mc"], ["cka", "CKA"],
];

function sliceCells(axis, k) {
  const places = placeOf(k), at = page.axes.indexOf(axis);
  const stride = page.axes.slice(at + 1).reduce((product, each) => product * each.values.length, 1);
  return axis.values.map((_, i) => k + (i - places[at][1]) * stride);
}

function descentOn(axis, k) {
  return page.descents.find((each) => each.axis === axis.name && placeOf(k).every(([other, i]) => other === axis || each.at[other.name] === other.values[i]));
}

function sliceFigure(axis) {
  const here = () => state.cell ?? defaultCell(axis);
  const kept = SLICED.filter(([name]) => arrays[`cell.${name}`]);
  const height = 120 * kept.length + 90;
  const x = axis.is_log ? axis.values : axis.values.map((_, i) => i);
  const edges = axis.is_log ? axis.edges.map(Math.exp) : axis.edges;
  const make = () => {
    const cells = sliceCells(axis, here()), gap = 0.018, room = 0.95;
    const traces = [], layout = { showlegend: false, shapes: [], annotations: [], margin: { l: 62, r: 12, t: 8, b: 44 }, hovermode: "x" };
    layout.xaxis = axisOfPlot(axis, kept.length);
    kept.forEach(([name, title], place) => {
      const y = place ? `y${place + 1}` : "y", top = room - (room * place) / kept.length;
      const values = cells.map((k) => arrays[`cell.${name}`][k]), errors = cells.map((k) => arrays[`cell.${name}_se`][k]);
      const finite = values.filter(Number.isFinite), units = metricOf(name).units;
      const isLog = name === "train_loss" && finite.length && Math.min(...finite) > 0 && Math.max(...finite) > 30 * Math.min(...finite);
      layout[place ? `yaxis${place + 1}` : "yaxis"] = plotAxis(title + (units === "1" ? "" : ` (${units})`), { domain: [top - room / kept.length + gap, top - gap], type: isLog ? "log" : "linear", nticks: 5, automargin: false, ...(isLog ? { dtick: 1 } : {}) });
      traces.push(...band(x, values, errors, isLog, y, lineColour(place)));
      traces.push({ type: "scatter", mode: "lines+markers", x, y: values, yaxis: y, line: lineStyle(place), marker: { size: 5 }, customdata: cells, text: cells.map((k, i) => `${axis.texts[i]}: ${withError(values[i], errors[i], units)}`), hovertemplate: "%{text}<extra></extra>" });
    });
    for (let first = 0, last; first < cells.length; first = last + 1) {
      const code = labels.phase[cells[first]], phase = page.phases[code];
      last = first;
      while (last + 1 < cells.length && labels.phase[cells[last + 1]] === code) last += 1;
      const [from, to] = [edges[first], edges[last + 1]];
      layout.shapes.push({ type: "rect", xref: "x", yref: "paper", x0: from, x1: to, y0: 0.965, y1: 1, line: { width: 0.5, color: PAPER }, fillcolor: phase ? page.colours.phases[phase] : NO_VALUE });
      const middle = axis.is_log ? Math.log10(Math.sqrt(from * to)) : (from + to) / 2;
      if (phase) layout.annotations.push({ x: middle, y: 0.9825, xref: "x", yref: "paper", text: phase, showarrow: false, yanchor: "middle", font: { size: 11, weight: 700, color: INK }, name: "phase" });
    }
    const found = descentOn(axis, here());
    if (found) {
      const at = axis.is_log ? found.peak : axis.values.indexOf(found.peak);
      layout.shapes.push({ type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 0.955, line: { color: INK, width: 1.2, dash: "dash" } });
      layout.annotations.push({ x: axis.is_log ? Math.log10(at) : at, y: 0.95, xref: "x", yref: "paper", text: "double descent", showarrow: false, xanchor: "left", yanchor: "top", font: { size: 11 } });
    }
    return { traces, layout };
  };
  const numbers = () => {
    const cells = sliceCells(axis, here());
    return [
      [...page.axes.map((each) => each.name), "phase", ...kept.flatMap(([name]) => [name, `${name}_se`])],
      cells.map((k) => [...placeOf(k).map(([each, i]) => each.values[i]), page.phases[labels.phase[k]], ...kept.flatMap(([name]) => [arrays[`cell.${name}`][k], arrays[`cell.${name}_se`][k]])]),
    ];
  };
  const others = page.axes.filter((each) => each !== axis);
  const selects = others.map((other) => {
    const select = el("select", { "aria-label": other.label }, ...other.texts.map((text, i) => el("option", { value: i }, text)));
    select.addEventListener("change", () => {
      const at = page.axes.indexOf(other);
      const stride = page.axes.slice(at + 1).reduce((product, each) => product * each.values.length, 1);
      slicesAt = here() + (Number(select.value) - placeOf(here())[at][1]) * stride;
      if (state.cell !== null) choose(slicesAt);
      else tell("sliced");
    });
    return [other, select];
  });
  const figure = chart({ name: `slice-along-${axis.name}`, height, make, numbers, caption: page.descents.length ? "Bands: one standard error. Dashed: the peak of a double descent." : "Bands: one standard error. No slice of this grid shows double descent." });
  const follow = () => {
    for (const [other, select] of selects) select.value = String(placeOf(here())[page.axes.indexOf(other)][1]);
    figure.refresh();
  };
  for (const event of ["cell", "sliced"]) on(event, follow);
  on("labels", whenQuiet(follow));
  follow();
  const head = el("p", { class: "slice-head" }, `Along ${lower(axis.label)}, at `, ...selects.flatMap(([other, select]) => [el("label", {}, `${lower(other.label)} `, select), " "]));
  return el("div", {}, head, figure);
}

let slicesAt = null;

// A slice with double descent if there is one, else the one through the best cell.
function defaultCell(axis) {
  if (slicesAt !== null) return slicesAt;
  const found = page.descents.find((each) => each.axis === axis.name);
  if (!found) return bestCell() ?? shown().offset;
  return page.axes.reduce((k, each) => k * each.values.length + (each === axis ? 0 : each.values.indexOf(found.at[each.name])), 0);
}

function axisOfPlot(axis, panels) {
  const ticks = axis.is_log ? axis.values : axis.values.map((_, i) => i);
  const range = axis.is_log ? [axis.edges[0] / Math.LN10, axis.edges.at(-1) / Math.LN10] : [axis.edges[0], axis.edges.at(-1)];
  const width = Math.max(240, document.querySelector("main").clientWidth / (innerWidth > 900 ? 2 : 1) - 90);
  const along = (u) => ((u - axis.edges[0]) / (axis.edges.at(-1) - axis.edges[0])) * width;
  const kept = new Set(roomy(axis, along, (text) => 7.5 * text.length + 6));
  return plotAxis(axis.label, { type: axis.is_log ? "log" : "linear", range, tickvals: ticks, ticktext: axis.texts.map((text, i) => (kept.has(i) ? text : "")), anchor: panels > 1 ? `y${panels}` : "y", showgrid: false });
}

// One standard error to either side; a logarithmic axis cannot show a band that reaches zero.
function band(x, values, errors, isLog, yaxis, colour) {
  const known = values.map((value, i) => Number.isFinite(value) && Number.isFinite(errors[i]) && (!isLog || value - errors[i] > 0));
  const runs = [];
  known.forEach((is, i) => is && (known[i - 1] ? runs.at(-1).push(i) : runs.push([i])));
  return runs.filter((run) => run.length > 1).map((run) => ({
    type: "scatter", mode: "lines", yaxis, hoverinfo: "skip", line: { width: 0 }, fill: "toself", fillcolor: `${colour}38`,
    x: [...run, ...run.toReversed()].map((i) => x[i]), y: [...run.map((i) => values[i] + errors[i]), ...run.toReversed().map((i) => values[i] - errors[i])],
  }));
}

function buildSlices(section) {
  const long = page.axes.filter((axis) => axis.values.length > 1);
  if (!long.length) {
    section.append(el("p", { class: "because" }, "One cell has no slices."));
    return;
  }
  section.append(el("p", { class: "because" }, "They go through the cell whose story is open."), el("div", { class: "slices" }, ...long.map(sliceFigure)));
}
