// The pool as a picture: cells of equally many pages, coloured by whose most of them are.

const STATES = {
  leased: { words: "leased", swatch: "" },
  dirty: { words: "free, last used by a tenant", swatch: "dirty" },
  clean: { words: "free, ready for anybody", swatch: "clean" },
  creating: { words: "being made", swatch: "work" },
  scrubbing: { words: "being zeroed", swatch: "work" },
  destroying: { words: "being given back", swatch: "work" },
  quarantined: { words: "in quarantine, lent to nobody", swatch: "quarantined" },
  unbacked: { words: "not taken from the device", swatch: "unbacked" },
};
const IN_WORK = ["creating", "scrubbing", "destroying"];
const MOST_HEIGHT = 340;

const pageMap = {
  cells: [],
  pageSize: 0,
  pagesPerCell: 1,
  at: -1, // the cell that is pointed at
  chosen: "", // the row of the legend that is looked at; empty: none

  show(map, status) {
    this.pageSize = status.pool.page_size_bytes;
    this.pagesPerCell = map.pages_per_cell;
    this.cells = map.rows.flatMap(([cells, state, tenant, pages, whole]) => {
      const cell = { state, tenant: tenant ? map.tenants[tenant - 1] : "", pages, whole };
      return Array(cells).fill(cell);
    });
    const each = count(map.pages_per_cell, "page");
    const all = size(status.pool.max_bytes);
    write(byId("map-hint"), `The pool's ${all}, in the order of memory. A square is ${each}, ${size(map.pages_per_cell * this.pageSize)}. Point at one, or use the arrow keys.`);
    this.showOwners(status);
    this.paint();
  },

  showOwners(status) {
    const pages = Object.fromEntries(status.pool.pages_by_state.map((row) => [row.state, row.page_count]));
    const whole = sum(Object.values(pages));
    const holders = status.tenants.filter((tenant) => tenant.leased_bytes).sort((a, b) => b.leased_bytes - a.leased_bytes);
    const named = holders.filter((tenant) => tenantColors.has(tenant.name));
    const others = holders.filter((tenant) => !tenantColors.has(tenant.name));
    const rows = named.map((tenant) => ({ key: `tenant ${tenant.name}`, words: tenant.name, tenant: tenant.name, pages: tenant.leased_bytes / this.pageSize }));
    if (others.length) {
      const theirs = sum(others.map((tenant) => tenant.leased_bytes)) / this.pageSize;
      rows.push({ key: "others", words: count(others.length, "other tenant"), tenant: "", pages: theirs });
    }
    for (const [state, { words, swatch }] of Object.entries(STATES)) {
      if (state !== "leased" && pages[state]) rows.push({ key: `state ${state}`, words, swatch, pages: pages[state] });
    }
    const table = byId("owners");
    if (!table.tHead) this.furnish(table);
    fill(table.tBodies[0], rows, (row) => row.key, () => this.makeRow(), (node, row) => this.drawRow(node, row, whole));
    if (this.chosen && !rows.some((row) => row.key === this.chosen)) this.chosen = "";
  },

  furnish(table) {
    const titles = ["Whose", "Pages", "Size", "Share"];
    const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
    table.append(element("thead", {}, head), element("tbody"));
  },

  makeRow() {
    const button = element("button", { type: "button", "aria-pressed": "false" }, element("i", { "aria-hidden": "true" }), element("span"));
    const row = element("tr", {}, element("td", {}, button), element("td"), element("td"), element("td"));
    row.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.choose(row.dataset.key));
    row.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.choose(""));
    button.addEventListener("click", () => this.choose(this.chosen === row.dataset.key ? "" : row.dataset.key));
    return row;
  },

  drawRow(node, row, whole) {
    const [name, ...figures] = node.cells;
    const [swatch, words] = name.firstChild.children;
    classes(swatch, `swatch ${row.swatch ?? ""}`);
    swatch.style.background = row.tenant === undefined ? "" : tenantColors.of(row.tenant);
    write(words, row.words);
    const texts = [row.pages.toLocaleString("en"), size(row.pages * this.pageSize), percent(row.pages, whole)];
    texts.forEach((text, index) => write(figures[index], text));
    this.mark(node);
  },

  mark(row) {
    row.classList.toggle("chosen", row.dataset.key === this.chosen);
    row.querySelector("button").setAttribute("aria-pressed", String(row.dataset.key === this.chosen));
  },

  // Shows where one row's pages are; everywhere on the page, if it is a tenant's.
  choose(key) {
    this.chosen = key;
    for (const row of byId("owners").tBodies[0].rows) this.mark(row);
    charts.emphasize(key.startsWith("tenant ") ? key.slice("tenant ".length) : "");
    this.paint();
  },

  isChosen(cell) {
    if (!this.chosen) return true;
    if (cell.state !== "leased") return this.chosen === `state ${cell.state}`;
    return this.chosen === (tenantColors.has(cell.tenant) ? `tenant ${cell.tenant}` : "others");
  },

  // The largest squares that fit.
  layOut(width) {
    let step = 18;
    while (step > 4 && Math.ceil(this.cells.length / Math.floor(width / step)) * step > MOST_HEIGHT) step -= 1;
    const columns = Math.max(1, Math.floor(width / step));
    return { step, columns, rows: Math.ceil(this.cells.length / columns) };
  },

  paint() {
    const canvas = byId("cells");
    const width = canvas.parentElement.clientWidth;
    if (!width || !this.cells.length) return;
    this.layout = this.layOut(width);
    const { step, columns, rows } = this.layout;
    const scale = devicePixelRatio || 1;
    canvas.style.height = `${rows * step}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(rows * step * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const paint = paints();
    const colors = new Map(); // looked up once a picture
    const color = (variable) => {
      if (!colors.has(variable)) colors.set(variable, paint(variable));
      return colors.get(variable);
    };
    this.cells.forEach((cell, index) => {
      const x = (index % columns) * step;
      const y = Math.floor(index / columns) * step;
      pen.globalAlpha = this.isChosen(cell) ? 1 : 0.13;
      drawCell(pen, x, y, step - (step > 6 ? 2 : 1), cell, color);
    });
    pen.globalAlpha = 1;
    if (this.at >= 0 && this.at < this.cells.length) {
      pen.strokeStyle = color("--text");
      pen.lineWidth = 2;
      pen.strokeRect((this.at % columns) * step - 1, Math.floor(this.at / columns) * step - 1, step, step);
    }
  },

  // What a cell is, for a tip and for who cannot see it.
  words(index) {
    const cell = this.cells[index];
    const first = index * this.pagesPerCell;
    const last = first + cell.whole - 1;
    const which = last > first ? `pages ${first.toLocaleString("en")} to ${last.toLocaleString("en")}` : `page ${first.toLocaleString("en")}`;
    const what = cell.state === "leased" ? `leased by ${cell.tenant || "a tenant"}` : STATES[cell.state]?.words ?? cell.state;
    const whose = cell.tenant && cell.state !== "leased" ? ` (${cell.tenant})` : "";
    const part = cell.pages < cell.whole ? `${cell.pages} of its ${cell.whole} pages: ` : "";
    return [which, `${part}${what}${whose}`];
  },

  cellAt(event) {
    const box = byId("cells").getBoundingClientRect();
    const { step, columns } = this.layout;
    const column = Math.floor((event.clientX - box.left) / step);
    const index = Math.floor((event.clientY - box.top) / step) * columns + column;
    return column < columns && index >= 0 && index < this.cells.length ? index : -1;
  },

  pointAt(index, x, y) {
    this.at = index;
    this.paint();
    if (index < 0) return tip.hide();
    const [which, what] = this.words(index);
    tip.show(x, y, [[what], [which]]);
  },

  onKey(event) {
    const { step, columns } = this.layout ?? {};
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (event.key === "Escape") return this.pointAt(-1);
    if (!move) return;
    event.preventDefault();
    const index = this.at < 0 ? 0 : Math.min(this.cells.length - 1, Math.max(0, this.at + move));
    const box = byId("cells").getBoundingClientRect();
    this.pointAt(index, box.left + (index % columns) * step, box.top + Math.floor(index / columns) * step);
    write(byId("cell-words"), this.words(index).reverse().join(", "));
  },

  listen() {
    const canvas = byId("cells");
    canvas.addEventListener("pointermove", (event) => this.layout && this.pointAt(this.cellAt(event), event.clientX, event.clientY));
    canvas.addEventListener("pointerdown", (event) => this.layout && this.pointAt(this.cellAt(event), event.clientX, event.clientY));
    canvas.addEventListener("pointerleave", () => this.pointAt(-1));
    canvas.addEventListener("blur", () => this.pointAt(-1));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.paint()).observe(canvas.parentElement);
    darkness.addEventListener("change", () => this.paint());
  },
};

// Each state has a shape of its own, for who does not see colours.
function drawCell(pen, x, y, side, cell, color) {
  const { state } = cell;
  if (state === "leased") {
    pen.fillStyle = color(tenantColors.of(cell.tenant));
    pen.fillRect(x, y, side, side);
  } else if (state === "clean") {
    pen.fillStyle = color("--clean");
    pen.fillRect(x, y, side, side);
  } else if (state === "unbacked") {
    pen.strokeStyle = color("--none");
    pen.lineWidth = 1;
    pen.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
  } else if (state === "dirty") {
    const ring = Math.max(1, side / 5);
    pen.strokeStyle = color(cell.tenant ? tenantColors.of(cell.tenant) : "--work");
    pen.lineWidth = ring;
    pen.strokeRect(x + ring / 2, y + ring / 2, side - ring, side - ring);
  } else {
    const isBad = state === "quarantined";
    pen.strokeStyle = color(isBad ? "--error" : "--work");
    pen.lineWidth = Math.max(1, side / 6);
    pen.beginPath();
    pen.moveTo(x, y + side);
    pen.lineTo(x + side, y);
    if (isBad) {
      pen.moveTo(x, y);
      pen.lineTo(x + side, y + side);
    }
    pen.stroke();
  }
}
