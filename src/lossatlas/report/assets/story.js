// The story of one cell: its numbers, its seeds, its pairs, and the command that makes it again.

const story = document.getElementById("story");

function tellStory() {
  const k = state.cell;
  story.hidden = k === null;
  document.body.classList.toggle("reading", k !== null);
  if (k === null) return;
  const parts = [storyHead(k), troubles(k), adviceOf(k), cellNumbers(k), training(k), connectivity(k), similarity(k), hessian(k), again(k)];
  story.replaceChildren(...parts.filter(Boolean));
  story.scrollTop = 0;
  if (state.byKeys) story.focus();
}

function storyHead(k) {
  const close = el("button", { type: "button", class: "close", "aria-label": "Close the story", onclick: () => choose(null) }, "×");
  return el("div", { class: "story-head" }, el("div", {}, el("h2", {}, placeText(k)), phaseLine(k)), close);
}

function troubles(k) {
  const status = page.cells.texts.status[arrays["label.status"][k]], reason = page.cells.texts.reason[arrays["label.reason"][k]];
  return status === "ok" && !reason ? null : el("p", { class: "trouble" }, el("strong", {}, status), reason ? `: ${reason}` : "");
}

function adviceOf(k) {
  const phase = page.phases[labels.phase[k]];
  if (!phase) return null;
  const above = arrays["rule.mode_connectivity"][k] > Math.abs(state.limits.mode_connectivity);
  const fired = page.rules.fired[phase][Number(above)];
  return el("p", {}, el("strong", {}, "What would help: "), fired.length ? `${[...new Set(fired.map((name) => page.rules.words[name]))].join("; then ")}.` : "nothing; all is well here.");
}

// A heading, its content; nothing where there is no content.
function chapter(title, ...parts) {
  const kept = parts.filter(Boolean);
  return kept.length ? el("section", {}, el("h3", {}, title), ...kept) : null;
}

function cellNumbers(k) {
  const rows = page.cells.metrics
    .filter(({ name }) => Number.isFinite(arrays[`cell.${name}`][k]) && (!QUIET.has(name) || name === "test_error"))
    .map(({ name, long_name, units }) => [BRIEF[name] ?? long_name, withError(arrays[`cell.${name}`][k], arrays[`cell.${name}_se`][k], units), name]);
  if (!rows.length) return null;
  const body = el("table", { class: "pairs-of" }, el("tbody", {}, ...rows.map(([label, value, name]) =>
    el("tr", { "data-metric": name }, el("th", { scope: "row" }, label), el("td", { class: "number" }, value)))));
  return chapter("Means over the seeds, ± standard error", body);
}

function seedsOf(k) {
  const statuses = row("seed.status", k, page.seeds.values.length);
  return page.seeds.values.map((seed, place) => ({ seed, place, status: statuses ? page.seeds.texts.status[statuses[place]] : "ok" }));
}

function training(k) {
  const epochs = page.histories.epoch, n = page.seeds.values.length;
  const measured = page.histories.metrics.filter(({ name }) => name !== "running_lr" && row(`history.${name}`, k, n * epochs.length).some(Number.isFinite));
  if (!measured.length) return null;
  const values = (name, place) => row(`history.${name}`, k, n * epochs.length).subarray(place * epochs.length, (place + 1) * epochs.length);
  const figures = measured.map(({ name, long_name, units }) => {
    const all = page.seeds.values.flatMap((_, place) => Array.from(values(name, place)).filter(Number.isFinite));
    const isLog = name === "running_loss" && Math.min(...all) > 0 && Math.max(...all) > 30 * Math.min(...all);
    const make = () => ({
      traces: page.seeds.values.map((seed, place) => ({ type: "scatter", mode: "lines", x: epochs, y: Array.from(values(name, place)), name: `seed ${seed}`, line: lineStyle(place, { width: 1.3 }) })),
      layout: { xaxis: plotAxis("epoch"), yaxis: plotAxis(`${long_name.replace("running training ", "")} (${units})`, isLog ? { type: "log", dtick: 1 } : {}), showlegend: true },
    });
    const numbers = () => [["epoch", ...page.seeds.values.map((seed) => `seed ${seed}`)], epochs.map((epoch, e) => [epoch, ...page.seeds.values.map((_, place) => values(name, place)[e])])];
    return chart({ name: `${name}-${placeText(k, "-")}`, height: 240, make, numbers, caption: "Training: running mean over each epoch." });
  });
  return chapter("Training", ...figures);
}

