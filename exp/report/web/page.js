"use strict";

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const found = text.match(/-?\d+(\.\d+)?(e[+-]?\d+)?/i);
  return { text, number: found ? Number(found[0]) : Infinity };
}

function sort(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const up = head.getAttribute("aria-sort") !== "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map(row => ({ row, ...value(row, column) }));
  const numeric = column > 0 && rows.some(entry => Number.isFinite(entry.number));
  rows.sort((a, b) => (numeric && a.number !== b.number ? (a.number < b.number ? -1 : 1)
    : a.text.localeCompare(b.text)) * (up ? 1 : -1));
  body.append(...rows.map(entry => entry.row));
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sort(table, column));
    cell.append(button);
  });
}
