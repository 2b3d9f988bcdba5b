// Puts the page together: theme, search, keys, print.

function systemTheme() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) {
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
  }
  if (map) map.recolour();
}

// A page of its own on disk may keep the choice; a sandboxed frame may not.
function kept(value) {
  try {
    if (value) localStorage.setItem("epdoctor-theme", value);
    return localStorage.getItem("epdoctor-theme");
  } catch (error) {
    return null;
  }
}

function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  setTheme(theme);
  kept(theme);
}

function searchBar(links) {
  const input = el("input", { id: "search", type: "search", placeholder: "Search nodes, checks, findings", "aria-label": "Search nodes, checks and findings", autocomplete: "off", spellcheck: "false", maxlength: "200" });
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      state.query = input.value;
      changed();
      say(map && map.shown().rows.length ? `${count(map.shown().rows.length, "row")} in the map` : "Nothing matches");
    }, 60);
  });
  return el("nav", { class: "bar-top", "aria-label": "Page" }, el("div", { class: "inner" }, el("span", { class: "brand" }, "epdoctor"), el("div", { class: "links" }, links), el("label", { class: "searchbox" }, input, el("kbd", { "aria-hidden": "true" }, "/"))));
}

function clearSearch() {
  const input = document.getElementById("search");
  input.value = "";
  state.query = "";
  state.kinds.clear();
  for (const button of document.querySelectorAll(".counts .filter")) button.setAttribute("aria-pressed", "false");
  changed();
}

document.addEventListener("keydown", (event) => {
  const input = document.getElementById("search");
  const typing = document.activeElement === input;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    input.focus();
    input.select();
  } else if (event.key === "Escape" && (state.query || state.kinds.size || document.activeElement === input)) {
    clearSearch();
    input.blur();
  }
});

// On paper: every finding that counts is open, and the map is a list of nodes.
const opened = [];
function beforePrint() {
  const paper = document.getElementById("paper");
  if (!paper || paper.childElementCount) return;
  for (const details of document.querySelectorAll("details.finding:not([hidden])")) {
    if (!details.open && /k-[EUW]/.test(details.className) && opened.length < 60) {
      details.fill();
      details.open = true;
      opened.push(details);
    }
  }
  const { rows, columns } = map.shown();
  const list = (row, letters) => columns.filter((column) => letters.includes(row.marks[column])).map((column) => data.checks[column].id).join(", ");
  const kinds = [["failed", "E"], ["warnings", "W"], ["unknown", "Uu"], ["waived", "w"]];
  const used = kinds.filter(([head, letters]) => head === "failed" || rows.some((row) => list(row, letters)));
  paper.append(table(["nodes", ...used.map(([head]) => head)], rows.slice(0, 400).map((row) => [el("code", {}, row.label), ...used.map(([head, letters]) => (head === "failed" && row.marks.includes("X") ? "not reached" : list(row, letters)))]), "Nodes and what was found on them"));
  if (rows.length > 400) paper.append(el("p", {}, `${count(rows.length - 400, "row")} with less are left out on paper.`));
}
function afterPrint() {
  const paper = document.getElementById("paper");
  if (paper) paper.replaceChildren();
  while (opened.length) opened.pop().open = false;
}
addEventListener("beforeprint", beforePrint);
addEventListener("afterprint", afterPrint);
matchMedia("print").addEventListener("change", (event) => (event.matches ? beforePrint() : afterPrint()));

setTheme(kept() || systemTheme());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => kept() || setTheme(systemTheme()));

const app = document.getElementById("app");
const links = el("span", { class: "links" });
app.append(searchBar(links), header(toggleTheme));
const main = el("main", {});
app.append(main);
setTheme(document.documentElement.dataset.theme);

// A task each, so that the page answers while the rest is still being made.
async function build() {
  for (const [name, make] of SECTIONS) {
    await new Promise((done) => setTimeout(done, 0));
    const before = listeners.length;
    const section = make();
    if (!section) continue;
    main.append(section);
    links.append(el("a", { href: `#${section.id}` }, name));
    for (const listener of listeners.slice(before)) listener();
  }
  app.append(el("footer", {}, "Written by epdoctor. Nothing is loaded from a network. Keys: / searches, arrows move in the map, Enter opens, Esc clears."), live);
  document.documentElement.dataset.ready = "yes";
}
build();
