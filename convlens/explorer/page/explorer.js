/* The explorer: what the visitor does, and what follows from it. Numbers are made by the engines, pixels by layers.js
   and viewer.js, the parts around the picture by panels.js; here they are brought together. */
import { read, written } from "./address.js";
import { button, byId, element, number, text } from "./elements.js";
import { BrowserEngine, ServerEngine } from "./engines.js";
import { commandLine, npy, save } from "./files.js";
import { barOf, layerOf, mapOf, standardSigma } from "./layers.js";
import {
  colourBar, connectSearch, markSample, neighbourList, showAbout, showChips, showOptions, showPredictions, showSamples,
} from "./panels.js";
import { decode, prepare } from "./preprocess.js";
import { clamped, drawable, fitted, paint, Viewer, zoomFactor } from "./viewer.js";

const NEIGHBOURS = "neighbours";
const FIRST_METHODS = ["grad_cam", "guided_backprop", "saliency"]; // of a first visit, where the site has them
const SHOWN_CLASSES = 8;
const SHOWN_NEIGHBOURS = 10;
const STANDARD_OPACITY = 75;
const KEPT_RESULTS = 24;
const LEAST_PNG_SIDE = 896;
const HIDDEN_SHARE = 1 / 7; // of the input's side, at first

const state = {
  method: null,
  options: {}, // by method, of those that differ from its own
  view: "overlay",
  opacity: null,
  smooth: null,
  shared: false,
  compare: null, // "class" or "picture" where there are two panes
  panes: [],
  active: 0,
  hiding: false,
  window: null,
  frame: fitted(),
};
let site = null;
let engine = null;
const results = new Map(); // of methods, by what decides them; the latest last

// ---- small things

const active = () => state.panes[state.active];
const methodNow = () => engine.methods().find(({ name }) => name === state.method);
const opacity = () => (state.opacity ?? STANDARD_OPACITY) / 100;
const labelOf = (index) => site.model.labels[index] ?? String(index);
const sampleName = (sample) => sample.file.split("/").pop();

function notice(message) {
  byId("notice").textContent = message;
  byId("notice").hidden = !message;
}

function report(error) {
  if (error.name === "AbortError") return;
  notice(error.message);
  if (error.status === 401 || (error.status === 400 && /token/i.test(error.message))) askToken();
}

function remember() {
  history.replaceState(null, "", written(state));
}

// ---- panes

function newPane(picture = null, target = null) {
  const canvas = element("canvas", { tabindex: "0", role: "img" });
  const parts = {
    canvas, title: element("figcaption", {}), bar: element("div", { class: "bar-place" }),
    readout: element("output", { class: "readout" }), progress: element("progress", { max: "1", value: "0", hidden: true }),
    status: element("span", { class: "status", role: "status" }), notes: element("div", { class: "notes" }),
  };
  const root = element("figure", { class: "pane" }, parts.title,
    element("div", { class: "canvas-place" }, canvas, element("div", { class: "working" }, parts.progress, parts.status)),
    element("div", { class: "under" }, parts.bar, parts.readout), parts.notes);
  const pane = {
    root, ...parts, picture, target, sample: null, scores: null, hidden: null, result: null, map: null, layer: null,
    probe: null, job: null, hideJob: null,
  };
  pane.viewer = new Viewer(canvas, state.frame, {
    view: (view) => setFrame(view),
    probe: (pixel) => setProbe(pane, pixel),
    hide: (window) => setWindow(window),
  });
  canvas.addEventListener("keydown", (event) => canvasKey(pane, event));
  root.addEventListener("pointerdown", () => activate(pane));
  root.addEventListener("focusin", () => activate(pane));
  return pane;
}

function activate(pane) {
  const place = state.panes.indexOf(pane);
  if (place < 0 || place === state.active) return;
  state.active = place;
  showSide();
}

