// What is said of one cell beside the pointer: its place, its phase, every metric with its standard error.

// Numbers of the bookkeeping, which the card leaves to the story.
const QUIET = new Set(["epochs", "best_epoch", "early_stopped_epoch", "hessian_trace_exact", "hessian_eig_converged", "hessian_eig_min_converged", "hessian_trace_converged", "t_star", "curve_train_loss", "test_error", "ensemble_size", "undecided_share", "positive_share"]);

const BRIEF = {
  ln_hessian_eig: "ln largest eigenvalue",
  hessian_eig_min: "smallest eigenvalue",
  distance: "ℓ₂ distance",
  disagreement: "disagreement",
  jensen_shannon: "Jensen–Shannon divergence",
  output_cosine: "cosine of outputs",
  ensemble_error: "test error of the ensemble",
  best_epoch: "epoch of the lowest loss",
};

function describe(k) {
  const lines = page.cells.metrics
    .filter(({ name }) => Number.isFinite(arrays[`cell.${name}`][k]) && !QUIET.has(name))
    .map(({ name, long_name, units }) => [BRIEF[name] ?? long_name, withError(arrays[`cell.${name}`][k], arrays[`cell.${name}_se`][k], units)]);
  return [el("p", {}, el("strong", {}, placeText(k))), phaseLine(k), cardTable(lines)];
}

function cardTable(lines) {
  return el("table", {}, ...lines.map(([name, ...values]) => el("tr", {}, el("th", {}, name), ...values.map((value) => el("td", {}, value)))));
}

function chip(phase) {
  return phase ? el("span", { class: "chip", style: `background:${page.colours.phases[phase]}` }, phase) : "no phase";
}

function phaseLine(k) {
  const phase = page.phases[labels.phase[k]];
  const [sure, far] = [labels.probability[k], labels.margin[k]];
  const status = page.cells.texts.status[arrays["label.status"][k]];
  return el(
    "p",
    { class: "phase-line" },
    chip(phase),
    Number.isNaN(sure) ? "" : ` probability ${written(sure, 2)}`,
    Number.isNaN(far) ? "" : `, margin ${written(far, 2)}`,
    status === "ok" ? "" : ` – ${status}`
  );
}
