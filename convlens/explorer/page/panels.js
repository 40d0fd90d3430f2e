/* The parts of the page around the picture: chips of methods, predictions, the search of a class, options, samples,
   neighbours and colour bars. Each draws what it is given and calls back; none holds state. */
import { button, byId, chance, change, element, text } from "./elements.js";

const MOST_MATCHES = 8;
const MOST_TICKS = 5;

// ---- methods

export function showChips(methods, chosen, onChoose) {
  const chip = (method) => button({
    "aria-pressed": String(method.name === chosen), "data-method": method.name, title: method.missing,
    class: method.missing ? "missing" : null,
  }, () => onChoose(method.name), method.title);
  const missing = methods.filter((method) => method.missing);
  const wasOpen = byId("chips").querySelector("details")?.open;
  const more = element("details", { open: wasOpen || missing.some(({ name }) => name === chosen) },
    element("summary", {}, `${missing.length} more`), ...missing.map(chip));
  byId("chips").replaceChildren(...methods.filter((method) => !method.missing).map(chip),
    ...(missing.length ? [more] : []));
}

export function showAbout(method) {
  if (method.missing) {
    byId("about").replaceChildren(element("p", { class: "absent" }, element("strong", {}, method.title), " ",
      ...withCode(method.missing)));
    return;
  }
  byId("about").replaceChildren(
    element("p", {}, element("strong", {}, "Shows"), ` ${method.shows}`),
    element("p", { class: "quiet" }, element("strong", {}, "Does not show"), ` ${method.does_not_show}`));
}

/* Commands between backticks are set as code. */
const withCode = (sentence) => sentence.split("`").map((part, n) => (n % 2 ? element("code", {}, part) : part));

/* A field for each option that is a number, a text or a switch; `onChange(name, value)`. */
export function showOptions(method, values, onChange) {
  const plain = Object.entries(method.options ?? {})
    .filter(([, value]) => ["number", "string", "boolean"].includes(typeof value));
  byId("options-fold").hidden = Boolean(method.missing) || !plain.length;
  byId("options-title").textContent = method.title;
  byId("options").replaceChildren(...plain.map(([name, standard]) => {
    const field = optionField(standard, values[name] ?? standard);
    field.addEventListener("change", () => {
      const value = readField(field, standard);
      if (value !== null) onChange(name, value);
    });
    return element("label", {}, element("code", {}, name), " ", field);
  }));
}

function optionField(standard, value) {
  if (typeof standard === "boolean") return element("input", { type: "checkbox", checked: value });
  return element("input", { type: typeof standard === "number" ? "number" : "text", step: "any", value });
}

function readField(field, standard) {
  if (typeof standard === "boolean") return field.checked;
  if (typeof standard === "string") return field.value;
  return field.value === "" || !field.validity.valid ? null : Number(field.value);
}

// ---- predictions

/* The classes of a pane; with `hidden`, the scores of the picture with a window hidden, each says how far it moved. */
export function showPredictions({ site, scores, hidden, target, count, name }, onChoose) {
  byId("scores-of").replaceChildren(name ? text(name) : "");
  if (!scores) {
    byId("predictions").replaceChildren();
    return;
  }
  const shown = classesToShow(scores, hidden, target, count);
  const focused = byId("predictions").contains(document.activeElement) ? document.activeElement.dataset.class : null;
  const isShare = site.model.activation !== "none";
  const largest = isShare ? 1 : Math.max(...shown.map((index) => Math.abs(scores.of(index)?.probability ?? 0)), 1e-9);
  byId("predictions").replaceChildren(...shown.map((index) => {
    const [before, now] = [scores.of(index), hidden?.of(index)];
    const row = button({ "aria-pressed": String(index === target), "data-class": index }, () => onChoose(index),
      text(site.model.labels[index] ?? String(index), "label"), scoreText(before, now, isShare, hidden),
      bar((before?.probability ?? 0) / largest, hidden ? (now?.probability ?? 0) / largest : null));
    return element("li", {}, row);
  }));
  // The rows are new; whoever walks through them stays where they were.
  if (focused) byId("predictions").querySelector(`[data-class="${focused}"]`)?.focus({ preventScroll: true });
}

function classesToShow(scores, hidden, target, count) {
  const shown = scores.top(count);
  const others = [target, ...(hidden?.top(2) ?? [])];
  for (const index of others) if (index !== null && !shown.includes(index)) shown.push(index);
  return shown;
}

function scoreText(before, now, isShare, isHiding) {
  const current = isHiding ? now : before;
  if (!current) return element("span", { class: "quiet" }, "not among the best");
  const shown = element("data", { value: current.probability }, chance(current.probability, isShare));
  if (!isHiding || !before) return shown;
  const moved = now.logit - before.logit;
  const kind = moved < 0 ? "moved falls" : "moved rises";
  return element("span", { class: "scored" }, shown,
    element("data", { class: kind, value: moved, title: "change of the logit" }, change(moved)));
}

