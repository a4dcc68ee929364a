// Tenants, sessions, events, and the figures at the top.

const PROMISES = { STATE_HELD: "held", STATE_PENDING: "pending", STATE_BROKEN: "broken" };
const FIRST_SESSIONS = 25;
const FIRST_CARDS = 8;
const narrow = matchMedia("(max-width: 860px)"); // as in the style

// A table whose rows become cards on a narrow screen. Columns are {title, kind, draw(cell, item)}.
class CardTable {
  constructor(table, columns, nothing) {
    this.columns = columns;
    this.nothing = nothing;
    this.table = table;
    table.setAttribute("role", "table"); // cards are no table to a browser, but still one to who listens
    const heads = columns.map((column) => element("th", { scope: "col", role: "columnheader", class: column.kind ?? "" }, column.title));
    this.body = element("tbody", { role: "rowgroup" });
    table.append(element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)), this.body);
    this.empty = element("p", { class: "empty" }, nothing);
    table.after(this.empty);
  }

  show(items, keyOf) {
    this.table.hidden = !items.length;
    this.empty.hidden = Boolean(items.length);
    const make = () => element("tr", { role: "row" }, ...this.columns.map((column) => element("td", { role: "cell", "data-title": column.title, class: column.kind ?? "" })));
    fill(this.body, items, keyOf, make, (row, item) => this.columns.forEach((column, index) => column.draw(row.cells[index], item)));
  }
}

function text(read) {
  return (cell, item) => {
    const words = read(item);
    write(cell, words);
    cell.classList.toggle("nothing", words === "–");
  };
}

function tenantCell(nameOf) {
  return (cell, item) => {
    const name = nameOf(item);
    if (!cell.firstChild) cell.append(tenantColors.swatch(name), element("span"));
    cell.firstChild.style.background = tenantColors.of(name);
    write(cell.lastChild, name);
  };
}

function level(cell, words, name) {
  write(cell, words);
  cell.classList.toggle("is-error", name === "error");
  cell.classList.toggle("is-warning", name === "warning");
  cell.classList.toggle("nothing", words === "–");
}

