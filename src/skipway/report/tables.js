// Tables: heads that sort, a line above that filters, and a CSV of the rows that are shown.
const FEW = 12, MANY = 6;
const compareTexts = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" }).compare;

function readTable(place) {
  const table = place.querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  const names = heads.map((head) => head.textContent);
  const rows = [...table.tBodies[0].rows].map((row, index) => ({
    row, index, cells: [...row.cells], texts: [...row.cells].map((cell) => cell.innerText || cell.textContent),
  }));
  return { place, table, heads, names, rows, name: place.dataset.name };
}

function order(table, column, direction) {
  const numeric = table.heads[column].classList.contains("number");
  const key = (entry) => {
    const value = entry.cells[column].dataset.value;
    return numeric ? (value === undefined ? null : Number(value)) : entry.texts[column];
  };
  const sorted = table.rows.slice();
  if (direction !== "none") {
    const sign = direction === "ascending" ? 1 : -1;
    sorted.sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      // What is not there stands last, whichever way round.
      if (numeric && (one === null || other === null)) return (one === null) - (other === null) || a.index - b.index;
      return sign * (numeric ? one - other : compareTexts(one, other)) || a.index - b.index;
    });
  }
  table.table.tBodies[0].append(...sorted.map((entry) => entry.row));
  table.heads.forEach((head, place) => {
    if (place === column && direction !== "none") head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

const following = { none: "ascending", ascending: "descending", descending: "none" };

function addSorting(table, chooser) {
  table.heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, table.names[column]);
    button.addEventListener("click", () => {
      const next = following[head.getAttribute("aria-sort") || "none"];
      order(table, column, next);
      chooser.value = next === "none" ? "" : `${column} ${next}`;
    });
    head.replaceChildren(button);
  });
}

// Cards have no heads: on a narrow screen a choice takes their place.
function sortChooser(table) {
  const options = table.names.flatMap((name, column) => [
    make("option", { value: `${column} ascending` }, `${name} ↑`),
    make("option", { value: `${column} descending` }, `${name} ↓`),
  ]);
  const select = make("select", {}, make("option", { value: "" }, "as given"), ...options);
  select.addEventListener("change", () => {
    const [column, direction] = select.value.split(" ");
    order(table, Number(column || 0), direction || "none");
  });
  return { select, label: make("label", { className: "narrow" }, "Sort by ", select) };
}

function addFilters(table, line, count) {
  const box = make("input", { type: "search", placeholder: "Filter", autocomplete: "off" });
  box.setAttribute("aria-label", `Filter ${table.name}`);
  const choices = table.heads.flatMap((head, column) => {
    const values = [...new Set(table.rows.map((entry) => entry.texts[column]))].sort(compareTexts);
    const few = values.length > 1 && values.length <= FEW && values.length < table.rows.length;
    if (!few || head.classList.contains("number")) return [];
    const select = make("select", {}, make("option", { value: "" }, "all"), ...values.map((value) => make("option", { value }, value || "–")));
    return [{ column, select, label: make("label", {}, `${table.names[column]} `, select) }];
  });
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of table.rows) {
      const text = entry.texts.join(" ").toLowerCase();
      const kept = words.every((word) => text.includes(word)) &&
        choices.every(({ column, select }) => select.value === "" || entry.texts[column] === select.value);
      entry.row.hidden = !kept;
      shown += kept;
    }
    count.textContent = shown === table.rows.length ? `${shown} rows` : `${shown} of ${table.rows.length} rows`;
  };
  for (const input of [box, ...choices.map(({ select }) => select)]) input.addEventListener("input", filter);
  line.append(box, ...choices.map(({ label }) => label));
}

function tableCsv(table) {
  // A column with bounds becomes three.
  const bounded = table.names.map((_, column) => table.rows.some(({ cells }) => cells[column].dataset.low !== undefined));
  const spread = (values) => values.flatMap((value, column) => (bounded[column] ? value : [value[0]]));
  const head = spread(table.names.map((name) => [name, `${name}, low`, `${name}, high`]));
  const rows = [...table.table.tBodies[0].rows].filter((row) => !row.hidden).map((row) =>
    spread([...row.cells].map((cell, column) => [
      cell.dataset.value ?? (table.heads[column].classList.contains("number") ? "" : cell.textContent),
      cell.dataset.low, cell.dataset.high,
    ])));
  saveCsv(table.name, [head, ...rows]);
}

function startTable(place) {
  const table = readTable(place);
  const line = make("div", { className: "tools" });
  const count = make("span", { className: "count" });
  count.setAttribute("role", "status");
  const chooser = sortChooser(table);
  if (table.rows.length > 1) addSorting(table, chooser.select);
  if (table.rows.length > MANY) {
    addFilters(table, line, count);
    count.textContent = `${table.rows.length} rows`;
  }
  if (table.rows.length > 1 && table.table.classList.contains("cards")) line.append(chooser.label);
  line.append(make("span", { className: "take" }, count, tool("CSV", `Download ${table.name} as CSV`, () => tableCsv(table))));
  place.prepend(line);
}
