// Elements with text. Names come from users: they are text and nothing else, and the page's policy knows no other way.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  return furnish(made, attributes, children);
}

function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return furnish(made, attributes, children);
}

function furnish(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);

// Only what differs is written: what somebody has selected stays selected, and what did not change is not read out.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function classes(node, names) {
  if (node.className !== names) node.className = names;
}

// The children of `parent` are one node an item, in order; nodes of items that were there are kept.
function fill(parent, items, keyOf, make, draw) {
  const before = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    const node = before.get(key) ?? make(item);
    before.delete(key);
    node.dataset.key = key;
    draw(node, item);
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
  for (const node of before.values()) node.remove();
}

const tip = {
  // `lines` are arrays of one or two texts or nodes; near (x, y) of the window.
  show(x, y, lines) {
    const box = byId("tip");
    box.replaceChildren(...lines.map((parts, index) => {
      const line = element("p", index ? {} : { class: "head" });
      line.append(...parts.map((part) => (typeof part === "string" ? element("span", {}, part) : part)));
      return line;
    }));
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
    const top = y + 14 + height > innerHeight ? y - 14 - height : y + 14;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.max(4, top)}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
};