const tables = {
  poolBytes: 1,
  showAll: false,

  start() {
    this.tenants = new CardTable(byId("tenant-table"), [
      { title: "Tenant", kind: "name", draw: tenantCell((tenant) => tenant.name) },
      { title: "Leased", kind: "number meters", draw: (cell, tenant) => this.drawLeased(cell, tenant) },
      { title: "Mapped", kind: "number", draw: text((tenant) => size(tenant.mapped_bytes)) },
      { title: "Filled by tokens", kind: "number", draw: text((tenant) => (tenant.mapped_bytes ? `${size(tenant.token_bytes)}, ${percent(tenant.token_bytes, tenant.mapped_bytes)}` : "–")) },
      { title: "Min", kind: "number", draw: text(minWords) },
      { title: "Max", kind: "number", draw: text((tenant) => (tenant.guarantee?.max_bytes == null ? "–" : size(tenant.guarantee.max_bytes))) },
      { title: "Weight", kind: "number", draw: text((tenant) => String(tenant.guarantee?.weight || 1)) },
      { title: "Sessions", kind: "number", draw: text((tenant) => String(tenant.session_count)) },
      { title: "Waiting", kind: "", draw: drawWaiting },
      { title: "Promise", kind: "wrap", draw: drawPromise },
    ], "No tenant yet: they come with engines, or with `vattctl reserve`.");
    this.sessions = new CardTable(byId("session-table"), [
      { title: "Session", kind: "name", draw: text((session) => session.session_id) },
      { title: "Tenant", kind: "", draw: tenantCell((session) => session.tenant) },
      { title: "State", kind: "", draw: (cell, session) => level(cell, session.state, session.state === "attached" ? "" : "warning") },
      { title: "Leased", kind: "number", draw: text((session) => size(session.leased_bytes)) },
      { title: "Mapped", kind: "number", draw: text((session) => size(session.mapped_bytes)) },
      { title: "Asked back", kind: "", draw: drawAsked },
      { title: "Attached for", kind: "", draw: (cell, session) => write(cell, duration((this.timeMs - momentOf(session.attach_time)) / 1000)) },
      { title: "Client", kind: "long", draw: text((session) => session.client_name || "–") },
    ], "No engine is attached.");
    byId("all-sessions").addEventListener("click", () => {
      this.showAll = !this.showAll;
      this.showSessions(this.last);
    });
  },

  show(timeMs, status, events) {
    this.timeMs = timeMs;
    this.poolBytes = status.pool.max_bytes;
    const rank = (tenant) => [PROMISES[tenant.promise?.state] === "broken", tenant.leased_bytes];
    this.tenants.show([...status.tenants].sort((a, b) => rank(b)[0] - rank(a)[0] || rank(b)[1] - rank(a)[1]), (tenant) => tenant.name);
    this.showSessions(status.sessions);
    this.showEvents(events);
  },

  showSessions(sessions) {
    this.last = sessions;
    const trouble = (session) => (session.asked_back_overdue ? 2 : session.state !== "attached" || session.asked_back_bytes ? 1 : 0);
    const sorted = [...sessions].sort((a, b) => trouble(b) - trouble(a) || b.leased_bytes - a.leased_bytes);
    const first = narrow.matches ? FIRST_CARDS : FIRST_SESSIONS;
    this.sessions.show(this.showAll ? sorted : sorted.slice(0, first), (session) => session.session_id);
    const button = byId("all-sessions");
    button.hidden = sessions.length <= first;
    write(button, this.showAll ? `Show the first ${first}` : `Show all ${sessions.length}`);
  },

  drawLeased(cell, tenant) {
    if (!cell.firstChild) cell.append(element("span"), element("span", { class: "meter", "aria-hidden": "true" }, element("i"), element("b")));
    const [words, meter] = cell.children;
    const [bar, mark] = meter.children;
    const share = (bytes) => `${Math.min(100, (100 * bytes) / this.poolBytes)}%`;
    write(words, `${size(tenant.leased_bytes)}, ${percent(tenant.leased_bytes, this.poolBytes)}`);
    bar.style.width = share(tenant.leased_bytes);
    bar.style.background = tenantColors.of(tenant.name);
    mark.hidden = !tenant.guarantee?.min_bytes;
    mark.style.left = share(tenant.guarantee?.min_bytes ?? 0);
    meter.title = mark.hidden ? "" : "the mark is its min";
  },

  showEvents(events) {
    const make = () => element("li", {}, element("time"), element("span", { class: "kind" }), element("span", { class: "rest" }));
    fill(byId("event-list"), events, (event) => event.sequence, make, drawEvent);
  },

  showFigures(status, timeMs, memoryAgeS) {
    const { pool, memory, tenants, sessions } = status;
    const all = (field) => sum(tenants.map((tenant) => tenant[field]));
    const waiting = tenants.filter((tenant) => tenant.waiting_leases);
    const promised = tenants.filter((tenant) => tenant.guarantee?.min_bytes);
    const broken = promised.filter((tenant) => PROMISES[tenant.promise?.state] === "broken");
    const leased = all("leased_bytes");
    const mapped = all("mapped_bytes");
    const others = Math.max(0, memory.total_bytes - memory.free_bytes - memory.pages_bytes);
    const longest = Math.max(0, ...waiting.map((tenant) => secondsOf(tenant.longest_wait)));
    const old = memoryAgeS === null ? "the driver has not said yet" : memoryAgeS > 5 ? `${duration(memoryAgeS)} ago: the driver does not answer` : "";
    const figures = [
      { name: "Leased", value: size(leased), more: `${percent(leased, pool.max_bytes)} of the pool's ${size(pool.max_bytes)}`, gauge: [leased, mapped].map((bytes) => bytes / pool.max_bytes) },
      { name: "Mapped", value: size(mapped), more: mapped ? `tokens fill ${percent(all("token_bytes"), mapped)} of it` : "nothing runs" },
      { name: "Waiting", value: waiting.length ? size(all("waiting_bytes")) : "nobody", more: waiting.length ? `${count(all("waiting_leases"), "lease")}, the first for ${duration(longest)}` : "every request has its memory", level: longest >= 30 ? "warning" : "" },
      { name: "Free on the device", value: size(memory.free_bytes), more: old || `of ${size(memory.total_bytes)}; others use ${size(others)}`, level: pool.shortage || old ? "error" : "" },
      { name: "Sessions", value: sessions.length.toLocaleString("en"), more: `of ${count(new Set(sessions.map((session) => session.tenant)).size, "tenant")}` },
      { name: "Promised", value: promised.length ? size(pool.promised_bytes) : "nothing", more: broken.length ? `${broken.length} of ${count(promised.length, "promise")} broken` : promised.length ? `to ${count(promised.length, "tenant")}, all kept or on the way` : "no tenant has a min", level: broken.length ? "error" : "" },
      { name: "Asked back", value: count(pool.reclaims.asked_total, "time"), more: `${pool.reclaims.ignored_total} ignored, ${count(pool.reclaims.killed_total, "session")} killed`, level: "" },
    ];
    fill(byId("figures"), figures, (figure) => figure.name, makeFigure, drawFigure);
  },
};