function bar(share, now) {
  const part = (kind, width) => {
    const made = element("span", { class: kind });
    made.style.width = `${Math.min(100, Math.max(0, 100 * width)).toFixed(2)}%`;
    return made;
  };
  return element("span", { class: "bar", "aria-hidden": "true" },
    part(now === null ? "bar-part" : "bar-before", share), now === null ? null : part("bar-part", now));
}

// ---- any class

/* The combobox of all classes: `choose(index)` where one is taken. */
export function connectSearch(labels, choose) {
  const [field, list] = [byId("class-search"), byId("class-matches")];
  let matches = [];
  let current = -1;
  const mark = (place) => {
    current = place;
    [...list.children].forEach((item, n) => item.setAttribute("aria-selected", String(n === place)));
    if (place < 0) field.removeAttribute("aria-activedescendant");
    else field.setAttribute("aria-activedescendant", `match-${place}`);
  };
  const close = () => {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
    mark(-1);
  };
  const take = (place) => {
    if (matches[place] === undefined) return;
    const index = matches[place];
    field.value = "";
    close();
    choose(index);
  };
  const open = () => {
    matches = matching(labels, field.value);
    list.replaceChildren(...matches.map((index, n) => {
      const item = element("li", { role: "option", id: `match-${n}`, "aria-selected": "false" },
        text(labels[index]), element("span", { class: "quiet" }, String(index)));
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault(); // the field keeps the focus until the class is taken
        take(n);
      });
      return item;
    }));
    list.hidden = !matches.length;
    field.setAttribute("aria-expanded", String(!list.hidden));
    mark(matches.length ? 0 : -1);
  };
  field.addEventListener("input", open);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && matches.length) {
      event.preventDefault();
      mark((current + step + matches.length) % matches.length);
    } else if (event.key === "Enter") take(current);
    else if (event.key === "Escape") close();
  });
}

/* By number, then labels that begin with the words, then those that hold them. */
function matching(labels, words) {
  const wanted = words.trim().toLowerCase();
  if (!wanted) return [];
  const found = [...labels.keys()].filter((index) => labels[index].toLowerCase().includes(wanted));
  const rank = (index) => (labels[index].toLowerCase().startsWith(wanted) ? 0 : 1);
  found.sort((a, b) => rank(a) - rank(b) || labels[a].length - labels[b].length || a - b);
  const byNumber = /^\d+$/.test(wanted) && Number(wanted) < labels.length ? [Number(wanted)] : [];
  return [...new Set([...byNumber, ...found])].slice(0, MOST_MATCHES);
}

// ---- samples and neighbours

export function showSamples(samples, onChoose) {
  byId("samples").replaceChildren(...samples.map((sample, n) => {
    const image = element("img", { src: sample.file, alt: sample.title, loading: "lazy", decoding: "async" });
    const title = sample.credit ? `${sample.title}. ${sample.credit}` : sample.title;
    return element("li", {}, button({ title, "data-sample": n, "aria-pressed": "false" }, () => onChoose(n), image));
  }));
}

export function markSample(number) {
  for (const made of byId("samples").querySelectorAll("button")) {
    made.setAttribute("aria-pressed", String(Number(made.dataset.sample) === number));
  }
}

export function neighbourList(neighbours) {
  return element("ol", { class: "neighbours" }, ...neighbours.map(({ id, label, distance, thumbnail }) =>
    element("li", {}, thumbnail ? element("img", { src: thumbnail, alt: `Gallery picture ${id}` }) : null,
      text(label || "no label", "label"), element("span", { class: "quiet" }, `distance ${distance.toFixed(3)}`))));
}

// ---- colour bars

/* `colours`: RGB of equally spaced values from `low` to `high`; `unit` says what they are. */
export function colourBar({ colours, low, high, unit }) {
  const canvas = element("canvas", { width: colours.length, height: 1, "aria-hidden": "true" });
  const pixels = new ImageData(colours.length, 1);
  colours.forEach((colour, n) => pixels.data.set([...colour, 255], 4 * n));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const ticks = tickValues(low, high).map((value) => {
    const tick = element("span", {}, tickText(value));
    tick.style.insetInlineStart = `${100 * (value - low) / (high - low)}%`;
    return tick;
  });
  return element("div", { class: "colour-bar" }, canvas, element("div", { class: "ticks" }, ...ticks),
    element("span", { class: "unit quiet" }, unit));
}

const tickText = (value) => String(value).replaceAll("-", "\u2212");

/* Multiples of 1, 2 or 5 times a power of ten, as convlens.visualization.colourbar has them. */
export function tickValues(low, high, most = MOST_TICKS) {
  const exponent = Math.floor(Math.log10((high - low) / most));
  for (const [mantissa, power] of [[1, 0], [2, 0], [5, 0], [1, 1], [2, 1], [5, 1]]) {
    const step = mantissa * 10 ** (exponent + power);
    const [first, last] = [Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9)];
    if (last - first + 1 <= most) {
      return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
    }
  }
  return [low, high];
}