function connectivity(k) {
  const { t, values: pairs, curves } = page.pairs;
  const line = (name, place) => row(`curve.${name}`, k, pairs.length * t.length).subarray(place * t.length, (place + 1) * t.length);
  const known = (name) => arrays[`curve.${name}`] ? pairs.map((_, place) => place).filter((place) => line(name, place).some(Number.isFinite)) : [];
  const figures = ["error", "loss"].map((what) => {
    const parts = ["train", "test"].filter((part) => curves.some(({ name }) => name === `${part}_${what}`));
    const places = [...new Set(parts.flatMap((part) => known(`${part}_${what}`)))];
    if (!places.length) return null;
    const units = what === "error" ? "%" : "nat";
    const make = () => ({
      traces: parts.flatMap((part) => places.map((place, n) => ({
        type: "scatter", mode: "lines+markers", x: t, y: Array.from(line(`${part}_${what}`, place)), name: `${pairs[place].join("–")}, ${part === "train" ? "training" : "test"}`,
        line: { color: lineColour(n), width: 1.5, dash: part === "train" ? "solid" : "dot" }, marker: { size: 3.5 }, showlegend: places.length * parts.length <= 8,
      }))),
      layout: { xaxis: plotAxis("position t on the curve"), yaxis: plotAxis(`${what} (${units})`, { rangemode: "tozero" }) },
    });
    const columns = parts.flatMap((part) => places.map((place) => [part, place]));
    const numbers = () => [["t", ...columns.map(([part, place]) => `${part} ${pairs[place].join("-")}`)], t.map((x, i) => [x, ...columns.map(([part, place]) => line(`${part}_${what}`, place)[i])])];
    return chart({ name: `curve-${what}-${placeText(k, "-")}`, height: 240, make, numbers, caption: "Between two seeds each: training solid, test dotted." });
  });
  const names = ["mode_connectivity", "t_star", "distance", "disagreement", "jensen_shannon"].filter((name) => arrays[`pair.${name}`]);
  const get = (name, place) => row(`pair.${name}`, k, pairs.length)?.[place] ?? NaN;
  const rows = pairs.map((pair, place) => ({ pair, place })).filter(({ place }) => names.some((name) => Number.isFinite(get(name, place))))
    .map(({ pair, place }) => [pair.join("–"), ...names.map((name) => withError(get(name, place), get(`${name}_se`, place)))]);
  const shownNames = names.map((name) => page.pairs.metrics.find((metric) => metric.name === name)).map(({ long_name, units }) => (units === "1" ? long_name : `${long_name} (${units})`));
  return chapter("Along the curves between its seeds", ...figures, rows.length ? el("div", { class: "wide", tabindex: 0 }, table(["pair", ...shownNames], rows)) : null, pairTroubles(k));
}

function pairTroubles(k) {
  const codes = row("pair.status", k, page.pairs.values.length), reasons = row("pair.reason", k, page.pairs.values.length);
  if (!codes) return null;
  const found = page.pairs.values.flatMap((pair, place) => {
    const status = page.pairs.texts.status[codes[place]];
    return ["ok", "missing", ""].includes(status) ? [] : [el("li", {}, `${pair.join("–")} ${status}: ${page.pairs.texts.reason[reasons[place]]}`)];
  });
  return found.length ? el("ul", { class: "trouble" }, ...found) : null;
}

