// A chart over time as SVG: lines, or areas upon each other, with a cursor that reads values.

const SVG = "http://www.w3.org/2000/svg";
const IEC = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function number(value, digits = 3) {
  if (value === 0) return "0";
  const places = Math.min(6, Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value)))));
  return String(Number(value.toFixed(places)));
}

function bytes(value) {
  let power = 0;
  while (Math.abs(value) >= 1024 && power < IEC.length - 1) { value /= 1024; power += 1; }
  return `${number(value)} ${IEC[power]}`;
}

function seconds(value) {
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${number(value * 1e6)} µs`;
  if (size < 1) return `${number(value * 1e3)} ms`;
  if (size < 120) return `${number(value)} s`;
  return size < 7200 ? `${number(value / 60)} min` : `${number(value / 3600)} h`;
}

const UNITS = {
  short: (value) => number(value),
  bytes,
  binBps: (value) => `${bytes(value)}/s`,
  s: seconds,
  percentunit: (value) => `${number(value * 100)} %`,
  ops: (value) => `${number(value)}/s`,
};

function format(value, unit) {
  return value === null || Number.isNaN(value) ? "–" : (UNITS[unit] || UNITS.short)(value);
}

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Round steps: of 1, 2 or 5 times a power of ten; bytes in powers of two.
function ticks(least, most, unit, count) {
  const rough = (most - least) / count || 1;
  const binary = unit === "bytes" || unit === "binBps";
  const power = binary ? 2 ** Math.ceil(Math.log2(rough)) : 10 ** Math.floor(Math.log10(rough));
  let step = binary ? power : [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  if (unit === "short" && most > 1) step = Math.max(1, step);
  const found = [];
  for (let at = Math.ceil(least / step - 1e-9) * step; at <= most + step * 1e-6; at += step) found.push(at);
  return found;
}

function clock(time_s, span_s) {
  const date = new Date(time_s * 1000);
  const two = (value) => String(value).padStart(2, "0");
  if (span_s > 2 * 86400) return `${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const minutes = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return span_s < 600 ? `${minutes}:${two(date.getSeconds())}` : minutes;
}

// Each series upon those before it; what is missing counts as nothing there.
function stack(series) {
  const floor = new Map();
  return series.map((one) => ({
    ...one,
    base: one.points.map(([time]) => floor.get(time) || 0),
    points: one.points.map(([time, value]) => {
      const top = (floor.get(time) || 0) + (value || 0);
      floor.set(time, top);
      return [time, top];
    }),
  }));
}

// Where a point is missing for more than two steps the line is broken.
function runs(points, step_s) {
  const found = [];
  let last = null;
  points.forEach(([time, value], index) => {
    if (value === null || Number.isNaN(value)) return;
    if (last === null || time - last > 2.5 * step_s) found.push([]);
    found.at(-1).push(index);
    last = time;
  });
  return found;
}

// series: [{name, colour, points: [[time_s, value]]}]; range: {start_s, end_s, step_s}.
function drawChart(plot, series, range, options) {
  const { unit = "short", stacked = false, least = null, most = null, bare = false } = options;
  plot.replaceChildren();
  const width = plot.clientWidth || 300, height = plot.clientHeight || 100;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" }, plot);
  const shown = stacked ? stack(series) : series;
  const values = shown.flatMap((one) => one.points.map(([, value]) => value)).filter(Number.isFinite);
  let low = least ?? Math.min(0, ...values), high = most ?? Math.max(...values, low);
  if (high === low) high = low + (unit === "percentunit" ? 0.01 : 1);
  else if (most === null) high += (high - low) * 0.06;
  const marks = bare ? [] : ticks(low, high, unit, Math.max(2, height / 30));
  const labels = marks.map((mark) => format(Math.abs(mark) < (high - low) * 1e-9 ? 0 : mark, unit));
  const left = bare ? 0 : 12 + 6.1 * Math.max(3, ...labels.map((label) => label.length)), bottom = bare ? 1 : 18;
  const x = (time) => left + (time - range.start_s) / (range.end_s - range.start_s) * (width - left - (bare ? 0 : 8));
  const y = (value) => 4 + (high - value) / (high - low) * (height - bottom - 6);
  marks.forEach((mark, index) => {
    svg("line", { class: "grid", x1: left, x2: width - 8, y1: y(mark), y2: y(mark) }, root);
    svg("text", { x: left - 6, y: y(mark) + 3.5, "text-anchor": "end" }, root, labels[index]);
  });
  if (!bare) drawTimes(root, range, x, left, width, height);
  for (const one of shown) drawSeries(root, one, range, x, y, low, series.length === 1);
  if (!bare) addCursor(plot, root, series, range, x, height - bottom, unit);
}

function drawTimes(root, range, x, left, width, height) {
  const span_s = range.end_s - range.start_s;
  const count = Math.max(2, (width - left) / 90);
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800]
    .find((size) => size >= span_s / count) || 2592000;
  for (let time = Math.ceil(range.start_s / step) * step; time <= range.end_s; time += step) {
    svg("line", { class: "grid", x1: x(time), x2: x(time), y1: 4, y2: height - 18 }, root);
    if (x(time) < width - 24) svg("text", { x: x(time), y: height - 5, "text-anchor": "middle" }, root, clock(time, span_s));
  }
}

