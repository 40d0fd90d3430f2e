"use strict";
/* Searches and sorts channels, shows where in its image a patch lies, and steps by arrow keys. All pages read in full
   without it. Not a module: a browser loads none of those from a disk. */
const byId = (id) => document.getElementById(id);
const MOST_HITS = 120; // more are not looked through

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const contains = (words, query) => query.toLowerCase().split(/\s+/).filter(Boolean).every((part) => words.includes(part));

// ---- the index: a search over all channels

function hit([name, page, picture, label]) {
  const image = element("img", { src: picture, alt: "", loading: "lazy", decoding: "async", width: 128, height: 128 });
  const text = element("span", { class: "tile-text" }, element("bdi", { class: "number" }, name), " ",
    element("bdi", { class: "label" }, label));
  return element("li", {}, element("a", { class: "tile", href: page }, image, text));
}

function searchEverywhere() {
  const channels = JSON.parse(byId("data").textContent);
  const field = byId("everywhere");
  const show = () => {
    const query = field.value.trim();
    const found = query ? channels.filter(([, , , , words]) => contains(words, query)) : [];
    byId("hits").replaceChildren(...found.slice(0, MOST_HITS).map(hit));
    const more = found.length > MOST_HITS ? `, the first ${MOST_HITS} are shown` : "";
    byId("found").value = query ? `${found.length} of ${channels.length} channels${more}` : "";
  };
  byId("find").hidden = false;
  field.form.addEventListener("submit", (event) => event.preventDefault());
  field.addEventListener("input", show);
  show(); // a browser may have kept the text
}

// ---- a layer's page

const ORDERS = {
  channel: (a, b) => a.channel - b.channel,
  strongest: (a, b) => b.strongest - a.strongest,
  active: (a, b) => a.active - b.active,
  label: (a, b) => (a.label || "\uffff").localeCompare(b.label || "\uffff"),
};

const numeric = ({ channel, strongest, active, label }) =>
  ({ channel: Number(channel), strongest: Number(strongest), active: Number(active), label });

// A query of numbers and ranges means channels, any other the words.
function channelRanges(query) {
  const parts = query.split(/[\s,]+/).filter(Boolean);
  if (!parts.length || !parts.every((part) => /^\d+(-\d+)?$/.test(part))) return null;
  return parts.map((part) => part.split("-").map(Number)).map(([first, last = first]) => [first, last]);
}

function fits(item, query) {
  const ranges = channelRanges(query);
  const channel = Number(item.dataset.channel);
  if (ranges) return ranges.some(([first, last]) => first <= channel && channel <= last);
  return contains(item.dataset.words, query);
}

function sortAndFilter(grid) {
  const items = [...grid.children];
  const values = new Map(items.map((item) => [item, numeric(item.dataset)]));
  let placed = items;
  const update = () => {
    const compare = ORDERS[byId("order").value];
    const sorted = [...items].sort((a, b) => compare(values.get(a), values.get(b))
      || values.get(a).channel - values.get(b).channel);
    // Moved only where the order changes: a browser looks anew at which pictures to load.
    if (sorted.some((item, place) => item !== placed[place])) grid.append(...sorted);
    placed = sorted;
    for (const item of items) {
      item.hidden = !fits(item, byId("text").value.trim());
      const image = item.querySelector("img");
      const wanted = image.dataset[byId("shown").value];
      if (image.getAttribute("src") !== wanted) image.setAttribute("src", wanted);
    }
    const visible = items.filter((item) => !item.hidden).length;
    byId("none").hidden = visible > 0;
    byId("count").value = `${visible} of ${items.length} channels`;
  };
  const controls = byId("controls");
  controls.hidden = false;
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(update)); // after the fields are reset
  update();
}

// ---- a channel's page

const SVG = "http://www.w3.org/2000/svg";

function drawing(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showPlace(link) {
  const { x, y, width, height, imageWidth, imageHeight, name } = link.dataset;
  const svg = drawing("svg", { viewBox: `0 0 ${imageWidth} ${imageHeight}`, role: "img", "aria-label": `The patch in ${name}` });
  const box = { x, y, width, height };
  svg.append(drawing("image", { href: link.getAttribute("href"), width: imageWidth, height: imageHeight }),
    drawing("rect", { ...box, class: "under" }), drawing("rect", box));
  byId("place").querySelector(".place-image").replaceChildren(svg);
  byId("place-name").textContent = name;
  byId("place").showModal();
}

function openPlaces(dialog) {
  for (const link of document.querySelectorAll(".where")) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab or window
      event.preventDefault();
      showPlace(link);
    });
  }
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.addEventListener("keydown", (event) => {
    const link = { ArrowLeft: byId("previous"), ArrowRight: byId("next") }[event.key];
    if (link && !dialog.open && !event.altKey && !event.ctrlKey && !event.metaKey) link.click();
  });
}

if (byId("everywhere")) searchEverywhere();
if (byId("grid")) sortAndFilter(byId("grid"));
if (byId("place")) openPlaces(byId("place"));
