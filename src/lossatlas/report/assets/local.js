// The page of single models: a chart of everything that a file holds.

function numbersOf(result, place, name) {
  return result.variables[name] ? arrays[`${place}.${name}`] : null;
}

function labelOf(result, name) {
  const { long_name, units } = result.variables[name] ?? { long_name: name, units: "1" };
  return units === "1" ? long_name : `${long_name} (${units})`;
}

function wide(values) {
  const known = values.filter(Number.isFinite);
  return known.length > 0 && Math.min(...known) > 0 && Math.max(...known) > 30 * Math.min(...known);
}

function heightAxis(title, values) {
  return plotAxis(title, wide(values) ? { type: "log", dtick: 1 } : {});
}

// Loss, and error, along every direction (of the data of the search and of others, where a direction was mined).
function lineCharts(result, place) {
  const x = Array.from(numbersOf(result, place, "lambda")), directions = result.variables.direction.texts;
  return ["loss", "error"].filter((name) => result.variables[name]).map((name) => {
    const values = numbersOf(result, place, name), { dims, shape, texts } = { ...result.variables[name], texts: result.variables.data?.texts };
    const n = x.length, count = values.length / n;
    const at = (dim) => dims.indexOf(dim);
    const line = (k) => { // the k-th line, whatever the order of the dimensions
      const others = dims.filter((dim) => dim !== "lambda");
      const index = {};
      let left = k;
      for (const dim of [...others].reverse()) {
        index[dim] = left % shape[at(dim)];
        left = Math.floor(left / shape[at(dim)]);
      }
      return { index, y: x.map((_, i) => values[dims.reduce((sum, dim, d) => sum * shape[d] + (dim === "lambda" ? i : index[dim]), 0)]) };
    };
    const lines = [...Array(count).keys()].map(line);
    const named = ({ index }) => [directions[index.direction ?? 0], texts ? texts[index.data] : "", result.shapes[index.direction ?? 0] ?? ""].filter(Boolean).join(", ");
    const guess = name === "loss" && Number.isFinite(result.guessing) ? result.guessing : null;
    const make = () => {
      const traces = lines.map((each, k) => ({ type: "scatter", mode: "lines", x, y: each.y, name: named(each), line: lineStyle(k), showlegend: lines.length <= 12 }));
      lines.forEach((each, k) => {
        const broken = x.filter((_, i) => !Number.isFinite(each.y[i]));
        if (broken.length) traces.push({ type: "scatter", mode: "markers", x: broken, y: broken.map(() => Math.max(...each.y.filter(Number.isFinite), 0)), marker: { symbol: "x", color: lineColour(k), size: 7 }, name: "not finite" });
      });
      if (Number.isFinite(result.center[name])) traces.push({ type: "scatter", mode: "markers", x: [0], y: [result.center[name]], marker: { color: PAPER, size: 8, line: { color: INK, width: 1.5 } }, name: "the model" });
      const layout = { xaxis: plotAxis("position λ"), yaxis: heightAxis(labelOf(result, name), Array.from(values)), shapes: [], annotations: [] };
      if (guess !== null) {
        layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: guess, y1: guess, line: { color: SOFT, width: 1, dash: "dash" } });
        layout.annotations.push({ xref: "paper", x: 1, y: wide(Array.from(values)) ? Math.log10(guess) : guess, text: "guessing", showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 11, color: SOFT } });
      }
      return { traces, layout };
    };
    const numbers = () => [["lambda", ...lines.map(named)], x.map((at, i) => [at, ...lines.map((each) => each.y[i])])];
    return chart({ name: `${result.file}-${name}`, height: 340, make, numbers });
  });
}

