// Where one phase ends: level sets of the metrics at their thresholds, as figures/boundaries.py draws them.

const STEPS = 16; // points an interval between two cells
const SHORT = { ln_trace: "ln trace", train_loss: "loss", mode_connectivity: "mc", cka: "CKA" };

// The boundaries of a slice: [{ name, text, lines }] with lines of [column, row] in steps of the fine mesh,
// whose nodes are the frame, the cells, the frame.
function boundaries(grid) {
  const { columns, rows, offset } = grid;
  const limits = Object.fromEntries(
    METRICS.filter((name) => !(name in state.forced)).map((name) => [name, state.limits[name]])
  );
  const fields = {};
  for (const [name, limit] of Object.entries(limits)) {
    const values = arrays[`rule.${name}`].subarray(offset, offset + rows * columns);
    fields[name] = refined(excess(name, values, limit), rows, columns);
  }
  const phases = labels.phase.subarray(offset, offset + rows * columns);
  const outside = (isOn) => // without a field of its own a side is that of the labels: 1 where they are off it
    refined(Float64Array.from(phases, (code) => (code ? Number(isOn(code)) : NaN)), rows, columns).map((x) => Number(x < 0.5));
  let flat, well;
  const found = [];
  const sharp = ["ln_trace", "train_loss"].filter((name) => name in fields);
  const sides = new Set(Array.from(phases).filter((code) => code).map((code) => code < 3));
  if (sharp.length && sides.size === 2) {
    const field = largest(sharp.map((name) => fields[name]));
    flat = field.map((x) => Number(x <= 0));
    found.push({ name: "sharp", text: sharp.map((name) => words(name, limits)).join(" or "), field });
  }
  if ("mode_connectivity" in fields) {
    const field = fields.mode_connectivity;
    well = field.map((x) => Number(x >= 0));
    found.push({ name: "mode_connectivity", text: words("mode_connectivity", limits), field: field.map((x) => -x) });
  }
  if ("cka" in fields) {
    flat ??= outside((code) => code === 1 || code === 2);
    well ??= outside((code) => code === 1 || code === 3);
    const field = fields.cka.map((x, place) => (flat[place] && well[place] ? -x : NaN));
    found.push({ name: "cka", text: words("cka", limits), field });
  }
  const width = (columns + 1) * STEPS + 1, height = (rows + 1) * STEPS + 1;
  for (const each of found) each.lines = contour(each.field, width, height);
  return found.filter((each) => each.lines.length);
}

function words(name, limits) {
  return `${SHORT[name]} = ${written(limits[name], 3)}`;
}

// How far a metric lies above its limit; a loss lies over decades, so its logarithm is compared.
function excess(name, values, limit) {
  const logarithmic = name === "train_loss" && limit > 0 && !values.some((x) => x <= 0);
  return values.map((x) => (logarithmic ? Math.log(x) - Math.log(limit) : x - limit));
}

// The larger of two; where one is not known, the other decides only if it is positive.
function largest(fields) {
  return fields[0].map((_, place) => {
    const known = fields.map((field) => field[place]).filter((x) => !Number.isNaN(x));
    const most = known.length ? Math.max(...known) : NaN;
    return known.length === fields.length || most > 0 ? most : NaN;
  });
}

// Bilinear on the fine mesh, constant from the outer cells to the frame; NaN where a node with weight has no value.
function refined(values, rows, columns) {
  const width = (columns + 1) * STEPS + 1, height = (rows + 1) * STEPS + 1;
  const mesh = new Float64Array(width * height);
  const clamp = (node, n) => Math.min(Math.max(node - 1, 0), n - 1);
  for (let y = 0; y < height; y++) {
    const below = Math.floor(y / STEPS), up = (y % STEPS) / STEPS;
    for (let x = 0; x < width; x++) {
      const left = Math.floor(x / STEPS), across = (x % STEPS) / STEPS;
      let total = 0;
      for (const [node, share] of [[below, 1 - up], [below + 1, up]]) {
        if (!share) continue;
        const line = clamp(node, rows) * columns;
        total += share * (1 - across) * values[line + clamp(left, columns)];
        if (across) total += share * across * values[line + clamp(left + 1, columns)];
      }
      mesh[y * width + x] = total;
    }
  }
  return mesh;
}

// The lines where a field passes zero (what is positive lies above), by marching squares; squares with NaN have none.
function contour(field, width, height) {
  const links = new Map(); // edge of the mesh -> the edges it is joined to
  const join = (a, b) => {
    for (const [from, to] of [[a, b], [b, a]]) links.set(from, [...(links.get(from) ?? []), to]);
  };
  for (let y = 0; y + 1 < height; y++) {
    for (let x = 0; x + 1 < width; x++) {
      const k = y * width + x;
      const side = field[k] > 0;
      if (field[k + 1] > 0 === side && field[k + width + 1] > 0 === side && field[k + width] > 0 === side) continue;
      const corners = [field[k], field[k + 1], field[k + width + 1], field[k + width]];
      if (corners.some(Number.isNaN)) continue;
      const above = corners.map((value) => value > 0);
      const edges = [2 * k, 2 * (k + 1) + 1, 2 * (k + width), 2 * k + 1]; // bottom, right, top, left
      const crossed = edges.filter((_, side) => above[side] !== above[(side + 1) % 4]);
      if (crossed.length === 2) join(...crossed);
      if (crossed.length === 4) {
        const middle = corners.reduce((sum, value) => sum + value, 0) > 0;
        const [a, b, c, d] = edges;
        if (middle === above[0]) join(a, b), join(c, d);
        else join(a, d), join(b, c);
      }
    }
  }
  return chains(links).map((chain) => chain.map((edge) => crossing(edge, field, width)));
}

function crossing(edge, field, width) {
  const k = Math.floor(edge / 2), isUpright = edge % 2;
  const [from, to] = [field[k], field[k + (isUpright ? width : 1)]];
  const share = from / (from - to);
  const [x, y] = [k % width, Math.floor(k / width)];
  return isUpright ? [x, y + share] : [x + share, y];
}

// The links as lines: those with ends first, then the closed ones.
function chains(links) {
  const found = [], left = new Map([...links].map(([edge, others]) => [edge, new Set(others)]));
  const starts = [...[...links].filter(([, others]) => others.length === 1), ...links].map(([edge]) => edge);
  for (const start of starts) {
    while (left.get(start)?.size) {
      const chain = [start];
      for (let here = start; left.get(here)?.size; here = chain.at(-1)) {
        const next = left.get(here).values().next().value;
        left.get(here).delete(next);
        left.get(next).delete(here);
        chain.push(next);
      }
      found.push(chain);
    }
  }
  return found;
}