function showPanes() {
  byId("panes").replaceChildren(...state.panes.map(({ root }) => root));
  byId("panes").classList.toggle("two", state.panes.length > 1);
  for (const kind of ["class", "picture"]) {
    byId(`compare-${kind}`).setAttribute("aria-pressed", String(state.compare === kind));
  }
}

/* All around the picture that belongs to the active pane. */
function showSide() {
  const pane = active();
  state.panes.forEach(({ root }, n) => root.classList.toggle("active", state.panes.length > 1 && n === state.active));
  showPredictions({
    site, scores: pane.scores, hidden: state.hiding ? pane.hidden : null, target: targetOf(pane), count: SHOWN_CLASSES,
    name: state.panes.length > 1 ? `for the ${state.active ? "second" : "first"}` : "",
  }, chooseClass);
  markSample(site.samples.findIndex((sample) => sampleName(sample) === pane.sample));
  byId("command").textContent = pane.scores ? command(pane) : "";
  showCaptions();
  remember();
}

function showCaptions() {
  for (const pane of state.panes) {
    const target = targetOf(pane);
    const score = target === null ? null : pane.scores?.of(target);
    const method = methodNow();
    pane.title.replaceChildren(...(pane.picture ? [text(pane.picture.name, "picture-name"),
      target === null || method.name === NEIGHBOURS ? "" : element("span", {}, " for ", text(labelOf(target), "label")),
      score ? element("span", { class: "quiet" }, ` logit ${number(score.logit, 4)}`) : ""] : ["No picture yet"]));
    const name = pane.picture ? `${pane.picture.name}, ${method.title}${target === null ? "" : ` for ${labelOf(target)}`}` : "No picture";
    pane.canvas.setAttribute("aria-label", `${name}. Arrows read values, plus and minus zoom.`);
  }
}

const targetOf = (pane) => pane.target ?? pane.scores?.top(1)[0] ?? null;

// ---- pictures

async function readPicture(blob, name) {
  const image = await decode(blob);
  const prepared = prepare(image, site.preprocessing);
  const picture = { name, blob, image, ...prepared };
  return { ...picture, drawn: await drawable(picture) };
}

async function openPicture(pane, blob, name, sample = null) {
  notice("");
  try {
    const picture = await readPicture(blob, name);
    const others = state.compare === "class" ? state.panes.filter((each) => each !== pane) : [];
    // Two classes are of one picture.
    for (const each of [pane, ...others]) Object.assign(each, { picture, sample, scores: null, hidden: null, result: null });
    setFrame(fitted());
    showSide();
    await Promise.all([pane, ...others].map(predictAndExplain));
  } catch (error) {
    report(error);
  }
}

async function openSample(pane, place) {
  const sample = site.samples[place];
  try {
    const response = await fetch(sample.file);
    if (!response.ok) throw new Error(`${sample.file} cannot be read (${response.status})`);
    await openPicture(pane, await response.blob(), sampleName(sample), sampleName(sample));
  } catch (error) {
    report(error);
  }
}

function openFile(file) {
  return openPicture(active(), file, file.name || "pasted.png");
}

async function predictAndExplain(pane) {
  const { picture } = pane;
  show(pane);
  working(pane, "Predicting");
  try {
    const key = resultKey(pane, "predict", null);
    const scores = results.get(key) ?? await engine.predict(picture);
    keep(key, scores);
    if (pane.picture !== picture) return;
    pane.scores = scores;
    if (state.compare === "class" && pane === state.panes[1] && pane.target === null) pane.target = scores.top(2)[1] ?? null;
    showSide();
    await explainPane(pane);
    if (state.hiding) await hideIn(pane);
  } catch (error) {
    working(pane, "");
    report(error);
  }
}

// ---- explaining

let pictures = 0;
const pictureNumbers = new WeakMap();
function resultKey(pane, method, target) {
  const { picture } = pane;
  if (!pictureNumbers.has(picture)) pictureNumbers.set(picture, pictures += 1);
  return JSON.stringify([engine.place, pictureNumbers.get(picture), method, target, state.options[method] ?? {}]);
}

