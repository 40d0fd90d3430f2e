/* Sorts the table of methods by a column. The page reads in full without it. */
const body = document.querySelector("#methods tbody");
const heads = [...document.querySelectorAll("#methods thead th")];
function cellValue(row, column) {
  const text = row.children[column].dataset.value;
  return text === undefined ? null : Number(text);
}
function sortBy(column, sign) {
  const rows = [...body.rows].map((row) => [row, cellValue(row, column)]);
  // What was not measured comes last in either direction.
  rows.sort(([, a], [, b]) => a === null || b === null ? (a === null) - (b === null) : sign * (a - b));
  body.append(...rows.map(([row]) => row));
}
heads.slice(1).forEach((head, index) => {
  const button = document.createElement("button"), span = head.querySelector(".sort");
  button.type = "button";
  button.className = "sort";
  button.append(...span.childNodes);
  span.replaceWith(button);
  button.addEventListener("click", () => {
    // The best comes first at the first click, the worst at the second.
    const before = head.getAttribute("aria-sort"), first = head.dataset.better === "lower" ? "ascending" : "descending";
    const order = before ? (before === "ascending" ? "descending" : "ascending") : first;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    sortBy(index + 1, order === "ascending" ? 1 : -1);
  });
});
