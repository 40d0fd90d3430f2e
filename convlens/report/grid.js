"use strict";
/* Filters and sorts the grid, and draws a picture's explanations when they are asked for, alone or beside another's. All
   text of the data is put in as text, never as HTML. */
const { pictures, methods, facts } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const grid = byId("grid");
const dialog = byId("picture");
const enlarged = byId("enlarged");
const items = grid ? [...grid.children] : [];
const numberOf = new Map(items.map((item, number) => [item, number]));
const thumbnails = items.map((item) => item.querySelector("img")?.getAttribute("src"));
let order = items; // as sorted, and of these
let visible = items; // those that fit the filters
let current = -1; // the picture that the dialog shows
let compared = -1; // the picture beside it

const best = (number) => pictures[number].predictions[0];
const addressOf = (picture, file) => `${picture.folder}/${file}`;

// ---- elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function image(picture, [file, width, height], alt, kind = "") {
  const few = width < 128 && !kind ? "few-pixels" : "";
  const made = element("img", { src: addressOf(picture, file), alt, width, height, decoding: "async", class: kind || few });
  return enlargeable(made, alt);
}

function enlargeable(made, alt) {
  const button = element("button", { type: "button", class: "enlarge", title: "Enlarge" }, made);
  button.addEventListener("click", () => enlarge(made, alt));
  return button;
}

/* The map over the photograph itself, so that its opacity can be changed. */
function overlaid(picture, overlay, alt) {
  const [file, width, height] = overlay;
  const [view, ...size] = picture.view || [];
  if (size[0] !== width || size[1] !== height) return image(picture, overlay, alt);
  const over = { src: addressOf(picture, file), alt, width, height, decoding: "async", class: "over" };
  const below = { src: addressOf(picture, view), alt: "", width, height, decoding: "async" };
  return enlargeable(element("span", { class: "stack" }, element("img", below), element("img", over)), alt);
}

function enlarge(made, alt) {
  const close = element("button", { type: "button", class: "close" }, "Close");
  close.addEventListener("click", () => enlarged.close());
  enlarged.replaceChildren(made.cloneNode(true), element("p", {}, alt), close);
  enlarged.showModal();
}

function figure(drawn, ...caption) {
  return element("figure", {}, drawn, element("figcaption", {}, ...caption));
}

function colourBar(bar) {
  if (!bar) return null;
  const [colours, ...numbers] = bar;
  return element("div", { class: "bar-scale" }, element("span", { class: `swatch ${colours}`, "aria-hidden": "true" }),
    element("span", { class: "bar-numbers" }, ...numbers.map((number) => element("span", {}, number))));
}

const text = (value, kind = "") => element("bdi", { class: kind }, value);
const lines = (rows) => element("dl", { class: "facts" }, ...rows.map(([name, value, isOption]) =>
  element("div", { class: isOption ? "option" : "" }, element("dt", {}, text(name)), element("dd", {}, text(value)))));
const folded = (summary, ...content) => element("details", {}, element("summary", {}, summary), ...content);
const fileLink = (picture, file, name) =>
  element("p", { class: "file" }, element("a", { href: addressOf(picture, file) }, name));
const absent = (reason) => element("p", { class: "absent" }, reason);

function warningList(warnings) {
  if (!warnings.length) return null;
  return element("ul", { class: "warnings", "aria-label": "Warnings" },
    ...warnings.map((warning) => element("li", {}, text(warning))));
}

// ---- a picture's details