function drawSeries(root, one, range, x, y, low, filled) {
  for (const run of runs(one.points, range.step_s)) {
    const top = run.map((index) => `${x(one.points[index][0]).toFixed(1)},${y(one.points[index][1]).toFixed(1)}`);
    const under = run.map((index) => `${x(one.points[index][0]).toFixed(1)},${y(one.base ? one.base[index] : Math.max(0, low)).toFixed(1)}`);
    const fill = { d: `M${[...top, ...under.reverse()].join("L")}Z`, fill: one.colour, "fill-opacity": one.base ? 0.65 : 0.12 };
    if (one.base || filled) svg("path", fill, root);
    const line = top.length === 1 ? [top[0], top[0]] : top;
    svg("path", { d: `M${line.join("L")}`, fill: "none", stroke: one.colour, "stroke-width": 1.4, "stroke-linecap": "round" }, root);
  }
}

function addCursor(plot, root, series, range, x, height, unit) {
  const line = svg("line", { class: "cursor", y1: 4, y2: height, visibility: "hidden" }, root);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  plot.append(tip);
  plot.onmouseleave = () => { tip.hidden = true; line.setAttribute("visibility", "hidden"); };
  plot.onmousemove = (event) => {
    const at = event.clientX - plot.getBoundingClientRect().left;
    const times = [...new Set(series.flatMap((one) => one.points.map(([time]) => time)))];
    if (!times.length) return;
    const time = times.reduce((best, other) => (Math.abs(x(other) - at) < Math.abs(x(best) - at) ? other : best));
    line.setAttribute("x1", x(time));
    line.setAttribute("x2", x(time));
    line.setAttribute("visibility", "visible");
    tip.replaceChildren(clock(time, 0));
    for (const one of series) {
      const point = one.points.find(([when]) => when === time);
      if (point) tip.append(legendEntry(one, format(point[1], unit), "div"));
    }
    tip.hidden = false;
    tip.style.top = "6px";
    tip.style.left = x(time) > plot.clientWidth / 2 ? "" : `${x(time) + 10}px`;
    tip.style.right = x(time) > plot.clientWidth / 2 ? `${plot.clientWidth - x(time) + 10}px` : "";
  };
}

function legendEntry(one, value, kind = "span") {
  const entry = document.createElement(kind), chip = document.createElement("span"), strong = document.createElement("b");
  chip.className = "chip";
  chip.style.background = one.colour;
  strong.textContent = value;
  entry.append(chip, `${one.name} `, strong);
  return entry;
}