function keep(key, value) {
  results.delete(key);
  results.set(key, value);
  if (results.size > KEPT_RESULTS) results.delete(results.keys().next().value);
}

function explainAll() {
  return Promise.all(state.panes.map(async (pane) => {
    try {
      await explainPane(pane);
    } catch (error) {
      working(pane, "");
      report(error);
    }
  }));
}

async function explainPane(pane) {
  pane.job?.abort();
  const method = methodNow();
  if (!pane.scores || method.missing) {
    setResult(pane, null);
    working(pane, "");
    return;
  }
  const job = pane.job = new AbortController();
  const target = targetOf(pane);
  const key = resultKey(pane, method.name, target);
  const finished = results.get(key);
  working(pane, finished ? "" : method.title);
  try {
    const result = finished ?? await compute(pane, method, target, job.signal);
    if (job.signal.aborted) return;
    keep(key, result);
    setResult(pane, result);
    working(pane, "");
  } catch (error) {
    if (job.signal.aborted) return;
    setResult(pane, null);
    throw error;
  }
}

async function compute(pane, method, target, signal) {
  if (method.name === NEIGHBOURS) {
    return { neighbours: await engine.neighbours(pane.picture, SHOWN_NEIGHBOURS, signal) };
  }
  const options = { ...method.options, ...state.options[method.name] };
  const onPartial = (partial) => {
    if (signal.aborted) throw signal.reason; // the rest is not wanted any more
    if (partial.values) setResult(pane, { ...partial, drawing: method.drawing });
    working(pane, method.title, partial);
  };
  return engine.explain(pane.picture, method.name, target, options, onPartial, signal);
}

function setResult(pane, result) {
  pane.result = result;
  pane.notes.replaceChildren(...notesOf(result).map((note) => element("p", { class: "quiet" }, note)),
    ...(result?.neighbours ? [neighbourList(result.neighbours)] : []));
  showMaps();
}

/* What the method warns of, and where its numbers are others than the command line's. */
function notesOf(result) {
  const { warnings = [], noise = null } = result?.meta ?? {};
  return noise ? [...warnings, `Random numbers: ${noise}.`] : warnings;
}

function working(pane, what, { done = 0, total = 0 } = {}) {
  pane.progress.hidden = !what;
  if (total) pane.progress.value = done / total;
  else pane.progress.removeAttribute("value");
  pane.status.textContent = total ? `${what} ${done} of ${total}` : what;
  pane.root.toggleAttribute("data-working", Boolean(what));
}

function onLoading({ graph, loaded, total }) {
  for (const pane of state.panes.filter(({ progress }) => !progress.hidden)) {
    const mega = (bytes) => (bytes / 1e6).toFixed(1);
    if (loaded < total) {
      pane.progress.value = loaded / total;
      pane.status.textContent = `Loading ${graph}, ${mega(loaded)} of ${mega(total)} MB`;
    } else {
      pane.progress.removeAttribute("value");
      pane.status.textContent = `Preparing ${graph}`;
    }
  }
}

// ---- drawing

/* Maps of all panes, whose scale may be shared. */
function showMaps() {
  const method = methodNow();
  for (const pane of state.panes) {
    const sigma = state.smooth ?? (pane.result?.values ? standardSigma(pane.result, method, state.view) : 0);
    pane.sigma = sigma;
    pane.map = pane.result?.values ? mapOf(pane.result, method, state.view, sigma) : null;
  }
  const largest = Math.max(...state.panes.map(({ map }) => map?.limit ?? 0));
  for (const pane of state.panes) {
    pane.limit = state.shared ? largest : pane.map?.limit;
    pane.layer = pane.map && layerOf(pane.map, pane.picture, state.view, pane.limit, site.colormaps);
    show(pane);
    showBar(pane);
  }
  showControls();
}

