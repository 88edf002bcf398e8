// The frame of every figure: its caption, and below it SVG, PNG, CSV and the table of its numbers.

const PAPER = "#ffffff";
const SERIF = "'Iowan Old Style', 'Palatino Linotype', Palatino, P052, Georgia, serif";
const INK = "#1f1d1a", SOFT = "#5f5a52", RULE = "#cfc9bc", NO_VALUE = "#e9e6df";
const SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";

// `numbers` returns [header, rows]; `image` the SVG element or a promise of the text of one.
function framed(body, { caption, name, numbers, image }) {
  const under = el("div", { class: "numbers wide", hidden: "", tabindex: 0 });
  const tool = (text, title, action) => el("button", { type: "button", title, onclick: action }, text);
  const toggle = tool("Numbers", "The table behind this figure", () => {
    under.hidden = !under.hidden;
    toggle.setAttribute("aria-expanded", String(!under.hidden));
    under.replaceChildren(...(under.hidden ? [] : [table(...numbers())]));
  });
  toggle.setAttribute("aria-expanded", "false");
  const tools = el(
    "div",
    { class: "tools" },
    toggle,
    tool("CSV", "These numbers as a file", () => save(`${fileName(page.name, name)}.csv`, "text/csv", csv(...numbers()))),
    tool("SVG", "This figure as vectors", async () =>
      save(`${fileName(page.name, name)}.svg`, "image/svg+xml", await imageText(image))),
    tool("PNG", "This figure as pixels", async () =>
      save(`${fileName(page.name, name)}.png`, "image/png", await pixels(await imageText(image))))
  );
  const figure = el("figure", { "data-figure": name }, body, el("figcaption", {}, caption ?? "", tools), under);
  figure.refresh = () => {
    if (!under.hidden) under.replaceChildren(table(...numbers()));
  };
  return figure;
}

// A drawing of this page stands on paper, whatever the screen shows: its attributes are those of the light page.
async function imageText(image) {
  const found = await image();
  if (typeof found === "string") return found;
  const copy = found.cloneNode(true);
  for (const node of copy.querySelectorAll(".live")) node.remove();
  const { width, height } = found.viewBox.baseVal;
  put(copy, { xmlns: SVG, width, height }, []);
  copy.prepend(svg("rect", { width, height, fill: PAPER }));
  return new XMLSerializer().serializeToString(copy);
}

async function pixels(text, scale = 3) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await picture.decode();
  const canvas = el("canvas", { width: picture.width * scale, height: picture.height * scale });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
