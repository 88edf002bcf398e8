// The numbers of the page, and how they are written.

async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const TYPES = { Float64Array, Float32Array, Uint8Array, Uint16Array };
const arrays = {};

async function loadArrays() {
  const buffer = await unpacked("numbers");
  for (const [name, { type, at, shape }] of Object.entries(page.arrays)) {
    const size = shape.reduce((product, n) => product * n, 1);
    arrays[name] = new TYPES[type](buffer, at, size);
  }
}

// The row `k` of an array whose rows have so many numbers; nothing where there is no such array.
function row(name, k, length) {
  return arrays[name] ? arrays[name].subarray(k * length, (k + 1) * length) : null;
}

function written(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 1e-3 || size >= 1e6)
      ? value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e")
      : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "−");
}

// The error with two digits and the value with as many decimals.
function withError(value, error, units = "1") {
  const tail = units === "1" || units === "" ? "" : ` ${units}`;
  if (!Number.isFinite(value)) return written(value);
  if (!Number.isFinite(error) || error <= 0) return written(value) + (error === 0 ? " ± 0" : "") + tail;
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(error)));
  if (decimals > 6 || Math.abs(value) >= 1e6) return `${written(value)} ± ${written(error, 2)}${tail}`;
  return `${value.toFixed(decimals)} ± ${error.toFixed(decimals)}${tail}`.replaceAll("-", "−");
}

// For files and commands: all digits, nothing where there is no number.
function exact(value) {
  return typeof value === "number" ? (Number.isNaN(value) ? "" : String(value)) : String(value ?? "");
}
