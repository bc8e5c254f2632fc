// The table: a click on a heading sorts by its column, best first, then worst first, then as printed.
"use strict";

const ORDERS = ["none", "best", "worst"];

function drawTable(table, place) {
  const state = { column: 0, order: "none" };

  const sorters = table.columns.map((column, index) =>
    html("button", { type: "button", class: "sorter", onclick: () => sort(index) }, `${column.title}\u00a0`,
      html("span", { class: "arrow" }, column.more ? "\u2191" : "\u2193")));
  const heads = sorters.map((sorter) => html("th", { scope: "col", "aria-sort": "none" }, sorter));
  const first = ["", ...table.labels].map((label) => html("th", { scope: "col", class: "label" }, label));
  const body = html("tbody");

  function sort(index) {
    const next = ORDERS[(ORDERS.indexOf(state.order) + 1) % ORDERS.length];
    state.order = state.column === index ? next : "best";
    state.column = index;
    draw();
  }

  function draw() {
    heads.forEach((head, index) => {
      const sorted = state.order !== "none" && index === state.column;
      const ascending = (state.order === "worst") === table.columns[index].more;
      head.setAttribute("aria-sort", !sorted ? "none" : ascending ? "ascending" : "descending");
    });
    body.replaceChildren(...sortedLines(table, state).map(drawLine));
  }

  draw();
  place.replaceChildren(
    html("table", {}, html("thead", {}, ...conditionHeads(table), html("tr", {}, ...first, ...heads)), body));
}

/** The lines in order. Those that were measured come before those of which only the paper has a number. */
function sortedLines(table, { column, order }) {
  if (order === "none") return table.lines;
  const sign = (order === "best") === table.columns[column].more ? -1 : 1;
  const by = (number) => [...table.lines]
    .filter((line) => number(line) !== null)
    .sort((a, b) => sign * (number(a) - number(b)));
  const measured = (line) => line.cells[column].value;
  const printed = (line) => (measured(line) === null ? line.cells[column].printed : null);
  const neither = table.lines.filter((line) => measured(line) === null && printed(line) === null);
  return [...by(measured), ...by(printed), ...neither];
}

/** A line above the headings that names the conditions, where there are several. */
function conditionHeads(table) {
  if (!table.columns.some((column) => column.condition)) return [];
  const spans = [];
  for (const { condition } of table.columns) {
    if (spans.length && spans.at(-1).condition === condition) spans.at(-1).width += 1;
    else spans.push({ condition, width: 1 });
  }
  return [html("tr", { class: "conditions" }, html("td", { colspan: 1 + table.labels.length }),
    ...spans.map(({ condition, width }) => html("th", { colspan: width, scope: "colgroup" }, condition)))];
}

function drawLine(line) {
  return html("tr", { class: line.kind }, html("th", { scope: "row" }, line.title),
    ...line.labels.map((label) => html("td", { class: "label" }, label)), ...line.cells.map(drawCell));
}

function drawCell(cell) {
  if (!cell.measured && !cell.published) return html("td", {}, "-");
  return html("td", {}, html("span", { class: cell.mark }, cell.measured), cell.spread,
    html("span", { class: "published" }, ` ${cell.published}`));
}

/** A heading and a list, or nothing for no lines. */
function listed(title, lines) {
  return lines.length ? [html("h3", {}, title), html("ul", {}, ...lines.map((line) => html("li", {}, line)))] : [];
}
