// Small pictures as SVG: lines over time, and bars.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, TOP, BOTTOM] = [560, 150, 16, 18];
const COLOURS = ["#1b6ca8", "#d1495b"];

function shape(document, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, set] of Object.entries(attributes)) made.setAttribute(key, set);
  made.textContent = text;
  return made;
}

function picture(document, about, shapes) {
  const made = shape(document, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img", "aria-label": about });
  made.replaceChildren(...shapes);
  return made;
}

// A number in three figures, without a power of ten.
export const short = (number) => (number >= 100 ? Math.round(number).toLocaleString("en") : String(Number(number.toPrecision(3))));

const percent = (share) => (share < 0.1 ? (100 * share).toPrecision(1) : Math.round(100 * share));

// {name: [a number or undefined a reading]}: the last reading at the right, a gap where there is none.
export function lines(document, series, unit, readings) {
  const top = Math.max(...Object.values(series).flat().filter(Number.isFinite), 0) || 1;
  const place = (index, length) => WIDTH - ((length - 1 - index) * WIDTH) / (readings - 1);
  const height = (number) => HEIGHT - BOTTOM - (number / top) * (HEIGHT - TOP - BOTTOM);
  const drawn = Object.entries(series).map(([, numbers], which) => {
    let pen = "M";
    const path = numbers.map((number, index) => {
      if (!Number.isFinite(number)) return void (pen = "M");
      const step = `${pen}${place(index, numbers.length).toFixed(1)} ${height(number).toFixed(1)}`;
      pen = "L";
      return step + (numbers.length === 1 ? "h1" : "");
    });
    return shape(document, "path", { d: path.filter(Boolean).join(""), fill: "none", stroke: COLOURS[which], "stroke-width": 1.6 });
  });
  const names = Object.entries(series).map(([name, numbers], which) => {
    const last = numbers.at(-1);
    const told = Number.isFinite(last) ? `${name} ${short(last)} ${unit}` : name;
    return shape(document, "text", { x: WIDTH - 140 * (Object.keys(series).length - which), y: 11, fill: COLOURS[which] }, told);
  });
  const axis = [
    shape(document, "line", { x1: 0, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, stroke: "#999" }),
    shape(document, "line", { x1: 0, x2: WIDTH, y1: TOP, y2: TOP, stroke: "#ddd" }),
    shape(document, "text", { x: 0, y: 11 }, `${short(top)} ${unit}`),
    shape(document, "text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
  ];
  return picture(document, `${Object.keys(series).join(", ")} over time, ${unit}`, [...axis, ...drawn, ...names]);
}

// [[label, number]]: a column each, its share of all above it.
export function columns(document, about, entries) {
  const all = entries.reduce((sum, [, number]) => sum + number, 0) || 1;
  const top = Math.max(...entries.map(([, number]) => number), 1);
  const width = WIDTH / entries.length;
  const shapes = entries.flatMap(([label, number], index) => {
    const height = (number / top) * (HEIGHT - TOP - BOTTOM);
    const middle = { x: (index + 0.5) * width, "text-anchor": "middle" };
    return [
      shape(document, "rect", { x: index * width + 1, width: width - 2, y: HEIGHT - BOTTOM - height, height, fill: COLOURS[0] }),
      shape(document, "text", { ...middle, y: HEIGHT - 4 }, label),
      shape(document, "text", { ...middle, y: HEIGHT - BOTTOM - height - 3 }, number ? `${percent(number / all)}%` : ""),
    ];
  });
  return picture(document, about, shapes);
}

// A bar as wide as a share of 1.
export function bar(document, share, colour = COLOURS[0]) {
  const made = shape(document, "svg", { width: 120, height: 10, role: "img", "aria-label": short(share) });
  made.replaceChildren(shape(document, "rect", { width: 120 * Math.min(Math.max(share, 0), 1), height: 10, fill: colour }));
  return made;
}