function show(pane) {
  const { picture, layer, probe } = pane;
  if (!picture) return;
  pane.viewer.show({
    picture, drawn: picture.drawn, layer, opacity: opacity(), kind: state.view, hiding: state.hiding,
    window: state.hiding ? state.window : null, probe,
  });
}

function showBar(pane) {
  const isShown = pane.map && state.view !== "photo";
  const unit = `${smoothingText(pane)}${state.shared && state.panes.length > 1 ? ", shared scale" : ""}`;
  pane.bar.replaceChildren(...(isShown
    ? [colourBar({ ...barOf(pane.map, state.view, pane.limit, opacity(), site.colormaps), unit })] : []));
  showReadout(pane);
}

function smoothingText({ sigma, map }) {
  const cells = map?.cells ? `drawn from ${map.cells[1]} × ${map.cells[2]} cells` : "";
  const smoothing = sigma > 0 ? `smoothed, σ ${sigma} px` : cells ? "" : "raw";
  return [cells, smoothing].filter(Boolean).join(", ");
}

function showReadout(pane) {
  const { probe, map, picture } = pane;
  if (!probe || !picture) {
    pane.readout.value = "";
    return;
  }
  const values = map ? `: ${valuesAt(pane, probe[1] * picture.width + probe[0])}` : "";
  pane.readout.value = `x ${probe[0]}, y ${probe[1]}${values}`;
}

function valuesAt({ map, sigma, picture }, place) {
  if (map.gradient) {
    const channels = [0, 1, 2].map((n) => number(map.gradient[n * picture.width * picture.height + place]));
    return `red ${channels[0]}, green ${channels[1]}, blue ${channels[2]} ${sigma > 0 ? "smoothed" : "raw"}`;
  }
  const raw = `${number(map.raw[place])} raw`;
  return sigma > 0 || map.cells ? `${number(map.values[place])} as drawn, ${raw}` : raw;
}

function showControls() {
  for (const made of document.querySelectorAll("[data-view]")) {
    made.setAttribute("aria-pressed", String(made.dataset.view === state.view));
  }
  byId("opacity").value = 100 * opacity();
  byId("opacity").disabled = state.view !== "overlay";
  byId("opacity-value").value = `${Math.round(100 * opacity())} %`;
  const sigma = active()?.sigma ?? 0;
  byId("smooth").value = sigma;
  byId("smooth").disabled = state.view === "photo";
  byId("smooth-value").value = sigma > 0 ? `σ ${sigma} px` : "raw";
  byId("shared").checked = state.shared;
  byId("shared").disabled = state.panes.length < 2;
  byId("hide").setAttribute("aria-pressed", String(state.hiding));
}

function setFrame(frame) {
  state.frame = frame;
  for (const { viewer } of state.panes) viewer.view = frame;
}

function setProbe(pane, pixel) {
  pane.probe = pixel;
  showReadout(pane);
  show(pane);
}

// ---- what the visitor chooses

function chooseMethod(name) {
  state.method = name;
  showMethod();
  showSide();
  return explainAll();
}

function showMethod() {
  const method = methodNow();
  showChips(engine.methods(), state.method, chooseMethod);
  showAbout(method);
  showOptions(method, state.options[method.name] ?? {}, setOption);
}

function setOption(name, value) {
  const method = methodNow();
  const options = { ...state.options[method.name], [name]: value };
  if (value === method.options[name]) delete options[name];
  state.options = { ...state.options, [method.name]: options };
  showSide();
  explainAll();
}

function stepMethod(by) {
  const present = engine.methods().filter(({ missing }) => !missing);
  const place = present.findIndex(({ name }) => name === state.method);
  if (present.length) chooseMethod(present[(place + by + present.length) % present.length].name);
}

