// What all parts of the page share: the data, elements made of text, sets of nodes, the search.
// Text from nodes is hostile: it reaches the page by textContent alone.

const data = JSON.parse(document.getElementById("data").textContent);
const KINDS = {
  E: { name: "error", sign: "✕", weight: 1e9 },
  X: { name: "not reached", sign: "✕", weight: 1e6 },
  U: { name: "unknown", sign: "?", weight: 1e5 },
  W: { name: "warning", sign: "!", weight: 1e4 },
  u: { name: "unknown, minor", sign: "?", weight: 10 },
  I: { name: "note", sign: "i", weight: 10 },
  w: { name: "waived", sign: "~", weight: 1 },
  p: { name: "passed", sign: "", weight: 0 },
  s: { name: "does not apply", sign: "", weight: 0 },
  ".": { name: "not judged here", sign: "", weight: 0 },
};
const TELLING = "EXUWuIw";

// el("p", {class: "x"}, "text", child): strings become text nodes, never markup.
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

function plural(letter, number) {
  return KINDS[letter].name + (number !== 1 && "EWI".includes(letter) ? "s" : "");
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// "0-299,305" -> [0, 1, ...]; not to be changed by who asks.
const knownPlaces = new Map();
function places(ranges) {
  let found = knownPlaces.get(ranges);
  if (!found) {
    found = parsePlaces(ranges || "");
    knownPlaces.set(ranges, found);
  }
  return found;
}

function parsePlaces(ranges) {
  const found = [];
  if (!ranges) return found;
  for (const part of ranges.split(",")) {
    const [from, to] = part.split("-").map(Number);
    for (let place = from; place <= (to === undefined ? from : to); place++) found.push(place);
  }
  return found;
}

// Names in short, as epdoctor folds them: gpu[01-07],login1.
function fold(indices) {
  if (indices.length === 1) return data.nodes[indices[0]];
  const groups = new Map();
  for (const index of indices) {
    const name = data.nodes[index];
    const parts = /[,[\]]/.test(name) ? [name] : name.split(/([0-9]+)/);
    const key = JSON.stringify(parts.length > 1 ? parts.filter((_, at) => at % 2 === 0) : name);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(parts);
  }
  return [...groups.values()].flatMap(foldGroup).join(",");
}

// Names that share everything but their numbers: the last number that differs is folded.
function foldGroup(members) {
  if (members.length === 1) return [members[0].join("")];
  let at = members[0].length - 2;
  while (at > 1 && members.every((parts) => parts[at] === members[0][at])) at -= 2;
  const widths = new Set(members.map((parts) => parts[at]).filter((number) => /^0./.test(number)).map((number) => number.length));
  const rows = new Map();
  for (const parts of members) {
    const key = JSON.stringify([parts.slice(0, at), parts.slice(at + 1), widths.has(parts[at].length) && parts[at].length]);
    if (!rows.has(key)) rows.set(key, []);
    rows.get(key).push(parts);
  }
  return [...rows.values()].map((row) => {
    const numbers = row.map((parts) => parts[at]).sort((a, b) => Number(a) - Number(b));
    const runs = [];
    for (const number of numbers) {
      const last = runs[runs.length - 1];
      if (last && Number(number) === Number(last[1]) + 1) last[1] = number;
      else runs.push([number, number]);
    }
    const text = runs.map(([a, b]) => (a === b ? a : Number(b) === Number(a) + 1 ? `${a},${b}` : `${a}-${b}`)).join(",");
    return [...row[0].slice(0, at), numbers.length === 1 ? text : `[${text}]`, ...row[0].slice(at + 1)].join("");
  });
}

function where(ranges) {
  const indices = places(ranges);
  if (!indices.length) return "";
  if (indices.length === data.nodes.length && indices.length > 1) return `all ${indices.length} nodes`;
  return fold(indices);
}

// One line of commands with a button that copies exactly what is shown.
function commands(label, lines) {
  if (!lines || !lines.length) return null;
  const text = lines.join("\n");
  const code = el("pre", { tabindex: "0", "aria-label": label }, text);
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy: ${label}` }, "Copy");
  button.addEventListener("click", () => copy(text, code, button));
  return el("div", { class: "field" }, el("span", { class: "key" }, label), el("div", { class: "code" }, code, button));
}

async function copy(text, code, button) {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch (error) {
    // No permission, as in a CI server's frame: select it and try the old way.
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    try {
      done = document.execCommand("copy");
    } catch (refused) {
      done = false;
    }
  }
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  say(done ? "Copied" : "Selected; press Ctrl+C to copy");
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1600);
}

const live = el("div", { class: "unseen", role: "status", "aria-live": "polite" });
function say(text) {
  live.textContent = text;
}

// ---------------------------------------------------------------- the search

const state = { query: "", kinds: new Set(), fold: true, all: false, rows: "worst", columns: "worst" };
const listeners = [];
function changed() {
  for (const listener of listeners) listener();
}

const lowerNodes = data.nodes.map((name) => name.toLowerCase());
const lowerChecks = data.checks.map((check) => `${check.id} ${check.title}`.toLowerCase());
let lowerGroups = null;

// The texts of findings, made when they are first searched.
function groupText(index) {
  if (!lowerGroups) {
    lowerGroups = data.groups.map((group) => {
      const parts = [];
      for (const variant of group.v || []) for (const problem of variant.p) parts.push(problem.f, problem.x || "");
      for (const reason of group.r || []) parts.push(reason.t);
      if (group.waived) parts.push(group.waived);
      return parts.join(" ").toLowerCase();
    });
  }
  return lowerGroups[index];
}

// {nodes: Set or null, checks: Set or null}; null is "all". A word that names some nodes narrows the nodes, one that
// names checks narrows the checks, any other is looked for in what was found.
let lastSearch = ["", { nodes: null, checks: null }];
function search(query) {
  if (lastSearch[0] !== query) lastSearch = [query, searched(query)];
  return lastSearch[1];
}

function searched(query) {
  let nodes = null;
  let checks = null;
  const both = (one, other) => (one === null ? other : new Set([...one].filter((item) => other.has(item))));
  for (const word of query.toLowerCase().split(/\s+/).filter(Boolean)) {
    const named = new Set();
    lowerNodes.forEach((name, index) => name.includes(word) && named.add(index));
    if (named.size && named.size < data.nodes.length) {
      nodes = both(nodes, named);
      continue;
    }
    const about = new Set();
    lowerChecks.forEach((text, index) => text.includes(word) && about.add(index));
    if (about.size) {
      checks = both(checks, about);
      continue;
    }
    if (named.size) continue;
    const somewhere = new Set();
    const on = new Set();
    data.groups.forEach((group, index) => {
      if (group.k !== "s" && groupText(index).includes(word)) {
        somewhere.add(group.c);
        for (const place of places(group.n)) on.add(place);
      }
    });
    checks = both(checks, somewhere);
    if (on.size) nodes = both(nodes, on);
  }
  return { nodes, checks };
}
