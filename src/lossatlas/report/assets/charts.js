// Lines by plotly, which is unpacked when the first of them is drawn. They are laid out for paper; the style sheet
// turns their texts and rules over where the screen is dark.

let plotlyReady = null;

function withPlotly() {
  plotlyReady ??= unpacked("plotly").then((buffer) => {
    document.head.append(el("script", {}, new TextDecoder().decode(buffer)));
    return window.Plotly;
  });
  return plotlyReady;
}

const LAYOUT = {
  font: { family: SANS, size: 12, color: INK },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  margin: { l: 58, r: 10, t: 10, b: 44 },
  hoverlabel: { font: { family: SANS, size: 12 } },
  legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } },
  dragmode: "zoom",
};
const CONFIG = { displayModeBar: false, responsive: true };

// plotly reads its texts as a small HTML; what comes from files is shown as it is.
function plain(text) {
  return Array.isArray(text) ? text.map(plain) : typeof text === "string" ? text.replaceAll("&", "&amp;").replaceAll("<", "&lt;") : text;
}

function safe({ traces, layout }) {
  const texts = (trace) => Object.fromEntries(["name", "text", "hovertext"].filter((key) => key in trace).map((key) => [key, plain(trace[key])]));
  return { traces: traces.map((trace) => ({ ...trace, ...texts(trace) })), layout };
}

function plotAxis(title, more = {}) {
  return {
    title: { text: plain(title), standoff: 6 }, showline: true, linecolor: SOFT, linewidth: 0.8, ticks: "outside", ticklen: 4, tickcolor: SOFT,
    gridcolor: "#e8e4da", zeroline: false, automargin: true, exponentformat: "power", minexponent: 4, ...more,
  };
}

// A chart in a frame. `make()` gives { traces, layout }; it is drawn when it comes into view or the
// page has settled, and again by `refresh`.
function chart({ name, caption, height, make, numbers, solid = false }) {
  const host = el("div", { class: solid ? "chart solid" : "chart", style: `height:${height}px` });
  const image = async () => {
    const { traces, layout } = safe(make());
    const plotly = await withPlotly();
    const url = await plotly.toImage(
      { data: traces, layout: { ...LAYOUT, ...layout, paper_bgcolor: PAPER, height } },
      { format: "svg", width: host.clientWidth || 640, height }
    );
    return decodeURIComponent(url.slice(url.indexOf(",") + 1));
  };
  const figure = framed(host, { name, caption, numbers, image });
  const table = figure.refresh;
  let seen = false;
  const draw = async () => {
    const { traces, layout } = safe(make());
    const plotly = await withPlotly();
    await plotly.react(host, traces, { ...LAYOUT, ...layout, height }, CONFIG);
    host.dataset.drawn = "";
  };
  figure.refresh = () => {
    table();
    if (seen) draw();
  };
  const first = () => {
    if (!seen) draw();
    seen = true;
  };
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    first();
  }, { rootMargin: "600px" }).observe(host);
  if (!solid) setTimeout(first, 1500); // for those who print without having scrolled; drawings in 3-D take too much
  return figure;
}

function lineColour(place) {
  return page.colours.lines[place % page.colours.lines.length];
}

const DASH = ["solid", "dash", "dot"];

function lineStyle(place, more = {}) {
  return { color: lineColour(place), width: 1.6, dash: DASH[Math.floor(place / page.colours.lines.length) % DASH.length], ...more };
}

// Shares of the eigenvalues over bins that are even on a symmetric logarithmic axis, with their standard errors: bars
// of one model, lines of several. `models` are { name, place, share, errors }, `place` that of the colour.
function densityChart({ name, height, edges, models }) {
  const bins = edges.length - 1, isOne = models.length === 1;
  const ticks = edges.map((_, k) => k).filter((k) => k % 10 === 0 || k === bins);
  const seen = (share) => share.map((x) => (x > 0 ? x : null)); // the axis is logarithmic
  const words = ({ name, share, errors }) => share.map((x, k) => `${isOne ? "" : `${name}, `}${written(edges[k], 3)} to ${written(edges[k + 1], 3)}: ${withError(x, errors[k])}`);
  const bars = (errors, color) => ({ type: "data", array: errors, thickness: 0.8, width: 0, color });
  const one = (model) => ({ type: "bar", x: model.share.map((_, k) => k + 0.5), y: seen(model.share), width: 1, marker: { color: lineColour(model.place) }, error_y: bars(model.errors, SOFT), text: words(model), textposition: "none", hovertemplate: "%{text}<extra></extra>" });
  // Steps from edge to edge, and the errors beside each other within a bin.
  const several = (model, m) => [
    { type: "scatter", mode: "lines", name: model.name, x: model.share.flatMap((_, k) => [k, k + 1]), y: seen(model.share).flatMap((x) => [x, x]), line: lineStyle(model.place, { width: 1.2 }), hoverinfo: "skip" },
    { type: "scatter", mode: "markers", showlegend: false, x: model.share.map((_, k) => k + (m + 1) / (models.length + 1)), y: seen(model.share), marker: { size: 3, color: lineColour(model.place) }, error_y: bars(model.errors, `${lineColour(model.place)}80`), text: words(model), hovertemplate: "%{text}<extra></extra>" },
  ];
  const make = () => ({
    traces: isOne ? models.map(one) : models.flatMap(several),
    layout: {
      bargap: 0, showlegend: !isOne, yaxis: plotAxis("share of the eigenvalues", { type: "log", nticks: 6 }),
      xaxis: plotAxis("eigenvalue (nat)", { tickvals: ticks, ticktext: ticks.map((k) => written(edges[k], 2)), showgrid: false, range: [0, bins] }),
      shapes: zeroLine(edges),
    },
  });
  const numbers = () => [
    ["bin_left", "bin_right", ...models.flatMap(({ name }) => [name, `${name}_se`])],
    edges.slice(1).map((right, k) => [edges[k], right, ...models.flatMap(({ share, errors }) => [share[k], errors[k]])]),
  ];
  const zero = zeroLine(edges).length ? " Dashed: 0; eigenvalues of undecided sign lie somewhere about it." : "";
  return chart({ name, height, make, numbers, caption: `Share of the eigenvalues in each bin, with its standard error over the probes.${zero}` });
}

// A rule where the eigenvalues change their sign; about 0 the axis is linear.
function zeroLine(edges) {
  const k = edges.findIndex((left, i) => left <= 0 && edges[i + 1] > 0);
  if (k < 0) return [];
  const at = k - edges[k] / (edges[k + 1] - edges[k]);
  return [{ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { color: SOFT, width: 0.8, dash: "dash" } }];
}