function chooseClass(index) {
  const pane = active();
  pane.target = index;
  showSide();
  byId("predictions").querySelector(`[data-class="${index}"]`)?.focus();
  explainPane(pane).catch((error) => {
    working(pane, "");
    report(error);
  });
}

function setView(view) {
  state.view = view;
  showMaps();
  remember();
}

/* Two classes of one picture, or two pictures; a second time, one pane again. */
function compare(kind) {
  const [first] = state.panes;
  for (const pane of state.panes.slice(1)) pane.job?.abort();
  if (state.compare === kind) {
    Object.assign(state, { compare: null, panes: [first], active: 0 });
  } else {
    const second = newPane(first.picture);
    Object.assign(second, { sample: first.sample, scores: first.scores });
    if (kind === "class") second.target = first.scores?.top(2).find((index) => index !== targetOf(first)) ?? null;
    Object.assign(state, { compare: kind, panes: [first, second], active: 1 });
    if (kind === "picture") openOther(second, first);
    else if (first.picture) predictAndExplain(second);
  }
  showPanes();
  showSide();
  showMaps();
}

/* Another sample than the first pane's, or a picture that the visitor opens. */
function openOther(second, first) {
  const other = site.samples.findIndex((sample) => sampleName(sample) !== first.sample);
  if (other >= 0) openSample(second, other);
  else if (first.picture) predictAndExplain(second);
}

// ---- hiding by hand

function setHiding(isHiding) {
  state.hiding = isHiding;
  const { picture } = active();
  if (isHiding && picture && !state.window) {
    const side = HIDDEN_SHARE * Math.min(picture.width, picture.height);
    state.window = clamped({ left: (picture.width - side) / 2, top: (picture.height - side) / 2, width: side, height: side }, picture);
  }
  for (const pane of state.panes) pane.hidden = null;
  byId("panes").classList.toggle("hiding", isHiding);
  showSide();
  showMaps();
  if (isHiding) hideInAll();
}

function setWindow(window) {
  state.window = window;
  state.panes.forEach(show);
  hideInAll();
}

function hideInAll() {
  for (const pane of state.panes) hideIn(pane).catch(report);
}

/* One at a time for each pane, the latest window last: those in between are not asked for. */
async function hideIn(pane) {
  if (!pane.picture || !pane.scores || !state.window) return;
  pane.wanted = state.window;
  if (pane.isHiding) return;
  pane.isHiding = true;
  try {
    while (pane.wanted && state.hiding) {
      const [window, { picture }] = [pane.wanted, pane];
      pane.wanted = null;
      const scores = await engine.hide(picture, window);
      if (!state.hiding || pane.picture !== picture) break;
      pane.hidden = scores;
      pane.hiddenWindow = window;
      if (pane === active()) showSide();
    }
  } finally {
    pane.isHiding = false;
  }
}

// ---- keys

