// The page around the panels: what is chosen stands in the address, as Grafana has it (var-NAME, from).

const board = JSON.parse(document.getElementById("dashboard").textContent);
const address = new URLSearchParams(location.search);
const RANGES = { "now-5m": "5 minutes", "now-15m": "15 minutes", "now-1h": "1 hour", "now-6h": "6 hours", "now-24h": "24 hours", "now-7d": "7 days" };
const UNIT_S = { s: 1, m: 60, h: 3600, d: 86400 };
const REFRESH_MS = 30000;
const POINTS = 240;
const chosen = {};
let scrape_s = 15;

function keptTime() {
  const theme = address.get("theme");
  return `&from=${address.get("from") || board.time.from}${theme ? `&theme=${theme}` : ""}`;
}

function durationOf(text) {
  const [, count, unit] = text.match(/(\d+)([smhd])$/) || [null, 1, "h"];
  return Number(count) * UNIT_S[unit];
}

function timeRange() {
  const span_s = durationOf(address.get("from") || board.time.from);
  const end_s = Math.floor(Date.now() / 1000);
  const step_s = Math.max(scrape_s, Math.ceil(span_s / POINTS));
  return { start_s: end_s - span_s, end_s, step_s };
}

// $__rate_interval as Grafana makes it; variables as it fills them in for Prometheus.
function filler(range) {
  const interval_s = Math.max(4 * scrape_s, range.step_s + scrape_s);
  const literal = (value) => value.replace(/[\\"]/g, "\\$&");
  const pattern = (value) => literal(value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return (expr) => board.templating.list.filter((variable) => variable.name in chosen).reduce((text, variable) => {
    const value = chosen[variable.name];
    const filled = value === "$__all" ? variable.allValue : variable.multi ? pattern(value) : literal(value);
    return text.replaceAll(`$${variable.name}`, () => filled);
  }, expr.replaceAll("$__rate_interval", `${interval_s}s`));
}

async function valuesOf(variable, range) {
  const [, metric, label] = variable.query.query.match(/^label_values\((.*), (\w+)\)$/);
  const match = encodeURIComponent(filler(range)(metric));
  return read(`label/${label}/values?match[]=${match}&start=${range.start_s}&end=${range.end_s}`);
}

async function choose(controls, range) {
  for (const variable of board.templating.list.filter((one) => one.type === "query")) {
    const values = await valuesOf(variable, range);
    const all = variable.includeAll ? [["$__all", "All"]] : [];
    const options = [...all, ...values.map((value) => [value, value])];
    const wanted = address.get(`var-${variable.name}`);
    chosen[variable.name] = options.some(([value]) => value === wanted) ? wanted : options[0]?.[0] ?? "";
    controls.append(selector(variable.label, `var-${variable.name}`, options, chosen[variable.name]));
  }
  controls.append(selector("Last", "from", Object.entries(RANGES), address.get("from") || board.time.from));
}

function selector(title, key, options, value) {
  const label = document.createElement("label"), select = document.createElement("select");
  for (const [each, text] of options) select.add(new Option(text, each, false, each === value));
  select.onchange = () => { address.set(key, select.value); location.search = address; };
  label.append(`${title} `, select);
  return label;
}

function navigation(controls) {
  const nav = document.createElement("nav");
  for (const { uid, title } of BOARDS) {
    const anchor = document.createElement("a");
    anchor.href = `${uid}.html?${address}`;
    anchor.textContent = title;
    if (uid === board.uid) anchor.setAttribute("aria-current", "page");
    nav.append(anchor);
  }
  controls.prepend(nav);
}

// As Grafana places them: by gridPos, in units of 36 pixels.
function frame(panel) {
  const { x, w, h } = panel.gridPos;
  if (panel.type === "row") {
    const title = document.createElement("h2");
    title.textContent = panel.title;
    return title;
  }
  const section = document.createElement("section"), title = document.createElement("h3"), body = document.createElement("div");
  section.className = w < 8 ? "panel small" : "panel";
  section.style.gridColumn = `${x + 1} / span ${w}`;
  section.style.height = `${h * 30}px`;
  title.textContent = panel.title;
  body.style.cssText = "flex: 1; display: flex; flex-direction: column; min-height: 0";
  const help = document.createElement("details"), summary = document.createElement("summary"), text = document.createElement("p");
  help.className = "help";
  summary.textContent = "?";
  summary.title = text.textContent = panel.description;
  help.append(summary, text);
  section.append(title, help, body);
  return Object.assign(section, { body });
}

async function drawAll(frames) {
  const range = timeRange(), fill = filler(range);
  const outcomes = await Promise.all(frames.map(async ({ panel, section }) => {
    try {
      return (await DRAW[panel.type](panel, section.body, fill, range)) ? "drawn" : "empty";
    } catch (error) {
      nothing(section.body, error.message);
      return "failed";
    }
  }));
  const titles = (outcome) => frames.filter((_, index) => outcomes[index] === outcome).map(({ panel }) => panel.title);
  document.body.dataset.panels = frames.length;
  document.body.dataset.empty = titles("empty").join("; ");
  document.body.dataset.failed = titles("failed").join("; ");
}

// How often Prometheus asks vattd decides over how long rates can be taken.
async function scrapeInterval() {
  const { activeTargets } = await read("targets?state=active");
  const ours = activeTargets.filter((target) => /vattd/.test(target.labels.job)).map((target) => durationOf(target.scrapeInterval));
  return ours.length ? Math.max(...ours) : 15;
}

async function main() {
  if (address.get("theme")) document.documentElement.dataset.theme = address.get("theme");
  document.title = board.title;
  const controls = document.querySelector("header"), grid = document.querySelector("main");
  scrape_s = await scrapeInterval();
  await choose(controls, timeRange());
  navigation(controls);
  const frames = [];
  for (const panel of board.panels) {
    const section = frame(panel);
    grid.append(section);
    if (panel.type !== "row") frames.push({ panel, section });
  }
  await drawAll(frames);
  setInterval(() => drawAll(frames), REFRESH_MS);
  let resized = 0;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => drawAll(frames), 300); });
}

main().catch((error) => {
  document.body.dataset.failed = error.message;
  nothing(document.querySelector("main"), error.message);
});