function bar(share) {
  const svg = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const made = svg("svg", { class: "bar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
  made.append(svg("rect", { class: "bar-all", width: 100, height: 4 }),
    svg("rect", { class: "bar-part", width: (100 * share).toFixed(3), height: 4 }));
  return made;
}

function predictions(picture) {
  if (!picture.predictions.length) return absent("None were requested, or the network has no classes.");
  return element("ol", { class: "predictions" }, ...picture.predictions.map(([, label, probability, shown]) =>
    element("li", {}, text(label, "label"), " ", element("data", { value: probability }, shown),
      picture.inPercent ? bar(probability) : null)));
}

function neighbours(picture, nearest) {
  if (!nearest.length) return absent("The gallery returned no neighbours.");
  return element("ol", { class: "neighbours" }, ...nearest.map(([label, distance, id, file]) => {
    const caption = [text(label || "no label", "near-label"),
      element("span", { class: "near-distance" }, `distance ${distance}`), text(id, "near-id")];
    return file
      ? element("li", {}, figure(image(picture, file, `Gallery image ${id}`), ...caption))
      : element("li", { class: "bare" }, element("figcaption", {}, ...caption));
  }));
}

function maps(picture, card, title) {
  const { overlay, heatmap } = card.images;
  if (!overlay && !heatmap) return card.neighbours ? null : absent("Computed without images: none were requested.");
  return element("div", { class: "maps" },
    overlay && mapFigure(overlaid(picture, overlay, `${title} map laid over ${picture.name}`), card.bars.overlay, "Over the image"),
    heatmap && mapFigure(image(picture, heatmap, `${title} map of ${picture.name} alone`), card.bars.heatmap, "Raw map"));
}

function mapFigure(drawn, bar, caption) {
  return element("figure", {}, drawn, colourBar(bar), element("figcaption", {}, caption));
}

/* Without words about the method where two pictures are compared: they would stand there twice. */
function article(picture, card, { words = true } = {}) {
  const [title, shows, doesNotShow] = methods[card.method];
  const head = element("div", { class: "card-head" }, element("h3", {}, title),
    card.id === card.method ? null : element("code", { class: "card-id" }, text(card.id)),
    element("data", { class: "time", value: card.time }, card.time));
  const target = card.target && element("p", { class: "target" }, "for ", text(card.target[0], "label"),
    `, ${card.target[1]} `, element("data", { value: card.target[2] }, card.target[2]));
  return element("article", { class: card.neighbours ? "card wide" : "card" }, head, target, warningList(card.warnings),
    maps(picture, card, title), card.neighbours && neighbours(picture, card.neighbours),
    words ? element("p", { class: "shows" }, element("strong", {}, "Shows"), ` ${shows}`) : null,
    words ? element("p", { class: "shows not" }, element("strong", {}, "Does not show"), ` ${doesNotShow}`) : null,
    folded("Options and provenance", lines(card.facts.map((number) => facts[number])),
      card.arrays && fileLink(picture, card.arrays, "NumPy arrays")));
}

function request(picture) {
  const rows = picture.request ? [["request", picture.request], ...picture.timing] : picture.timing;
  return rows.length ? folded("Request and timing", lines(rows)) : null;
}

function truth(picture) {
  if (!picture.truth) return null;
  const [label, isRight] = picture.truth;
  return element("p", { class: isRight ? "truth" : "truth misses" }, `${isRight ? "✓" : "✗"} true class: `, text(label));
}

function seen(picture) {
  const view = picture.view
    ? figure(image(picture, picture.view, `${picture.name} as the model saw it`, "photograph"), "What the model saw")
    : absent("No image was kept.");
  return element("div", { class: "seen" }, view, element("h3", {}, "Predictions"), predictions(picture), truth(picture),
    request(picture), fileLink(picture, "reply.json", "reply.json"));
}

const nameOf = (picture) => picture.name || "(no name)";
const legend = () => folded("Reading the colours", byId("legend-text").cloneNode(true).firstElementChild);

function details(picture) {
  const cards = picture.cards.length ? picture.cards.map((card) => article(picture, card))
    : [absent("No explanations were requested.")];
  return [element("h2", { id: "picture-name" }, text(nameOf(picture))), warningList(picture.warnings),
    element("div", { class: "subject-body" }, seen(picture), element("div", { class: "cards" }, ...cards)), legend()];
}

/* Two pictures, a column each: the same explanation of both stands in one row. */
function comparison(left, right) {
  const ids = [...new Set([...left.cards, ...right.cards].map((card) => card.id))];
  const cell = (picture, id) => {
    const card = picture.cards.find((each) => each.id === id);
    return card ? article(picture, card, { words: false }) : absent(`${id}: not computed for this image.`);
  };
  const row = (draw) => [draw(left), draw(right)].map((each) => each ?? element("div"));
  return [element("h2", { id: "picture-name", class: "unseen" }, text(nameOf(left)), " beside ", text(nameOf(right))),
    element("div", { class: "comparison" },
      ...row((picture) => element("h3", {}, text(nameOf(picture)))), ...row((picture) => warningList(picture.warnings)),
      ...row(seen), ...ids.flatMap((id) => row((picture) => cell(picture, id)))), legend()];
}

// ---- which picture

function openPicture(number) {
  current = number;
  const at = visible.indexOf(items[number]);
  const drawn = compared in pictures ? comparison(pictures[number], pictures[compared]) : details(pictures[number]);
  byId("details").replaceChildren(...drawn.filter((child) => child !== null));
  byId("details").scrollTop = 0;
  byId("beside").value = compared;
  byId("place").textContent = at < 0 ? "" : `${at + 1} of ${visible.length}`;
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at < 0 || at === visible.length - 1;
  history.replaceState(null, "", `#image-${number + 1}${compared < 0 ? "" : `-beside-${compared + 1}`}`);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const item = visible[visible.indexOf(items[current]) + by];
  if (item) openPicture(numberOf.get(item));
}

function openAddressed() {
  const [, first, second] = /^#image-(\d+)(?:-beside-(\d+))?$/.exec(location.hash) || [];
  const number = Number(first) - 1;
  const beside = second - 1 in pictures ? second - 1 : -1;
  if (!(number in pictures) || (number === current && beside === compared)) return;
  compared = beside;
  openPicture(number);
}

// On the document: what had the focus may just have been replaced.
document.addEventListener("keydown", (event) => {
  // In the dialog's menu and on its slider the arrow keys have a meaning of their own.
  if (!dialog.open || enlarged.open || event.target.closest?.("select, input")) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && !event.altKey && !event.ctrlKey && !event.metaKey) step(by);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
dialog.addEventListener("close", () => {
  const item = items[current];
  current = -1;
  byId("details").replaceChildren();
  history.replaceState(null, "", location.pathname + location.search);
  item.querySelector("a").focus();
  item.scrollIntoView({ block: "nearest" });
});
byId("beside").addEventListener("change", () => {
  compared = Number(value("beside"));
  openPicture(current);
});
byId("opacity").addEventListener("input", () => {
  document.documentElement.style.setProperty("--overlay", value("opacity") / 100);
});
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => dialog.close());
enlarged.addEventListener("click", (event) => {
  if (event.target === enlarged) enlarged.close();
});
enlarged.addEventListener("close", () => enlarged.replaceChildren());
addEventListener("hashchange", openAddressed);

// ---- filters and order

const value = (id) => byId(id)?.value ?? "";
const percentOr = (id, otherwise) => (value(id) === "" ? otherwise : Number(value(id)));
const inOrder = (a, b) => a.localeCompare(b, undefined, { numeric: true });
const ranked = (number, otherwise) => best(number)?.[2] ?? otherwise;
const ORDERS = {
  given: (a, b) => a - b,
  name: (a, b) => inOrder(pictures[a].name, pictures[b].name),
  high: (a, b) => ranked(b, -Infinity) - ranked(a, -Infinity),
  low: (a, b) => ranked(a, Infinity) - ranked(b, Infinity),
  label: (a, b) => inOrder(best(a)?.[1] ?? "", best(b)?.[1] ?? "") || ranked(b, -Infinity) - ranked(a, -Infinity),
};

const ANSWERS = {
  "": () => true,
  right: (truth) => truth?.[1] === true,
  wrong: (truth) => truth?.[1] === false,
  missed: (truth) => truth?.[2] === false,
};

function fits(number) {
  const picture = pictures[number];
  const first = best(number);
  const words = [picture.name, picture.truth?.[0] ?? "", ...picture.predictions.map(([, label]) => label)].join("\n").toLowerCase();
  const percent = first ? 100 * first[2] : 0;
  return words.includes(value("text").trim().toLowerCase())
    && ANSWERS[value("answer")](picture.truth)
    && (value("class") === "" || String(first?.[0]) === value("class"))
    && (!byId("least") || (percent >= percentOr("least", 0) && percent <= percentOr("most", 100)));
}

function sort() {
  const compare = ORDERS[value("order")];
  const sorted = [...items].sort((a, b) => compare(numberOf.get(a), numberOf.get(b)) || numberOf.get(a) - numberOf.get(b));
  // Moved only where the order changes: a browser looks anew at which pictures to load.
  if (sorted.some((item, place) => item !== order[place])) grid.append(...sorted);
  order = sorted;
}

function filter() {
  for (const item of items) item.hidden = !fits(numberOf.get(item));
  visible = order.filter((item) => !item.hidden);
  byId("none").hidden = visible.length > 0;
  byId("count").value = `${visible.length} of ${items.length} images`;
}

function show() {
  for (const [number, item] of items.entries()) {
    const overlay = pictures[number].cards.find((card) => card.id === value("shown"))?.images.overlay;
    const address = overlay ? addressOf(pictures[number], overlay[0]) : thumbnails[number];
    if (address) item.querySelector("img")?.setAttribute("src", address);
  }
}

function update() {
  sort();
  filter();
}

if (grid) {
  const controls = byId("controls");
  controls.hidden = false;
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(() => { update(); show(); })); // after the fields are reset
  byId("shown")?.addEventListener("change", show);
  byId("beside").append(element("option", { value: -1 }, "nothing"),
    ...pictures.map((picture, number) => element("option", { value: number }, nameOf(picture))));
  for (const [number, item] of items.entries()) {
    const link = item.querySelector("a");
    link.href = `#image-${number + 1}`;
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab or window
      event.preventDefault();
      openPicture(number);
    });
  }
  update();
  openAddressed();
}