const TEXT_FIELDS = ["text", "search", "number", "password"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PAN_PIXELS = 40;
const WINDOW_STEP = 4;

function canvasKey(pane, event) {
  const arrow = ARROWS[event.key];
  if (!arrow || !pane.picture || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const [across, down] = arrow;
  if (state.hiding) moveWindow(pane.picture, across, down, event.shiftKey);
  else if (event.shiftKey) pane.viewer.pan(-PAN_PIXELS * across, -PAN_PIXELS * down);
  else moveProbe(pane, across, down);
}

function moveWindow(picture, across, down, isResized) {
  const { left, top, width, height } = state.window;
  const [x, y] = [WINDOW_STEP * across, WINDOW_STEP * down];
  setWindow(clamped(isResized
    ? { left, top, width: width + x, height: height + y } : { left: left + x, top: top + y, width, height }, picture));
}

function moveProbe(pane, across, down) {
  const { width, height } = pane.picture;
  const [x, y] = pane.probe ?? [Math.floor(width / 2) - across, Math.floor(height / 2) - down];
  setProbe(pane, [Math.min(width - 1, Math.max(0, x + across)), Math.min(height - 1, Math.max(0, y + down))]);
}

const KEYS = {
  1: () => setView("overlay"),
  2: () => setView("map"),
  3: () => setView("photo"),
  o: () => byId("file").click(),
  h: () => {
    setHiding(!state.hiding);
    if (state.hiding) active().canvas.focus();
  },
  "/": () => byId("class-search").focus(),
  "[": () => stepMethod(-1),
  "]": () => stepMethod(1),
  "+": () => active().viewer.zoom(zoomFactor(1)),
  "=": () => active().viewer.zoom(zoomFactor(1)),
  "-": () => active().viewer.zoom(zoomFactor(-1)),
  0: () => setFrame(fitted()),
  "?": () => byId("help-dialog").showModal(),
  Escape: () => state.hiding && setHiding(false),
};

function pageKey(event) {
  const isTyping = TEXT_FIELDS.includes(event.target.type) || document.querySelector("dialog[open]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

// ---- what can be kept

function command(pane) {
  const options = state.options[state.method] ?? {};
  return commandLine(site.commands.explain, {
    file: pane.picture.name, method: state.method, target: targetOf(pane) ?? "", changed: options,
  });
}

const fileStem = (pane) => [pane.picture.name.replace(/\.\w+$/, ""), state.method, targetOf(pane)].join("-");

async function savePng() {
  const pane = active();
  if (!pane.picture) return;
  const { width, height } = pane.picture;
  const scale = Math.max(1, Math.ceil(LEAST_PNG_SIDE / Math.max(width, height)));
  const canvas = new OffscreenCanvas(scale * width, scale * height);
  const scene = { picture: pane.picture, drawn: pane.picture.drawn, layer: pane.layer, opacity: opacity(), kind: state.view };
  paint(canvas.getContext("2d"), scene, { left: 0, top: 0, width: canvas.width, height: canvas.height, scale });
  save(await canvas.convertToBlob({ type: "image/png" }), `${fileStem(pane)}.png`);
  byId("kept").value = "Saved as it is drawn.";
}

function saveNpy() {
  const pane = active();
  if (!pane.result?.values) {
    byId("kept").value = "There are no values to save yet.";
    return;
  }
  save(npy(pane.result.values, pane.result.dims), `${fileStem(pane)}.npy`);
  byId("kept").value = "Saved: raw values, float32, (C, H, W).";
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    byId("kept").value = "Copied.";
  } catch {
    getSelection().selectAllChildren(byId("command"));
    byId("kept").value = "Selected; copy it by Ctrl+C.";
  }
}

// ---- camera, files and the server's token

async function openCamera() {
  const [dialog, video, problem] = [byId("camera-dialog"), byId("video"), byId("camera-problem")];
  problem.hidden = true;
  byId("shoot").disabled = true;
  dialog.showModal();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    byId("shoot").disabled = false;
  } catch (error) {
    problem.textContent = `No camera: ${error.message}`;
    problem.hidden = false;
  }
}

function closeCamera() {
  for (const track of byId("video").srcObject?.getTracks() ?? []) track.stop();
  byId("video").srcObject = null;
}

async function shoot() {
  const video = byId("video");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  byId("camera-dialog").close();
  openPicture(active(), await canvas.convertToBlob({ type: "image/png" }), "camera.png");
}

function askToken() {
  const field = element("input", { type: "password", autocomplete: "off", "aria-label": "Token of the server" });
  const use = () => {
    engine.token = field.value.trim();
    notice("");
    state.panes.filter(({ picture }) => picture).forEach(predictAndExplain);
  };
  byId("notice").append(" Token: ", field, " ", button({}, use, "Use it"));
}

function connectFiles() {
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) openFile(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
  addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && openFile(clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").hidden = true;
    const pane = state.panes.find(({ root }) => root.contains(event.target));
    if (pane) activate(pane);
    if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  });
}

function connect() {
  const on = (id, act) => byId(id).addEventListener("click", act);
  on("open", () => byId("file").click());
  on("camera", openCamera);
  on("shoot", shoot);
  on("help", () => byId("help-dialog").showModal());
  on("compare-class", () => compare("class"));
  on("compare-picture", () => compare("picture"));
  on("hide", () => setHiding(!state.hiding));
  on("zoom-in", () => active().viewer.zoom(zoomFactor(1)));
  on("zoom-out", () => active().viewer.zoom(zoomFactor(-1)));
  on("zoom-fit", () => setFrame(fitted()));
  on("save-png", () => savePng().catch(report));
  on("save-npy", saveNpy);
  on("copy-command", copyCommand);
  for (const made of document.querySelectorAll("[data-view]")) made.addEventListener("click", () => setView(made.dataset.view));
  for (const made of document.querySelectorAll("[data-close]")) made.addEventListener("click", () => made.closest("dialog").close());
  byId("camera-dialog").addEventListener("close", closeCamera);
  byId("opacity").addEventListener("input", ({ target }) => {
    state.opacity = Number(target.value);
    state.panes.forEach((pane) => { show(pane); showBar(pane); });
    showControls();
    remember();
  });
  byId("smooth").addEventListener("input", ({ target }) => {
    state.smooth = Number(target.value);
    setView(state.view);
  });
  byId("shared").addEventListener("change", ({ target }) => {
    state.shared = target.checked;
    setView(state.view);
  });
  document.addEventListener("keydown", pageKey);
  connectFiles();
  connectSearch(site.model.labels, chooseClass);
}

// ---- start

async function fetchSite() {
  const response = await fetch("site.json");
  if (!response.ok) throw new Error(`site.json cannot be read (${response.status}); write the folder with convlens explore`);
  return response.json();
}

function firstMethod(asked) {
  const methods = engine.methods();
  const present = methods.filter(({ missing }) => !missing).map(({ name }) => name);
  if (methods.some(({ name }) => name === asked)) return asked;
  return FIRST_METHODS.find((name) => present.includes(name)) ?? present[0] ?? methods[0].name;
}

function restore(asked) {
  const { view, opacity: share, smooth, shared, options, window } = asked;
  Object.assign(state, { view, opacity: share, smooth, shared, options, window, method: firstMethod(asked.method) });
  state.compare = asked.compare;
  state.panes = (asked.compare ? [0, 1] : [0]).map((n) => newPane(null, knownClass(asked.targets[n])));
}

const knownClass = (index) => (index !== null && index < site.model.labels.length ? index : null);

async function start() {
  site = await fetchSite();
  engine = site.server ? new ServerEngine(site) : new BrowserEngine(site, { onProgress: onLoading });
  byId("model").textContent = site.model.name;
  document.title = `${site.model.name}: ConvLens explorer`;
  byId("where").textContent = site.server
    ? `The network runs ${engine.place}; pictures are sent there.`
    : "The network runs in this page: no picture leaves it.";
  const asked = read(location.hash);
  restore(asked);
  connect();
  showSamples(site.samples, (place) => openSample(active(), place));
  showPanes();
  showMethod();
  showSide();
  showControls();
  await openFirst(asked);
  if (asked.window) setHiding(true);
}

/* The samples that the address names, or the first one: a page with a picture says more than one without. */
async function openFirst({ samples }) {
  const placeOf = (name) => site.samples.findIndex((sample) => sampleName(sample) === name);
  const places = state.panes.map((_, n) => (samples[n] ? placeOf(samples[n]) : -1));
  if (!site.samples.length) {
    notice("Open, drop or paste a picture to begin.");
    return;
  }
  await Promise.all(state.panes.map((pane, n) => {
    if (state.compare === "class" && n) return null;
    return openSample(pane, places[n] >= 0 ? places[n] : Math.min(n, site.samples.length - 1));
  }));
}

start().catch(report);
