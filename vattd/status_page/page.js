// Asks vattd every two seconds, shows what it says, and says so when it does not.

const EVERY_MS = 2000;
const ANSWER_WITHIN_MS = 8000;

const page = {
  answeredMs: 0, // when vattd last answered, by this browser's clock
  timer: 0,

  async refresh() {
    clearTimeout(this.timer);
    try {
      this.show(await this.ask());
    } catch (error) {
      this.showGone(error);
    }
    this.timer = setTimeout(() => this.refresh(), EVERY_MS);
  },

  async ask() {
    const where = new URL("status.json", location.origin + location.pathname); // a user and a password in the address stay there
    const answer = await fetch(where, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
    if (answer.ok) return answer.json();
    const words = (await answer.text()).trim();
    throw new Error(answer.status === 401 ? "it wants a user and a password: load this page again" : `it says: ${words || answer.status}`);
  },

  show(reading) {
    const { status, timeline } = reading;
    const timeMs = momentOf(reading.time);
    this.answeredMs = Date.now();
    document.body.classList.remove("gone");
    byId("freshness").classList.toggle("beat");
    document.querySelector("main").hidden = false;
    tenantColors.assign(this.namesOf(timeline, status.tenants));
    const trouble = health.show(reading.health, status.pool.promised_bytes);
    this.showHeader(status, timeMs);
    tables.showFigures(status, timeMs, reading.memory_age_s);
    pageMap.show(reading.page_map, status);
    charts.show(timeMs, timeline, status, reading.memory_age_s);
    tables.show(timeMs, status, reading.events);
    document.title = `${trouble ? `${trouble} – ` : ""}vattd ${this.deviceWords(status.device)}`;
  },

  // Who is shown by name: those that the time lines name, and who is new since their last sample.
  namesOf(timeline, tenants) {
    const sampled = timeline.tenants.map((tenant) => tenant.name);
    const present = tenants.filter((tenant) => tenant.leased_bytes || tenant.waiting_bytes);
    const bySize = present.sort((a, b) => b.leased_bytes - a.leased_bytes).map((tenant) => tenant.name);
    return [...new Set([...sampled, ...bySize])].slice(0, COLORS);
  },

  showHeader(status, timeMs) {
    const { daemon, device } = status;
    const up = duration((timeMs - momentOf(daemon.start_time)) / 1000);
    write(byId("device"), this.deviceWords(device) + (device.backend === "host" ? "" : `, ${device.uuid}`));
    write(byId("daemon"), `${daemon.state.replaceAll("_", " ")}, up for ${up}`);
    write(byId("fresh-words"), `live, ${clock(timeMs)}`);
    write(byId("version"), `vattd ${daemon.version}, pid ${daemon.pid}`);
  },

  deviceWords(device) {
    return device.backend === "host" ? "host memory" : device.name;
  },

  // An answer that is no answer, or none. What was shown stays, and is said to be old.
  showGone(error) {
    document.body.classList.add("gone");
    document.querySelector("main").hidden = false;
    const since = this.answeredMs ? ` since ${clock(this.answeredMs)}` : "";
    write(byId("fresh-words"), `no answer${since}`);
    const isSilent = !String(error.message).startsWith("it ");
    const why = isSilent ? `Nothing answers at ${location.host}: vattd has ended or hangs, or the way to it is cut.` : `At ${location.host} ${error.message}.`;
    health.showGone(this.answeredMs ? `vattd has not answered${since}` : "vattd does not answer", why);
    document.title = "✕ vattd does not answer";
  },

  start() {
    tables.start();
    charts.start();
    pageMap.listen();
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.timer); // nobody looks: vattd is left alone
      if (!document.hidden) this.refresh();
    });
    this.refresh();
  },
};

page.start();
