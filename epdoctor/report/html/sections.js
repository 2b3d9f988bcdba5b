// The other parts of the page. SECTIONS at the end is their order; each is a function that gives a section or null.

function header(toggleTheme) {
  const run = data.run;
  const theme = el("button", { type: "button", class: "ghost", id: "theme", click: toggleTheme }, "Theme");
  const counts = el("div", { class: "counts", role: "group", "aria-label": "Show only" });
  const numbers = {};
  for (const group of data.groups) if (group.k !== "s") numbers[letterOf(group)] = (numbers[letterOf(group)] || 0) + 1;
  const missed = data.outcomes.errors.reduce((sum, error) => sum + places(error.n).length, 0);
  if (missed) numbers.X = missed;
  for (const letter of TELLING) {
    if (!numbers[letter]) continue;
    const button = el("button", { type: "button", class: `filter k-${letter}`, "aria-pressed": "false" }, el("b", {}, String(numbers[letter])), ` ${plural(letter, numbers[letter])}`);
    button.addEventListener("click", () => {
      const on = !state.kinds.delete(letter);
      if (on) state.kinds.add(letter);
      button.setAttribute("aria-pressed", String(on));
      changed();
    });
    counts.append(button);
  }
  return el(
    "header",
    { class: `top ${run.level}` },
    el("div", { class: "verdict" }, el("span", { class: `badge ${run.level}`, role: "heading", "aria-level": "1" }, run.headline), el("p", { class: "sentence" }, run.sentence), theme),
    el("p", { class: "facts" }, run.facts.map((fact) => el("span", {}, fact)), run.collected_at ? el("span", {}, run.collected_at) : null, el("span", {}, `exit code ${run.exit_code}`)),
    run.hcas.map(([how, nodes], index) => el("p", { class: "facts" }, `HCAs: ${how}${run.hcas.length > 1 ? ` on ${nodes}` : ""}`)),
    run.warnings.map((text) => el("p", { class: "warnline" }, `! ${text}`)),
    commands(run.next[0] ? `next, on ${run.next[0]}` : "next", [run.next[1]]),
    counts,
  );
}

function readinessSection() {
  if (!data.readiness.length) return null;
  const rows = data.readiness.map((row) => {
    const total = row.ready + row.not_ready + row.unknown || 1;
    const parts = [["ok", row.ready, "ready"], ["bad", row.not_ready, "not ready"], ["unknown", row.unknown, "unknown"]];
    const bar = el("div", { class: "bar", "aria-hidden": "true" });
    for (const [level, number] of parts) {
      if (!number) continue;
      const part = el("span", { class: level });
      part.style.width = `${(100 * number) / total}%`;
      bar.append(part);
    }
    const words = parts.filter(([, number]) => number).map(([level, number, word], index) => el("span", { class: `level ${level}`, title: row.where[["ready", "not ready", "unknown"].indexOf(word)] }, `${number} ${word}`));
    const because = row.because.map((id) => el("button", { type: "button", class: "link", click: () => find(id) }, id));
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, el("code", {}, row.backend)),
      el("td", { class: "wide" }, bar, el("span", { class: "levels" }, words)),
      el("td", {}, el("span", { class: "ids" }, because, row.more ? ` and ${row.more} more` : null), row.waived.length ? el("span", { class: "dim" }, ` waived: ${row.waived.join(", ")}`) : null),
    );
  });
  return el("section", { id: "readiness" }, el("h2", {}, "Ready for"), el("div", { class: "scroll" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "back end"), el("th", { scope: "col" }, "nodes"), el("th", { scope: "col" }, "because of"))), el("tbody", {}, rows))));
}

// Put a word in the search and look at the findings.
function find(text) {
  const box = document.getElementById("search");
  box.value = text;
  state.query = text;
  changed();
  document.getElementById("findings").scrollIntoView();
}

