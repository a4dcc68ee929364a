// Sizes, lengths of time and moments, written as vattctl writes them.

function size(bytes) {
  let value = bytes;
  let unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (Math.abs(value) >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  if (unit === 0) return `${bytes} B`;
  const digits = Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

// On an axis: 512 MiB, 1 GiB, 1.5 GiB.
function roundSize(bytes) {
  const [number, unit] = size(bytes).split(" ");
  return `${Number(number)} ${unit}`;
}

function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  return `${share > 0 && share < 1 ? share.toFixed(1) : share.toFixed(0)} %`;
}

function duration(lengthS) {
  if (lengthS < 10) return `${Math.max(0, lengthS).toFixed(1)} s`;
  let seconds = Math.round(lengthS);
  const parts = [];
  for (const [unit, unitS] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const count = Math.floor(seconds / unitS);
    seconds -= count * unitS;
    if (count) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

// "1.500s", as protobuf's JSON has it.
const secondsOf = (text) => (text ? Number.parseFloat(text) : 0);
const momentOf = (text) => Date.parse(text);

const clock = (momentMs) => new Date(momentMs).toLocaleTimeString([], { hour12: false });
const shortClock = (momentMs) =>
  new Date(momentMs).toLocaleTimeString([], { hour12: false, hour: "2-digit", minute: "2-digit" });

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
