// A click on a heading sorts its table: numbers as numbers, everything else as text; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable, table.kills")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.order === "down";
    heads.forEach(other => delete other.dataset.order);
    head.dataset.order = up ? "up" : "down";
    const value = row => {
      const text = row.cells[column].textContent.replace("∞", "1e999");
      return text === "" ? -Infinity : isNaN(+text) ? text : +text;
    };
    const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)) * (up ? -1 : 1));
    rows.forEach(row => table.tBodies[0].append(row));
  }));
}