let map = null;
function mapSection() {
  if (!data.nodes.length || !data.checks.length) return null;
  const panel = el("div", { class: "panel detail", id: "detail", tabindex: "-1", hidden: true, "aria-label": "Chosen cell" });
  map = heatMap((row, column) => {
    panel.replaceChildren(
      el("button", { type: "button", class: "ghost close", "aria-label": "Close", click: () => { panel.hidden = true; map.element.firstChild.focus(); } }, "✕"),
      ...detailsOf(row, column).filter(Boolean),
      el("p", { class: "row" },
        column >= 0 ? el("button", { type: "button", class: "ghost", click: () => map.open(row, -1) }, `All of ${row.indices.length > 1 ? "these nodes" : "this node"}`) : null,
        data.topologies.length ? el("button", { type: "button", class: "ghost", click: () => { showPicture(row.indices[0]); document.getElementById("topology").scrollIntoView(); } }, "Topology") : null),
    );
    panel.hidden = false;
    panel.scrollIntoView({ block: "nearest" });
    panel.focus({ preventScroll: true });
    say("Opened below the map");
  });
  map.open = (row, column) => {
    panel.replaceChildren(el("button", { type: "button", class: "ghost close", "aria-label": "Close", click: () => { panel.hidden = true; } }, "✕"), ...detailsOf(row, column).filter(Boolean));
  };
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    panel.hidden = true;
    map.element.firstChild.focus();
  });
  const choice = (label, key, values) => {
    const select = el("select", { "aria-label": label }, Object.entries(values).map(([value, text]) => el("option", { value }, text)));
    select.addEventListener("change", () => { state[key] = select.value; changed(); });
    return select;
  };
  const box = (label, key) => {
    const input = el("input", { type: "checkbox", checked: state[key] });
    input.addEventListener("change", () => { state[key] = input.checked; changed(); });
    return el("label", { class: "box" }, input, label);
  };
  const legend = el("p", { class: "legend" }, [..."EWUIwp"].map((letter) => el("span", {}, el("i", { class: `swatch k-${letter}` }, KINDS[letter].sign), KINDS[letter].name)));
  return el(
    "section",
    { id: "map" },
    el("div", { class: "head" }, el("h2", {}, "Nodes and checks"), el("div", { class: "tools" },
      choice("Order of nodes", "rows", { worst: "worst node first", name: "nodes as listed" }),
      choice("Order of checks", "columns", { worst: "worst check first", catalogue: "checks by catalogue" }),
      box("fold equal nodes", "fold"),
      box(`all ${data.checks.length} checks`, "all"))),
    map.element,
    legend,
    panel,
    el("div", { class: "paper", id: "paper" }),
  );
}

// ---------------------------------------------------------------- topology

let showPicture = () => {};
function topologySection() {
  if (!data.topologies.length) return null;
  const frame = el("div", { class: "picture" });
  const words = el("div", { class: "words" });
  const tabs = el("div", { class: "tabs", role: "group", "aria-label": "Nodes with one topology" });
  const buttons = [];
  const show = (index) => {
    const entry = data.topologies[index];
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(place === index)));
    const drawn = entry.figure === undefined ? null : document.getElementById(`picture-${entry.figure}`);
    for (const old of [...frame.children]) document.getElementById("pictures").append(old);
    if (drawn) frame.append(drawn);
    frame.hidden = !drawn;
    words.replaceChildren();
    const lines = entry.troubles.map(([level, kind, text]) => el("li", {}, chip(level === "bad" ? "E" : "W", kind), " ", text));
    if (entry.cut) add(words, [el("p", { class: "dim" }, "Left out to keep the page small; epdoctor check on that node draws it.")]);
    else if (!drawn) add(words, [el("p", { class: "dim" }, "Nothing to draw: no GPU of NVIDIA and no RDMA device was measured.")]);
    add(words, [lines.length ? el("ul", {}, lines) : drawn ? el("p", { class: "dim" }, "Nothing in the way of a GPU's traffic was measured here.") : null]);
    add(words, entry.unknown.map((text) => el("p", { class: "dim" }, `? ${text}`)));
    add(words, entry.notes.map((text) => el("p", { class: "dim" }, text)));
  };
  data.topologies.forEach((entry, index) => {
    const button = el("button", { type: "button", class: "filter", "aria-pressed": "false", click: () => show(index) }, entry.troubles.length ? el("b", {}, "! ") : null, where(entry.n) || "?");
    buttons.push(button);
    tabs.append(button);
  });
  showPicture = (node) => {
    const index = data.topologies.findIndex((entry) => places(entry.n).includes(node));
    if (index >= 0) show(index);
  };
  show(0);
  const legend = el("p", { class: "legend" }, [["p", "NIC on the GPU's PCIe switch (PIX, PXB), port up"], ["W", "through the CPU (PHB, NODE), or a slowed link"], ["E", "over to the other CPU (SYS), or down"], ["none", "not judged"]].map(([letter, text]) => el("span", {}, el("i", { class: `swatch k-${letter}` }), text)));
  return el("section", { id: "topology" }, el("h2", {}, "Topology"), data.topologies.length > 1 ? tabs : null, frame, words, legend);
}

