// Findings, worst first: one a check, with what was found on which nodes and what to type.

function chip(letter, text) {
  return el("span", { class: `chip k-${letter === "." ? "none" : letter}` }, text || KINDS[letter].name);
}

// Texts of one finding that are shown together.
const MOST = 24;

function letterOf(group) {
  return group.waived ? "w" : group.k;
}

function field(label, ...content) {
  return el("div", { class: "field" }, el("span", { class: "key" }, label), el("div", { class: "value" }, ...content));
}

// What a group says, of all its nodes or of those in `only`.
function body(group, only) {
  const check = data.checks[group.c];
  const parts = [];
  const concerns = (ranges) => !only || !ranges || places(ranges).some((place) => only.has(place));
  const several = (group.v || group.r || []).length > 1 || group.cut;
  let own = { now: [], perm: [] };
  let shown = 0;
  let kept = 0;
  for (const variant of group.v || []) {
    if (!concerns(variant.n)) continue;
    shown++;
    if (shown > MOST) {
      kept++;
      continue;
    }
    const on = several && !only && variant.n ? el("span", { class: "on" }, ` on ${where(variant.n)}`) : null;
    for (const problem of variant.p) {
      const block = [field("found", problem.f, on)];
      if (problem.x) block.push(field("expected", problem.x));
      if (problem.e) block.push(field("evidence", el("pre", { class: "evidence" }, problem.e.join("\n"))));
      if (problem.now) {
        if (several && !only) block.push(commands("now, there", problem.now));
        else own.now.push(...problem.now);
      }
      if (problem.perm && !(several && !only)) own.perm.push(...problem.perm);
      else if (problem.perm) block.push(commands("for good, there", problem.perm));
      parts.push(el("div", { class: "variant" }, block));
    }
    if (variant.more) parts.push(el("p", { class: "dim" }, `${count(variant.more, "further problem")} of the same kind.`));
  }
  for (const reason of group.r || []) {
    if (!concerns(reason.n)) continue;
    shown++;
    if (shown > MOST) {
      kept++;
      continue;
    }
    const on = several && !only && reason.n ? el("span", { class: "on" }, ` on ${where(reason.n)}`) : null;
    parts.push(field(group.k === "s" ? "because" : "not measured", reason.t, on));
  }
  if (kept) parts.push(el("p", { class: "dim" }, `${count(kept, "further text")} on other nodes: choose a node in the map.`));
  if (group.cut && (!only || !shown)) {
    parts.push(el("p", { class: "dim" }, `${only ? "Its text is" : `${count(group.cut, "further text")} that differ by node are`} left out of this page; epdoctor check --format json has all.`));
  }
  if (group.waived) parts.push(field("waived", group.waived));
  if (group.expired) parts.push(field("waiver", group.expired));
  if (group.k === "s") return parts;
  if (group.blocks && group.blocks.length) parts.push(field("stops", group.blocks.join(", ")));
  if (check.why) parts.push(field("so", check.why));
  const unique = (lines) => [...new Set(lines)];
  if (group.k !== "U" && group.k !== "u") {
    const told = (group.v || []).some((variant) => variant.p.some((problem) => problem.now));
    parts.push(commands("now", own.now.length ? unique(own.now) : told ? [] : check.now));
    const good = (group.v || []).some((variant) => variant.p.some((problem) => problem.perm));
    parts.push(commands("for good", own.perm.length ? unique(own.perm) : good ? [] : check.permanent));
    if (check.workaround) parts.push(field("tonight", check.workaround));
    if (check.playbook) parts.push(field("playbook", check.playbook));
    if (check.action && check.action !== "none") parts.push(field("needs", check.action.replace(/-/g, " ")));
  }
  if (check.by_hand) parts.push(commands("see it", [check.by_hand]));
  if (group.trace) parts.push(field("traceback", el("pre", { class: "evidence" }, group.trace)));
  if (check.references && check.references.length) parts.push(field("sources", el("ul", {}, check.references.map((text) => el("li", {}, text)))));
  return parts;
}

function finding(group) {
  const check = data.checks[group.c];
  const letter = letterOf(group);
  const details = el(
    "details",
    { class: `finding k-${letter}` },
    el(
      "summary",
      {},
      chip(letter),
      el("span", { class: "title" }, check.title),
      el("span", { class: "nodes" }, where(group.n)),
      el("code", { class: "id" }, check.id),
    ),
  );
  // Filled when it is opened: hundreds of them cost nothing before.
  const fill = () => {
    if (details.childElementCount === 1) details.append(el("div", { class: "body" }, body(group, null)));
  };
  details.fill = fill;
  details.addEventListener("toggle", () => details.open && fill());
  return details;
}