// CKA of all pairs; 1 on the diagonal by definition.
function similarity(k) {
  const { values: pairs } = page.pairs, values = row("pair.cka", k, pairs.length), seeds = page.seeds.values;
  if (!values || !values.some(Number.isFinite)) return null;
  const at = (a, b) => (a === b ? 1 : values[pairs.findIndex(([x, y]) => (x === a && y === b) || (x === b && y === a))]);
  const picture = matrix(seeds.map((seed) => `seed ${seed}`), seeds.map(String), (i, j) => at(seeds[i], seeds[j]), { low: 0, high: 1, title: "CKA of every pair of seeds" });
  const numbers = () => [["seed", "seed_b", "cka"], pairs.map(([a, b], place) => [a, b, values[place]])];
  return chapter("CKA similarity of its seeds", framed(picture, { name: `cka-${placeText(k, "-")}`, numbers, image: () => picture, caption: "1 on the diagonal by definition." }));
}

function hessian(k) {
  const n = page.seeds.values.length;
  const get = (name, place) => row(`seed.${name}`, k, n)?.[place] ?? NaN;
  const rows = seedsOf(k).map(({ seed, place, status }) => {
    const trace = get("hessian_trace", place), exactTrace = get("hessian_trace_exact", place) === 1;
    return [
      `seed ${seed}`,
      withError(get("hessian_eig", place), get("hessian_eig_residual", place)),
      withError(get("hessian_eig_min", place), get("hessian_eig_min_residual", place)),
      exactTrace ? `${written(trace)} (exact)` : withError(trace, get("hessian_trace_se", place)),
      Number.isFinite(get("hessian_trace_data_se", place)) ? `± ${written(get("hessian_trace_data_se", place), 2)}` : "–",
      [get("hessian_eig_converged", place) === 0 ? "eigenvalue not converged" : "", get("hessian_trace_converged", place) === 0 ? "trace not converged" : "", status === "ok" ? "" : status].filter(Boolean).join(", ") || "ok",
    ];
  });
  const measured = arrays["seed.hessian_trace"] || arrays["seed.hessian_eig"];
  const losses = seedsOf(k).map(({ seed, place, status }) => [
    `seed ${seed}`, ...["train_loss", "train_error", "test_loss", "test_error"].map((name) => withError(get(name, place), get(`${name}_se`, place))), status,
  ]);
  const reasons = row("seed.reason", k, n);
  const why = reasons ? seedsOf(k).filter(({ place }) => page.seeds.texts.reason[reasons[place]]) : [];
  return chapter(
    "Each seed",
    el("div", { class: "wide", tabindex: 0 }, table(["", "training loss", "error (%)", "test loss", "error (%)", "status"], losses)),
    why.length ? el("ul", { class: "trouble" }, ...why.map(({ seed, place, status }) => el("li", {}, `seed ${seed} ${status}: ${page.seeds.texts.reason[reasons[place]]}`))) : null,
    measured ? el("h4", {}, "Hessian of the training loss") : null,
    measured ? el("div", { class: "wide", tabindex: 0 }, table(["", "λₘₐₓ ± residual", "λₘᵢₙ ± residual", "trace ± estimator", "over samples", "state"], rows)) : null,
    eigenvalues(k),
    ...density(k)
  );
}

function eigenvalues(k) {
  const ranks = page.seeds.ranks, n = page.seeds.values.length;
  if (!(ranks > 1)) return null;
  const values = row("seed.hessian_eigs", k, n * ranks);
  if (!values.some(Number.isFinite)) return null;
  const of = (place) => Array.from(values.subarray(place * ranks, (place + 1) * ranks));
  const make = () => ({
    traces: page.seeds.values.map((seed, place) => ({ type: "scatter", mode: "lines+markers", x: of(place).map((_, rank) => rank + 1), y: of(place), name: `seed ${seed}`, line: lineStyle(place), marker: { size: 4 } })),
    layout: { xaxis: plotAxis("rank"), yaxis: plotAxis("eigenvalue (nat)", { rangemode: "tozero" }) },
  });
  const numbers = () => [["rank", ...page.seeds.values.map((seed) => `seed ${seed}`)], of(0).map((_, rank) => [rank + 1, ...page.seeds.values.map((_, place) => of(place)[rank])])];
  return chart({ name: `eigenvalues-${placeText(k, "-")}`, height: 220, make, numbers });
}

