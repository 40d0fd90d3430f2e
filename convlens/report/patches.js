"use strict";
/* Filters and sorts channels. The page reads in full without it. */
const list = document.getElementById("channels");
const inOrder = [...list.children];
const byStrength = [...inOrder].sort((a, b) => b.dataset.strongest - a.dataset.strongest);
const query = document.getElementById("query");
const strongestFirst = document.getElementById("by-strength");
const countText = document.getElementById("count");
function ranges(text) {
  const parts = text.split(/[\s,]+/).filter(Boolean).map((part) => part.split("-").map(Number));
  return parts.filter((part) => part.every(Number.isInteger)).map(([first, last = first]) => [first, last]);
}
function show() {
  const selected = ranges(query.value);
  let count = 0;
  list.append(...(strongestFirst.checked ? byStrength : inOrder));
  for (const figure of inOrder) {
    const channel = Number(figure.dataset.channel);
    figure.hidden = selected.length > 0 && !selected.some(([first, last]) => first <= channel && channel <= last);
    count += !figure.hidden;
  }
  countText.textContent = `${count} of ${inOrder.length} channels`;
}
query.addEventListener("input", show);
strongestFirst.addEventListener("change", show);
show();
