// A small matrix with its numbers in it.

function matrix(rows, columns, at, { low, high, title }) {
  const size = 46, left = 12 + 7.2 * Math.max(...rows.map((text) => text.length)), top = 22, colours = page.colours.maps.viridis;
  const cells = rows.flatMap((_, i) => columns.flatMap((_, j) => {
    const x = at(i, j), share = (x - low) / (high - low || 1);
    const text = written(x, 3);
    const colour = Number.isFinite(x) ? colours[Math.min(255, Math.max(0, Math.floor(256 * share)))] : NO_VALUE;
    return [
      svg("rect", { x: left + j * size, y: top + i * size, width: size - 1, height: size - 1, fill: colour }),
      svg("text", { x: left + (j + 0.5) * size, y: top + (i + 0.5) * size + 4, "text-anchor": "middle", "font-size": Math.min(12, 68 / text.length), fill: share > 0.6 || !Number.isFinite(x) ? INK : "#ffffff" }, text),
    ];
  }));
  const names = [
    ...rows.map((text, i) => svg("text", { x: left - 6, y: top + (i + 0.5) * size + 4, "text-anchor": "end", fill: SOFT, class: "tick" }, text)),
    ...columns.map((text, j) => svg("text", { x: left + (j + 0.5) * size, y: top - 7, "text-anchor": "middle", fill: SOFT, class: "tick" }, text)),
  ];
  const [width, height] = [left + columns.length * size, top + rows.length * size];
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "matrix", role: "img", "aria-label": title, "font-family": SANS, "font-size": 12 }, ...cells, ...names);
}
