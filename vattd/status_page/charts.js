// Time lines: what vattd sampled, and the present as the last point.

const REACH_S = 900;
const LEAST_REACH_S = 120; // of a vattd that has just started
const MARGIN = { left: 58, right: 10, top: 8, bottom: 20 };

// Steps of an axis of bytes: 1, 2, 4, ... times a unit, four at most.
function ticks(most) {
  let step = 1;
  while (step * 4 < most) step *= 2;
  const marks = [];
  for (let mark = 0; mark <= most + step / 1e6; mark += step) marks.push(mark);
  if (marks.at(-1) < most) marks.push(marks.length * step);
  return marks;
}

class Chart {
  // `unit` names what the total is in a tip; `lines` draws over the areas.
  constructor(box, unit) {
    this.unit = unit;
    this.box = box;
    this.svg = drawing("svg", { role: "img" });
    box.append(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
    new ResizeObserver(() => this.paint()).observe(box);
  }

  // `areas` are {name, values}, stacked in this order; `lines` are {kind, values}, with null for a gap.
  show(timeMs, ages, areas, lines) {
    Object.assign(this, { timeMs, ages, areas, lines });
    this.paint();
  }

  paint() {
    if (!this.ages) return;
    const totals = this.ages.map((_, index) => sum(this.areas.map((area) => area.values[index])));
    const values = [...totals, ...this.lines.flatMap((line) => line.values.filter((value) => value !== null))];
    const isEmpty = !values.some((value) => value > 0);
    this.box.classList.toggle("empty", isEmpty);
    const { width, height } = this.box.getBoundingClientRect();
    if (!width) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const marks = ticks(Math.max(1, ...values));
    const plotWidth = width - MARGIN.left - MARGIN.right;
    const plotHeight = height - MARGIN.top - MARGIN.bottom;
    this.reachS = Math.min(REACH_S, Math.max(LEAST_REACH_S, this.ages[0]));
    this.x = (ageS) => MARGIN.left + plotWidth * (1 - Math.min(ageS, this.reachS) / this.reachS);
    this.y = (value) => MARGIN.top + plotHeight * (1 - value / marks.at(-1));
    this.totals = totals;
    this.cursor = drawing("line", { class: "now", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
    this.svg.setAttribute("aria-label", this.summary(isEmpty));
    this.svg.replaceChildren(
      ...(isEmpty ? this.emptyAxis(width, height) : this.axis(marks, width)),
      ...this.clockMarks(width, height),
      ...(isEmpty ? [] : this.paths()),
      this.cursor,
    );
  }

  summary(isEmpty) {
    const name = this.box.parentElement.querySelector("figcaption").firstChild.textContent;
    if (isEmpty) return `${name}: nothing`;
    const last = this.areas.length ? this.totals.at(-1) : this.lines[0].values.at(-1);
    const past = this.areas.length ? this.totals : this.lines[0].values.filter((value) => value !== null);
    return `${name}: ${size(last ?? 0)} now, between ${size(Math.min(...past))} and ${size(Math.max(...past))} before; the table below has the figures`;
  }

  emptyAxis(width, height) {
    const y = height - MARGIN.bottom;
    return [
      drawing("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
      drawing("text", { x: MARGIN.left + 6, y: y - 10 }, "nothing"),
    ];
  }

  axis(marks, width) {
    return marks.flatMap((mark) => [
      drawing("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(mark), y2: this.y(mark) }),
      drawing("text", { x: MARGIN.left - 7, y: this.y(mark) + 4, "text-anchor": "end" }, mark ? roundSize(mark) : "0"),
    ]);
  }

  clockMarks(width, height) {
    const moment = this.reachS < 300 ? clock : shortClock;
    return (width < 420 ? [1, 1 / 2, 0] : [1, 2 / 3, 1 / 3, 0]).map((part) => {
      const ageS = part * this.reachS;
      const anchor = part === 1 ? "start" : part === 0 ? "end" : "middle";
      const words = part ? moment(this.timeMs - ageS * 1000) : "now";
      return drawing("text", { x: this.x(ageS), y: height - 4, "text-anchor": anchor }, words);
    });
  }

  paths() {
    const base = this.ages.map(() => 0);
    const made = this.areas.map((area) => {
      const low = [...base];
      area.values.forEach((value, index) => (base[index] += value));
      const top = this.ages.map((ageS, index) => `${this.x(ageS).toFixed(1)},${this.y(base[index]).toFixed(1)}`);
      const bottom = this.ages.map((ageS, index) => `${this.x(ageS).toFixed(1)},${this.y(low[index]).toFixed(1)}`).reverse();
      const shape = drawing("polygon", { class: "area", points: [...top, ...bottom].join(" ") });
      shape.style.fill = area.name === null ? "var(--others)" : tenantColors.of(area.name);
      shape.classList.toggle("dim", Boolean(charts.emphasized) && charts.emphasized !== area.name);
      return shape;
    });
    const lines = this.lines.flatMap((line) => {
      const d = this.pathOf(line.values);
      return [`${line.kind} halo`, line.kind].map((kind) => drawing("path", { class: kind, d }));
    });
    return [...made, ...lines];
  }

  pathOf(values) {
    let isDown = false;
    return values.map((value, index) => {
      if (value === null) {
        isDown = false;
        return "";
      }
      const verb = isDown ? "L" : "M";
      isDown = true;
      return `${verb}${this.x(this.ages[index]).toFixed(1)} ${this.y(value).toFixed(1)}`;
    }).join("");
  }

  point(event) {
    if (!this.ages?.length) return;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const far = this.ages.map((ageS) => Math.abs(this.x(ageS) - x));
    const index = far.indexOf(Math.min(...far));
    const at = this.x(this.ages[index]);
    furnish(this.cursor, { x1: at, x2: at, visibility: "visible" }, []);
    tip.show(event.clientX, event.clientY, this.tipLines(index));
  }

  tipLines(index) {
    const shown = this.areas.filter((area) => area.values[index]).reverse();
    const lines = shown.map((area) => {
      const name = element("span");
      name.append(tenantColors.swatch(area.name), area.name ?? "others");
      return [name, size(area.values[index])];
    });
    const totals = this.areas.length ? [[this.unit, size(this.totals[index])]] : [];
    const over = this.lines.map((line) => [line.kind, line.values[index] === null ? "unknown" : size(line.values[index])]);
    return [[clock(this.timeMs - this.ages[index] * 1000)], ...lines, ...totals, ...over];
  }

  leave() {
    this.cursor?.setAttribute("visibility", "hidden");
    tip.hide();
  }
}

const charts = {
  emphasized: "", // a tenant; empty: none

  start() {
    this.leased = new Chart(byId("leased-chart"), "leased");
    this.waiting = new Chart(byId("waiting-chart"), "waiting");
    this.free = new Chart(byId("free-chart"), "");
    byId("lines-details").addEventListener("toggle", () => this.showTable());
  },

  show(timeMs, timeline, status, memoryAgeS) {
    const named = [...tenantColors.slots.keys()].sort();
    const past = new Map(timeline.tenants.map((series) => [series.name, series]));
    const now = (field, isMeant) => sum(status.tenants.filter((one) => isMeant(one.name)).map((one) => one[field]));
    const before = (name, field) => past.get(name)?.[field] ?? timeline.ages_s.map(() => 0);
    const areas = (field) => {
      const rows = named.map((name) => ({ name, values: [...before(name, field), now(field, (one) => one === name)] }));
      const others = [...timeline.others[field], now(field, (one) => !named.includes(one))];
      return others.some((value) => value) ? [...rows, { name: null, values: others }] : rows;
    };
    this.ages = [...timeline.ages_s, 0];
    this.timeMs = timeMs;
    write(byId("lines-title"), `The last ${count(Math.max(2, Math.round(this.ages[0] / 60)), "minute")}`);
    const mapped = areas("mapped_bytes");
    const mappedInAll = this.ages.map((_, index) => sum(mapped.map((area) => area.values[index])));
    const free = [...timeline.free_bytes, memoryAgeS === null || memoryAgeS > 5 ? null : status.memory.free_bytes];
    this.leased.show(timeMs, this.ages, areas("leased_bytes"), [{ kind: "mapped", values: mappedInAll }]);
    this.waiting.show(timeMs, this.ages, areas("waiting_bytes"), []);
    this.free.show(timeMs, this.ages, [], [{ kind: "free", values: free }]);
    this.showTable();
  },

  emphasize(tenant) {
    this.emphasized = tenant;
    for (const chart of [this.leased, this.waiting]) chart.paint();
  },

  // A row a minute, the latest first; made only for who looks.
  showTable() {
    if (!byId("lines-details").open || !this.ages) return;
    const tenants = this.leased.areas;
    const titles = ["Time", "Leased", "Mapped", "Waiting", "Free on the device", ...tenants.map((area) => `Leased by ${area.name ?? "others"}`)];
    const minute = (index) => Math.floor((this.timeMs / 1000 - this.ages[index]) / 60);
    const last = this.ages.map((_, index) => index).filter((index) => index === this.ages.length - 1 || minute(index) !== minute(index + 1));
    const rows = last.reverse().map((index) => [
      clock(this.timeMs - this.ages[index] * 1000),
      size(this.leased.totals[index]),
      size(this.leased.lines[0].values[index]),
      size(this.waiting.totals[index]),
      this.free.lines[0].values[index] === null ? "unknown" : size(this.free.lines[0].values[index]),
      ...tenants.map((area) => size(area.values[index])),
    ]);
    const table = byId("lines-table");
    const head = element("thead", {}, element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title))));
    const body = element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text) => element("td", {}, text)))));
    table.replaceChildren(table.caption, head, body);
  },
};
