// Tables behind the figures, and files to take along.

function table(header, rows) {
  const cell = (name, value, attributes = {}) =>
    el(name, { class: typeof value === "number" ? "number" : "text", ...attributes },
      typeof value === "number" ? written(value, 6) : String(value ?? ""));
  const numeric = header.map((_, k) => rows.some((each) => typeof each[k] === "number"));
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...header.map((name, k) =>
      el("th", { scope: "col", class: numeric[k] ? "number" : "text" }, name)))),
    el("tbody", {}, ...rows.map((each) => el("tr", {}, ...each.map((value) => cell("td", value)))))
  );
}

function csv(header, rows) {
  const quoted = (value) => {
    const text = exact(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows].map((each) => each.map(quoted).join(",") + "\n").join("");
}

function save(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function fileName(...parts) {
  return parts.filter(Boolean).join("-").replace(/[^\w.=-]+/g, "_");
}
