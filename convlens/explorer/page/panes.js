/* The pictures with their maps, one pane or two: their canvases, colour bars, values and progress. */
import { element, number, text } from "./elements.js";
import { barOf, layerOf, mapOf, standardSigma } from "./layers.js";
import { colourBar, neighbourList } from "./panels.js";
import { active, changed, context, labelOf, methodNow, opacity, state, targetOf } from "./state.js";
import { Viewer } from "./viewer.js";

/* `on`: {hide(window), key(pane, event), activate(pane)}. */
export function newPane(on, picture = null, target = null) {
  const canvas = element("canvas", { tabindex: "0", role: "img" });
  const parts = {
    canvas, title: element("figcaption"), bar: element("div", { class: "bar-place" }),
    readout: element("output", { class: "readout" }), notes: element("div", { class: "notes" }),
    progress: element("progress", { max: "1", value: "0", hidden: true, "aria-label": "Progress" }),
    status: element("span", { class: "status", role: "status" }),
  };
  const working = element("div", { class: "working" }, parts.progress, parts.status);
  const root = element("figure", { class: "pane" }, parts.title,
    element("div", { class: "canvas-place" }, canvas, working),
    element("div", { class: "under" }, parts.bar, parts.readout), parts.notes);
  const pane = {
    root, ...parts, picture, target, sample: null, scores: null, hidden: null, result: null, map: null, layer: null,
    sigma: 0, limit: null, probe: null, job: null,
  };
  pane.viewer = new Viewer(canvas, state.frame, {
    view: setFrame, probe: (pixel) => setProbe(pane, pixel), hide: on.hide,
  });
  canvas.addEventListener("keydown", (event) => on.key(pane, event));
  for (const kind of ["pointerdown", "focusin"]) root.addEventListener(kind, () => on.activate(pane));
  return pane;
}

// ---- results

export function setResult(pane, result) {
  pane.result = result;
  pane.notes.replaceChildren(...notesOf(result).map((note) => element("p", { class: "quiet" }, note)),
    ...(result?.neighbours ? [neighbourList(result.neighbours)] : []));
  showMaps();
  changed();
}

/* What the method warns of, and where its numbers are others than the command line's. */
function notesOf(result) {
  const { warnings = [], noise = null } = result?.meta ?? {};
  return noise ? [...warnings, `Random numbers: ${noise}.`] : warnings;
}

/* Maps of all panes, whose scale may be shared. */
export function showMaps() {
  const method = methodNow();
  for (const pane of state.panes) {
    const hasMap = Boolean(pane.result?.values);
    pane.sigma = state.smooth ?? (hasMap ? standardSigma(pane.result, method, state.view) : 0);
    pane.map = hasMap ? mapOf(pane.result, method, state.view, pane.sigma) : null;
  }
  const largest = Math.max(...state.panes.map(({ map }) => map?.limit ?? 0));
  for (const pane of state.panes) {
    pane.limit = state.shared ? largest : pane.map?.limit;
    pane.layer = pane.map && layerOf(pane.map, pane.picture, state.view, pane.limit, context.site.colormaps);
    show(pane);
    showBar(pane);
  }
}

export function show(pane) {
  const { picture, layer, probe } = pane;
  if (!picture) return;
  pane.viewer.show({
    picture, drawn: picture.drawn, layer, opacity: opacity(), kind: state.view, hiding: state.hiding,
    window: state.hiding ? state.window : null, probe,
  });
}

export function showBar(pane) {
  const { site } = context;
  if (pane.map && state.view !== "photo") {
    const bar = barOf(pane.map, state.view, pane.limit, opacity(), site.colormaps);
    pane.bar.replaceChildren(colourBar({ ...bar, unit: unitText(pane) }));
  } else pane.bar.replaceChildren();
  showReadout(pane);
}

function unitText({ sigma, map }) {
  const channels = map.gradient ? "each channel" : "";
  const cells = map.cells ? `drawn from ${map.cells[1]} × ${map.cells[2]} cells` : "";
  const smoothing = sigma > 0 ? `smoothed, σ ${sigma} px` : cells ? "" : "raw";
  const scale = state.shared && state.panes.length > 1 ? "shared scale" : "";
  return [channels, cells, smoothing, scale].filter(Boolean).join(", ");
}

// ---- captions

export function showCaptions() {
  const isMap = methodNow().name !== "neighbours";
  state.panes.forEach((pane, n) => {
    const target = targetOf(pane);
    const label = target === null || !isMap ? null : labelOf(target);
    pane.root.classList.toggle("active", state.panes.length > 1 && n === state.active);
    pane.title.replaceChildren(...(pane.picture ? captionOf(pane, label, target) : ["No picture yet"]));
    const what = [pane.picture?.name ?? "No picture", methodNow().title, label && `for ${label}`].filter(Boolean);
    pane.canvas.setAttribute("aria-label", `${what.join(", ")}. Arrows read values, plus and minus zoom.`);
  });
}

function captionOf({ picture, scores }, label, target) {
  const score = label === null ? null : scores?.of(target);
  return [text(picture.name, "picture-name"),
    label === null ? "" : element("span", {}, " for ", text(label, "label")),
    score ? element("span", { class: "quiet" }, ` logit ${number(score.logit, 4)}`) : ""];
}

// ---- the value under the pointer

function setProbe(pane, pixel) {
  pane.probe = pixel;
  showReadout(pane);
  show(pane);
}

export function moveProbe(pane, across, down) {
  const { width, height } = pane.picture;
  const [x, y] = pane.probe ?? [Math.floor(width / 2) - across, Math.floor(height / 2) - down];
  setProbe(pane, [Math.min(width - 1, Math.max(0, x + across)), Math.min(height - 1, Math.max(0, y + down))]);
}

function showReadout(pane) {
  const { probe, map, picture } = pane;
  if (!probe || !picture) pane.readout.value = "";
  else {
    const values = map ? `: ${valuesAt(pane, probe[1] * picture.width + probe[0])}` : "";
    pane.readout.value = `x ${probe[0]}, y ${probe[1]}${values}`;
  }
}

function valuesAt({ map, sigma, picture }, place) {
  if (map.gradient) {
    const [red, green, blue] = [0, 1, 2].map((n) => number(map.gradient[n * picture.width * picture.height + place]));
    return `red ${red}, green ${green}, blue ${blue} ${sigma > 0 ? "smoothed" : "raw"}`;
  }
  const raw = `${number(map.raw[place])} raw`;
  return sigma > 0 || map.cells ? `${number(map.values[place])} as drawn, ${raw}` : raw;
}

// ---- progress, and the part that is shown

export function working(pane, what, { done = 0, total = 0 } = {}) {
  pane.progress.hidden = !what;
  if (total) pane.progress.value = done / total;
  else pane.progress.removeAttribute("value");
  pane.status.textContent = total ? `${what} ${done} of ${total}` : what;
  pane.root.toggleAttribute("data-working", Boolean(what));
}

/* Of the panes that wait for anything. */
export function showLoading({ graph, loaded, total }) {
  const mega = (bytes) => (bytes / 1e6).toFixed(1);
  for (const pane of state.panes.filter(({ progress }) => !progress.hidden)) {
    if (loaded < total) pane.progress.value = loaded / total;
    else pane.progress.removeAttribute("value");
    pane.status.textContent = loaded < total
      ? `Loading ${graph}, ${mega(loaded)} of ${mega(total)} MB` : `Preparing ${graph}`;
  }
}

export function setFrame(frame) {
  state.frame = frame;
  for (const { viewer } of state.panes) viewer.view = frame;
}

export const zoom = (factor) => active().viewer.zoom(factor);
