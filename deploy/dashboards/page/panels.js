// Panels of a dashboard in Grafana's model, drawn from Prometheus: as much of that model as our dashboards use.

const PALETTE = ["#4a7fd6", "#dd8430", "#3f9e6a", "#b5568f", "#8f6fc9", "#2f9fae", "#c4a11f", "#cf4a4a", "#6b8e23", "#7d8896"];
const MANY = 8;
const coloursByName = new Map();

// The n-th name that the page meets has the n-th colour, in all panels.
function colourOf(name) {
  if (!coloursByName.has(name)) coloursByName.set(name, PALETTE[coloursByName.size % PALETTE.length]);
  return coloursByName.get(name);
}

function fixedColour(panel, name) {
  const override = (panel.fieldConfig.overrides || []).find((one) => one.matcher.options === name);
  return override?.properties.find((one) => one.id === "color")?.value.fixedColor;
}

async function ask(path, parameters) {
  const answer = await fetch(`${PREFIX}/api/v1/${path}`, { method: "POST", body: new URLSearchParams(parameters) });
  const body = await answer.json();
  if (body.status !== "success") throw new Error(body.error || answer.statusText);
  return body.data;
}

async function read(path) {
  const answer = await fetch(`${PREFIX}/api/v1/${path}`);
  return (await answer.json()).data;
}

function legend(format, labels) {
  return (format || "").replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] || "").trim() || "value";
}

async function seriesOf(panel, fill, range) {
  const answers = await Promise.all(panel.targets.map((target) =>
    ask("query_range", { query: fill(target.expr), start: range.start_s, end: range.end_s, step: range.step_s })));
  return panel.targets.flatMap((target, index) => answers[index].result.map((one) => {
    const name = legend(target.legendFormat, one.metric);
    const points = one.values.map(([time, value]) => [time, Number(value)]);
    return { name, points, colour: fixedColour(panel, name) || colourOf(name) };
  }));
}

function lastOf(one) {
  const known = one.points.filter(([, value]) => Number.isFinite(value));
  return known.length ? known.at(-1)[1] : null;
}

function hasValues(series) {
  return series.some((one) => lastOf(one) !== null);
}

function nothing(body, text) {
  const note = document.createElement("p");
  note.className = "empty";
  note.textContent = text;
  body.replaceChildren(note);
}

// What the legend has: of many series only those that are not 0 all the time.
function named(series) {
  const lively = series.filter((one) => one.points.some(([, value]) => value));
  return series.length > MANY && lively.length ? lively : series;
}

async function drawGraph(panel, body, fill, range) {
  const series = (await seriesOf(panel, fill, range)).sort((a, b) => panel.targets.length === 1 ? (a.name < b.name ? -1 : 1) : 0);
  if (!hasValues(series)) return nothing(body, "no data"), false;
  const plot = document.createElement("div"), names = document.createElement("div");
  plot.className = "plot";
  names.className = "legend";
  const defaults = panel.fieldConfig.defaults;
  for (const one of named(series)) names.append(legendEntry(one, format(lastOf(one), defaults.unit)));
  body.replaceChildren(plot, names);
  drawChart(plot, series, range, {
    unit: defaults.unit, least: defaults.min ?? null, most: defaults.max ?? null,
    stacked: defaults.custom?.stacking?.mode === "normal",
  });
  return true;
}

async function drawFigure(panel, body, fill, range) {
  const series = await seriesOf(panel, fill, range);
  if (!hasValues(series)) return nothing(body, "no data"), false;
  const defaults = panel.fieldConfig.defaults, value = lastOf(series[0]);
  const word = defaults.mappings?.[0]?.options[String(value)];
  const step = defaults.thresholds.steps.filter((one) => one.value === null || one.value === undefined || value >= one.value).at(-1);
  const figure = document.createElement("div"), strong = document.createElement("strong"), plot = document.createElement("div");
  figure.className = "figure";
  plot.className = "plot";
  strong.textContent = word ? word.text : format(value, defaults.unit);
  strong.style.color = word ? word.color : step.color;
  figure.append(strong, plot);
  body.replaceChildren(figure);
  if (panel.options.graphMode === "area") {
    drawChart(plot, [{ ...series[0], colour: step.color }], range, { unit: defaults.unit, bare: true });
  }
  return true;
}

// Rows of several instant queries, joined by the labels that all of them have.
async function joined(panel, fill, range) {
  const answers = await Promise.all(panel.targets.map((target) => ask("query", { query: fill(target.expr), time: range.end_s })));
  const labelSets = answers.filter((answer) => answer.result.length).map((answer) => Object.keys(answer.result[0].metric));
  const common = (labelSets[0] || []).filter((label) => labelSets.every((labels) => labels.includes(label)));
  const found = new Map();
  answers.forEach((answer, index) => answer.result.forEach((one) => {
    const key = common.map((label) => one.metric[label]).join("\u0000");
    const row = found.get(key) || {};
    found.set(key, Object.assign(row, one.metric, { [`Value #${panel.targets[index].refId}`]: Number(one.value[1]) }));
  }));
  return [...found.values()];
}

async function drawRows(panel, body, fill, range) {
  const { excludeByName, renameByName } = panel.transformations.find((one) => one.id === "organize").options;
  const found = await joined(panel, fill, range);
  if (!found.length) return nothing(body, "no data"), false;
  const isValue = (name) => name.startsWith("Value #");
  const names = [...new Set(found.flatMap(Object.keys))].filter((name) => !excludeByName[name]);
  const labels = names.filter((name) => !isValue(name)).sort((a, b) => (renameByName[b] ? 1 : 0) - (renameByName[a] ? 1 : 0));
  const columns = [...labels, ...names.filter(isValue).sort()];
  const property = (title, id) => (panel.fieldConfig.overrides || [])
    .find((one) => one.matcher.options === title)?.properties.find((one) => one.id === id)?.value;
  const table = document.createElement("table"), head = table.createTHead().insertRow(), rows = table.createTBody();
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.textContent = renameByName[column] || column;
    cell.className = isValue(column) ? "" : "word";
    head.append(cell);
  }
  found.sort((a, b) => (String(a[labels[0]]) < String(b[labels[0]]) ? -1 : 1));
  for (const row of found) {
    const line = rows.insertRow();
    for (const column of columns) {
      const cell = line.insertCell(), title = renameByName[column] || column, link = property(title, "links")?.[0];
      cell.className = isValue(column) ? "" : "word";
      if (isValue(column)) cell.textContent = format(row[column] ?? null, property(title, "unit"));
      else if (link) cell.append(linked(link, row[column]));
      else cell.textContent = row[column] ?? "";
      cell.title = cell.textContent;
    }
  }
  const scroll = document.createElement("div");
  scroll.className = "rows";
  scroll.append(table);
  body.replaceChildren(scroll);
  return true;
}

function linked(link, text) {
  const anchor = document.createElement("a");
  const [, uid, variable] = link.url.match(/^\/d\/([\w-]+)\?var-(\w+)=/);
  anchor.href = `${uid}.html?var-${variable}=${encodeURIComponent(text)}${keptTime()}`;
  anchor.textContent = text;
  return anchor;
}

const DRAW = { timeseries: drawGraph, stat: drawFigure, table: drawRows };
