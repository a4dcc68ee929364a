// Which tenant has which colour: the same everywhere on the page, and for as long as the tenant is among the largest.

const COLORS = 12;

const tenantColors = {
  slots: new Map(),

  // Those that are shown by name now. A colour whose tenant is no more is another's.
  assign(names) {
    const wanted = new Set(names);
    for (const name of this.slots.keys()) if (!wanted.has(name)) this.slots.delete(name);
    for (const name of names) {
      if (this.slots.has(name)) continue;
      const used = new Set(this.slots.values());
      const free = [...Array(COLORS).keys()].find((slot) => !used.has(slot));
      if (free !== undefined) this.slots.set(name, free);
    }
  },

  has(name) {
    return this.slots.has(name);
  },

  // For CSS and SVG.
  of(name) {
    return this.slots.has(name) ? `var(--t${this.slots.get(name)})` : "var(--others)";
  },

  swatch(name) {
    const made = element("i", { class: "swatch", "aria-hidden": "true" });
    made.style.background = this.of(name);
    return made;
  },
};

const darkness = matchMedia("(prefers-color-scheme: dark)");

// For a canvas, which knows no variables.
function paints() {
  const style = getComputedStyle(document.documentElement);
  return (variable) => style.getPropertyValue(variable.replace(/^var\((.*)\)$/, "$1")).trim();
}