// ---------------------------------------------------------------- tables

function table(heads, rows, label) {
  return el("div", { class: "scroll" }, el("table", { class: "plain", "aria-label": label }, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell)))))));
}

function driftSection() {
  const { rows, alike } = data.drift;
  if (!rows.length && !alike.length) return null;
  const cells = rows.map((row) => [[chip(row.kind), " ", row.title], el("code", {}, row.found), el("code", {}, row.expected), el("code", {}, row.nodes)]);
  return el(
    "section",
    { id: "drift" },
    el("h2", {}, "Drift between nodes"),
    rows.length ? table(["what", "odd", "the others", "odd nodes"], cells, "Drift") : el("p", { class: "dim" }, "No two nodes differ in what was compared."),
    alike.length ? el("details", { class: "minor" }, el("summary", {}, `${count(alike.length, "comparison")} passed`), el("p", { class: "dim" }, alike.join(" · "))) : null,
  );
}

function timingsSection() {
  const { times, probes } = data.outcomes;
  const order = times.map((_, index) => index).filter((index) => times[index][0] > 0).sort((a, b) => times[b][0] - times[a][0]);
  if (!order.length) return null;
  const most = times[order[0]][0];
  const rows = order.slice(0, 12).map((index) => {
    const bar = el("span", { class: "time" });
    bar.style.width = `${Math.max(2, (100 * times[index][0]) / most)}%`;
    return [el("code", {}, data.nodes[index]), el("div", { class: "timebar" }, bar, el("span", {}, `${times[index][0].toFixed(2)} s`)), el("code", {}, probes[times[index][1]] || ""), times[index][2] ? `${times[index][2].toFixed(2)} s` : ""];
  });
  const byProbe = new Map();
  for (const index of order) {
    const name = probes[times[index][1]];
    if (!name) continue;
    byProbe.set(name, (byProbe.get(name) || []).concat(times[index][2]));
  }
  const slow = [...byProbe].map(([name, seconds]) => [name, seconds.sort((a, b) => b - a)]).sort((a, b) => b[1][0] - a[1][0]);
  const middle = times[order[Math.floor(order.length / 2)]][0];
  return el(
    "section",
    { id: "timings" },
    el("h2", {}, "Timings"),
    el("p", { class: "dim" }, `The run took ${data.run.facts[1].replace("in ", "")}; half of the nodes answered within ${middle.toFixed(2)} s.`),
    el("div", { class: "two" },
      table(["slowest nodes", "seconds", "slowest probe", "took"], rows, "Slowest nodes"),
      slow.length ? table(["probe", "slowest on", "median", "longest"], slow.slice(0, 12).map(([name, seconds]) => [el("code", {}, name), count(seconds.length, "node"), `${seconds[Math.floor(seconds.length / 2)].toFixed(2)} s`, `${seconds[0].toFixed(2)} s`]), "Slowest probes") : null),
  );
}

function unreachedSection() {
  const { errors, warnings } = data.outcomes;
  if (!errors.length && !warnings.length) return null;
  return el(
    "section",
    { id: "unreached" },
    el("h2", {}, errors.length ? "Not reached" : "Warnings of nodes"),
    errors.map((error) => el("div", { class: "variant" }, field(where(error.n), error.t), error.hint ? commands("see it", [error.hint]) : null)),
    warnings.length ? el("details", { class: "minor" }, el("summary", {}, count(warnings.length, "warning")), warnings.map((warning) => field(where(warning.n), warning.t))) : null,
  );
}

function waiversSection() {
  if (!data.waivers.length) return null;
  return el("section", { id: "waivers" }, el("h2", {}, "Waivers"), table(["check", "nodes", "reason", "until", "owner", "findings", "file"], data.waivers.map((waiver) => [el("code", {}, waiver.check), el("code", {}, waiver.nodes), waiver.reason, waiver.expired ? [chip("E", "expired"), " ", waiver.expires] : waiver.expires || "for ever", waiver.owner, String(waiver.findings), waiver.where]), "Waivers"));
}

const SECTIONS = [
  ["Ready for", readinessSection],
  ["Findings", findingsSection],
  ["Not reached", unreachedSection],
  ["Map", mapSection],
  ["Topology", topologySection],
  ["Drift", driftSection],
  ["Timings", timingsSection],
  ["Waivers", waiversSection],
];
