// The heat map: nodes down, checks across. Only what is in view is drawn, on a canvas; the cell that the keyboard is
// on is an element of its own above it, so that a screen reader hears it and the focus is seen.

const COLUMN = 20;
const ROW = 22;
const marksOf = new Array(data.nodes.length);
for (const [marks, ranges] of data.rows) for (const place of places(ranges)) marksOf[place] = marks;

// The rows and columns to show: [{indices, marks, label, weight}], [check].
function view() {
  const found = search(state.query);
  let columns = data.checks.map((_, index) => index);
  if (found.checks) columns = columns.filter((index) => found.checks.has(index));
  let nodes = data.nodes.map((_, index) => index);
  if (found.nodes) nodes = nodes.filter((index) => found.nodes.has(index));
  const wanted = (letter) => (state.kinds.size ? state.kinds.has(letter) : TELLING.includes(letter));
  if (state.kinds.size) {
    nodes = nodes.filter((index) => columns.some((column) => state.kinds.has(marksOf[index][column])));
  }
  const weights = new Map();
  const distinct = new Map();
  for (const index of nodes) distinct.set(marksOf[index], (distinct.get(marksOf[index]) || 0) + 1);
  for (const column of columns) {
    let weight = 0;
    let tells = false;
    for (const [marks, number] of distinct) {
      tells = tells || wanted(marks[column]);
      weight += KINDS[marks[column]].weight * number;
    }
    if (tells || (state.all && !state.kinds.size)) weights.set(column, weight);
  }
  columns = columns.filter((column) => weights.has(column));
  if (state.columns === "worst") columns.sort((a, b) => weights.get(b) - weights.get(a) || a - b);
  const rows = [];
  const alike = new Map();
  for (const index of nodes) {
    const marks = marksOf[index];
    const shown = state.fold ? columns.map((column) => marks[column]).join("") : "";
    const known = state.fold && alike.get(shown);
    if (known) {
      known.indices.push(index);
      continue;
    }
    const weight = columns.reduce((sum, column) => sum + KINDS[marks[column]].weight, 0);
    const row = { indices: [index], marks, weight, label: "" };
    if (state.fold) alike.set(shown, row);
    rows.push(row);
  }
  for (const row of rows) row.label = fold(row.indices);
  if (state.rows === "worst") {
    rows.sort((a, b) => b.weight - a.weight || b.indices.length - a.indices.length || a.indices[0] - b.indices[0]);
  }
  return { rows, columns };
}

