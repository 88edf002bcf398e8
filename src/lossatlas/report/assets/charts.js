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
