"use strict";
// Tables: a click on a column's name sorts by it; numbers by their value, what is empty last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.order === undefined ? cell.textContent : Number(cell.dataset.order);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const rows = [...table.tBodies[0].rows];
    head.classList.toggle("number", rows.some((row) => row.cells[column].dataset.order !== undefined));
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [key(one, column), key(other, column)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      table.tBodies[0].append(...sorted);
    });
  });
}

// Attention: one example and one head at a time; a chart is drawn when it is first seen.
const view = document.getElementById("view");
const head = document.getElementById("head");
const charts = [...document.querySelectorAll("[data-chart]")];
const drawn = new Set();
const named = (number) => charts.map((chart) => chart.dataset.chart.split("-")).filter(([of]) => of === number);
function show() {
  const chosen = `${view.value}-${head.value}`;
  for (const box of document.querySelectorAll("[data-view]")) box.hidden = box.dataset.view !== view.value;
  for (const chart of charts) chart.hidden = chart.dataset.chart !== chosen;
  if (window.lcalensCharts?.[chosen] && !drawn.has(chosen)) {
    drawn.add(chosen);
    window.lcalensCharts[chosen]();
  }
}
function offer() {
  const wanted = head.value;
  const heads = named(view.value).map(([, name]) => name);
  head.replaceChildren(...heads.map((name) => new Option(name, name, false, name === wanted)));
  show();
}
if (view) {
  view.addEventListener("change", offer);
  head.addEventListener("change", show);
  window.addEventListener("charts", show);
  show();
}

// Maps of heads: a cell is read where it is pointed at or moved to, and opens its attention where there is a view.
for (const map of document.querySelectorAll(".map")) {
  const cells = [...map.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const told = map.querySelector("output");
  const tell = (cell) => (told.textContent = cell.getAttribute("aria-label"));
  const open = (cell) => {
    if (!cell.classList.contains("opens")) return;
    head.value = cell.dataset.head;
    show();
    document.getElementById("attention").scrollIntoView();
  };
  cells.forEach((row, y) => row.forEach((cell, x) => {
    cell.classList.toggle("opens", Boolean(view) && named(view.value).some(([, name]) => name === cell.dataset.head));
    cell.addEventListener("mouseenter", () => tell(cell));
    cell.addEventListener("focus", () => tell(cell));
    cell.addEventListener("click", () => open(cell));
    cell.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(cell); }
      const next = step && cells[y + step[0]]?.[x + step[1]];
      if (!next) return;
      event.preventDefault();
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }));
}
