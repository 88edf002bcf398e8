// The rule that makes a phase of four numbers, as `lossatlas phases` has it: phase_rule.py and phases.py, in the page.

const METRICS = ["ln_trace", "train_loss", "mode_connectivity", "cka"];
const SHARP = 1, SMOOTH = 0; // NaN: not known

// 1 where a test says sharp, poor or similar, 0 where not, NaN where the metric is not known.
function passes(name, x) {
  if (Number.isNaN(x)) return NaN;
  if (name in state.forced) return Number(state.forced[name]);
  const limit = state.limits[name];
  if (name === "mode_connectivity") return Number(x < limit);
  return Number(name === "cka" ? x >= limit : x > limit);
}

// The place in page.phases; 0 where a metric that is needed is not known.
function decide(trace, loss, connectivity, cka) {
  const byTrace = passes("ln_trace", trace), byLoss = passes("train_loss", loss);
  const sharp = byTrace === SHARP || byLoss === SHARP ? SHARP : byTrace + byLoss;
  const poor = passes("mode_connectivity", connectivity);
  if (sharp === SHARP && poor === 1) return 1;
  if (sharp === SHARP && poor === 0) return 2;
  if (sharp === SMOOTH && poor === 1) return 3;
  if (sharp === SMOOTH && poor === 0) {
    const similar = passes("cka", cka);
    if (similar === 0) return 4;
    if (similar === 1) return 5;
  }
  return 0;
}

// How far a metric lies above its threshold, in median absolute deviations over the grid.
function distance(name, x) {
  if (Number.isNaN(x)) return NaN;
  if (name in state.forced) return state.forced[name] ? Infinity : -Infinity;
  const gap = x - state.limits[name], scale = page.rule.margin_scales[name];
  if (scale > 0) return gap / scale;
  return gap === 0 ? 0 : gap > 0 ? Infinity : -Infinity;
}

// The least distance to a threshold over the tests that decide the label; NaN without one.
function margin(code, trace, loss, connectivity, cka) {
  const [a, b] = [distance("ln_trace", trace), distance("train_loss", loss)];
  const sharpness = Math.abs(Number.isNaN(a) ? b : Number.isNaN(b) ? a : Math.max(a, b));
  let least = Math.min(sharpness, Math.abs(distance("mode_connectivity", connectivity)));
  if (code >= 4) least = Math.min(least, Math.abs(distance("cka", cka)));
  return code > 0 && Number.isFinite(least) ? least : NaN;
}

// The four metrics of a cell for every resampling of its seeds, made once: they do not depend on the thresholds.
const resampled = new Map();

function resamplings(k) {
  if (!resampled.has(k)) resampled.set(k, resample(k));
  return resampled.get(k);
}

function resample(k) {
  const n = page.seeds.values.length;
  const usable = page.seeds.texts.status.map((status) => page.seeds.usable.includes(status));
  const statuses = row("seed.status", k, n);
  const alive = [...Array(n).keys()].filter((seed) => usable[statuses[seed]]);
  if (alive.length < 2) return null;
  const counts = arrays[`resampling.${alive.length}.counts`], shares = arrays[`resampling.${alive.length}.shares`];
  const draws = Array.from(shares, (share, r) => {
    const weights = new Float64Array(n);
    alive.forEach((seed, place) => (weights[seed] = counts[r * alive.length + place]));
    const trace = modelMean("hessian_trace", k, weights);
    return [
      trace > 0 ? Math.log(trace) : NaN,
      modelMean("train_loss", k, weights),
      pairMean("mode_connectivity", k, weights, alive),
      pairMean("cka", k, weights, alive),
    ];
  });
  return { draws, shares };
}

function modelMean(name, k, weights) {
  const values = row(`seed.${name}`, k, weights.length);
  let total = 0, mass = 0;
  for (let seed = 0; values && seed < weights.length; seed++) {
    if (weights[seed] > 0 && Number.isFinite(values[seed])) {
      total += weights[seed] * values[seed];
      mass += weights[seed];
    }
  }
  return mass > 0 ? total / mass : NaN;
}

function pairMean(name, k, weights, alive) {
  const pairs = page.pairs.values, values = row(`pair.${name}`, k, pairs.length);
  if (!values) return NaN;
  let total = 0, mass = 0, measured = 0;
  pairs.forEach(([a, b], place) => {
    const [i, j] = [page.seeds.values.indexOf(a), page.seeds.values.indexOf(b)];
    if (!Number.isFinite(values[place]) || !alive.includes(i) || !alive.includes(j)) return;
    measured += 1;
    total += weights[i] * weights[j] * values[place];
    mass += weights[i] * weights[j];
  });
  if (measured === 1) return arrays[`rule.${name}`][k]; // one pair cannot be resampled: it is held fixed
  return mass > 0 ? total / mass : NaN;
}

// The share of the resamplings, of those that can be decided, in which a cell keeps its label.
function probability(k, code) {
  const found = code > 0 ? resamplings(k) : null;
  if (!found) return NaN;
  let decided = 0, kept = 0;
  found.draws.forEach((metrics, r) => {
    const again = decide(...metrics);
    if (again > 0) decided += found.shares[r];
    if (again === code) kept += found.shares[r];
  });
  return decided > 0 ? kept / decided : NaN;
}

// The labels of all cells at the thresholds of the page's state.
const labels = { phase: null, margin: null, probability: null };

function relabel() {
  const size = arrays["rule.ln_trace"].length;
  labels.phase = new Uint8Array(size);
  labels.margin = new Float64Array(size);
  labels.probability = new Float64Array(size);
  for (let k = 0; k < size; k++) {
    const metrics = METRICS.map((name) => arrays[`rule.${name}`][k]);
    labels.phase[k] = decide(...metrics);
    labels.margin[k] = margin(labels.phase[k], ...metrics);
    labels.probability[k] = probability(k, labels.phase[k]);
  }
}