function heatMap(open) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const cell = el("div", { role: "gridcell", id: "cell", class: "cell" });
  const header = el("div", { role: "rowheader", class: "unseen" });
  const line = el("div", { role: "row" }, header, cell);
  const size = el("div", { class: "size", role: "rowgroup" }, canvas, line);
  const grid = el(
    "div",
    { class: "map", role: "grid", tabindex: "0", "aria-label": "Nodes by checks; arrow keys move, Enter opens", "aria-readonly": "true" },
    size,
  );
  const status = el("p", { class: "status" });
  const empty = el("p", { class: "empty", hidden: true });
  let shown = { rows: [], columns: [] };
  let at = { row: 0, column: 0 };
  let left = 140;
  let top = 150;
  let colours = null;
  let frame = 0;

  function palette() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const names = { E: "--error", X: "--error", W: "--warning", U: "--unknown", u: "--unknown-soft", I: "--note", w: "--waived", p: "--passed", s: "--cell", ".": "--cell" };
    colours = { text: read("--text"), dim: read("--dim"), panel: read("--panel"), line: read("--line"), on: read("--on") };
    for (const [letter, name] of Object.entries(names)) colours[letter] = read(name);
  }

  function measure() {
    const context = canvas.getContext("2d");
    context.font = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    const widest = shown.rows.slice(0, 600).reduce((most, row) => Math.max(most, row.label.length), 4);
    left = Math.min(Math.ceil(widest * 7.3) + 58, grid.clientWidth < 560 ? 132 : 300);
    const longest = shown.columns.reduce((most, column) => Math.max(most, data.checks[column].id.length), 8);
    top = Math.min(Math.ceil(longest * 5.9) + 16, 196);
    size.style.width = `${left + shown.columns.length * COLUMN + Math.ceil(top * 0.62)}px`;
    size.style.height = `${top + shown.rows.length * ROW + 6}px`;
    grid.style.height = `${Math.min(top + shown.rows.length * ROW + 24, Math.max(innerHeight * 0.68, 260))}px`;
  }

  function draw() {
    frame = 0;
    if (!colours) palette();
    const width = grid.clientWidth;
    const height = grid.clientHeight;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const { rows, columns } = shown;
    const firstRow = Math.max(Math.floor(grid.scrollTop / ROW), 0);
    const lastRow = Math.min(Math.ceil((grid.scrollTop + height - top) / ROW), rows.length);
    const firstColumn = Math.max(Math.floor(grid.scrollLeft / COLUMN), 0);
    const lastColumn = Math.min(Math.ceil((grid.scrollLeft + width - left) / COLUMN), columns.length);
    context.textBaseline = "middle";
    // Cells.
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.textAlign = "center";
    context.font = "bold 11px system-ui, sans-serif";
    for (let row = firstRow; row < lastRow; row++) {
      const marks = rows[row].marks;
      const y = top + row * ROW - grid.scrollTop;
      for (let column = firstColumn; column < lastColumn; column++) {
        const letter = marks[columns[column]];
        const x = left + column * COLUMN - grid.scrollLeft;
        context.fillStyle = colours[letter];
        if (letter === "." || letter === "s") {
          context.fillRect(x + COLUMN / 2 - 2, y + ROW / 2 - 1, 4, 2);
          continue;
        }
        context.fillRect(x + 1, y + 1, COLUMN - 2, ROW - 2);
        if (KINDS[letter].sign) {
          context.fillStyle = colours.on;
          context.fillText(KINDS[letter].sign, x + COLUMN / 2, y + ROW / 2 + 0.5);
        }
      }
    }
    context.restore();
    // Names of nodes.
    context.save();
    context.beginPath();
    context.rect(0, top, left, height);
    context.clip();
    for (let row = firstRow; row < lastRow; row++) {
      const y = top + row * ROW - grid.scrollTop + ROW / 2;
      const many = rows[row].indices.length;
      const room = left - (many > 1 ? 54 : 14);
      context.font = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
      context.textAlign = "left";
      context.fillStyle = row === at.row && grid.contains(document.activeElement) ? colours.text : colours.dim;
      context.fillText(cut(rows[row].label, Math.floor(room / 7.3)), 4, y);
      if (many > 1) {
        context.textAlign = "right";
        context.font = "11px system-ui, sans-serif";
        context.fillStyle = colours.text;
        context.fillText(`×${many}`, left - 8, y);
      }
    }
    context.restore();
    // Names of checks, slanted.
    context.save();
    context.beginPath();
    context.rect(left - 4, 0, width, top);
    context.clip();
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "left";
    for (let column = firstColumn; column < lastColumn; column++) {
      const x = left + column * COLUMN - grid.scrollLeft + COLUMN / 2;
      context.save();
      context.translate(x + 2, top - 6);
      context.rotate(-Math.PI / 3);
      context.fillStyle = column === at.column && grid.contains(document.activeElement) ? colours.text : colours.dim;
      context.fillText(cut(data.checks[columns[column]].id, 37), 0, 0);
      context.restore();
    }
    context.restore();
    context.fillStyle = colours.line;
    context.fillRect(0, top - 1, width, 1);
  }

  function cut(text, limit) {
    return text.length > limit ? `${text.slice(0, Math.max(limit - 1, 1))}…` : text;
  }

  function redraw() {
    if (!frame) frame = requestAnimationFrame(draw);
  }

  function tell(row, column) {
    const check = data.checks[shown.columns[column]];
    const kind = KINDS[shown.rows[row].marks[shown.columns[column]]].name;
    return `${shown.rows[row].label} · ${check.id} · ${kind}: ${check.title}`;
  }

  function move(row, column, scroll) {
    if (!shown.rows.length || !shown.columns.length) return;
    at = {
      row: Math.max(0, Math.min(row, shown.rows.length - 1)),
      column: Math.max(0, Math.min(column, shown.columns.length - 1)),
    };
    const x = left + at.column * COLUMN;
    const y = top + at.row * ROW;
    cell.style.transform = `translate(${x}px, ${y}px)`;
    line.setAttribute("aria-rowindex", String(at.row + 2));
    cell.setAttribute("aria-colindex", String(at.column + 2));
    header.textContent = shown.rows[at.row].label;
    cell.setAttribute("aria-label", tell(at.row, at.column));
    status.textContent = tell(at.row, at.column);
    grid.setAttribute("aria-activedescendant", "cell");
    if (scroll) {
      if (y - top < grid.scrollTop) grid.scrollTop = y - top;
      if (y + ROW > grid.scrollTop + grid.clientHeight) grid.scrollTop = y + ROW + 18 - grid.clientHeight;
      if (x - left < grid.scrollLeft) grid.scrollLeft = x - left;
      if (x + COLUMN > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = x + COLUMN + 18 - grid.clientWidth;
    }
    redraw();
  }

  function under(event) {
    const box = grid.getBoundingClientRect();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    if (y < top) return null;
    const row = Math.floor((y - top + grid.scrollTop) / ROW);
    const column = x < left ? -1 : Math.floor((x - left + grid.scrollLeft) / COLUMN);
    return row < shown.rows.length && column < shown.columns.length ? { row, column } : null;
  }

  grid.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey) return;
    const page = Math.max(Math.floor((grid.clientHeight - top) / ROW) - 1, 1);
    const steps = {
      ArrowUp: [at.row - 1, at.column], ArrowDown: [at.row + 1, at.column],
      ArrowLeft: [at.row, at.column - 1], ArrowRight: [at.row, at.column + 1],
      PageUp: [at.row - page, at.column], PageDown: [at.row + page, at.column],
      Home: [event.ctrlKey ? 0 : at.row, 0], End: [event.ctrlKey ? Infinity : at.row, Infinity],
    };
    if (steps[event.key]) {
      event.preventDefault();
      move(...steps[event.key], true);
    } else if ((event.key === "Enter" || event.key === " ") && shown.rows.length) {
      event.preventDefault();
      open(shown.rows[at.row], shown.columns[at.column]);
    }
  });
  grid.addEventListener("focus", () => move(at.row, at.column, true));
  grid.addEventListener("blur", redraw);
  grid.addEventListener("scroll", redraw, { passive: true });
  grid.addEventListener("mousemove", (event) => {
    const hit = under(event);
    if (hit && hit.column >= 0) status.textContent = tell(hit.row, hit.column);
    else if (hit) status.textContent = `${shown.rows[hit.row].label}: ${count(shown.rows[hit.row].indices.length, "node")}`;
  });
  grid.addEventListener("click", (event) => {
    const hit = under(event);
    if (!hit) return;
    move(hit.row, Math.max(hit.column, 0), false);
    open(shown.rows[hit.row], hit.column < 0 ? -1 : shown.columns[hit.column]);
  });
  addEventListener("resize", () => {
    measure();
    redraw();
  });

  function update() {
    shown = view();
    const nothing = !shown.rows.length || !shown.columns.length;
    empty.hidden = !nothing;
    grid.hidden = nothing;
    status.hidden = nothing;
    if (nothing) {
      empty.textContent = state.query || state.kinds.size ? "Nothing matches. Esc clears the search." : "Nothing failed and nothing is unknown on any node.";
      return;
    }
    grid.setAttribute("aria-rowcount", String(shown.rows.length + 1));
    grid.setAttribute("aria-colcount", String(shown.columns.length + 1));
    measure();
    grid.scrollTop = 0;
    grid.scrollLeft = 0;
    move(0, 0, false);
    status.textContent = `${count(shown.rows.length, "row")} for ${count(shown.rows.reduce((sum, row) => sum + row.indices.length, 0), "node")}, ${count(shown.columns.length, "check")}. Arrow keys move, Enter opens.`;
  }

  function recolour() {
    colours = null;
    redraw();
  }

  listeners.push(update);
  return { element: el("div", {}, grid, empty, status), update, recolour, shown: () => shown };
}