function makeFigure() {
  const gauge = element("span", { class: "gauge", "aria-hidden": "true" }, element("i", { class: "outer" }), element("i"));
  return element("div", {}, element("dt"), element("dd", { class: "value" }), element("dd", { class: "more" }), gauge);
}

function drawFigure(node, figure) {
  const [name, value, more, gauge] = node.children;
  write(name, figure.name);
  write(value, figure.value);
  write(more, figure.more);
  value.classList.toggle("is-error", figure.level === "error");
  value.classList.toggle("is-warning", figure.level === "warning");
  gauge.hidden = !figure.gauge;
  figure.gauge?.forEach((share, index) => (gauge.children[index].style.width = `${Math.min(100, 100 * share)}%`));
}

function minWords(tenant) {
  if (!tenant.guarantee?.min_bytes) return "–";
  return `${size(tenant.guarantee.min_bytes)} ${tenant.guarantee.min_mode === "MIN_MODE_HARD" ? "hard" : "soft"}`;
}

function drawWaiting(cell, tenant) {
  const waitedS = secondsOf(tenant.longest_wait);
  const words = tenant.waiting_leases ? `${size(tenant.waiting_bytes)}, ${duration(waitedS)}` : "–";
  level(cell, words, waitedS >= 30 ? "warning" : "");
}

function drawPromise(cell, tenant) {
  const promise = tenant.promise;
  const state = PROMISES[promise?.state];
  if (!state) return level(cell, "–", "");
  const sign = { held: "✓", pending: "…", broken: "✕" }[state];
  const missing = promise.missing_bytes ? `, ${size(promise.missing_bytes)} missing` : "";
  const lent = state === "held" && promise.lent_bytes ? `, ${size(promise.lent_bytes)} of it lent` : "";
  level(cell, `${sign} ${state}${missing}${lent}`, { pending: "warning", broken: "error" }[state]);
}

function drawAsked(cell, session) {
  if (!session.asked_back_bytes) return level(cell, "–", "");
  const late = session.asked_back_overdue ? ": overdue" : "";
  level(cell, `${size(session.asked_back_bytes)}, ${duration(secondsOf(session.asked_back_since))} ago${late}`, late ? "error" : "warning");
}

const EVENT_LEVELS = {
  promise_broken: "error", shortage_began: "error", pages_quarantined: "warning", reclaim_ignored: "warning",
  session_killed: "warning", session_fenced: "warning", session_evicted: "warning", drain_began: "warning", lease_refused: "warning",
};

function drawEvent(node, event) {
  const [time, kind, rest] = node.children;
  if (time.textContent) return; // what has happened does not change
  time.dateTime = event.time;
  write(time, clock(momentOf(event.time)));
  level(kind, event.kind.replaceAll("_", " "), EVENT_LEVELS[event.kind]);
  const waited = event.waited ? `after ${duration(secondsOf(event.waited))}` : "";
  const parts = [event.tenant, event.session_id && `session ${event.session_id}`, event.bytes && size(event.bytes), event.reason, waited, event.message];
  write(rest, parts.filter(Boolean).join(", "));
}
