"use strict";
/* A map of points and images on a canvas. Everything it draws comes from the data element; text is never markup. */
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("map"), pen = canvas.getContext("2d");
const tooltip = document.getElementById("tooltip"), large = document.getElementById("large");
const query = document.getElementById("query"), showImages = document.getElementById("images");
const countText = document.getElementById("count"), legend = document.getElementById("legend");
const count = data.points.length, counts = data.labels.map(() => 0);
for (const label of data.label) counts[label] += 1;
// The commonest labels get colours of their own, evenly around the circle; all others are grey.
const common = [...counts.keys()].filter((n) => data.labels[n] !== "").sort((a, b) => counts[b] - counts[a]).slice(0, 12);
const colours = new Map(common.map((label, n) => [label, `hsl(${Math.round(n * 360 / common.length)} 70% 45%)`]));
const colourOf = (n) => colours.get(data.label[n]) ?? "#8a8f98";
const place = new Map((data.sheet?.which ?? []).map((point, n) => [point, n]));
const sheet = data.sheet ? new Image() : null;
const edge = [extremes(0), extremes(1)];
let view = null;
const picked = new Set();

function extremes(axis) {
  let low = Infinity, high = -Infinity;
  for (const point of data.points) { low = Math.min(low, point[axis]); high = Math.max(high, point[axis]); }
  return [low, high];
}
function whole() {
  const [[left, right], [low, high]] = edge, width = canvas.clientWidth, height = canvas.clientHeight;
  const scale = 0.9 * Math.min(width / (right - left || 1), height / (high - low || 1));
  view = { scale, x: width / 2 - scale * (left + right) / 2, y: height / 2 + scale * (low + high) / 2, first: scale };
}
const onScreen = (n) => [view.x + view.scale * data.points[n][0], view.y - view.scale * data.points[n][1]];
function matches(n) {
  const text = query.value.trim().toLowerCase();
  if (picked.size && !picked.has(data.label[n])) return false;
  return !text || data.names[n].toLowerCase().includes(text) || data.labels[data.label[n]].toLowerCase().includes(text);
}
function tile() {
  const room = Math.sqrt(canvas.clientWidth * canvas.clientHeight / Math.max(count, 1));
  return Math.max(10, Math.min(data.sheet?.side ?? 0, 0.7 * room * Math.sqrt(view.scale / view.first)));
}
function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const side = tile(), drawn = showImages.checked && sheet?.complete;
  let matching = 0;
  for (let n = 0; n < count; n += 1) {
    const isMatch = matches(n), [x, y] = onScreen(n);
    matching += isMatch;
    if (x < -side || y < -side || x > width + side || y > height + side) continue;
    pen.globalAlpha = isMatch ? 1 : 0.08;
    if (drawn && place.has(n)) {
      const spot = place.get(n), from = data.sheet.side, row = Math.floor(spot / data.sheet.columns);
      pen.drawImage(sheet, spot % data.sheet.columns * from, row * from, from, from, x - side / 2, y - side / 2, side, side);
      pen.strokeStyle = colourOf(n);
      pen.lineWidth = 2;
      pen.strokeRect(x - side / 2, y - side / 2, side, side);
    } else {
      pen.fillStyle = colourOf(n);
      pen.beginPath();
      pen.arc(x, y, 3, 0, 7);
      pen.fill();
    }
  }
  pen.globalAlpha = 1;
  countText.textContent = `${matching} of ${count} images`;
}
let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}
function zoom(factor, x, y) {
  const scale = Math.min(view.first * 500, Math.max(view.first / 4, view.scale * factor)), share = scale / view.scale;
  view = { ...view, scale, x: x - share * (x - view.x), y: y - share * (y - view.y) };
  redraw();
}
function nearest(x, y) {
  let best = null, least = Math.max(8, tile() / 2) ** 2;
  for (let n = 0; n < count; n += 1) {
    const [left, top] = onScreen(n), distance = (left - x) ** 2 + (top - y) ** 2;
    if (distance < least && matches(n)) { best = n; least = distance; }
  }
  return best;
}
function showTooltip(n, x, y) {
  tooltip.hidden = n === null;
  if (n === null) return;
  const label = data.labels[data.label[n]];
  document.getElementById("name").textContent = label ? `${label}: ${data.names[n]}` : data.names[n];
  large.hidden = !place.has(n) || !sheet?.complete;
  if (!large.hidden) {
    const spot = place.get(n), from = data.sheet.side;
    large.width = large.height = 2 * from;
    large.getContext("2d").drawImage(sheet, spot % data.sheet.columns * from,
      Math.floor(spot / data.sheet.columns) * from, from, from, 0, 0, 2 * from, 2 * from);
  }
  const right = x > canvas.clientWidth / 2, low = y > canvas.clientHeight / 2;
  tooltip.style.left = right ? "" : `${x + 16}px`;
  tooltip.style.right = right ? `${canvas.clientWidth - x + 16}px` : "";
  tooltip.style.top = low ? "" : `${y + 16}px`;
  tooltip.style.bottom = low ? `${canvas.parentElement.clientHeight - y + 16}px` : "";
}
const touches = new Map();
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  touches.set(event.pointerId, [event.offsetX, event.offsetY]);
});
canvas.addEventListener("pointermove", (event) => {
  const now = [event.offsetX, event.offsetY], before = touches.get(event.pointerId);
  if (!before) return showTooltip(nearest(...now), ...now);
  const others = [...touches.entries()].filter(([id]) => id !== event.pointerId).map(([, spot]) => spot);
  if (others.length) {
    const [other] = others, apart = (spot) => Math.hypot(spot[0] - other[0], spot[1] - other[1]);
    zoom(apart(now) / Math.max(apart(before), 1), ...other);
  } else {
    view = { ...view, x: view.x + now[0] - before[0], y: view.y + now[1] - before[1] };
    redraw();
  }
  touches.set(event.pointerId, now);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => touches.delete(event.pointerId));
canvas.addEventListener("pointerleave", () => showTooltip(null));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (event.key === "+" || event.key === "=") zoom(1.3, ...middle);
  else if (event.key === "-") zoom(1 / 1.3, ...middle);
  else if (event.key in moves) {
    view = { ...view, x: view.x + moves[event.key][0], y: view.y + moves[event.key][1] };
    redraw();
  } else return;
  event.preventDefault();
});
for (const label of common) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.textContent = `${data.labels[label]} (${counts[label]})`;
  button.style.borderLeftColor = colours.get(label);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    if (!picked.delete(label)) picked.add(label);
    button.setAttribute("aria-pressed", String(picked.has(label)));
    redraw();
  });
  item.append(button);
  legend.append(item);
}
query.addEventListener("input", redraw);
showImages.addEventListener("change", redraw);
document.getElementById("whole").addEventListener("click", () => { whole(); redraw(); });
window.addEventListener("resize", () => { whole(); redraw(); });
if (sheet) {
  sheet.addEventListener("load", redraw);
  sheet.src = data.sheet.uri;
}
whole();
redraw();
