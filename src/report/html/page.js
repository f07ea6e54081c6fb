"use strict";
// Sorting by a click on a title: numbers from the greatest down first, words from A on; empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    title.querySelector("button").addEventListener("click", () => {
      const numeric = title.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const order = title.getAttribute("aria-sort") === first ? second : first;
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === undefined || right === undefined) {
          return (left === undefined) - (right === undefined);
        }
        const compared = numeric ? Number(left) - Number(right) : left.localeCompare(right, "en", { numeric: true });
        return sign * compared;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
