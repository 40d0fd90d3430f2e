/* The explorer: brings the parts together. Engines compute, panes show pictures with their maps, panels.js draws what
   is around them; here is what follows from what the visitor chooses. */
import { read, written } from "./address.js";
import { button, byId, element } from "./elements.js";
import { BrowserEngine, ServerEngine } from "./engines.js";
import { explain, explainAll, otherClass, predictAndExplain } from "./explaining.js";
import { hideInAll, setHiding, setWindow } from "./hiding.js";
import { command, copyCommand, saveNpy, savePng } from "./keeping.js";
import { canvasKey, connectKeys } from "./keys.js";
import {
  connectSearch, markSample, showAbout, showChips, showOptions, showPredictions, showSamples,
} from "./panels.js";
import { newPane, setFrame, show, showBar, showCaptions, showLoading, showMaps, zoom } from "./panes.js";
import { connectCamera, connectFiles, openSample } from "./sources.js";
import {
  active, changed, context, methodNow, onChange, onProblem, opacity, sampleName, state, targetOf,
} from "./state.js";
import { connectUnits } from "./unit_list.js";
import { fitted, zoomFactor } from "./viewer.js";

const FIRST_METHODS = ["grad_cam", "guided_backprop", "saliency"]; // of a first visit, where the site has them
const SHOWN_CLASSES = 8;
const REST_MS = 150;

// ---- around the pictures

function showSide() {
  const pane = active();
  const { site } = context;
  showPredictions({
    site, scores: pane.scores, hidden: state.hiding ? pane.hidden : null, target: targetOf(pane), count: SHOWN_CLASSES,
    name: state.panes.length > 1 ? `for the ${state.active ? "second" : "first"}` : "",
  }, chooseClass);
  markSample(site.samples.findIndex((sample) => sampleName(sample) === pane.sample));
  byId("command").textContent = pane.scores ? command(pane) : "";
  showCaptions();
  showControls();
  rememberSoon();
}

let remembering = null;

/* Once what changes is at rest: browsers warn of a page that writes its address with every step of a pointer. */
function rememberSoon() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    if (written(state) !== location.hash) history.replaceState(null, "", written(state));
  }, REST_MS);
}

function showControls() {
  for (const made of document.querySelectorAll("[data-view]")) {
    made.setAttribute("aria-pressed", String(made.dataset.view === state.view));
  }
  byId("opacity").value = 100 * opacity();
  byId("opacity").disabled = state.view !== "overlay";
  byId("opacity-value").value = `${Math.round(100 * opacity())} %`;
  const { sigma } = active();
  byId("smooth").value = sigma;
  byId("smooth").disabled = state.view === "photo";
  byId("smooth-value").value = sigma > 0 ? `σ ${sigma} px` : "raw";
  byId("shared").checked = state.shared;
  byId("shared").disabled = state.panes.length < 2;
  byId("hide").setAttribute("aria-pressed", String(state.hiding));
  byId("panes").classList.toggle("hiding", state.hiding);
  for (const kind of ["class", "picture"]) {
    byId(`compare-${kind}`).setAttribute("aria-pressed", String(state.compare === kind));
  }
}

function showMethod() {
  const method = methodNow();
  showChips(context.engine.methods(), state.method, chooseMethod);
  showAbout(method);
  showOptions(method, state.options[method.name] ?? {}, setOption);
}

function showPanes() {
  byId("panes").replaceChildren(...state.panes.map(({ root }) => root));
  byId("panes").classList.toggle("two", state.panes.length > 1);
}

function showProblem(error) {
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
  if (error.status === 401 || (error.status === 400 && /token/i.test(error.message))) askToken();
}

/* Of a server that wants one; the page keeps it no longer than it is open. */
function askToken() {
  const field = element("input", { type: "password", autocomplete: "off", "aria-label": "Token of the server" });
  const use = () => {
    context.engine.token = field.value.trim();
    byId("notice").hidden = true;
    state.panes.filter(({ picture }) => picture).forEach(predictAndExplain);
  };
  byId("notice").append(" Token: ", field, " ", button({}, use, "Use it"));
}

// ---- what the visitor chooses

function chooseMethod(name) {
  state.method = name;
  showMethod();
  byId("chips").querySelector(`[data-method="${name}"]`)?.focus({ preventScroll: true }); // the pressed one is new
  changed();
  explainAll();
}

function stepMethod(by) {
  const present = context.engine.methods().filter(({ missing }) => !missing);
  const place = present.findIndex(({ name }) => name === state.method);
  if (present.length) chooseMethod(present[(place + by + present.length) % present.length].name);
}

function setOption(name, value) {
  const method = methodNow();
  const options = { ...state.options[method.name], [name]: value };
  if (value === method.options[name]) delete options[name];
  state.options = { ...state.options, [method.name]: options };
  changed();
  explainAll();
}

function chooseClass(index) {
  active().target = index;
  changed();
  byId("predictions").querySelector(`[data-class="${index}"]`)?.focus();
  explain(active());
}

function setView(view) {
  state.view = view;
  showMaps();
  changed();
}

function activate(pane) {
  const place = state.panes.indexOf(pane);
  if (place < 0 || place === state.active) return;
  state.active = place;
  changed();
}

const paneEvents = { hide: (window) => { setWindow(window); changed(); }, key: keyOnPane, activate };

function keyOnPane(pane, event) {
  canvasKey(pane, event);
  if (state.hiding) changed();
}

