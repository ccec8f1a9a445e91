// Click (or press Enter on) a heading of a table below an element of class "sortable" to sort by that column.
document.addEventListener("DOMContentLoaded", function () {
  document.querySelectorAll(".sortable table").forEach(function (table) {
    const body = table.tBodies[0];
    table.querySelectorAll("th").forEach(function (heading, column) {
      heading.dataset.sort = "";
      heading.tabIndex = 0;
      heading.setAttribute("role", "button");
      function sort() {
        const down = heading.dataset.sort === "up";
        table.querySelectorAll("th").forEach((other) => { other.dataset.sort = ""; });
        heading.dataset.sort = down ? "down" : "up";
        const key = (row) => row.cells[column].textContent.trim();
        const rows = Array.from(body.rows).sort(function (a, b) {
          const order = key(a).localeCompare(key(b), "en", { numeric: true });
          const numbers = [Number.parseFloat(key(a)), Number.parseFloat(key(b))];
          return numbers.some(Number.isNaN) ? order : numbers[0] - numbers[1];
        });
        (down ? rows.reverse() : rows).forEach((row) => body.appendChild(row));
      }
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    });
  });
});
