/* What the page knows: the site, the engine that computes, what the visitor chose, and the panes with their pictures.
   A pane is {picture, target, sample, scores, hidden, result, map, layer, sigma, limit, probe} with its elements. */
import { fitted } from "./viewer.js";

const STANDARD_OPACITY = 75;

export const context = { site: null, engine: null };

export const state = {
  method: null,
  options: {}, // by method, of those that differ from its own
  view: "overlay",
  opacity: null, // null: as is standard, and so `smooth`
  smooth: null,
  shared: false,
  compare: null, // "class" or "picture" where there are two panes
  panes: [],
  active: 0,
  hiding: false,
  window: null,
  frame: fitted(),
  onServer: false,
  units: null, // the layer whose strongest units are listed; null while the list is shut
  unitOrder: "share",
};

export const active = () => state.panes[state.active];
export const methodNow = () => context.engine.methods().find(({ name }) => name === state.method);
export const opacity = () => (state.opacity ?? STANDARD_OPACITY) / 100;
export const labelOf = (index) => context.site.model.labels[index] ?? String(index);
export const targetOf = (pane) => pane.target ?? pane.scores?.top(1)[0] ?? null;
export const sampleName = (sample) => sample.file.split("/").pop();

// ---- whoever draws what is around the pictures hears of changes here

const listeners = [];
export const onChange = (listener) => listeners.push(listener);
export const changed = () => listeners.forEach((listener) => listener());

// ---- what went wrong

const handlers = [];
export const onProblem = (handler) => handlers.push(handler);

/* For whatever goes on beside the visitor's own doing; what was stopped on purpose is no problem. */
export function report(error) {
  if (error.name !== "AbortError") handlers.forEach((handler) => handler(error));
}