// Which signs the eigenvalues surely have, and their density over bins that all seeds of the cell share.
function density(k) {
  const { bins } = page.densities, n = page.seeds.values.length;
  if (!bins) return [];
  const of = (name, place) => Array.from(row(`density.${name}`, k, n * bins).subarray(place * bins, (place + 1) * bins));
  const models = page.seeds.values.map((seed, place) => ({ name: `seed ${seed}`, place, share: of("share", place), errors: of("share_se", place) }))
    .filter(({ share }) => share.some(Number.isFinite));
  if (!models.length) return [];
  const signs = ["negative_share", "undecided_share", "positive_share"];
  const rows = models.map(({ name, place }) => [name, ...signs.map((sign) => withError(row(`seed.${sign}`, k, n)[place], row(`seed.${sign}_se`, k, n)[place]))]);
  const edges = Array.from(row("density.edges", k, bins + 1));
  return [
    el("h4", {}, "Density of the eigenvalues"),
    el("div", { class: "wide", tabindex: 0 }, table(["", "surely negative", "undecided", "surely positive"], rows)),
    densityChart({ name: `density-${placeText(k, "-")}`, height: 280, edges, models }),
  ];
}

// The spec of this cell alone, as a file, and the command that runs it: the same keys, so the same numbers.
function again(k) {
  if (!Object.keys(page.spec).length) return chapter("Make it again", el("p", {}, "These results were published by others: there is no spec to run."));
  const spec = structuredClone(page.spec);
  for (const [axis, i] of placeOf(k)) spec[axis.role][axis.name] = [axis.values[i]];
  spec.name = fileName(page.spec.name, placeOf(k).map(([axis, i]) => `${axis.name}-${axis.texts[i]}`).join("-"));
  delete spec.phases; // thresholds derived from a grid mean nothing for one cell
  const file = `${spec.name}.toml`;
  const text = toml(spec);
  return chapter(
    "Make it again",
    el("p", {}, "Save ", el("button", { type: "button", onclick: () => save(file, "text/plain", text) }, file), " and run"),
    el("code", { class: "command", tabindex: 0 }, `lossatlas run ${quoted(file)} --out ${quoted(`runs/${spec.name}`)}`),
    el("details", {}, el("summary", {}, "The file"), el("pre", { class: "spec-file", tabindex: 0 }, text))
  );
}

function toml(spec) {
  return Object.entries(spec).filter(([, value]) => value !== null).map(([name, value]) => `${tomlKey(name)} = ${tomlValue(value)}\n`).join("");
}

function tomlKey(name) {
  return /^[\w-]+$/.test(name) ? name : JSON.stringify(name);
}

function tomlValue(value) {
  if (Array.isArray(value)) return `[${value.map(tomlValue).join(", ")}]`;
  if (value !== null && typeof value === "object")
    return `{ ${Object.entries(value).filter(([, inner]) => inner !== null).map(([name, inner]) => `${tomlKey(name)} = ${tomlValue(inner)}`).join(", ")} }`;
  return JSON.stringify(value).replaceAll("\u007f", "\\u007f"); // JSON's texts and numbers are TOML's, but for DEL
}

on("cell", tellStory);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || state.cell === null) return;
  const k = state.cell;
  choose(null);
  document.querySelector(`#phases [data-cell="${k}"]`)?.focus({ preventScroll: true });
});