// A surface from above with what lies on it, and in three dimensions.
function surfaceCharts(result, place) {
  const name = "loss", [alpha, beta] = ["alpha", "beta"].map((each) => Array.from(numbersOf(result, place, each)));
  const values = numbersOf(result, place, name), { dims } = result.variables[name];
  const at = (i, j) => values[dims[0] === "alpha" ? i * beta.length + j : j * alpha.length + i];
  const isLog = wide(Array.from(values)), lift = (x) => (isLog ? Math.log10(x) : x);
  const rows = beta.map((_, j) => alpha.map((_, i) => { const x = lift(at(i, j)); return Number.isFinite(x) ? x : null; }));
  const known = rows.flat().filter((x) => x !== null);
  if (!known.length) return [];
  const title = isLog ? `log₁₀ ${labelOf(result, name)}` : labelOf(result, name);
  const colours = page.colours.maps.viridis.map((colour, k) => [k / 255, colour]);
  const paths = overlays(result, place);
  const hover = rows.map((line, j) => line.map((_, i) => `α ${written(alpha[i], 3)}, β ${written(beta[j], 3)}: ${written(at(i, j))}`));
  const flat = () => ({
    traces: [
      { type: "contour", x: alpha, y: beta, z: rows, colorscale: colours, contours: { coloring: "heatmap", showlines: true }, line: { width: 0.6, color: "#ffffff" }, ncontours: 18, colorbar: { title: { text: plain(title), side: "right" }, thickness: isNarrow() ? 8 : 12, len: isNarrow() ? 0.5 : 1, outlinewidth: 0 }, text: hover, hovertemplate: "%{text}<extra></extra>" },
      ...paths.map(({ a, b, words, mode, symbol, text }) => ({ type: "scatter", mode, x: a, y: b, text: text ?? words, textposition: "middle center", textfont: { color: INK, size: 11 }, hovertext: words, hoverinfo: "text", showlegend: false, line: { color: PAPER, width: 2 }, marker: { color: PAPER, size: text ? 17 : 7, symbol, line: { color: INK, width: 1.2 } } })),
    ],
    layout: { xaxis: planeAxis(result, 0, "α", { constrain: "domain" }), yaxis: planeAxis(result, 1, "β", evenly(result, alpha, beta)), showlegend: false },
  });
  const [low, high] = known.reduce(([a, b], z) => [Math.min(a, z), Math.max(b, z)], [Infinity, -Infinity]);
  const above = 0.008 * (high - low);
  const scene = { aspectmode: "manual", aspectratio: { x: 1, y: 1, z: 0.7 }, xaxis: { title: { text: "α" } }, yaxis: { title: { text: "β" } }, zaxis: { title: { text: plain(title) } }, camera: { eye: { x: 1.05, y: -1.25, z: 1.15 }, center: { x: 0, y: 0, z: -0.15 } } };
  const solid = () => ({
    traces: [
      { type: "surface", x: alpha, y: beta, z: rows, colorscale: colours, showscale: false, text: hover, hovertemplate: "%{text}<extra></extra>", contours: { z: { show: true, usecolormap: false, color: "rgba(255,255,255,0.5)", width: 1 } } },
      ...paths.filter(({ mode }) => mode.includes("lines")).map((path) => ({ type: "scatter3d", mode: "lines", ...draped(path, alpha, beta, rows, above), hoverinfo: "skip", showlegend: false, line: { color: INK, width: 5 } })),
      ...paths.filter(({ height }) => height).map(({ a, b, height, words }) => ({ type: "scatter3d", mode: "markers", x: a, y: b, z: height.map(lift), text: words, hoverinfo: "text", showlegend: false, marker: { color: INK, size: 4 } })),
    ],
    layout: { scene, margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false },
  });
  const numbers = () => [["alpha", "beta", ...Object.keys(result.variables).filter((each) => sameDims(result, each, name))],
    alpha.flatMap((a, i) => beta.map((b, j) => [a, b, ...Object.keys(result.variables).filter((each) => sameDims(result, each, name)).map((each) => numbersOf(result, place, each)[dims[0] === "alpha" ? i * beta.length + j : j * alpha.length + i])]))];
  return [
    chart({ name: `${result.file}-plane`, height: 420, make: flat, numbers, caption: paths.map(({ told }) => told).filter(Boolean).join(" ") }),
    chart({ name: `${result.file}-3d`, height: 420, make: solid, numbers, solid: true, caption: "Drag to turn, scroll to come nearer." }),
  ];
}

// A path laid on the surface, bilinear between the points of its grid, and a hair above it so that it can be seen.
function draped({ a, b }, alpha, beta, rows, above) {
  const x = [], y = [], z = [];
  for (let k = 0; k + 1 < a.length; k++)
    for (let i = k ? 1 : 0; i <= DRAPED; i++) {
      x.push(a[k] + (i / DRAPED) * (a[k + 1] - a[k]));
      y.push(b[k] + (i / DRAPED) * (b[k + 1] - b[k]));
      const height = heightAt(x.at(-1), y.at(-1), alpha, beta, rows);
      z.push(Number.isFinite(height) ? height + above : null);
    }
  return { x, y, z };
}

const DRAPED = 40; // pieces of a way from one checkpoint to the next

