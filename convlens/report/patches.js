"use strict";
/* Filters and sorts channels. The page reads in full without it. */
const list = document.getElementById("channels");
const inOrder = [...list.children];
const byStrength = [...inOrder].sort((a, b) => b.dataset.strongest - a.dataset.strongest);
const wanted = document.getElementById("wanted");
const strongestFirst = document.getElementById("by-strength");
const shown = document.getElementById("shown");
function ranges(text) {
  const parts = text.split(/[\s,]+/).filter(Boolean).map((part) => part.split("-").map(Number));
  return parts.filter((part) => part.every(Number.isInteger)).map(([first, last = first]) => [first, last]);
}
function show() {
  const asked = ranges(wanted.value);
  let count = 0;
  list.append(...(strongestFirst.checked ? byStrength : inOrder));
  for (const figure of inOrder) {
    const channel = Number(figure.dataset.channel);
    figure.hidden = asked.length > 0 && !asked.some(([first, last]) => first <= channel && channel <= last);
    count += !figure.hidden;
  }
  shown.textContent = `${count} of ${inOrder.length} channels`;
}
wanted.addEventListener("input", show);
strongestFirst.addEventListener("change", show);
show();