function meet(one, other) {
  for (const item of one) if (other.has(item)) return true;
  return false;
}

function findingsSection() {
  const groups = data.groups.filter((group) => group.k !== "s");
  const order = "EUWIuw";
  const sorted = groups.map((group, index) => ({ group, index })).sort((a, b) => order.indexOf(letterOf(a.group)) - order.indexOf(letterOf(b.group)) || a.index - b.index);
  const list = el("div", { class: "findings" });
  const minor = el("details", { class: "minor" }, el("summary", {}, ""));
  const rows = [];
  let open = 2;
  for (const { group } of sorted) {
    const element = finding(group);
    if (group.k === "E" && !group.waived && open-- > 0) {
      element.fill();
      element.open = true;
    }
    const small = "Iu".includes(letterOf(group));
    (small ? minor : list).append(element);
    rows.push({ group, element, on: new Set(places(group.n)), small });
  }
  const nothing = el("p", { class: "empty", hidden: true });
  listeners.push(() => {
    const found = search(state.query);
    const wanted = new Set(rows.filter(({ group, on }) =>
      (!state.kinds.size || state.kinds.has(letterOf(group))) &&
      (!found.checks || found.checks.has(group.c)) &&
      (!found.nodes || !on.size || meet(found.nodes, on))));
    for (const row of rows) row.element.hidden = !wanted.has(row);
    const small = [...wanted].filter((row) => row.small).length;
    minor.hidden = !small;
    minor.firstChild.textContent = `${count(small, "note")} and small unknowns`;
    if (state.query || state.kinds.size) minor.open = small > 0 && small === wanted.size;
    nothing.hidden = wanted.size > 0;
    nothing.textContent = state.query || state.kinds.size ? "No finding matches." : "Nothing found.";
  });
  return el("section", { id: "findings" }, el("h2", {}, "Findings"), list, minor, nothing);
}

// What is known of a cell of the map, or of a row of it.
function detailsOf(row, column) {
  const only = new Set(row.indices);
  const parts = [];
  const about = (check) => data.groups.filter((group) => group.c === check && (!group.n || places(group.n).some((place) => only.has(place))));
  if (column >= 0) {
    const check = data.checks[column];
    const letter = row.marks[column];
    parts.push(el("h3", {}, chip(letter), " ", check.title, " ", el("code", { class: "id" }, check.id)));
    parts.push(el("p", { class: "dim" }, `on ${row.label}`));
    if (letter === "p") parts.push(el("p", {}, "Passed."));
    else if (letter === ".") parts.push(el("p", {}, "Not judged on this node: it compares nodes, or the node did not answer."));
    else if (letter === "X") parts.push(el("p", {}, "The node was not reached."));
    else for (const group of about(column)) parts.push(...body(group, only));
  } else {
    parts.push(el("h3", {}, row.label));
    for (const error of data.outcomes.errors) {
      if (places(error.n).some((place) => only.has(place))) {
        parts.push(field("not reached", error.t), error.hint ? commands("see it", [error.hint]) : null);
      }
    }
    for (const warning of data.outcomes.warnings) {
      if (places(warning.n).some((place) => only.has(place))) parts.push(field("warning", warning.t));
    }
    const order = TELLING;
    const telling = data.checks.map((_, index) => index).filter((index) => "EUWIuw".includes(row.marks[index]));
    telling.sort((a, b) => order.indexOf(row.marks[a]) - order.indexOf(row.marks[b]));
    const passed = [...row.marks].filter((letter) => letter === "p").length;
    const skipped = [...row.marks].filter((letter) => letter === "s").length;
    parts.push(el("p", { class: "dim" }, `${count(telling.length, "finding")}, ${passed} passed, ${skipped} do not apply`));
    parts.push(el("ul", { class: "telling" }, telling.map((index) => {
      const group = about(index).find((item) => letterOf(item) === row.marks[index]) || about(index)[0];
      return el("li", {}, chip(row.marks[index]), " ", data.checks[index].title, " ", group ? el("details", {}, el("summary", {}, data.checks[index].id), el("div", { class: "body" }, body(group, only))) : null);
    })));
  }
  return parts;
}