// NaN outside of the grid, and beside a point without a value.
function heightAt(x, y, alpha, beta, rows) {
  const cell = (values, at) => Math.min(values.findLastIndex((value) => value <= at), values.length - 2);
  const beyond = (values, at) => at - values.at(-1) > 1e-9 * (values.at(-1) - values[0]); // and not by rounding
  const [i, j] = [cell(alpha, x), cell(beta, y)];
  if (i < 0 || j < 0 || beyond(alpha, x) || beyond(beta, y)) return NaN;
  const corners = [rows[j][i], rows[j][i + 1], rows[j + 1][i], rows[j + 1][i + 1]];
  if (corners.includes(null)) return NaN;
  const [s, t] = [(x - alpha[i]) / (alpha[i + 1] - alpha[i]), (y - beta[j]) / (beta[j + 1] - beta[j])];
  return (1 - t) * ((1 - s) * corners[0] + s * corners[1]) + t * ((1 - s) * corners[2] + s * corners[3]);
}

function sameDims(result, a, b) {
  return String(result.variables[a].dims) === String(result.variables[b].dims);
}

function isNarrow() {
  return innerWidth < 600;
}

function planeAxis(result, place, symbol, more) {
  const axis = plotAxis(directionLabel(result, place, symbol), { showgrid: false, ...more });
  return { ...axis, title: { ...axis.title, font: { size: isNarrow() ? 10 : 12 } } };
}

function directionLabel(result, place, symbol) {
  const info = result.directions[place] ?? {};
  const length = Number.isFinite(info.relative) ? ` (1 = ${written(info.relative, 2)} ‖θ‖)` : "";
  return `${symbol}${info.name ? ` along ${info.name}` : ""}${length}`;
}

// Equal lengths of parameter space are equal on the screen, unless the plane is a sliver.
function evenly(result, alpha, beta) {
  const [first, second] = [0, 1].map((k) => result.directions[k]?.relative ?? 1), extent = (x) => Math.max(...x) - Math.min(...x);
  const sides = [extent(alpha) * first, extent(beta) * second];
  return Math.min(...sides) > 0 && Math.max(...sides) <= 3 * Math.min(...sides) ? { scaleanchor: "x", scaleratio: second / first, constrain: "domain" } : {};
}

// Checkpoints, models, a curve: what lies on the plane.
function overlays(result, place) {
  const get = (name) => (result.variables[name] ? Array.from(numbersOf(result, place, name)) : null), found = [];
  if (get("trajectory_alpha")) {
    const share = get("trajectory_share"), loss = get("trajectory_loss");
    found.push({ a: get("trajectory_alpha"), b: get("trajectory_beta"), height: get("trajectory_plane_loss"), mode: "lines+markers",
      words: share.map((each, k) => `checkpoint ${k + 1}: loss ${written(loss[k])}, ${written(100 * each, 3)} % in the plane`), told: "Points: the checkpoints, projected onto the plane." });
  }
  if (get("curve_alpha")) found.push({ a: get("curve_alpha"), b: get("curve_beta"), height: null, mode: "lines", words: get("curve_alpha").map(() => "curve") });
  if (get("model_alpha")) {
    const names = result.variables.model.texts;
    found.push({ a: get("model_alpha"), b: get("model_beta"), height: get("model_loss"), mode: "markers+text", symbol: "circle", text: names, words: names.map((name, k) => `${name}: loss ${written(get("model_loss")[k])}`), told: "Circles: the models." });
  }
  if (!get("model_alpha") && Number.isFinite(result.center.loss)) found.push({ a: [0], b: [0], height: [result.center.loss], mode: "markers", symbol: "diamond", words: [`the model: loss ${written(result.center.loss)}`], told: "Diamond: the model." });
  return found;
}

// The density over bins that are even on a symmetric logarithmic axis, and both ends with their residuals.
function spectrumCharts(result, place) {
  const get = (name) => (result.variables[name] ? Array.from(numbersOf(result, place, name)) : null), figures = [];
  if (get("density")) {
    const edges = [...get("bin_left"), get("bin_right").at(-1)], models = [{ name: "density", place: 0, share: get("density"), errors: get("density_se") }];
    figures.push(densityChart({ name: `${result.file}-density`, height: 320, edges, models }));
  }
  const ends = [["eigenvalue", "largest"], ["eigenvalue_min", "smallest"]].filter(([name]) => get(name));
  const rows = ends.flatMap(([name, end]) => get(name).map((x, k) => [end, k + 1, x, get(`${name}_residual`)[k], get(`${name}_gap`)?.[k] ?? NaN, get(`${name}_converged`)[k] ? "yes" : "no"]));
  if (rows.length) figures.push(el("div", { class: "wide", tabindex: 0 }, table(["end", "rank", "eigenvalue", "residual", "gap", "converged"], rows)));
  return figures;
}

