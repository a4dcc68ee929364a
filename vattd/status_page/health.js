// What is wrong, the worst first, and what to type: vattd says it, the page shows it.

const SIGNS = { good: "✓", note: "i", warning: "!", error: "✕" };

const health = {
  show(findings, promised) {
    const those = (level) => findings.filter((one) => one.level === level).length;
    const [errors, warnings] = [those("error"), those("warning")];
    const trouble = [errors && count(errors, "problem"), warnings && count(warnings, "warning")].filter(Boolean).join(", ");
    const well = promised ? "All is well: every promise is kept" : "All is well";
    this.draw(errors ? "error" : warnings ? "warning" : "good", trouble || well, findings);
    return trouble;
  },

  // vattd does not answer: what else is shown is old.
  showGone(words, why) {
    const commands = ["vattctl status", "vattctl doctor"];
    this.draw("error", words, [{ level: "error", what: why, why: "What is below is the last that it said. On that machine:", commands }]);
  },

  draw(level, words, findings) {
    classes(byId("health"), `card ${level}`);
    const verdict = byId("verdict");
    if (verdict.dataset.words !== level + words) {
      verdict.dataset.words = level + words;
      verdict.replaceChildren(element("span", { class: `mark ${level}`, "aria-hidden": "true" }, SIGNS[level]), words);
    }
    fill(byId("findings"), findings, (one) => one.level + one.what.replace(/[\d.]+/g, ""), this.make, this.drawOne);
  },

  make() {
    return element("li", {}, element("span"), element("span", { class: "what" }), element("span", { class: "why" }), element("span", { class: "commands" }));
  },

  drawOne(node, finding) {
    const [level, what, why, commands] = node.children;
    classes(level, `level ${finding.level}`);
    write(level, { error: "Problem", warning: "Warning", note: "Note" }[finding.level]);
    write(what, finding.what);
    write(why, finding.why);
    commands.hidden = !finding.commands.length;
    fill(commands, finding.commands, (text) => text, () => element("code"), write);
  },
};
