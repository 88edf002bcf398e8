// The thresholds that can be moved, and the command that gives the same labels.

const WAYS = { // how a slider runs along each metric, and back
  ln_trace: [(x) => x, (x) => x],
  train_loss: [Math.log10, (x) => 10 ** x],
  mode_connectivity: [Math.asinh, Math.sinh],
  cka: [(x) => x, (x) => x],
};
const SLIDERS = {
  ln_trace: ["ln Hessian trace", "sharp above"],
  train_loss: ["Training loss", "sharp above"],
  mode_connectivity: ["Mode connectivity", "poorly connected below"],
  cka: ["CKA similarity", "IV-B from"],
};

function slider(name, changed) {
  const values = Array.from(arrays[`rule.${name}`]).filter((x) => Number.isFinite(x) && (name !== "train_loss" || x > 0));
  const [to, back] = WAYS[name], start = page.rule.thresholds[name];
  const all = [...values, ...(name === "train_loss" && start <= 0 ? [] : [start])].map(to);
  const low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
  const range = el("input", { type: "range", min: 0, max: 1, step: "any", "aria-label": `Threshold of ${SLIDERS[name][0]}` });
  const field = el("input", { type: "text", inputmode: "decimal", size: 8, "aria-label": `Threshold of ${SLIDERS[name][0]}, as a number` });
  const rug = svg("svg", { class: "rug", viewBox: "0 0 1000 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { d: values.map((x) => `M${(1000 * (to(x) - low)) / span} 0V8`).join(""), stroke: "currentColor", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" }));
  const words = el("span", { class: "origin" });
  const set = (value) => {
    delete state.forced[name];
    state.limits[name] = value;
    changed();
  };
  range.addEventListener("input", () => set(Number(back(low + span * Number(range.value)).toPrecision(3))));
  field.addEventListener("change", () => (Number.isFinite(Number(field.value)) && field.value.trim() ? set(Number(field.value)) : changed()));
  const body = el("div", { class: "slider", "data-threshold": name }, el("label", {}, SLIDERS[name][0], words), field, el("div", { class: "track" }, rug, range));
  body.refresh = () => {
    const value = state.limits[name];
    range.value = String((to(value) - low) / span);
    range.setAttribute("aria-valuetext", exact(value));
    field.value = exact(Number(value.toPrecision(4)));
    field.title = exact(value);
    words.textContent = name in state.forced ? `no transition: ${page.rule.sides[name]}` : SLIDERS[name][1];
  };
  return body;
}

function command() {
  const given = METRICS.filter((name) => !(name in state.forced)).map((name) => ` --set ${name}=${exact(state.limits[name])}`);
  return `lossatlas phases ${quoted(page.source || "SOURCE")}${Object.keys(state.forced).length ? " --auto" : ""}${given.join("")}`;
}

// As a shell needs it.
function quoted(text) {
  return /^[\w./:=@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function reset() {
  state.limits = { ...page.rule.thresholds };
  const passed = { "sharp": true, "poorly connected": true, "IV-B where it is IV": true };
  state.forced = Object.fromEntries(Object.entries(page.rule.sides).map(([name, side]) => [name, side in passed]));
}