function cosineTable(result, place) {
  const get = (name) => (result.variables[name] ? Array.from(numbersOf(result, place, name)) : null);
  if (!get("cosine")) return [];
  const rows = get("cosine").map((x, k) => [k + 1, get("eigenvalue")[k], x, get("ambiguous")[k] ? "gap below residual" : ""]);
  return [el("h3", {}, "Cosines with the eigenvectors"), el("div", { class: "wide", tabindex: 0 }, table(["", "eigenvalue", "cosine", "doubt"], rows))];
}

function connectionCharts(result, place) {
  const t = Array.from(numbersOf(result, place, "t")), pairs = result.variables.pair.texts, paths = result.variables.path.texts;
  const get = (name) => numbersOf(result, place, name);
  const figures = ["loss", "error"].filter((name) => result.variables[name]).map((name) => {
    const line = (p, q) => Array.from(get(name).subarray((p * paths.length + q) * t.length, (p * paths.length + q + 1) * t.length));
    const lines = pairs.flatMap((pair, p) => paths.map((path, q) => ({ p, q, name: `${pair}, ${path}`, y: line(p, q) })));
    const make = () => ({
      traces: lines.map((each) => ({ type: "scatter", mode: "lines+markers", x: t, y: each.y, name: each.name, line: { color: lineColour(each.p), width: 1.6, dash: DASH[each.q % DASH.length] }, marker: { size: 4 } })),
      layout: { xaxis: plotAxis("position t on the path"), yaxis: plotAxis(labelOf(result, name), { rangemode: "tozero" }) },
    });
    return chart({ name: `${result.file}-${name}`, height: 320, make, numbers: () => [["t", ...lines.map((each) => each.name)], t.map((x, i) => [x, ...lines.map((each) => each.y[i])])] });
  });
  const rows = pairs.flatMap((pair, p) => paths.map((path, q) => {
    const k = p * paths.length + q;
    const status = result.variables.status?.texts[k] ?? "", reason = result.variables.reason?.texts[k] ?? "";
    return [pair, path, withError(get("mode_connectivity")?.[k] ?? NaN, get("mode_connectivity_se")?.[k] ?? NaN), get("loss_barrier")?.[k] ?? NaN, [status, reason].filter(Boolean).join(": ")];
  }));
  return [...figures, el("div", { class: "wide", tabindex: 0 }, table(["models", "path", "mode connectivity (%)", "barrier of the loss (nat)", "status"], rows))];
}

function comparisonMatrices(result, place) {
  const models = result.variables.model.texts ?? Array.from(numbersOf(result, place, "model"), String), n = models.length;
  const names = Object.keys(result.variables).filter((name) => String(result.variables[name].dims) === "model,model_b" && !name.endsWith("_se"));
  return [el("div", { class: "matrices" }, ...names.map((name) => {
    const values = numbersOf(result, place, name), errors = numbersOf(result, place, `${name}_se`), known = Array.from(values).filter(Number.isFinite);
    const picture = matrix(models, models, (i, j) => values[i * n + j], { low: Math.min(...known, 0), high: Math.max(...known), title: labelOf(result, name) });
    const numbers = () => [["model", "model_b", name, `${name}_se`], models.flatMap((a, i) => models.map((b, j) => [a, b, values[i * n + j], errors?.[i * n + j] ?? NaN]))];
    return framed(el("div", {}, el("h3", {}, labelOf(result, name)), picture), { name: `${result.file}-${name}`, numbers, image: () => picture });
  }))];
}

const DRAW = {
  line: lineCharts,
  mined: (result, place) => [...lineCharts(result, place), ...cosineTable(result, place)],
  surface: surfaceCharts,
  plane: surfaceCharts,
  spectrum: spectrumCharts,
  connection: connectionCharts,
  comparison: comparisonMatrices,
};

async function start() {
  await loadArrays();
  page.results.forEach((result, place) => document.getElementById(`result-${place}`).append(...(DRAW[result.kind]?.(result, place) ?? [])));
}

begin(start);