/* Two classes of one picture, or two pictures; a second time, one pane again. */
function compare(kind) {
  const [first, ...others] = state.panes;
  for (const { job } of others) job?.abort();
  if (state.compare === kind) Object.assign(state, { compare: null, panes: [first], active: 0 });
  else compareWith(first, kind);
  showPanes();
  showMaps();
  changed();
}

function compareWith(first, kind) {
  const second = newPane(paneEvents, first.picture);
  Object.assign(second, { sample: first.sample, scores: first.scores });
  Object.assign(state, { compare: kind, panes: [first, second], active: 1 });
  if (kind === "class" && first.scores) second.target = otherClass(first.scores, targetOf(first));
  // Of two pictures the second is another sample, until the visitor opens one.
  const other = context.site.samples.findIndex((sample) => sampleName(sample) !== first.sample);
  if (kind === "picture" && other >= 0) openSample(second, other);
  else if (first.picture) predictAndExplain(second);
}

function connect() {
  const on = (id, act) => byId(id).addEventListener("click", act);
  on("open", () => byId("file").click());
  on("help", () => byId("help-dialog").showModal());
  on("compare-class", () => compare("class"));
  on("compare-picture", () => compare("picture"));
  on("hide", () => setHiding(!state.hiding));
  on("zoom-in", () => zoom(zoomFactor(1)));
  on("zoom-out", () => zoom(zoomFactor(-1)));
  on("zoom-fit", () => setFrame(fitted()));
  on("save-png", () => savePng().catch(showProblem));
  on("save-npy", saveNpy);
  on("copy-command", copyCommand);
  for (const made of document.querySelectorAll("[data-view]")) {
    made.addEventListener("click", () => setView(made.dataset.view));
  }
  for (const made of document.querySelectorAll("[data-close]")) {
    made.addEventListener("click", () => made.closest("dialog").close());
  }
  connectSettings();
  connectKeys({ view: setView, stepMethod });
  connectFiles(activate);
  connectCamera();
  connectSearch(context.site.model.labels, chooseClass);
  addEventListener("hashchange", () => location.reload()); // an address that the visitor wrote
}

function connectSettings() {
  byId("opacity").addEventListener("input", ({ target }) => {
    state.opacity = Number(target.value);
    state.panes.forEach((pane) => { show(pane); showBar(pane); }); // the map itself stays as it is
    changed();
  });
  byId("smooth").addEventListener("input", ({ target }) => {
    state.smooth = Number(target.value);
    setView(state.view);
  });
  byId("shared").addEventListener("change", ({ target }) => {
    state.shared = target.checked;
    setView(state.view);
  });
  byId("engine").addEventListener("change", ({ target }) => {
    state.onServer = target.value === "server";
    chooseEngine();
    showMethod();
    state.panes.filter(({ picture }) => picture).forEach(predictAndExplain);
    hideInAll();
  });
}

// ---- start

async function fetchSite() {
  const response = await fetch("site.json");
  if (!response.ok) {
    throw new Error(`site.json cannot be read (${response.status}); write the folder with convlens explore`);
  }
  return response.json();
}

const engines = {};
const pageEngine = () => engines.page ??= new BrowserEngine(context.site, { onProgress: showLoading });

/* The page itself where it has graphs, unless the visitor prefers the server. */
function chooseEngine() {
  const { site } = context;
  const hasGraphs = Boolean(site.graphs.scores);
  state.onServer = Boolean(site.server) && (state.onServer || !hasGraphs);
  context.engine = state.onServer
    ? engines.server ??= new ServerEngine(site) : pageEngine();
  byId("engine-place").hidden = !site.server || !hasGraphs;
  byId("engine").value = state.onServer ? "server" : "page";
  byId("where").textContent = state.onServer
    ? `The network runs ${context.engine.place}; pictures are sent there.`
    : "The network runs in this page: no picture leaves it.";
}

function firstMethod(asked) {
  const methods = context.engine.methods();
  const present = methods.filter(({ missing }) => !missing).map(({ name }) => name);
  if (methods.some(({ name }) => name === asked)) return asked;
  return FIRST_METHODS.find((name) => present.includes(name)) ?? present[0] ?? methods[0].name;
}

function restore({ method, samples, targets, ...asked }) {
  Object.assign(state, asked);
  chooseEngine();
  state.method = firstMethod(method);
  const known = (index) => (index !== null && index < context.site.model.labels.length ? index : null);
  state.panes = (state.compare ? [0, 1] : [0]).map((n) => newPane(paneEvents, null, known(targets[n])));
}

async function start() {
  onProblem(showProblem);
  onChange(showSide);
  const { model, samples } = context.site = await fetchSite();
  byId("model").textContent = model.name;
  document.title = `${model.name}: ConvLens explorer`;
  const asked = read(location.hash);
  restore(asked);
  connect();
  connectUnits(pageEngine);
  showSamples(samples, (place) => openSample(active(), place));
  showPanes();
  showMethod();
  changed();
  await openFirst(asked);
  if (asked.window) setHiding(true);
}

/* The samples that the address names, or the first ones: a page with a picture says more than one without. */
async function openFirst({ samples: names }) {
  const { samples } = context.site;
  if (!samples.length) {
    showProblem(new Error("Open, drop or paste a picture to begin."));
    return;
  }
  const panes = state.compare === "class" ? state.panes.slice(0, 1) : state.panes; // those open it in all
  await Promise.all(panes.map((pane, n) => {
    const place = samples.findIndex((sample) => sampleName(sample) === names[n]);
    return openSample(pane, place >= 0 ? place : Math.min(n, samples.length - 1));
  }));
}

start().catch(showProblem);
